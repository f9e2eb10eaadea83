"""What a take's random steps were: enough to compute how probable another model would have made them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

_TENSORS = ("sigmas", "x_t", "x_next", "mean", "std", "log_prob")


@dataclass(frozen=True, eq=False)
class SdeRecord:
    """The n random steps of one take; its other steps are not in here. Tensors are on the CPU.

    kind      of `steps.KINDS`
    eta       its noise level; 0 for a kind that has none
    steps     their places in the schedule (0 = its first step), ascending
    sigmas    [n, 2] float32: the levels that each goes from and to
    x_t       [n, C, T, h, w] bfloat16: the latent before each, in the model's space (a Take's samples are in the
              VAE's), leading reference frames included
    x_next    [n, C, T, h, w] bfloat16: the latent after it
    mean      [n, C, T, h, w] float32: the centre of the step's Gaussian
    std       [n] float64: its standard deviation
    log_prob  [n] float64: of x_next, as `steps.log_prob`

    bfloat16 loses nothing: the sampler that records rounds its latent before and after a random step.
    """

    kind: str
    eta: float
    steps: tuple[int, ...]
    sigmas: torch.Tensor
    x_t: torch.Tensor
    x_next: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    log_prob: torch.Tensor

    def __len__(self) -> int:
        return len(self.steps)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, name).contiguous() for name in _TENSORS}

    def settings(self) -> dict:
        """What is not a tensor, ready for JSON."""
        return {"kind": self.kind, "eta": self.eta, "steps": list(self.steps)}

    @classmethod
    def from_parts(cls, tensors: dict[str, torch.Tensor], settings: dict) -> SdeRecord:
        """From `tensors` and `settings`; ValueError when they are not those of one record."""
        try:
            steps = tuple(int(step) for step in settings["steps"])
            record = cls(str(settings["kind"]), float(settings["eta"]), steps, **{k: tensors[k] for k in _TENSORS})
        except (KeyError, TypeError) as error:
            raise ValueError(f"This is no record of random steps ({error!r} is missing or wrong).") from error
        if any(len(tensor) != len(steps) for tensor in record.tensors().values()):
            raise ValueError("A record of random steps must hold as many latents as steps.")
        return record


@dataclass(eq=False)
class Recorder:
    """Collects the random steps of one run of the sampler, for all rows of its batch."""

    kind: str
    eta: float
    steps: list[int] = field(default_factory=list)
    rows: list[dict[str, torch.Tensor]] = field(default_factory=list)

    def add(self, step: int, sigma: float, sigma_next: float, x_t, x_next, mean, std: float, log_prob) -> None:
        """x_t, x_next, mean: [B, ...]; log_prob: [B]."""
        self.steps.append(step)
        self.rows.append(
            {
                "sigmas": torch.tensor([[sigma, sigma_next]], dtype=torch.float32).expand(len(log_prob), 2),
                "x_t": x_t.to("cpu", torch.bfloat16),
                "x_next": x_next.to("cpu", torch.bfloat16),
                "mean": mean.to("cpu", torch.float32),
                "std": torch.full((len(log_prob),), std, dtype=torch.float64),
                "log_prob": log_prob.cpu(),
            }
        )

    def record(self, row: int = 0) -> SdeRecord | None:
        """The steps of one row of the batch; None when no step was random."""
        if not self.steps:
            return None
        tensors = {name: torch.stack([step[name][row] for step in self.rows]) for name in _TENSORS}
        return SdeRecord(self.kind, self.eta, tuple(self.steps), **tensors)
