"""DiffusionNFT: better takes pull the velocity, worse takes push it (Zheng et al., arXiv 2509.16117).

Read from NVlabs/DiffusionNFT, scripts/train_nft_sd3.py. With the frozen policy v_old that made the takes,
r = clip(A / A_max, -1, 1) / 2 + 1/2 and

    v+ = beta v + (1 - beta) v_old        v- = (1 + beta) v_old - beta v
    loss = A_max / beta * (r |x0(v+) - x0|^2 / n+  +  (1 - r) |x0(v-) - x0|^2 / n-)

where x0(.) is the clip behind a velocity, |.|^2 a mean, and n+, n- the mean absolute errors, without gradient. Nothing
of how a take was sampled enters, so any sampler, guidance and speed-up may have made it.

With u the velocity of the take itself and d = v - v_old, the loss without n+ and n- is, up to a constant and a factor
that depends on the noise level, |beta d|^2 - 2 beta (2 r - 1) <d, u - v_old>: bounded from below, with its minimum at

    d = E[(2 r - 1) (u - v_old) | noised clip] / beta

so beta is the inverse of the step size, and takes without a difference in reward (2 r - 1 = 0) hold v at v_old.
"""

from __future__ import annotations

import torch

from .weighting import like, row_mean, wide

LIMIT = 5.0
_FLOOR = 1e-5


def nft_loss(
    velocity: torch.Tensor,
    old: torch.Tensor,
    target: torch.Tensor,
    scale: torch.Tensor,
    advantages: torch.Tensor,
    *,
    beta: float = 1.0,
    limit: float = LIMIT,
    weights: torch.Tensor | None = None,
    normalised: bool = True,
) -> dict[str, torch.Tensor]:
    """ "loss", and "deviation": the mean of (v - v_old)^2.

    velocity    [B, C, T, h, w] of the trained policy at the noised takes
    old         the same of the frozen policy; no gradient goes into it
    target      u, the velocity of the takes themselves
    scale       [B] by what a velocity's error becomes the clip's: sigma for flow matching, else the share of the noise
    advantages  [B];  limit: A_max
    weights     broadcast to the latents, for the means of a row
    normalised  whether n+ and n- divide (as upstream), which gives all noise levels about the same say
    """
    old = wide(old.detach())
    moved = wide(velocity) - old
    error = wide(target) - old
    reward = advantages.to(error).clamp(-limit, limit) / limit / 2 + 0.5

    def side(residual: torch.Tensor) -> torch.Tensor:
        residual = like(scale, residual) * residual
        squares = row_mean(residual**2, weights)
        if normalised:
            squares = squares / row_mean(residual.detach().abs(), weights).clamp(min=_FLOOR)
        return squares

    loss = reward * side(error - beta * moved) + (1 - reward) * side(error + beta * moved)
    return {"loss": loss * (limit / beta), "deviation": row_mean(moved.detach() ** 2, weights)}
