"""Identity-GRPO's recipe, exactly (arXiv 2510.14256; alibaba/identity-grpo, train_wan2_1_vace.py).

    loss = max(-A rho, -A clip(rho, 1 - 1e-3, 1 + 1e-3)) + 0.004 (mean - mean_ref)^2 / (2 std^2)

over the first int(0.99 n) of a take's n Wan-SDE steps, with guidance (two passes) in training as in sampling; A is
clamped to +-5 and normalised by prompt text, takes with A = 0 are dropped, the reference is the model without its
LoRA. Leading reference frames are part of the latent and of all means. What the recipe says besides is in RECIPE.

Not taken over: its first two epochs without an update, which work around the size of its first groups, and its start
from the released LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from .grpo import grpo_loss, mean_gap

KIND = "Wan-SDE"
CLIP = 1e-3
KL = 0.004
FRACTION = 0.99
# config/dgx.py and config/base.py; EMA by flow_grpo/ema.py; a step is 128 takes: 16 groups of 8.
RECIPE: Mapping[str, Any] = MappingProxyType(
    {
        "width": 416,
        "height": 240,
        "frames": 33,
        "steps": 25,
        "group": 8,
        "groups_a_step": 16,
        "guidance": 4.5,
        "lora_rank": 32,
        "lora_alpha": 32,
        "rate": 1e-4,
        "weight_decay": 1e-4,
        "clip_norm": 1.0,
        "ema": 0.9,
    }
)


def trained_steps(count: int) -> int:
    """How many of a take's first steps are trained on."""
    return int(count * FRACTION)


def identity_grpo_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    mean: torch.Tensor,
    reference: torch.Tensor,
    std: float,
    advantages: torch.Tensor,
    *,
    clip: float = CLIP,
    kl: float = KL,
) -> dict[str, torch.Tensor]:
    """ "loss", "ratio", "clipped", "kl".

    log_probs, old_log_probs, advantages  [B]
    mean, reference  [B, C, T, h, w] of the step's Gaussian under the trained policy and the model without LoRA
    """
    found = grpo_loss(log_probs, old_log_probs, advantages, clip=clip)
    gap = mean_gap(mean, reference, std)
    return {**found, "loss": found["loss"] + kl * gap, "kl": gap.detach()}


def departures(facts: Mapping, takes: int) -> list[str]:
    """In which points rollouts were not collected as the recipe says; sentences for a report.

    facts  of a group (`rollouts.record`);  takes  in it
    """
    shot = facts["shot"]
    sde = (shot.get("sde") or {}).get("kind")
    guided = shot.get("guidance") or {}
    guidance = guided.get("cfg_text", guided.get("cfg"))
    size = shot["shape"][1] - shot.get("leading", 0), *shot["shape"][2:]
    wanted = ((RECIPE["frames"] - 1) // 4 + 1, RECIPE["height"] // 8, RECIPE["width"] // 8)
    pairs = (
        ("random steps", sde, KIND),
        ("steps", shot.get("steps"), RECIPE["steps"]),
        ("takes of a group", takes, RECIPE["group"]),
        ("guidance", guidance, RECIPE["guidance"]),
        ("latent frames, rows and columns", size, wanted),
    )
    return [f"{what}: {found}, not {recipe}" for what, found, recipe in pairs if found != recipe]
