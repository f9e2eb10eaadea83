"""Who is who, and which face is which from frame to frame: two optimal assignments with a way out.

Both leave a row unmatched where every match is worse than a stated limit, by one more column per row that is worth
exactly that limit (MultiHuman-Testbench pads to a square in the same way, with 0 for "not in the picture").
"""

from __future__ import annotations

import numpy as np

# Below this cosine a face is nobody of the cast. For ArcFace embeddings 0.1 % of pairs of strangers reach 0.28, so
# strangers seldom reach 0.2, while a small, turned or badly rendered face of the right person mostly does.
MATCH_COSINE = 0.2

# A face that moved by more than half its size between two frames may be anybody: no statement about continuity.
LINK_DISTANCE = 0.5


def assign_faces(similarity: np.ndarray, threshold: float = MATCH_COSINE) -> np.ndarray:
    """The face of each subject, so that the sum of similarities is greatest and no face serves two subjects.

    similarity  [S, F] finite cosines (or sums of them) of S subjects and F faces
    Returns [S] face indices, -1 for a subject who is missing (no face left that reaches `threshold`).
    """
    return _assign(similarity, threshold)


def link_faces(distance: np.ndarray, likeness: np.ndarray, limit: float = LINK_DISTANCE) -> np.ndarray:
    """The continuation of each face in a later frame: near enough by place, and among near ones the most alike.

    distance  [A, B] by `face_distances`
    likeness  [A, B] cosines
    Returns [A] indices of later faces, -1 where none is within `limit`.
    """
    # A pair that is near is worth more than none, whatever the cosine says.
    gain = 2.0 + likeness + (1.0 - distance / limit)
    return _assign(np.where(distance <= limit, gain, -1.0), 0.0)


def face_distances(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Distances of the centres of boxes [A, 4] and [B, 4], in units of the mean side of the two: [A, B]."""
    centres = [(boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in (before, after)]
    distance = np.linalg.norm(centres[0][:, None] - centres[1][None], axis=-1)
    side = (face_sides(before)[:, None] + face_sides(after)[None]) / 2
    return distance / np.maximum(side, 1e-6)


def face_sides(boxes: np.ndarray) -> np.ndarray:
    """The side in pixels of the square with each box's area: [..., 4] -> [...]."""
    extent = np.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return np.sqrt(extent[..., 0] * extent[..., 1])


def _assign(gain: np.ndarray, floor: float) -> np.ndarray:
    """[R] column of each row with the greatest total gain, -1 for rows that no column serves with at least `floor`."""
    rows, columns = gain.shape
    if rows == 0 or columns == 0:
        return np.full(rows, -1)
    from scipy.optimize import linear_sum_assignment

    # Just below the floor, so that a match that reaches it exactly wins.
    nobody = np.full((rows, rows), np.nextafter(floor, -np.inf))
    _, chosen = linear_sum_assignment(np.concatenate([gain.astype(np.float64), nobody], 1), maximize=True)
    return np.where(chosen < columns, chosen, -1)
