"""Training of identity adapters on a video DiT that is left as it is, but for an optional LoRA."""
