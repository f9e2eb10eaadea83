"""Means over latents, and the distance of two policies."""

from __future__ import annotations

import torch


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The same in float32; float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def like(numbers: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Numbers [B] in the shape and type in which they multiply latents [B, ...]."""
    return numbers.to(latents).view(-1, *[1] * (latents.ndim - 1))


def row_mean(values: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """[B, ...] -> [B], over everything but the batch.

    weights  broadcast to `values`; how much each place counts. Only their proportions within a row matter; a row of
             zeros gives NaN
    """
    if weights is None:
        return values.flatten(1).mean(1)
    weights = weights.to(values).expand_as(values).flatten(1)
    return (values.flatten(1) * weights).sum(1) / weights.sum(1)


def velocity_gap(velocity: torch.Tensor, reference: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """[B]: mean squared distance to a frozen policy's velocity.

    A KL divergence up to a factor that depends on the noise level alone: NVlabs/DiffusionNFT scripts/train_nft_sd3.py
    (kl_div_loss), Flow-Factory's "v-based".
    """
    return row_mean((wide(velocity) - wide(reference)) ** 2, weights)
