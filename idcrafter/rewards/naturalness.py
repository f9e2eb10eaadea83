"""How natural it looks to a VLM: the probability that its answer begins with Yes.

OpenS2V's NaturalScore asks GPT-4o for a realism rating of 16 frames (long side 512) from 1 to 5. A local VLM's written
ratings are coarse and mostly the same; the probability of the answer's first token is a number that ranks (as in
VQAScore, arXiv 2404.01291), costs one forward pass and no sampling. In ID-Crafter's ablation this term is what keeps
training from trading the picture for the face.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from .scorecard import spread_frames

if TYPE_CHECKING:
    from .evidence import ClipEvidence

QUESTION = (
    "These pictures are frames of one video, in order. Does everything in it look and move as in reality: faces, hands "
    "and bodies in proportion, light and shadow, nothing that melts, flickers or appears from nowhere? "
    "Answer Yes or No."
)
FRAMES = 16
LONG_SIDE = 512


class VLM(Protocol):
    """A vision-language model that is asked once."""

    def yes_probability(self, images: Sequence[torch.Tensor], question: str) -> float:
        """The probability that the answer about the images [H, W, 3] (0..1) begins with Yes."""

    def describe(self) -> dict:
        """JSON-able facts for a report, with at least "name" and "licence"."""


def fit(image: torch.Tensor, long_side: int = LONG_SIDE) -> torch.Tensor:
    """An image [H, W, 3] shrunk by area so that its long side is at most this many pixels."""
    height, width = image.shape[:2]
    if max(height, width) <= long_side:
        return image
    scale = long_side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return torch.nn.functional.interpolate(image.movedim(-1, 0)[None], size, mode="area")[0].movedim(0, -1)


def measure(evidence: ClipEvidence, options: Mapping[str, Any], model: VLM) -> float:
    """The probability of Yes to `question` about at most `frames` of the scored frames (0: all of them), 0..1."""
    chosen = spread_frames(len(evidence.indices), int(options["frames"]))
    images = [fit(frame) for frame in evidence.source.read([evidence.indices[i] for i in chosen])]
    return float(model.yes_probability(images, str(options["question"])))
