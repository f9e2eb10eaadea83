"""GRPO on random steps of a flow model: what made a good take more probable gets more probable.

Flow-GRPO (Liu et al., arXiv 2505.05470; yifan123/flow_grpo, scripts/train_sd3.py): with the ratio
rho = exp(log p - log p_old) of a recorded step x_t -> x_next under the trained and the old policy

    loss = max(-A rho, -A clip(rho, 1 - c, 1 + c))

log p is a mean over the latent's values (`sampling.sde.steps.log_prob`), so c is 1e-6 to 1e-3. Two cures for steps of
different noise that weigh differently:

Flash-GRPO (arXiv 2605.15980; Shredded-Pork/Flash-GRPO, scripts/train_wanx2_1_flash.py): one random step a take, the
same for all takes of a prompt, and the loss times lambda / mean of lambda over the batch,
lambda = 1 / (sqrt(-dt) / g + g sqrt(-dt) (1 - sigma) / (2 sigma)) = std / |d mean / d v|: a change of the velocity then
moves every step's log p alike. Upstream has lambda as a table for shift 3 and 20 steps; here it is computed.

GRPO-Guard (arXiv 2510.22319; zhtmike/flow_grpo, scripts/train_sd3_GRPO_Guard.py): the mean of log rho is below 0 by
|mean - mean_old|^2 / (2 std^2), so that clipping hits good takes less than bad ones. It is added back, and what remains
is scaled by std, the same size for every step: rho = exp((log p - log p_old + that) std); the loss is divided by -dt.
"""

from __future__ import annotations

import torch

from ...sampling.sde.steps import KINDS, Transition, log_prob
from .weighting import row_mean, wide

LIMIT = 5.0


def step_log_prob(
    kind: str, x_next: torch.Tensor, mean: torch.Tensor, std: float, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """[B] float64: `steps.log_prob`, places weighted by `weights`, of which only the proportions matter.

    x_next, mean  [B, C, T, h, w]; weights  broadcast to them
    """
    if weights is None:
        return log_prob(kind, x_next, mean, std)
    share = weights.double().expand_as(x_next)
    share = share / row_mean(share).view(-1, *[1] * (x_next.ndim - 1))
    # The Gaussian of a distance that is stretched by the root of the weight has its square times the weight.
    away = (x_next.double() - mean.double()) * share.sqrt()
    return log_prob(kind, away, torch.zeros_like(away), std)


def clipped(ratio: torch.Tensor, advantages: torch.Tensor, clip: float, limit: float = LIMIT) -> torch.Tensor:
    """[B]: the clipped surrogate; advantages are clamped to +-limit."""
    advantages = advantages.to(ratio).clamp(-limit, limit)
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def grpo_loss(
    log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, *, clip: float = 1e-3
) -> dict[str, torch.Tensor]:
    """ "loss", "ratio", and "clipped": 1 where the ratio has left the range. All inputs [B]."""
    ratio = torch.exp(log_probs - old_log_probs.detach())
    return _watched(clipped(ratio, advantages, clip), ratio, clip)


def flash_weight(step: Transition) -> float:
    """lambda of a step, to be divided by its mean over the batch."""
    return step.std / abs(step.v_share)


def guard_loss(
    kind: str,
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    mean: torch.Tensor,
    old_mean: torch.Tensor,
    std: float,
    dt: float,
    advantages: torch.Tensor,
    *,
    clip: float = 2e-6,
    weights: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """The same with GRPO-Guard's ratio. clip: upstream's config for SD3 has 2e-6.

    mean, old_mean  [B, C, T, h, w] of the step's Gaussian under both policies;  dt  sigma_next - sigma
    ValueError for CPS, whose log-probability is no Gaussian's, so that the correction would be wrong.
    """
    if not KINDS[kind].gaussian:
        raise ValueError(f"GRPO-Guard corrects the ratio of Gaussian steps, which {kind} is not; use another kind.")
    bias = row_mean((mean.double() - old_mean.detach().double()) ** 2, weights) / (2 * std**2)
    ratio = torch.exp((log_probs - old_log_probs.detach() + bias) * std)
    found = _watched(clipped(ratio, advantages, clip), ratio, clip)
    return {**found, "loss": found["loss"] / -dt}


def mean_gap(
    mean: torch.Tensor, reference: torch.Tensor, std: float, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """[B]: KL divergence of two Gaussians of the same width, as a mean over values: (mean - mean_ref)^2 / (2 std^2)."""
    return row_mean((wide(mean) - wide(reference.detach())) ** 2, weights) / (2 * std**2)


def _watched(loss: torch.Tensor, ratio: torch.Tensor, clip: float) -> dict[str, torch.Tensor]:
    ratio = ratio.detach()
    return {"loss": loss, "ratio": ratio, "clipped": ((ratio - 1).abs() > clip).to(ratio)}
