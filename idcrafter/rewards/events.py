"""What went wrong in a clip, with frames: somebody is missing, too many, exchanged, there twice, or half somebody else.

missing  in EVENT_FRAMES scored frames in a row (or all, where a clip has fewer) a subject is not found, or the face
         that comes nearest stays below what anybody would call the same person: somebody else is there. Who comes
         back where the face was lost (`tracking.MAX_GAP`), having turned away, or was hidden by another face is not
         missing.
extra    more people than the cast in EVENT_FRAMES scored frames in a row.
swapped  faces stay where they are while subjects exchange their identities: tracks that change from a to b, from b to c
         ... and from the last to a, at nearly the same time. Where faces come so close that one could have passed
         behind the other, that is what must have happened, and it is no swap.
cloned   a subject is there, and so is a second face that looks most like it and is nearly as alike to the first as the
         first is to the subject.
blended  a face lies between two subjects: as a mixture of the two it has a good part of both. One subject's own face
         has no part of the other, however alike the two are. Such a face is no clone of the one, and the other is not
         missing.

Events are statements for people; the score has its own penalties (`identity`). The figures are this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..subjects.faces import ALIKE_COSINE, DISAGREE_COSINE
from .assignment import MATCH_COSINE, face_distances
from .tracking import Following

KINDS = ("missing", "extra", "swapped", "cloned", "blended")

# Fewer scored frames in a row are a lapse, which the numbers show.
EVENT_FRAMES = 3

# Photos of one person that stay below DISAGREE_COSINE are doubted; so is a whole stretch of a clip.
DOUBT_MARGIN = DISAGREE_COSINE - MATCH_COSINE

# Two faces are one person where a verification system says so, as far above the match threshold as for ArcFace, ...
CLONE_MARGIN = ALIKE_COSINE - MATCH_COSINE
# ... and where they are about as alike as the subject is recognisable: faces of one generated clip share its look, so
# that a copy is more like the original than the original is like the photos.
CLONE_SHARE = 0.7

# Boxes nearer than this are two detections of one face.
_SAME_FACE = 0.4
# Who hides somebody is no farther from the place where that one should be.
_IN_FRONT = 1.0
# Tracks that exchange identities need not do it in the very same scored frame.
_SWAP_WINDOW = 2
# The smaller part of a blend, alone and beside the greater one.
_BLEND_PART = 0.25
_BLEND_BALANCE = 0.4


@dataclass(frozen=True)
class Event:
    """`subjects` (rows of the score; empty for extra) in the scored frames `first` to `last`, both included.

    A swap has the first frame with the new identities as both; a blend names first whose face it should be.
    """

    kind: str
    subjects: tuple[int, ...]
    first: int
    last: int


def find_events(
    boxes: Sequence[np.ndarray],
    embeddings: Sequence[np.ndarray],
    assigned: Sequence[np.ndarray],
    extra: np.ndarray,
    followed: Following,
    subjects: np.ndarray,
    threshold: float,
) -> tuple[Event, ...]:
    """All events of a clip, in order of their first frame.

    boxes, embeddings  of the faces of T frames
    assigned           T arrays [S] of face indices, -1 for missing
    extra              [T] people too many
    subjects           [S, D]
    """
    length = min(EVENT_FRAMES, len(boxes))
    faces = np.stack(assigned)
    blends = _blends(followed, faces, subjects, threshold, length)
    events = [Event("extra", (), a, b) for a, b in _runs(extra > 0, length)]
    for subject in range(len(subjects)):
        absent = (faces[:, subject] < 0) | _doubted(followed, subject, len(faces), threshold + DOUBT_MARGIN)
        for blend in blends.values():
            if blend.subjects[0] == subject:
                absent[blend.first : blend.last + 1] = False
        for first, last in _runs(absent, length):
            if not _hidden(boxes, faces[:, subject], first, last) and not _turned(followed, subject, first, last):
                events.append(Event("missing", (subject,), first, last))
        own = [k for k, stretch in enumerate(followed.stretches) if stretch.looks == subject and k not in blends]
        doubled = _doubled(boxes, embeddings, faces[:, subject], subjects[subject], followed, own, threshold)
        events += [Event("cloned", (subject,), a, b) for a, b in _runs(doubled, length)]
    events += find_swaps(followed)
    events += blends.values()
    return tuple(sorted(events, key=lambda event: (event.first, KINDS.index(event.kind), event.subjects)))


def find_swaps(followed: Following) -> list[Event]:
    """Moments at which tracks exchange identities among themselves."""
    changes = sorted(_changes(followed))
    swaps = []
    while changes:
        start = changes[0][0]
        first: dict[int, tuple[int, int, int, int]] = {}
        for change in changes:
            if change[0] <= start + _SWAP_WINDOW:
                first.setdefault(change[2], change)
        used = {changes[0]}
        for cycle in _cycles({a: change[3] for a, change in first.items()}):
            moment = max(first[a][0] for a in cycle)
            swaps.append(Event("swapped", cycle, moment, moment))
            used |= {first[a] for a in cycle}
        changes = [change for change in changes if change not in used]
    return swaps


def _changes(followed: Following) -> list[tuple[int, int, int, int]]:
    """(frame, track, from, to) wherever a track turns from one subject into another without a chance of mistaken
    tracks. The track comes before the subjects, so that the order of these changes nothing where several turn at once.
    """
    changes = []
    for number, track in enumerate(followed.tracks):
        own = [s for s in followed.stretches if s.track == number]
        for i, before in enumerate(own[:-1]):
            # A face may look like nobody for a moment while it changes.
            after = next((s for s in own[i + 1 : i + 3] if s.looks >= 0), None)
            if before.looks < 0 or after is None or after.looks == before.looks:
                continue
            if after.start - before.stop <= _SWAP_WINDOW and not any(
                track.contested[max(before.stop - 1, 0) : after.start + 2]
            ):
                changes.append((track.frames[after.start], number, before.looks, after.looks))
    return changes


def _cycles(mapping: dict[int, int]) -> list[tuple[int, ...]]:
    """The cycles of two or more in a partial mapping, each from its smallest member on."""
    cycles = []
    for start in sorted(mapping):
        chain, node = [start], mapping[start]
        while node in mapping and node not in chain:
            chain.append(node)
            node = mapping[node]
        if node == start == min(chain) and len(chain) > 1:
            cycles.append(tuple(chain))
    return cycles


def _doubted(followed: Following, subject: int, length: int, enough: float) -> np.ndarray:
    """[T] frames in which the subject's face belongs to a stretch that is not like it enough on average."""
    doubted = np.zeros(length, bool)
    for k in np.flatnonzero(followed.owner == subject):
        stretch = followed.stretches[k]
        span = slice(stretch.start, stretch.stop)
        if followed.evidence[stretch.track][span, subject].mean() < enough:
            doubted[list(followed.tracks[stretch.track].frames[span])] = True
    return doubted


def _hidden(boxes: Sequence[np.ndarray], face_of: np.ndarray, first: int, last: int) -> bool:
    """Whether a face stands where the subject should be, in every frame of a gap that has both ends."""
    if first == 0 or last == len(face_of) - 1:
        return False
    before, after = boxes[first - 1][face_of[first - 1]], boxes[last + 1][face_of[last + 1]]
    for t in range(first, last + 1):
        share = (t - first + 1) / (last - first + 2)
        place = before + share * (after - before)
        if not len(boxes[t]) or face_distances(place[None], boxes[t]).min() > _IN_FRONT:
            return False
    return True


def _turned(followed: Following, subject: int, first: int, last: int) -> bool:
    """Whether the gap lies within one track: the face was where it had been, and is there again."""
    for k in np.flatnonzero(followed.owner == subject):
        stretch = followed.stretches[k]
        frames = followed.tracks[stretch.track].frames[stretch.start : stretch.stop]
        if first - 1 in frames and last + 1 in frames:
            return True
    return False


def _doubled(
    boxes: Sequence[np.ndarray],
    embeddings: Sequence[np.ndarray],
    face_of: np.ndarray,
    subject: np.ndarray,
    followed: Following,
    alike: Sequence[int],
    threshold: float,
) -> np.ndarray:
    """[T] frames with a second face of a subject [D], whose own face is face_of[t], among the stretches `alike`."""
    doubled = np.zeros(len(boxes), bool)
    for k in alike:
        if followed.owner[k] >= 0:
            continue
        stretch = followed.stretches[k]
        track = followed.tracks[stretch.track]
        shared, cosines, known = [], [], []
        for t, face in zip(
            track.frames[stretch.start : stretch.stop], track.faces[stretch.start : stretch.stop], strict=True
        ):
            own = face_of[t]
            if own >= 0 and face_distances(boxes[t][own][None], boxes[t][face][None])[0, 0] > _SAME_FACE:
                shared.append(t)
                cosines.append(float(embeddings[t][own] @ embeddings[t][face]))
                known.append(float(embeddings[t][own] @ subject))
        if shared and np.mean(cosines) >= max(threshold + CLONE_MARGIN, CLONE_SHARE * np.mean(known)):
            doubled[shared] = True
    return doubled


def _blends(
    followed: Following, faces: np.ndarray, subjects: np.ndarray, threshold: float, length: int
) -> dict[int, Event]:
    """By number, the stretches whose mean face is a mixture of two subjects: both have a good part in a least-squares
    fit. Whose face it should be: its owner, or else the one who is seen less often beside it."""
    events = {}
    if len(subjects) < 2:
        return events
    alike = subjects @ subjects.T
    for k, stretch in enumerate(followed.stretches):
        if stretch.stop - stretch.start < length:
            continue
        cosines = followed.evidence[stretch.track][stretch.start : stretch.stop].mean(0)
        a, b = np.argsort(-cosines, kind="stable")[:2]
        if cosines[b] < threshold or alike[a, b] > 0.99:
            continue
        parts = np.linalg.solve([[1.0, alike[a, b]], [alike[a, b], 1.0]], cosines[[a, b]])
        if parts.min() >= _BLEND_PART and parts.min() >= _BLEND_BALANCE * parts.max():
            frames = followed.tracks[stretch.track].frames[stretch.start : stretch.stop]
            seen = (faces[list(frames)] >= 0).sum(0)
            if followed.owner[k] == b or (followed.owner[k] < 0 and seen[b] < seen[a]):
                a, b = b, a
            events[k] = Event("blended", (int(a), int(b)), frames[0], frames[-1])
    return events


def _runs(flags: np.ndarray, length: int) -> list[tuple[int, int]]:
    """First and last index of every run of at least `length` True values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2) if b - a >= length]
