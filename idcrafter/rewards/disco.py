"""DisCo's rewards against one face for everybody (arXiv 2510.01399, CVPR 2026), for the faces of a frame.

    r_d = 1 - max_{j != k} cos(f_j, f_k), and 0.5 with fewer than two faces
    r_c = 1 if as many faces are found as people were asked for, else 0
    r_g = sigmoid(-5 Delta_i), Delta_i = S_G - S_{G without i}

S is the mean similarity of the faces of different images of a group, so Delta_i is positive for an image that repeats
what the others show. DisCo generates people from words alone and wants new ones in every image. Where photos say who
appears, every take of a shot is to show the same people: r_g then punishes exactly what is wanted. So it is a function
here, for groups without photos, and no term of a graph.

A clip's r_d and r_c are the means over its scored frames. Faces that a detector is unsure of do not count as people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..subjects.faces import DetectedFace, similarities
from .identity import EXTRA_MIN_SCORE

if TYPE_CHECKING:
    from .evidence import ClipEvidence

FEW_FACES = 0.5
LAMBDA = 5.0


def distinctness(embeddings: np.ndarray) -> float:
    """r_d of the faces of one image: unit embeddings [F, D] -> 0..1 (to 2 for faces that are opposites)."""
    _check(embeddings)
    if len(embeddings) < 2:
        return FEW_FACES
    cosines = similarities(embeddings, embeddings)
    return 1.0 - float(cosines[~np.eye(len(cosines), dtype=bool)].max())


def exact_count(found: int, wanted: int) -> float:
    """r_c."""
    return float(found == wanted)


def group_distinctness(group: Sequence[np.ndarray]) -> np.ndarray:
    """r_g of each image of a group: unit embeddings [F_i, D] of the faces of image i -> [G] in 0..1.

    Only pairs of faces from different images count; where there are none, S is 0.
    """
    if not group:
        raise ValueError("The group is empty; give the faces of at least one image.")
    for embeddings in group:
        _check(embeddings)
    count = len(group)
    sums, pairs = np.zeros((count, count)), np.zeros((count, count))
    for i in range(count):
        for j in range(i):
            cosines = similarities(group[i], group[j])
            sums[i, j] = sums[j, i] = cosines.sum()
            pairs[i, j] = pairs[j, i] = cosines.size

    def mean(total: float, number: float) -> float:
        return total / number if number else 0.0

    # Each pair stands in the matrix twice, in a row and in a column of the image that is left out.
    everyone = mean(sums.sum(), pairs.sum())
    without = np.array([mean(sums.sum() - 2 * sums[i].sum(), pairs.sum() - 2 * pairs[i].sum()) for i in range(count)])
    return 1.0 / (1.0 + np.exp(LAMBDA * (everyone - without)))


def measure_distinctness(evidence: ClipEvidence, options: Mapping[str, Any], model: None) -> float:
    """r_d of a clip."""
    return float(np.mean([distinctness(_embeddings(faces)) for faces in evidence.faces]))


def measure_count(evidence: ClipEvidence, options: Mapping[str, Any], model: None) -> float:
    """r_c of a clip: the share of its frames that show as many faces as subjects are scored."""
    wanted = len(evidence.scored)
    return float(np.mean([exact_count(len(_sure(faces)), wanted) for faces in evidence.faces]))


def _sure(faces: Sequence[DetectedFace]) -> list[DetectedFace]:
    return [face for face in faces if face.score >= EXTRA_MIN_SCORE]


def _embeddings(faces: Sequence[DetectedFace]) -> np.ndarray:
    sure = _sure(faces)
    return np.stack([face.embedding for face in sure]) if sure else np.zeros((0, 1), np.float32)


def _check(embeddings: np.ndarray) -> None:
    if not np.isfinite(embeddings).all():
        raise ValueError("The embeddings of the faces hold NaN or infinite values.")
