"""What ComfyUI does otherwise when it trains, for as long as a training runs and no longer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import torch
from torch import nn


@contextmanager
def training_kernels() -> Iterator[None]:
    """Core's kernels that have a gradient: those for inference (rope, quantised products) have none."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def freeze(module: nn.Module) -> None:
    """Weights without gradients that autograd may keep for the backward pass.

    Nodes load models in inference mode, and what is made there may not be kept; such weights are copied, one by one.
    """
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.is_inference():
                part.register_parameter(name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
            else:
                parameter.requires_grad_(False)
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_inference():
                setattr(part, name, buffer.clone())


def freeze_scaling(latent_format: object) -> None:
    """The same for the numbers by which a model's latents are scaled for its VAE."""
    for name, value in vars(latent_format).items():
        if torch.is_tensor(value) and value.is_inference():
            setattr(latent_format, name, value.clone())
