"""Reward-weighted regression: flow matching on the takes, of which better ones count more.

    loss = exp(A / temperature) |v - u|^2

Peters and Schaal 2007; Flow-RWR (Liu et al., arXiv 2501.13918) has the reward for A. A group's own normalisation is
nearer to what it approximates, p(clip | prompt) ~ p_ref(clip | prompt) exp(r / temperature) / Z(prompt): a constant of
the prompt falls out. A low temperature leaves the best take of each group alone. Nothing is pushed away, so that it
gives less than the other methods, and breaks less.
"""

from __future__ import annotations

import torch

from .weighting import row_mean, wide

TEMPERATURE = 1.0


def rwr_loss(
    velocity: torch.Tensor,
    target: torch.Tensor,
    advantages: torch.Tensor,
    *,
    temperature: float = TEMPERATURE,
    weights: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """ "loss", and "error": the unweighted one. velocity, target [B, C, T, h, w]; advantages [B]."""
    if not temperature > 0:
        raise ValueError(f"The temperature of reward-weighted regression is {temperature}; it must be more than 0.")
    error = row_mean((wide(velocity) - wide(target)) ** 2, weights)
    return {"loss": torch.exp(advantages.to(error) / temperature) * error, "error": error.detach()}
