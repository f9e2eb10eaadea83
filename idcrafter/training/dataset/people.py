"""Who is in raw clips: scenes, the tracks of faces in them, and which tracks are one person.

Tracks are followed by `rewards.tracking.build_tracks`, within a scene, because a place says nothing across a cut. They
are joined to people from the most alike pair on, each by the mean of all of its faces (agglomerative clustering with
centroids), and never where both are seen in one moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...rewards.tracking import build_tracks
from ...subjects.faces import similarities
from .seen import SeenClip

# A cut changes the picture by this much on average (0..1), and by so many times what is usual around it: within nano's
# clips the mean change stays below 0.04, between two of them it is 0.12 to 0.23.
CUT_CHANGE = 0.08
CUT_RATIO = 2.5
_AROUND = 4


@dataclass(frozen=True)
class Scene:
    """Moments start..stop-1 of a clip between two cuts."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class Person:
    """Somebody in one clip.

    number  the same for the same person in other clips where people were joined across clips
    faces   {moment: index of the face in the clip's `SeenClip`}
    """

    number: int
    faces: dict[int, int]


def find_scenes(change: np.ndarray) -> list[Scene]:
    """Cut a clip where the picture changes at once. change [T] as in `SeenClip`."""
    cuts = [0]
    for t in range(1, len(change)):
        around = np.delete(change[max(1, t - _AROUND) : t + _AROUND + 1], min(t - 1, _AROUND))
        usual = float(np.median(around)) if len(around) else 0.0
        if change[t] >= CUT_CHANGE and change[t] >= CUT_RATIO * usual:
            cuts.append(t)
    return [Scene(a, b) for a, b in zip(cuts, [*cuts[1:], len(change)], strict=True)]


def find_people(
    clips: Sequence[SeenClip], scenes: Sequence[Sequence[Scene]], fps: Sequence[float], same: float, across: bool
) -> list[list[Person]]:
    """The people of each clip, in order of the scene in which they are first seen, there from left to right.

    scenes  of each clip; fps  moments a second of each
    same    cosine of the mean faces from which two tracks are one person
    across  whether people are joined across clips as well
    """
    tracks = [
        (c, faces)
        for c, (seen, own) in enumerate(zip(clips, scenes, strict=True))
        for faces in _tracks(seen, own, fps[c])
    ]
    sums = [clips[c].embeddings[list(faces.values())].sum(0, dtype=np.float64) for c, faces in tracks]
    spans = [{(c, moment) for moment in faces} for c, faces in tracks]
    groups = np.arange(len(tracks))
    clip_of = np.array([c for c, _ in tracks], np.int64)
    for together in [np.arange(len(tracks))] if across else [np.flatnonzero(clip_of == c) for c in range(len(clips))]:
        groups[together] = together[_join([sums[k] for k in together], [spans[k] for k in together], same)]
    people = []
    for c, (seen, own) in enumerate(zip(clips, scenes, strict=True)):
        found: dict[int, dict[int, int]] = {}
        for group, (clip, faces) in zip(groups.tolist(), tracks, strict=True):
            if clip == c:
                found.setdefault(group, {}).update(faces)
        members = [Person(group, dict(sorted(faces.items()))) for group, faces in found.items()]
        people.append(sorted(members, key=lambda person: _place(person, seen, own)))
    return people


def _tracks(seen: SeenClip, scenes: Sequence[Scene], fps: float) -> list[dict[int, int]]:
    """{moment: face} of every track of a clip."""
    faces_of: list[list[int]] = [[] for _ in range(seen.length)]
    for face, moment in enumerate(seen.moment.tolist()):
        faces_of[moment].append(face)
    tracks = []
    for scene in scenes:
        moments = range(scene.start, scene.stop)
        found = build_tracks(
            [seen.boxes[faces_of[t]] for t in moments],
            [seen.embeddings[faces_of[t]] for t in moments],
            [t / fps for t in moments],
        )
        for track in found:
            at = [scene.start + frame for frame in track.frames]
            tracks.append({t: faces_of[t][face] for t, face in zip(at, track.faces, strict=True)})
    return tracks


def _join(sums: list[np.ndarray], spans: list[set], same: float) -> np.ndarray:
    """[K] the group of each of K tracks, by the number of one of its tracks.

    sums   summed embeddings; spans  moments in which they are seen: what is seen twice in one is two people
    """
    group = np.arange(len(sums))
    if len(sums) < 2:
        return group
    sums, spans = list(sums), list(spans)
    units = np.stack([_unit(total) for total in sums])
    cosines = np.triu(similarities(units, units) + 2.0, 1) - 2.0  # -2: no pair
    where: dict = {}
    for k, span in enumerate(spans):
        for moment in span:
            where.setdefault(moment, []).append(k)
    for own in where.values():
        cosines[np.ix_(own, own)] = -2.0
    while True:
        a, b = np.unravel_index(int(cosines.argmax()), cosines.shape)
        if cosines[a, b] < same:
            return group
        sums[a], spans[a] = sums[a] + sums[b], spans[a] | spans[b]
        units[a] = _unit(sums[a])
        group[group == b] = a
        cosines[b, :] = cosines[:, b] = -2.0
        others = np.setdiff1d(group, [a])
        fits = np.array([not spans[a] & spans[other] for other in others], bool)
        likeness = np.where(fits, similarities(units[[a]], units[others])[0], -2.0)
        cosines[np.minimum(a, others), np.maximum(a, others)] = likeness


def _unit(total: np.ndarray) -> np.ndarray:
    return total / max(float(np.linalg.norm(total)), 1e-12)


def _place(person: Person, seen: SeenClip, scenes: Sequence[Scene]) -> tuple[int, float]:
    """The scene in which somebody is first seen, and how far from the left on average there."""
    first = next(iter(person.faces))
    number, scene = next((n, scene) for n, scene in enumerate(scenes) if first < scene.stop)
    boxes = seen.boxes[[face for t, face in person.faces.items() if t < scene.stop]]
    return number, float(boxes[:, [0, 2]].mean())
