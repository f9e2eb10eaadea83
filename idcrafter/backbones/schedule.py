"""The part of the noise schedule in which a change of a MODEL is on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class SigmaRange:
    """Noise levels from `first`, where it begins, down to `last`, where it has ended.

    from_the_top  whether levels above `first` belong to it: percent_to_sigma(0) is the schedule's nominal top, which a
                  sampler may start above
    """

    first: float
    last: float
    from_the_top: bool

    @classmethod
    def of(cls, to_sigma: Callable[[float], float], start: float, end: float) -> SigmaRange:
        """From shares of the schedule, 0..1, by the model's own `percent_to_sigma`."""
        return cls(float(to_sigma(start)), float(to_sigma(end)), start == 0.0)

    def __contains__(self, sigma: float) -> bool:
        return self.last < sigma and (self.from_the_top or sigma <= self.first)


def check_percents(start: float, end: float, what: str) -> None:
    """ValueError, saying how to turn `what` off, unless the part from start to end holds anything."""
    if start >= end:
        raise ValueError(
            f"start_percent ({start:g}) must be less than end_percent ({end:g}); set strength to 0 to turn {what} off."
        )
