"""Evidence of small clips: painted faces, or the nano world with the shipped face pack."""

import numpy as np
import torch

from idcrafter.rewards.evidence import ClipEvidence, TensorFrames, gather_evidence
from idcrafter.subjects.faces import extract_faces
from idcrafter.subjects.subject import make_cast, make_subject
from support.painted_faces import PaintedFaceAnalyzer, blank, paint

PLACES = (4, 36, 68)


def painted_cast(photos_of=(0, 1), similarities=((1.0,), (1.0,))):
    """A cast whose subject i is identity photos_of[i], with one photo a number in similarities[i]."""
    analyzer = PaintedFaceAnalyzer()
    subjects = []
    for i, (who, values) in enumerate(zip(photos_of, similarities, strict=True)):
        photos = torch.stack([paint(blank(), who, 20, value) for value in values])
        subjects.append(make_subject(f"S{i}", "person", "", photos))
    cast = make_cast(subjects)
    return cast.with_faces(extract_faces(cast, analyzer, "error", "error"))


def painted_clip(frames) -> torch.Tensor:
    """A clip from lists of (who, similarity, place) or (who, similarity, place, size), one list a frame."""
    clip = blank(width=100, count=len(frames))
    for image, faces in zip(clip, frames, strict=True):
        for who, similarity, place, *size in faces:
            paint(image, who, PLACES[place], similarity, 12, *size)
    return clip


def evidence_of(clip, cast, analyzer=None) -> ClipEvidence:
    """Evidence of all frames of a clip [T, H, W, 3], a float tensor or uint8 pixels."""
    if isinstance(clip, np.ndarray):
        clip = as_images(clip)
    return gather_evidence(TensorFrames(clip), range(len(clip)), cast, analyzer)


def as_images(pixels) -> torch.Tensor:
    """uint8 pixels [..., 3] -> float32 in 0..1."""
    return torch.from_numpy(np.asarray(pixels, np.float32) / 255)
