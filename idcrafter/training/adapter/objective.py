"""What an identity adapter minimises: the velocity's error (flow matching on Wan), and the router's cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy, pad

from ...backbones.identity import Routing
from .batch import AdapterBatch
from .network import AdapterNetwork
from .noising import shifted
from .settings import ROUTER_WEIGHT

__all__ = ["ROUTER_WEIGHT", "adapter_loss", "router_loss", "shifted"]

# A number of this process -> its mean over all processes, so that shares of a batch weigh as in one whole batch.
Average = Callable[[torch.Tensor], torch.Tensor]


def alone(value: torch.Tensor) -> torch.Tensor:
    """The `Average` of a single process."""
    return value


def router_loss(routings: Sequence[Routing], batch: AdapterBatch, average: Average = alone) -> torch.Tensor | None:
    """Cross-entropy of the routers' choice with who is really there, the mean over insertions and labelled tokens.

    None without a router, or where no token of the batch is labelled.
    """
    logits = [routing.logits for routing in routings if routing.logits is not None]
    if not logits:
        return None
    here = (batch.photos > 0).any(dim=2)
    # Who is not given cannot be found.
    known = (batch.owners >= 0) & here.gather(1, batch.owners.clamp(min=0))
    count = average(known.sum().float())
    if not count:
        return None
    owners = batch.owners[known]
    missing = ~pad(here, (0, logits[0].shape[-1] - here.shape[1]), value=True)[:, None]
    total = 0.0
    for each in logits:
        scores = each.float().masked_fill(missing, torch.finfo(torch.float32).min)
        total = total + cross_entropy(scores[known], owners, reduction="sum")
    return total / (count * len(logits))


def adapter_loss(
    network: AdapterNetwork,
    batch: AdapterBatch,
    generator: torch.Generator,
    shift: float,
    router_weight: float = ROUTER_WEIGHT,
    part: tuple[int, int] = (0, 1),
    average: Average = alone,
) -> dict[str, torch.Tensor]:
    """The losses of one step: "loss", of which "flow" is the velocity's squared error and "router" the cross-entropy.

    generator  on the CPU, for noise and noise levels; levels are spread over the batch, one in each part of the range
    part       (i, n): this batch is the i-th, from 0, of n equal parts of a step's batch, which are noised as the whole
    average    over the processes that have the other parts
    """
    clean = batch.clean
    own, (i, parts) = len(clean), part
    count = own * parts
    rows = slice(i * own, (i + 1) * own)
    u = ((torch.arange(count) + torch.rand(count, generator=generator)) / count)[rows]
    noise = torch.randn((count, *clean.shape[1:]), generator=generator)[rows].to(clean)
    sigma = network.noising.levels(u, shift).to(clean)
    velocity, routings = network(network.noising.noised(clean, noise, sigma), sigma, batch)
    error = (velocity.float() - network.noising.target(clean, noise, sigma)).pow(2)
    if batch.weights is not None:
        error = error * (batch.weights / average(batch.weights.mean()))
    losses = {"flow": error.mean()}
    losses["loss"] = losses["flow"]
    if (routed := router_loss(routings, batch, average)) is not None:
        losses["router"] = routed
        if router_weight:
            losses["loss"] = losses["loss"] + router_weight * routed
    return losses
