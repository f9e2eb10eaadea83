"""Ingredients' face similarity (arXiv 2501.01790; feizc/Ingredients, metric/face_sim_fid.py). Only for comparison.

Of each frame the two largest faces are compared with all references, and the frame's score is the *greatest* of these
cosines; the clip's score is the mean over its frames. One good face is therefore enough: a clip without the other
person, or with the same face twice, scores like one that keeps both. Use `identity` to judge or to train. Their code
stops at a frame without a face; here such frames are left out, as their mean leaves out nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..subjects.faces import DetectedFace, similarities
from .assignment import face_sides

if TYPE_CHECKING:
    from .evidence import ClipEvidence

LARGEST = 2


def face_similarity(frames: Sequence[Sequence[DetectedFace]], references: np.ndarray) -> float:
    """The mean over the frames with a face; unit reference embeddings [R, D]. 0 where no frame has a face."""
    if not len(references) or not np.isfinite(references).all():
        raise ValueError("Ingredients' face similarity needs at least one reference with finite values.")
    scores = []
    for faces in frames:
        largest = sorted(faces, key=lambda face: -float(face_sides(np.asarray(face.box, np.float64))))[:LARGEST]
        if largest:
            scores.append(similarities(references, np.stack([face.embedding for face in largest])).max())
    return float(np.mean(scores)) if scores else 0.0


def measure(evidence: ClipEvidence, options: Mapping[str, Any], model: None) -> float:
    """Of a clip, against all photos of the scored subjects."""
    photos = [
        face.embedding for i in evidence.scored for face in evidence.cast.faces.subjects[i].faces if face is not None
    ]
    return face_similarity(evidence.faces, np.stack(photos))
