"""The stages in which an identity adapter is trained.

Ingredients (arXiv 2501.01790) trains in two: first what brings the faces in (extractor and cross-attention), then the
router alone, by its cross-entropy. While the router waits here, its keys are zero, so it is an even mixture of the
people; then both go on together, which is this project's addition. The hierarchy, gates and LoRA belong to the first
stage. How long a stage takes is a share of the steps, so that a resumed run is in the stage in which it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

STAGES = ("align", "route", "joint")
_ROUTER = "adapter.router."


@dataclass(frozen=True)
class Stages:
    """Shares of the steps, in the order of STAGES; they need not sum to 1."""

    align: float = 0.4
    route: float = 0.2
    joint: float = 0.4

    def __post_init__(self):
        shares = (self.align, self.route, self.joint)
        if min(shares) < 0 or not sum(shares) > 0:
            raise ValueError(
                f"The shares of the stages are {', '.join(f'{s:g}' for s in shares)}; none may be negative, and one "
                "must be more than 0."
            )

    def at(self, n: int, steps: int, router: bool = True) -> str:
        """The stage of step n, from 0, of so many; without a router there is only one."""
        if not router:
            return "joint"
        progress = (n + 0.5) / steps * (self.align + self.route + self.joint)
        if progress < self.align:
            return "align"
        return "route" if progress < self.align + self.route else "joint"


def set_stage(network: nn.Module, stage: str) -> None:
    """Let only the stage's parameters of an AdapterNetwork have gradients."""
    if stage not in STAGES:
        raise ValueError(f"The stage '{stage}' is unknown; choose one of {', '.join(STAGES)}.")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(stage == "joint" or name.startswith(_ROUTER) == (stage == "route"))


def stage_loss(losses: dict[str, torch.Tensor], stage: str, router_weight: float) -> dict[str, torch.Tensor]:
    """The losses of `adapter_loss` with the "loss" that the stage minimises.

    The route stage has the cross-entropy alone; a batch without labels moves nothing then.
    """
    router = losses.get("router")
    if stage == "align" or router is None and stage == "joint":
        loss = losses["flow"]
    elif stage == "route":
        # The router also decides the velocity: without labels the sum keeps a graph, whose gradients are zero.
        loss = losses["flow"] * 0 if router is None else router
    else:
        loss = losses["flow"] + router_weight * router
    return {**losses, "loss": loss}
