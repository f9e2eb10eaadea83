"""What the pack knows about the insides of ComfyUI's video models; one file a family."""
