"""Seeds and noise of takes: one CPU generator a take, so take k of a batch equals take k alone."""

from __future__ import annotations

import comfy.sample
import torch

SEED_RANGE = 2**64


def take_seeds(base_seed: int, count: int) -> list[int]:
    """base_seed, base_seed + 1, ... wrapping at 2**64 (the widget's range)."""
    return [(base_seed + k) % SEED_RANGE for k in range(count)]


def take_noise(latent: dict, seed: int) -> torch.Tensor:
    """The noise that core's RandomNoise makes for this one-sample LATENT: same shape, on the CPU."""
    return comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))
