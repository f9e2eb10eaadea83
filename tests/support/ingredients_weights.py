"""Seeded weights and inputs at small sizes, the same for the reference's modules and for ours."""

from __future__ import annotations

from collections.abc import Mapping

import torch

# The reference's router has a fixed width of 2048; the rest may be small.
WIDTH, ID_WIDTH, TOKENS, HEADS, HEAD_WIDTH = 24, 2048, 4, 2, 8
SUBJECTS, LENGTH = 2, 6


def seeded(shapes: Mapping[str, torch.Size], seed: int) -> dict[str, torch.Tensor]:
    """Normal weights of unit gain by name; norms near 1 and 0."""
    weights = {}
    for number, name in enumerate(sorted(shapes)):
        generator = torch.Generator().manual_seed(seed * 1000 + number)
        values = torch.randn(shapes[name], generator=generator)
        if len(shapes[name]) > 1:
            weights[name] = values * shapes[name][-1] ** -0.5
        else:
            weights[name] = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
    return weights


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Identity tokens [SUBJECTS, TOKENS, ID_WIDTH] and video tokens [1, LENGTH, WIDTH]."""
    generator = torch.Generator().manual_seed(7)
    return (
        torch.randn((SUBJECTS, TOKENS, ID_WIDTH), generator=generator),
        torch.randn((1, LENGTH, WIDTH), generator=generator),
    )
