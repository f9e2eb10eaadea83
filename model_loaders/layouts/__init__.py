"""One module a backbone: the tensor names of its layouts, and how its sizes are read off a file."""
