"""Takes: the same shot from several seeds. Plain data; `run` makes it, scoring and picking read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .sde.record import SdeRecord


@dataclass(frozen=True, eq=False)
class Take:
    """One finished sample.

    seed     the noise seed; sampling with it alone gives the same take
    samples  [1, C, T, h, w] float32 latent on the CPU, in the VAE's space
    seconds  wall time of its sampling
    resumed  True when it was read back from an earlier, interrupted run
    sde      its random steps, when the sampler records them (`sde.sampler.sde_sampler`)
    """

    seed: int
    samples: torch.Tensor
    seconds: float
    resumed: bool
    sde: SdeRecord | None = None


@dataclass(frozen=True, eq=False)
class Takes:
    """All finished takes of one shot, in seed order.

    base_seed  seed of the first take
    sampler    name of the sampler, as far as the SAMPLER object tells
    sigmas     the noise schedule, [steps + 1] on the CPU
    model      facts for the report: "family", "size" (parameters), and when known "file", "licence"
    search     the record of the take search that pruned the other seeds (`search.search_takes`); None without one
    leading    how many of a take's first latent frames are references and not video (VACE)
    """

    takes: tuple[Take, ...]
    base_seed: int
    sampler: str
    sigmas: torch.Tensor
    model: dict
    search: dict | None = None
    leading: int = 0

    def video(self, take: Take) -> torch.Tensor:
        """The take's samples without the references before the video."""
        return take.samples[:, :, self.leading :] if self.leading else take.samples
