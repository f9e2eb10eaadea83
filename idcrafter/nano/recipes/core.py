"""ComfyUI's own classes for training outside of a server."""

from __future__ import annotations

import os
import sys


def use_comfyui() -> None:
    """Makes ComfyUI's ``comfy`` importable and sets it up for this machine.

    The folder comes from ``IDCRAFTER_COMFYUI`` unless ``comfy`` can already be imported. The CPU is used when there is
    no CUDA.
    """
    folder = os.environ.get("IDCRAFTER_COMFYUI")
    if folder and folder not in sys.path:
        sys.path.insert(0, folder)
    import torch

    try:
        import comfy.cli_args
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "ComfyUI was not found. Set IDCRAFTER_COMFYUI to its folder, or start this through `python run.py`."
        ) from error
    if not torch.cuda.is_available():
        comfy.cli_args.args.cpu = True
    # core's default on a CPU recomputes attention in the backward pass
    comfy.cli_args.args.use_pytorch_cross_attention = True


def device():
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
