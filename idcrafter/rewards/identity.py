"""Identity over a clip: is everybody there, recognisable, once, and always the same person?

Faces are followed through the clip and assigned to subjects by stretches of their tracks (`tracking`), so that a head
turned away for a moment stays who it is. With S subjects and T frames:

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
from dataclasses import dataclass, replace

import numpy as np

from ..subjects.faces import DetectedFace, similarities
from .assignment import MATCH_COSINE, face_sides
from .events import Event, find_events
from .tracking import Following, Track, follow

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


@dataclass(frozen=True, eq=False)
class ClipIdentity:
    """What `score_identity` found in T frames with S subjects.

    similarity     [T, S] cosines, NaN where a subject is missing
    boxes          [T, S, 4] pixels, NaN where a subject is missing
    extra          [T] people too many
    quality        [S] q_i of the module's formula
    extra_penalty, swap_penalty, score  as in the module's formula
    tracks         every face of the clip, followed
    assigned       T arrays [S]: the index of each subject's face among the given ones, -1 where it is missing
    events         in order of frames
    """

    similarity: np.ndarray
    boxes: np.ndarray
    extra: np.ndarray
    quality: np.ndarray
    extra_penalty: float
    swap_penalty: float
    score: float
    tracks: tuple[Track, ...]
    assigned: tuple[np.ndarray, ...]
    events: tuple[Event, ...]

    @property
    def swaps(self) -> tuple[Event, ...]:
        """The exchanges of identities among the events."""
        return tuple(event for event in self.events if event.kind == "swapped")

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


def score_identity(
    frames: Sequence[FrameFaces],
    subjects: np.ndarray,
    threshold: float = MATCH_COSINE,
    times: Sequence[float] | None = None,
) -> ClipIdentity:
    """Score a clip against subjects by the module's formula.

    frames     the faces of T >= 1 frames, in time order; the order of the faces in a frame does not matter
    subjects   [S, D] unit embeddings, S >= 1; their order does not matter
    threshold  cosine below which a face is nobody of the cast; MATCH_COSINE fits ArcFace
    times      seconds of the frames, where known: far apart, faces are not followed by their place
    Raises ValueError for no frames, no subjects, or values that are not finite.
    """
    if not frames or not len(subjects):
        raise ValueError(f"Scoring needs at least one frame and one subject, got {len(frames)} and {len(subjects)}.")
    if not np.isfinite(subjects).all():
        raise ValueError("The embeddings of the subjects hold NaN or infinite values.")
    given = [_left_to_right(frame, t) for t, frame in enumerate(frames)]
    orders, ordered = [order for order, _ in given], [frame for _, frame in given]
    boxes, embeddings = [frame.boxes for frame in ordered], [frame.embeddings for frame in ordered]
    # Subjects in an order of their own too, so that equal matches do not depend on how the cast was wired.
    rank = np.lexsort(subjects.T[::-1])
    followed = follow(boxes, embeddings, subjects[rank], threshold, times).of_subjects(rank)
    assigned = _assigned(followed, len(frames), len(subjects))
    similarity = np.full((len(frames), len(subjects)), np.nan)
    found_boxes = np.full((len(frames), len(subjects), 4), np.nan)
    extra = np.zeros(len(frames), np.int64)
    for t, face_of in enumerate(assigned):
        found = np.flatnonzero(face_of >= 0)
        similarity[t, found] = similarities(subjects, embeddings[t])[found, face_of[found]]
        found_boxes[t, found] = boxes[t][face_of[found]]
        extra[t] = count_extra(ordered[t], face_of)
    events = find_events(boxes, embeddings, assigned, extra, followed, subjects, threshold)
    swaps = sum(event.kind == "swapped" for event in events)
    quality = subject_quality(similarity)
    extra_penalty = EXTRA_WEIGHT * float(np.minimum(extra / len(subjects), 1.0).mean())
    swap_penalty = min(SWAP_WEIGHT * swaps, MAX_SWAP_PENALTY)
    score = float(np.clip(identity_reward(quality) - extra_penalty - swap_penalty, 0.0, 1.0))
    return ClipIdentity(
        similarity,
        found_boxes,
        extra,
        quality,
        extra_penalty,
        swap_penalty,
        score,
        tuple(_given_faces(track, orders) for track in followed.tracks),
        tuple(
            np.where(face_of >= 0, order[face_of], -1) if len(order) else face_of
            for face_of, order in zip(assigned, orders, strict=True)
        ),
        events,
    )


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


def _assigned(followed: Following, length: int, count: int) -> list[np.ndarray]:
    """For each frame [S] the face of each subject, -1 for missing."""
    assigned = np.full((length, count), -1)
    for stretch, owner in zip(followed.stretches, followed.owner, strict=True):
        if owner >= 0:
            track, span = followed.tracks[stretch.track], slice(stretch.start, stretch.stop)
            assigned[list(track.frames[span]), owner] = track.faces[span]
    return list(assigned)


def _left_to_right(frame: FrameFaces, index: int) -> tuple[np.ndarray, FrameFaces]:
    """The same faces in an order of their own, so that ties do not depend on the detector's order, and that order."""
    values = (frame.embeddings, frame.boxes, frame.scores)
    if not all(np.isfinite(each).all() for each in values):
        raise ValueError(f"The faces of scored frame {index + 1} hold NaN or infinite values.")
    order = np.lexsort(frame.boxes.T[::-1])
    return order, FrameFaces(frame.boxes[order], frame.scores[order], frame.embeddings[order])


def _given_faces(track: Track, orders: Sequence[np.ndarray]) -> Track:
    """The track with the indices of faces as the caller counts them."""
    return replace(track, faces=tuple(int(orders[t][face]) for t, face in zip(track.frames, track.faces, strict=True)))


def _mean_seen(values: np.ndarray) -> np.ndarray:
    """[T, S] -> [S], the mean without NaN; NaN where there is nothing else."""
    seen = ~np.isnan(values)
    total = np.where(seen, values, 0.0).sum(0)
    return np.divide(total, seen.sum(0), out=np.full(values.shape[1], np.nan), where=seen.any(0))
