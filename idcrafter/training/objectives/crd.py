"""Centred reward distillation: how much better the policy fits a take than the old one did should be how much better
the take is (arXiv 2603.14128).

Read from X-GenGroup/Flow-Factory, trainers/crd.py, with its uniform weights. With the implicit reward of a take

    rho = |v_old - u|^2 / n_old - |v - u|^2 / n        n, n_old: mean absolute errors, without gradient

and r = clip(A / A_max, -1, 1) / 2 + 1/2:

    loss = A_max / beta * (beta (rho - mean rho) - (r - mean r))^2

Means are over the takes of one prompt, which cancels the part of a reward that nobody can know; the mean of rho has no
gradient.
"""

from __future__ import annotations

import torch

from .weighting import row_mean, wide

BETA = 1.0
LIMIT = 5.0
_FLOOR = 1e-5


def crd_loss(
    velocity: torch.Tensor,
    old: torch.Tensor,
    target: torch.Tensor,
    advantages: torch.Tensor,
    *,
    beta: float = BETA,
    limit: float = LIMIT,
    weights: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """ "loss", and "implicit": rho. velocity, old, target [B, C, T, h, w] and advantages [B] of takes of one prompt."""
    if len(velocity) < 2:
        raise ValueError("Centred reward distillation compares takes; it needs at least two of a prompt in a batch.")
    target = wide(target)

    def fit(prediction: torch.Tensor) -> torch.Tensor:
        away = wide(prediction) - target
        return row_mean(away**2, weights) / row_mean(away.detach().abs(), weights).clamp(min=_FLOOR)

    implicit = fit(old.detach()) - fit(velocity)
    reward = advantages.to(implicit).clamp(-limit, limit) / limit / 2 + 0.5
    away = beta * (implicit - implicit.detach().mean()) - (reward - reward.mean())
    return {"loss": away**2 * (limit / beta), "implicit": implicit.detach()}
