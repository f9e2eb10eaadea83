"""PSR's pairwise subject consistency (arXiv 2512.01236, CVPR 2026), for clips.

    R = 1/N sum_i cos(DINO(crop of subject i in the result), DINO(crop of subject i in its reference))

Unlike a face embedding it also sees hair, clothes and build, and unlike the similarity of whole pictures it cannot be
had by copying a background. PSR finds its crops with Grounding DINO by category and, where two subjects are of one
category, takes the first box for the one and the second for the other. Here a crop is the surroundings of the face
that was assigned to the subject, in the clip as in the photos, so that two people of one category are told apart.
Subjects without a face (objects) are not seen.

Of a clip: the mean over subjects of the mean over scored frames, where a missing subject counts 0; the reference is the
unit mean of the embeddings of all its photos, so that their order does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from .evidence import ClipEvidence

# How far a crop reaches beyond the face box, in sides of the box: with 1.0 head, hair and shoulders are on it.
MARGIN = 1.0
BATCH = 16


class ImageEncoder(Protocol):
    """Embeds pictures."""

    def embed(self, images: Sequence[torch.Tensor]) -> np.ndarray:
        """Unit embeddings [N, D] of N images [H, W, 3] in 0..1."""

    def describe(self) -> dict:
        """JSON-able facts for a report, with at least "name" and "licence"."""


def crop_around(image: torch.Tensor, box: np.ndarray, margin: float = MARGIN) -> torch.Tensor:
    """The part of an image [H, W, 3] around a face box [4] (x1 y1 x2 y2), as far as it lies inside the image."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = (float(v) for v in box)
    reach = margin * max(x2 - x1, y2 - y1)
    left, top = (min(max(int(np.floor(v - reach)), 0), limit - 1) for v, limit in ((x1, width), (y1, height)))
    right = max(min(int(np.ceil(x2 + reach)), width), left + 1)
    bottom = max(min(int(np.ceil(y2 + reach)), height), top + 1)
    return image[top:bottom, left:right]


def pairwise_consistency(similarity: np.ndarray) -> float:
    """R of cosines [T, S] of crops, NaN where a subject is missing; 0..1."""
    if similarity.size == 0 or np.isinf(similarity).any():
        raise ValueError("Subject crops need at least one frame, one subject and finite similarities.")
    return float(np.clip(np.nan_to_num(similarity, nan=0.0), 0.0, 1.0).mean())


def measure(evidence: ClipEvidence, options: Mapping[str, Any], model: ImageEncoder) -> float:
    """R of a clip, with the crop's `margin`."""
    margin = float(options["margin"])
    boxes = evidence.identity.boxes
    references = [_reference(evidence, i, margin, model) for i in evidence.scored]
    similarity = np.full(boxes.shape[:2], np.nan)
    crops: list[torch.Tensor] = []
    places: list[tuple[int, int]] = []

    def embed() -> None:
        for (t, row), embedding in zip(places, _embed(model, crops), strict=True):
            similarity[t, row] = embedding @ references[row]
        crops.clear()
        places.clear()

    for t, frame in enumerate(evidence.source.read(evidence.indices)):
        for row in np.flatnonzero(~np.isnan(boxes[t, :, 0])):
            crops.append(crop_around(frame, boxes[t, row], margin))
            places.append((t, int(row)))
        if len(crops) >= BATCH:
            embed()
    if crops:
        embed()
    return pairwise_consistency(similarity)


def _reference(evidence: ClipEvidence, index: int, margin: float, model: ImageEncoder) -> np.ndarray:
    """[D] the unit mean embedding of a subject's photos."""
    subject, own = evidence.cast.subjects[index], evidence.cast.faces.subjects[index]
    crops = [
        crop_around(photo, face.box, margin)
        for photo, face in zip(subject.photos, own.faces, strict=True)
        if face is not None
    ]
    mean = _embed(model, crops).mean(0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


def _embed(model: ImageEncoder, crops: Sequence[torch.Tensor]) -> np.ndarray:
    embeddings = np.asarray(model.embed(crops), np.float64)
    if not np.isfinite(embeddings).all():
        raise ValueError("An image embedding is NaN or infinite; the image encoder or a frame is damaged.")
    return embeddings
