"""One API graph over a table of casts, prompts and seeds, on one headless ComfyUI or on many (`collect.command`)."""
