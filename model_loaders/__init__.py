"""From a file on disk to a live object; one file a kind. Keys and shapes are checked before anything is allocated."""
