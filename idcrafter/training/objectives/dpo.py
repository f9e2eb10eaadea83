"""Flow-DPO: of two takes of a prompt the better one should fit the model better (Liu et al., arXiv 2501.13918).

With e = |v - u|^2 (a mean) of the trained policy and e_ref of the frozen one, both at the same noise level and noise
for the two takes of a pair, w the winner and l the loser:

    loss = -log sigmoid(-beta / 2 ((e_w - e_ref_w) - (e_l - e_ref_l)))

Read from yifan123/flow_grpo, scripts/train_sd3_dpo.py (beta 100, config/dpo.py) and X-GenGroup/Flow-Factory,
trainers/dpo.py. Diffusion-DPO (arXiv 2311.12908) with a velocity for the noise.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from .weighting import row_mean, wide

BETA = 100.0


def dpo_loss(
    velocity: torch.Tensor,
    reference: torch.Tensor,
    target: torch.Tensor,
    *,
    beta: float = BETA,
    weights: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """ "loss" [P], and "preferred" [P]: 1 where the policy has come to prefer the winner.

    velocity, reference, target  [2 P, C, T, h, w]: the winners of all pairs, then their losers in the same order
    weights                      broadcast to them
    """
    if len(velocity) % 2:
        raise ValueError(f"DPO compares pairs; {len(velocity)} takes are no pairs.")
    target = wide(target)
    errors = row_mean((wide(velocity) - target) ** 2, weights)
    errors = errors - row_mean((wide(reference.detach()) - target) ** 2, weights)
    winner, loser = errors.chunk(2)
    inside = -0.5 * beta * (winner - loser)
    return {"loss": -logsigmoid(inside), "preferred": (inside.detach() > 0).to(inside)}
