"""The faces that a scorecard shows: of each subject its photo, and its best and its worst frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..subjects.faces import to_uint8
from .evidence import ClipEvidence

SIDE = 116
# A face with half its size around it, so that hair and hat are in the picture.
_ROOM = 0.5


@dataclass(frozen=True, eq=False)
class Crop:
    """`pixels` [SIDE, SIDE, 3] uint8 of clip frame `frame` with the cosine `similarity`, or of a photo without both."""

    pixels: np.ndarray
    frame: int | None = None
    similarity: float | None = None


@dataclass(frozen=True, eq=False)
class SubjectCrops:
    """best and worst are None for a subject who is never seen; they are the same for one who is seen once."""

    photo: Crop
    best: Crop | None
    worst: Crop | None


def cut_crops(evidence: ClipEvidence) -> dict[str, SubjectCrops]:
    """The crops of every scored subject by name. Reads up to two frames a subject from the clip again."""
    result = evidence.identity
    wanted: dict[int, list[tuple[int, str]]] = {}
    for i, similarity in enumerate(result.similarity.T):
        if not np.isnan(similarity).all():
            wanted.setdefault(int(np.nanargmax(similarity)), []).append((i, "best"))
            wanted.setdefault(int(np.nanargmin(similarity)), []).append((i, "worst"))
    cut: dict[tuple[int, str], Crop] = {}
    moments = sorted(wanted)
    frames = evidence.source.read([evidence.indices[t] for t in moments]) if moments else ()
    for t, frame in zip(moments, frames, strict=True):
        for i, which in wanted[t]:
            pixels = crop_face(frame, result.boxes[t, i])
            cut[i, which] = Crop(pixels, evidence.indices[t], float(result.similarity[t, i]))
    crops = {}
    for row, i in enumerate(evidence.scored):
        faces, photos = evidence.cast.faces.subjects[i].faces, evidence.cast.subjects[i].photos
        photo, face = next((photo, face) for photo, face in zip(photos, faces, strict=True) if face is not None)
        own = Crop(crop_face(photo, face.box))
        crops[evidence.names[row]] = SubjectCrops(own, cut.get((row, "best")), cut.get((row, "worst")))
    return crops


def crop_face(image: torch.Tensor, box: np.ndarray, side: int = SIDE) -> np.ndarray:
    """The square around a face [x1 y1 x2 y2] of an image [H, W, 3]: [side, side, 3] uint8, black outside of it."""
    box = np.asarray(box, np.float64)
    x, y = (box[:2] + box[2:]) / 2
    half = max(float(max(box[2:] - box[:2])) * (1 + _ROOM) / 2, 1.0)
    corners = [int(np.floor(v)) for v in (x - half, y - half)] + [int(np.ceil(v)) for v in (x + half, y + half)]
    height, width = image.shape[:2]
    inside = [max(corners[0], 0), max(corners[1], 0), min(corners[2], width), min(corners[3], height)]
    square = np.zeros((corners[3] - corners[1], corners[2] - corners[0], 3), np.uint8)
    if inside[0] < inside[2] and inside[1] < inside[3]:
        part = to_uint8(image[inside[1] : inside[3], inside[0] : inside[2]])
        top, left = inside[1] - corners[1], inside[0] - corners[0]
        square[top : top + part.shape[0], left : left + part.shape[1]] = part
    return np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC))
