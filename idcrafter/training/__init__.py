"""Training of what the pack adds to a video model: data sets, adapters."""
