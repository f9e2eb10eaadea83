"""IPRO: the reward's own gradient, through the last steps of the sampler (Shen et al., arXiv 2510.14255).

Only for rewards that have a gradient, such as an embedder on a decoded clip. The take is sampled anew from noise; only
the last `last` steps carry gradients, 4 of 8 in the paper, through the frozen decoder inside the reward. Its KL term is
the squared distance of the velocities on these steps, here their mean, with weight 1 against 0.1 for the face.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .weighting import velocity_gap

LAST = 4
KL = 10.0

# (noised clips [B, ...], sigma [B]) -> velocities
Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# (noised clips, velocities, a level, the next) -> clips at the next
Step = Callable[[torch.Tensor, torch.Tensor, float, float], torch.Tensor]


def euler(x: torch.Tensor, velocity: torch.Tensor, sigma: float, lower: float) -> torch.Tensor:
    """Of flow models."""
    return x + (lower - sigma) * velocity


def ipro_loss(
    velocity: Velocity,
    reference: Velocity,
    noise: torch.Tensor,
    sigmas: Sequence[float],
    reward: Callable[[torch.Tensor], torch.Tensor],
    *,
    last: int = LAST,
    kl: float = KL,
    step: Step = euler,
) -> dict[str, torch.Tensor]:
    """ "loss", "reward", "kl".

    noise   [B, C, T, h, w] the clips at sigmas[0]
    sigmas  the schedule, first to last, of the sampler's `step`
    reward  clips like `noise` -> [B], with a gradient
    last    how many of the steps carry gradients, at least 1
    Memory grows with `last`: use gradient checkpointing.
    """
    steps = len(sigmas) - 1
    if not 1 <= last <= steps:
        raise ValueError(f"The gradient goes through the last 1 to {steps} steps, not {last}.")
    x, gap = noise, 0.0
    for i, (sigma, lower) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        level = torch.full((len(x),), sigma, device=x.device, dtype=torch.float32)
        with torch.set_grad_enabled(torch.is_grad_enabled() and i >= steps - last):
            v = velocity(x, level)
            if i >= steps - last:
                with torch.no_grad():
                    frozen = reference(x, level)
                gap = gap + velocity_gap(v, frozen) / last
            x = step(x, v, sigma, lower)
    found = reward(x)
    return {"loss": kl * gap - found, "reward": found.detach(), "kl": gap.detach()}
