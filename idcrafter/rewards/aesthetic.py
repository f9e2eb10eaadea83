"""How good it looks: LAION's aesthetic predictor, mean over the frames.

The predictor (christophschuhmann/improved-aesthetic-predictor) maps the unit CLIP-L/14 embedding of a picture to a
rating, mostly within 1..10. OpenS2V brings it to 0..1 by clip((rating - 4) / 3, 0, 1) (eval/merge_result.py), which is
done here as well, so that the term has the range of its neighbours. The greatest rating is that of a glossy portrait:
alone this term pushes faces towards the same beauty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from .evidence import ClipEvidence

LOWEST, HIGHEST = 4.0, 7.0
BATCH = 8


class AestheticModel(Protocol):
    """Rates pictures."""

    def rate(self, images: Sequence[torch.Tensor]) -> np.ndarray:
        """Ratings [N] of N images [H, W, 3] in 0..1."""

    def describe(self) -> dict:
        """JSON-able facts for a report, with at least "name" and "licence"."""


def normalise(rating: np.ndarray) -> np.ndarray:
    """Ratings to 0..1. Raises ValueError for one that is not finite."""
    rating = np.asarray(rating, np.float64)
    if not np.isfinite(rating).all():
        raise ValueError("An aesthetic rating is NaN or infinite; the predictor or a frame is damaged.")
    return np.clip((rating - LOWEST) / (HIGHEST - LOWEST), 0.0, 1.0)


def measure(evidence: ClipEvidence, options: Mapping[str, Any], model: AestheticModel) -> float:
    """The mean normalised rating of the scored frames."""
    ratings = []
    for start in range(0, len(evidence.indices), BATCH):
        ratings.append(model.rate(list(evidence.source.read(evidence.indices[start : start + BATCH]))))
    return float(normalise(np.concatenate(ratings)).mean())
