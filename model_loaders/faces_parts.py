"""What a detector and a recogniser have to be, so that any two of them make a face analyzer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch

PROVIDERS = ("auto", "cuda", "cpu")


@dataclass(frozen=True)
class PartFacts:
    """What a detector or recogniser is, for reports.

    provider   where it really runs: "cuda", "cpu" or another device of torch
    files      {file name: sha256}
    fell_back  nobody asked for the CPU, and there is a GPU
    """

    name: str
    licence: str
    provider: str
    runtime: str
    files: dict[str, str] = field(default_factory=dict)
    fell_back: bool = False

    def as_dict(self) -> dict:
        return {key: value for key, value in asdict(self).items() if key != "fell_back"}


class Detection(NamedTuple):
    """What a detector says of one face, in pixels: box [4] x1 y1 x2 y2, score 0..1, landmarks [5, 2]."""

    box: np.ndarray
    score: float
    landmarks: np.ndarray


class FaceDetector(Protocol):
    """`det_size` is the side in pixels to which images are fitted; None = two sizes, insightface's own 128 and 640."""

    facts: PartFacts
    det_size: int | None

    def detect(self, bgr: np.ndarray) -> list[Detection]:
        """All faces of one image [H, W, 3] uint8 BGR, in any order."""


class FaceRecogniser(Protocol):
    """`crop_size` is the side of the upright crops that it takes, a multiple of 112."""

    facts: PartFacts
    crop_size: int

    def embed(self, crops: list[np.ndarray]) -> np.ndarray:
        """Embeddings [N, D] of any length for crops [crop_size, crop_size, 3] uint8 BGR."""

    def with_gradient(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """`embed` with a gradient: crops [N, 3, crop_size, crop_size] RGB in 0..1, on the device where the function has
        its weights -> [N, D]. Raises ValueError where there is none.
        """
