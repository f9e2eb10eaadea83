"""Identity over a clip: is everybody there, recognisable, once, and always the same person?

Faces are assigned to subjects frame by frame (`assignment.assign_faces`). With S subjects and T frames:

    q_i     = 1/T sum_t clip(cos(subject i, its face in frame t), 0, 1), where a missing subject counts 0
    reward  = 1/2 mean_i q_i + 1/2 min_i q_i
    score   = clip(reward - P_extra - P_swap, 0, 1)
    P_extra = 0.3 * 1/T sum_t min(1, extra people in frame t / S)
    P_swap  = 0.25 per swap, at most 0.5

Hungarian assignment with 0 for who is not found is the practice of MultiHuman-Testbench; the mean over the frames
that do show a face, as in OpenS2V's FaceSim, would reward a clip that hides its people. The minimum keeps one
subject from being traded for the other. These formulas and weights are this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..subjects.faces import DetectedFace, similarities
from .assignment import MATCH_COSINE, assign_faces, face_sides, link_faces

EXTRA_WEIGHT = 0.3
SWAP_WEIGHT = 0.25
MAX_SWAP_PENALTY = 0.5

# Detections below this confidence are often hands or patterns; they may be a subject, but not one person too many.
EXTRA_MIN_SCORE = 0.6
# Nor is a face with less than a quarter of the area of the smallest subject: a picture on the wall, a far passer-by.
EXTRA_MIN_AREA = 0.25


@dataclass(frozen=True, eq=False)
class FrameFaces:
    """All faces of one frame: boxes [F, 4] in pixels, scores [F], unit embeddings [F, D]."""

    boxes: np.ndarray
    scores: np.ndarray
    embeddings: np.ndarray

    @classmethod
    def of(cls, faces: Sequence[DetectedFace], dimensions: int = 512) -> FrameFaces:
        return cls(
            np.array([face.box for face in faces], np.float64).reshape(-1, 4),
            np.array([face.score for face in faces], np.float64),
            np.array([face.embedding for face in faces], np.float32).reshape(-1, dimensions),
        )


@dataclass(frozen=True)
class Swap:
    """Subjects who exchanged their places between the frame before `frame` and `frame` (indices into the clip)."""

    frame: int
    subjects: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ClipIdentity:
    """What `score_identity` found in T frames with S subjects.

    similarity     [T, S] cosines, NaN where a subject is missing
    boxes          [T, S, 4] pixels, NaN where a subject is missing
    extra          [T] people too many
    swaps          in order of frames
    quality        [S] q_i of the module's formula
    extra_penalty, swap_penalty, score  as in the module's formula
    """

    similarity: np.ndarray
    boxes: np.ndarray
    extra: np.ndarray
    swaps: tuple[Swap, ...]
    quality: np.ndarray
    extra_penalty: float
    swap_penalty: float
    score: float

    @property
    def missing(self) -> np.ndarray:
        """[T, S] True where a subject was not found."""
        return np.isnan(self.similarity)

    @property
    def coverage(self) -> np.ndarray:
        """[S] share of the frames in which a subject was found."""
        return 1.0 - self.missing.mean(0)

    @property
    def similarity_seen(self) -> np.ndarray:
        """[S] mean cosine over the frames in which a subject was found; NaN for one who never was."""
        return _mean_seen(self.similarity)

    @property
    def face_size(self) -> np.ndarray:
        """[S] mean side of a subject's face in pixels; NaN for one who was never found."""
        return _mean_seen(face_sides(self.boxes))


def score_identity(frames: Sequence[FrameFaces], subjects: np.ndarray, threshold: float = MATCH_COSINE) -> ClipIdentity:
    """Score a clip against subjects by the module's formula.

    frames    the faces of T >= 1 frames, in time order; the order of the faces in a frame does not matter
    subjects  [S, D] unit embeddings, S >= 1
    Raises ValueError for no frames, no subjects, or embeddings that are not finite.
    """
    if not frames or not len(subjects):
        raise ValueError(f"Scoring needs at least one frame and one subject, got {len(frames)} and {len(subjects)}.")
    if not np.isfinite(subjects).all():
        raise ValueError("The embeddings of the subjects hold NaN or infinite values.")
    frames = [_left_to_right(frame, t) for t, frame in enumerate(frames)]
    count = len(subjects)
    similarity = np.full((len(frames), count), np.nan)
    boxes = np.full((len(frames), count, 4), np.nan)
    extra = np.zeros(len(frames), np.int64)
    assigned = []
    for t, frame in enumerate(frames):
        cosines = similarities(subjects, frame.embeddings)
        face_of = assign_faces(cosines, threshold)
        found = np.flatnonzero(face_of >= 0)
        similarity[t, found] = cosines[found, face_of[found]]
        boxes[t, found] = frame.boxes[face_of[found]]
        extra[t] = count_extra(frame, face_of)
        assigned.append(face_of)
    swaps = find_swaps([frame.boxes for frame in frames], assigned)
    quality = subject_quality(similarity)
    extra_penalty = EXTRA_WEIGHT * float(np.minimum(extra / count, 1.0).mean())
    swap_penalty = min(SWAP_WEIGHT * len(swaps), MAX_SWAP_PENALTY)
    score = float(np.clip(identity_reward(quality) - extra_penalty - swap_penalty, 0.0, 1.0))
    return ClipIdentity(similarity, boxes, extra, swaps, quality, extra_penalty, swap_penalty, score)


def subject_quality(similarity: np.ndarray) -> np.ndarray:
    """q_i [S] of cosines [T, S] with NaN for missing: the mean over all frames of the cosine clipped to 0..1."""
    return np.clip(np.nan_to_num(similarity, nan=0.0), 0.0, 1.0).mean(0)


def identity_reward(quality: np.ndarray) -> float:
    """Half the mean and half the minimum of q_i [S]."""
    return 0.5 * float(quality.mean()) + 0.5 * float(quality.min())


def count_extra(frame: FrameFaces, face_of: np.ndarray) -> int:
    """People too many in one frame.

    face_of  [S] face index of each subject, -1 for missing
    An unmatched face in a frame that lacks a subject is taken for that subject, badly rendered or turned away: it
    already costs the whole frame of q_i. Only faces beyond that are people too many.
    """
    found = face_of[face_of >= 0]
    counts = frame.scores >= EXTRA_MIN_SCORE
    if len(found):
        area = face_sides(frame.boxes) ** 2
        counts &= area >= EXTRA_MIN_AREA * area[found].min()
    counts[found] = False
    return max(0, int(counts.sum()) - int((face_of < 0).sum()))


def find_swaps(boxes: Sequence[np.ndarray], assigned: Sequence[np.ndarray]) -> tuple[Swap, ...]:
    """Moments when subjects exchange their identities while the faces stay where they are.

    boxes     T arrays [F_t, 4]
    assigned  T arrays [S] of face indices, -1 for missing
    Between two consecutive frames each face is continued by the nearest one (`assignment.link_faces`). Where subject
    a's face continues as b's, b's as c's ... and the last as a's, their identities moved around while the faces did
    not. People who cross move by more than a face between sampled frames, or cover each other, and link to nobody.
    """
    swaps = []
    for t in range(1, len(boxes)):
        links = link_faces(boxes[t - 1], boxes[t])
        owner = {int(face): subject for subject, face in enumerate(assigned[t]) if face >= 0}
        becomes = {
            subject: owner[int(links[face])]
            for subject, face in enumerate(assigned[t - 1])
            if face >= 0 and int(links[face]) in owner
        }
        swaps += [Swap(t, cycle) for cycle in _cycles(becomes)]
    return tuple(swaps)


def _cycles(mapping: dict[int, int]) -> list[tuple[int, ...]]:
    """The cycles of two or more in a partial permutation, each from its smallest member on."""
    cycles = []
    for start in sorted(mapping):
        chain, node = [start], mapping[start]
        while node in mapping and node not in chain:
            chain.append(node)
            node = mapping[node]
        if node == start == min(chain) and len(chain) > 1:
            cycles.append(tuple(chain))
    return cycles


def _left_to_right(frame: FrameFaces, index: int) -> FrameFaces:
    """The same faces in an order of their own, so that ties do not depend on the detector's order."""
    if not np.isfinite(frame.embeddings).all() or not np.isfinite(frame.boxes).all():
        raise ValueError(f"The faces of scored frame {index + 1} hold NaN or infinite values.")
    order = np.lexsort(frame.boxes.T[::-1])
    return FrameFaces(frame.boxes[order], frame.scores[order], frame.embeddings[order])


def _mean_seen(values: np.ndarray) -> np.ndarray:
    """[T, S] -> [S], the mean without NaN; NaN where there is nothing else."""
    seen = ~np.isnan(values)
    total = np.where(seen, values, 0.0).sum(0)
    return np.divide(total, seen.sum(0), out=np.full(values.shape[1], np.nan), where=seen.any(0))
