"""From faces in frames to people: tracks, the stretches of them in which they look like one person, and whose they are.

1. `build_tracks` follows faces from frame to frame. A face can only continue where it was or where it was heading;
   among several such places the embedding decides, and the link is marked as contested. People who cross are told apart
   that way, while a face that stays in place and becomes somebody else stays one track.
2. `split_track` cuts a track where its identity changes for good (Viterbi 1967, states: each subject and nobody). A
   head turned away or a short bad match costs less than two changes and stays where it is.
3. `assign_stretches` gives stretches to subjects by their summed cosines (`assignment.assign_faces` on stretches),
   never two at a time to one subject. A subject who leaves and comes back gets several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..subjects.faces import similarities
from .assignment import LINK_DISTANCE, assign_faces, face_distances, link_faces

# A track survives that many scored frames without a face, but not longer than this. After a second a place says little
# about who stands there, so then only the embeddings count.
MAX_GAP = 4
MAX_GAP_SECONDS = 1.0

# Summed cosine that a change of identity must gain. ArcFace gives a rendered face 0.3 to 0.6 to its own subject and
# about 0 to others: one frame is not enough, two are, and a passing error (there and back, twice the price) needs three
# or more.
CHANGE_COST = 0.5

# Of two subjects whom a stretch resembles, the second may have it only when it is this close; otherwise a clone of one
# would pass for a bad likeness of the other.
AMBIGUOUS_COSINE = 0.1

# How much of a face's embedding enters the memory of its track.
_MEMORY = 0.3


@dataclass(frozen=True)
class Track:
    """One face followed through a clip.

    frames     positions among the scored frames, ascending, with gaps where the face was not found
    faces      the index of the face in each of these frames
    contested  whether the link to the face before could have gone elsewhere, or bridges a gap; False for the first
    """

    frames: tuple[int, ...]
    faces: tuple[int, ...]
    contested: tuple[bool, ...]


@dataclass(frozen=True)
class Stretch:
    """Faces start..stop-1 of track number `track`, which look most like subject `looks` (-1: like nobody)."""

    track: int
    start: int
    stop: int
    looks: int


@dataclass(frozen=True, eq=False)
class Following:
    """The tracks of a clip, for each its cosines [L, S]; their stretches in order, and [K] whose each is or -1."""

    tracks: tuple[Track, ...]
    evidence: tuple[np.ndarray, ...]
    stretches: tuple[Stretch, ...]
    owner: np.ndarray

    def of_subjects(self, order: np.ndarray) -> Following:
        """The same for subjects of which these, in order, are numbers order[0], order[1], ..."""
        back = np.argsort(order)
        number = np.append(order, -1)  # -1 stays nobody
        return Following(
            self.tracks,
            tuple(cosines[:, back] for cosines in self.evidence),
            tuple(replace(stretch, looks=int(number[stretch.looks])) for stretch in self.stretches),
            number[self.owner],
        )


@dataclass
class _Open:
    """A track that may still go on: its last box, its speed a frame, and what it has looked like lately."""

    frames: list[int]
    faces: list[int]
    contested: list[bool]
    box: np.ndarray
    speed: np.ndarray
    look: np.ndarray


def follow(
    boxes: Sequence[np.ndarray],
    embeddings: Sequence[np.ndarray],
    subjects: np.ndarray,
    threshold: float,
    times: Sequence[float] | None = None,
) -> Following:
    """All three steps for subjects [S, D]; the other arguments as in `build_tracks` and `split_track`."""
    tracks = build_tracks(boxes, embeddings, times)
    evidence = tuple(
        similarities(
            np.stack([embeddings[t][face] for t, face in zip(track.frames, track.faces, strict=True)]), subjects
        )
        for track in tracks
    )
    stretches = tuple(
        Stretch(number, *stretch)
        for number, cosines in enumerate(evidence)
        for stretch in split_track(cosines.astype(np.float64), threshold)
    )
    return Following(tracks, evidence, stretches, assign_stretches(stretches, tracks, evidence, threshold))


def build_tracks(
    boxes: Sequence[np.ndarray], embeddings: Sequence[np.ndarray], times: Sequence[float] | None = None
) -> tuple[Track, ...]:
    """Follow faces through T frames.

    boxes       T arrays [F_t, 4]
    embeddings  T arrays [F_t, D] of unit length
    times       seconds of the T frames, where known
    Returns tracks in order of their first face; each face belongs to exactly one.
    """
    done: list[_Open] = []
    alive: list[_Open] = []
    for t in range(len(boxes)):
        current = [track for track in alive if _may_continue(track, t, times)]
        done += [track for track in alive if not _may_continue(track, t, times)]
        links, contested = _links(current, t, boxes[t], embeddings[t])
        alive = current
        for face in range(len(boxes[t])):
            if face in links:
                _extend(current[links[face]], t, face, boxes[t][face], embeddings[t][face], face in contested)
            else:
                still = np.zeros(4)
                alive.append(_Open([t], [face], [False], boxes[t][face], still, np.array(embeddings[t][face])))
    tracks = sorted(done + alive, key=lambda track: (track.frames[0], track.faces[0]))
    return tuple(Track(tuple(track.frames), tuple(track.faces), tuple(track.contested)) for track in tracks)


def split_track(evidence: np.ndarray, threshold: float) -> list[tuple[int, int, int]]:
    """Cut a track into stretches of one identity.

    evidence   [L, S] cosines of its faces and the subjects
    threshold  what nobody is worth: below it a face is no subject
    Returns (start, stop, subject or -1) of the sequence of identities with the greatest sum of cosines, less
    CHANGE_COST a change; among equals the one that changes later.
    """
    length, count = evidence.shape
    # Clipped as in the score: that a face is no less than unlike somebody says nothing about who it is.
    worth = np.concatenate([np.clip(evidence, 0.0, 1.0), np.full((length, 1), threshold)], 1)
    total = worth[0].copy()
    came_from = np.zeros((length, count + 1), np.int64)
    for t in range(1, length):
        best = int(total.argmax())
        changes = total[best] - CHANGE_COST > total
        came_from[t] = np.where(changes, best, np.arange(count + 1))
        total = np.where(changes, total[best] - CHANGE_COST, total) + worth[t]
    states = np.empty(length, np.int64)
    states[-1] = total.argmax()
    for t in range(length - 1, 0, -1):
        states[t - 1] = came_from[t, states[t]]
    cuts = [0, *(np.flatnonzero(np.diff(states)) + 1).tolist(), length]
    return [(a, b, -1 if states[a] == count else int(states[a])) for a, b in zip(cuts, cuts[1:], strict=False) if b > a]


def assign_stretches(
    stretches: Sequence[Stretch], tracks: Sequence[Track], evidence: Sequence[np.ndarray], threshold: float
) -> np.ndarray:
    """Whose each stretch is: [K] subject indices, -1 for nobody's.

    evidence  for each track its cosines [L, S]
    Each round gives every subject at most one more stretch, by the greatest sum of cosines above the threshold over its
    frames; stretches of one subject share no frame.
    """
    count = evidence[0].shape[1] if evidence else 0
    owner = np.full(len(stretches), -1)
    gain = np.full((count, len(stretches)), -1.0)
    frames = [frozenset(tracks[s.track].frames[s.start : s.stop]) for s in stretches]
    for k, stretch in enumerate(stretches):
        own = evidence[stretch.track][stretch.start : stretch.stop]
        mean = own.mean(0)
        may = (mean >= threshold) & (mean >= mean.max() - AMBIGUOUS_COSINE)
        gain[may, k] = np.maximum((own - threshold).sum(0)[may], 0.0)
    busy: list[set[int]] = [set() for _ in range(count)]
    while True:
        given = assign_faces(gain, 0.0)
        if (given < 0).all():
            return owner
        for subject in np.flatnonzero(given >= 0):
            owner[given[subject]] = subject
            busy[subject] |= frames[given[subject]]
        gain[:, owner >= 0] = -1.0
        for subject in range(count):
            gain[subject, [k for k, own in enumerate(frames) if own & busy[subject]]] = -1.0


def _may_continue(track: _Open, t: int, times: Sequence[float] | None) -> bool:
    last = track.frames[-1]
    return t - last <= MAX_GAP and (times is None or times[t] - times[last] <= MAX_GAP_SECONDS)


def _links(tracks: list[_Open], t: int, boxes: np.ndarray, embeddings: np.ndarray) -> tuple[dict[int, int], set[int]]:
    """{face: track} of frame t, and the faces of which nobody can be sure that they are the ones before."""
    if not tracks or not len(boxes):
        return {}, set()
    was = np.stack([track.box for track in tracks])
    heading = np.stack([track.box + track.speed * (t - track.frames[-1]) for track in tracks])
    distance = np.minimum(face_distances(was, boxes), face_distances(heading, boxes))
    chosen = link_faces(distance, np.stack([track.look for track in tracks]) @ embeddings.T)
    near = distance <= LINK_DISTANCE
    links = {int(face): track for track, face in enumerate(chosen) if face >= 0}
    contested = {
        face
        for face, track in links.items()
        if near[track].sum() > 1 or near[:, face].sum() > 1 or t - tracks[track].frames[-1] > 1
    }
    return links, contested


def _extend(track: _Open, t: int, face: int, box: np.ndarray, embedding: np.ndarray, contested: bool) -> None:
    centre = (box - track.box).reshape(2, 2).mean(0) / (t - track.frames[-1])
    track.speed = np.concatenate([centre, centre])
    track.box = box
    track.look = (1 - _MEMORY) * track.look + _MEMORY * embedding
    track.frames.append(t)
    track.faces.append(face)
    track.contested.append(contested)
