"""WithAnyone's copy-paste score (MultiID-Bench, Doby-Xu/WithAnyone, MultiID-Bench/metrics/arcface_metric.py).

    M_CP = (theta(g, t) - theta(g, r)) / theta(t, r), theta = arccos of the cosine

g is the generated face, r the photo that the model was given, t another photo of the same person. +1: g is a copy of
r. 0: as near to the one as to the other, what a new picture of the person is. -1: g is t. Where t and r are the same
face it says nothing and is 0.

In a graph every photo of a subject may have been given to the model, and nobody knows which one it would copy. So here
r is the photo that is nearest to the face over the whole clip and t each of the others, and their scores are averaged:
the order of the photos does not matter, and copying any of them shows. WithAnyone drops pictures whose number of
faces is not the expected one; here faces are those that were assigned to the subject, frame by frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..subjects.faces import similarities

if TYPE_CHECKING:
    from .evidence import ClipEvidence

# Below this angle (radians) two photos are one face for the recogniser.
SAME_ANGLE = 1e-6

# What a subject with a single usable photo does: with one photo a copy cannot be told from a good likeness.
SINGLE_PHOTO = ("error", "skip")


def copy_paste(generated: np.ndarray, target: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """M_CP in -1..1 of unit embeddings [..., D], which broadcast."""
    for name, embedding in (("generated", generated), ("target", target), ("reference", reference)):
        if not np.isfinite(embedding).all():
            raise ValueError(f"The embedding of the {name} face holds NaN or infinite values.")
    to_target, to_reference = _angle(generated, target), _angle(generated, reference)
    between = _angle(target, reference)
    score = np.divide(
        to_target - to_reference, between, out=np.zeros(np.shape(to_target - between)), where=between > SAME_ANGLE
    )
    return np.clip(score, -1.0, 1.0)  # by the triangle inequality only rounding is clipped


def clip_copy_paste(faces: np.ndarray, photos: np.ndarray) -> float:
    """The module's score of one subject: unit embeddings [T, D] of its faces and [P, D] of its photos.

    T may be 0 (the subject was never seen: 0). Raises ValueError for fewer than two photos.
    """
    if len(photos) < 2:
        raise ValueError("A copy can only be told from a likeness with two photos of the person or more.")
    if not len(faces):
        return 0.0
    nearest = int(np.argmax(similarities(faces, photos).astype(np.float64).mean(0)))
    others = np.delete(photos, nearest, axis=0)
    return float(copy_paste(faces[:, None], others[None], photos[nearest]).mean())


def measure(evidence: ClipEvidence, options: Mapping[str, Any], model: None) -> float:
    """The score of the subject who is copied most, -1..1; 0 where every subject is skipped.

    Raises ValueError that names the subjects with a single usable photo, unless `single_photo` is "skip".
    """
    photos = [
        np.array([face.embedding for face in evidence.cast.faces.subjects[i].faces if face is not None], np.float32)
        for i in evidence.scored
    ]
    single = [repr(name) for name, own in zip(evidence.names, photos, strict=True) if len(own) < 2]
    if single and options["single_photo"] != "skip":
        raise ValueError(
            f"A second photo with a face is needed of {', '.join(single)}: with one, a copy cannot be told from a good "
            "likeness. Add photos, or set single_photo to skip."
        )
    scores = []
    for row, own in enumerate(photos):
        found = [
            faces[face_of[row]].embedding
            for faces, face_of in zip(evidence.faces, evidence.identity.assigned, strict=True)
            if face_of[row] >= 0
        ]
        if len(own) > 1:
            scores.append(clip_copy_paste(np.array(found, np.float32).reshape(len(found), own.shape[1]), own))
    return max(scores, default=0.0)


def _angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Radians between unit vectors [..., D]; exact for near ones, where arccos of a float32 cosine is not."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return 2.0 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1))
