"""What is cut out of raw clips: windows to train on, who of the people in them counts, and their references.

Everything that is left out is left out with a reason; nothing here reads or writes a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...relations.compose import replace_names
from ...rewards.assignment import face_sides
from ...rewards.subject_crops import MARGIN
from ...rewards.tracking import MAX_GAP
from ...subjects.diversity import farthest_points
from ...subjects.references import FACE_MARGIN
from ...subjects.regions import TEMPORAL_STRIDE, Track
from ...subjects.subject import MAX_SUBJECTS, MIN_SIDE
from .clip import Boxes
from .people import Person, Scene
from .raw import Caption
from .seen import SeenClip

# Candidates for references of one person that are compared with each other, spread evenly over all there are.
_CANDIDATES = 64
# How far a reference's two pictures reach beyond the face, in its sides: the widest of each that shows nobody else, ...
_FACE_MARGINS = (FACE_MARGIN, 0.2)
_WIDE_MARGINS = (MARGIN, 0.8, 0.6)
# ... that is, of another face no more than this share.
_SHOWN = 0.25


@dataclass(frozen=True)
class BuildSettings:
    """What counts as good enough to be trained on.

    frames         of a window, 4 n + 1 as the video models' VAEs want it
    fps            of the windows; None keeps each clip's own
    min_face       mean side of a face in pixels
    min_sharpness  `seen.sharpness`, the median over the faces of a window, and of each reference
    min_share      of the moments of a window in which the face is found
    references     moments that a subject's references are from, at most; each gives a face and, where nobody else is in
                   it, a wider picture
    gap            seconds between a window and a reference of the same clip
    across         whether references may be from other clips of the same person
    same           cosine from which the mean faces of two tracks are one person: for ArcFace well above the 0.28 that
                   one pair of strangers in a thousand reaches. Nano's recogniser gives strangers up to 0.6 and one
                   person 0.87 and more; there 0.7 is right.
    seed           draws where windows lie
    """

    frames: int = 81
    fps: float | None = None
    min_face: float = 48.0
    min_sharpness: float = 40.0
    min_share: float = 0.6
    references: int = 3
    gap: float = 0.5
    across: bool = False
    same: float = 0.5
    seed: int = 0

    def __post_init__(self):
        if self.frames < 1 or (self.frames - 1) % TEMPORAL_STRIDE:
            raise ValueError(
                f"A window has {self.frames} frames; give {TEMPORAL_STRIDE} n + 1 of them (5, 9, ... 81), as the "
                "video models' VAEs need it."
            )
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"fps is {self.fps:g}; give a number above 0, or leave it out for the clips' own.")
        if self.min_face < MIN_SIDE:
            raise ValueError(
                f"Faces of {self.min_face:g} px are too small to be references; ask for {MIN_SIDE} or more."
            )
        if self.references < 1:
            raise ValueError("A subject needs at least 1 reference.")
        if not (0 < self.min_share <= 1 and 0 < self.same <= 1):
            raise ValueError("The share of frames with a face and the cosine of one person lie between 0 and 1.")


@dataclass(frozen=True)
class LeftOut:
    """Something that is not trained on. `first` and `last` are frames of the raw clip, from 1; None: all of it."""

    clip: str
    what: str
    reason: str
    first: int | None = None
    last: int | None = None


@dataclass(frozen=True, eq=False)
class ReferenceMoment:
    """A face in some clip: number of the clip, its moment, the index of the face; `margins` of a face crop and, where
    one shows nobody else, of a wider one, in sides of the box beyond it."""

    clip: int
    moment: int
    face: int
    margins: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Candidate:
    """Somebody in a window.

    side   mean side of the face in pixels; left, its middle on average
    boxes  of the face in fractions of the frame, one a frame of the window
    """

    person: Person
    side: float
    left: float
    boxes: Boxes


@dataclass(frozen=True, eq=False)
class WindowSubject:
    """Somebody in a window who counts."""

    name: str
    description: str
    candidate: Candidate
    references: tuple[ReferenceMoment, ...]


def place_windows(scene: Scene, settings: BuildSettings, rng: np.random.Generator) -> list[Scene]:
    """As many windows as fit into a scene without touching, at random distances; alone, one is at either end, so that
    what is left for references is far from it."""
    count = scene.length // settings.frames
    slack = scene.length - count * settings.frames
    if count == 1:
        starts = [slack * int(rng.integers(0, 2))]
    else:
        offsets = np.sort(rng.integers(0, slack + 1, count))
        starts = [int(offset) + k * settings.frames for k, offset in enumerate(offsets)]
    return [Scene(scene.start + start, scene.start + start + settings.frames) for start in starts]


def judge_person(
    person: Person, seen: SeenClip, window: Scene, settings: BuildSettings
) -> tuple[Candidate | None, str]:
    """Whether somebody counts in a window; None and the reason when not."""
    faces = {t - window.start: face for t, face in person.faces.items() if window.start <= t < window.stop}
    if len(faces) < settings.min_share * window.length:
        return None, (
            f"the face is found in {len(faces)} of {window.length} frames, less than {settings.min_share:.0%} of them"
        )
    own = list(faces.values())
    side = float(face_sides(seen.boxes[own]).mean())
    if side < settings.min_face:
        return None, f"the face is {side:.0f} px large, smaller than {settings.min_face:g}"
    sharp = float(np.median(seen.sharpness[own]))
    if sharp < settings.min_sharpness:
        return None, f"the face is blurred (sharpness {sharp:.0f}, less than {settings.min_sharpness:g})"
    height, width = (int(v) for v in seen.size)
    scaled = {t: tuple((seen.boxes[face] / (width, height, width, height)).tolist()) for t, face in faces.items()}
    return Candidate(person, side, float(seen.boxes[own][:, [0, 2]].mean()), fill_gaps(scaled, window.length)), ""


def fill_gaps(boxes: dict[int, tuple], length: int) -> Boxes:
    """A box for each of `length` frames: known ones, moving straight between those at most MAX_GAP apart, else None."""
    known = sorted(boxes)
    keyframes: list[tuple[int, tuple | None]] = []
    for frame, after in zip(known, [*known[1:], None], strict=True):
        keyframes.append((frame, boxes[frame]))
        if after is not None and after - frame > MAX_GAP:
            keyframes.append((frame + 1, None))
    track = Track(tuple(keyframes))
    return tuple(track.box(t) if known[0] <= t <= known[-1] else None for t in range(length))


def choose_references(
    candidate: Candidate,
    clip: int,
    window: Scene,
    clips: Sequence[SeenClip],
    fps: Sequence[float],
    people: Sequence[Sequence[Person]],
    settings: BuildSettings,
) -> list[ReferenceMoment]:
    """At most `settings.references` moments outside of the window, the best face first, then those that differ most.

    Never a frame of the window, nor one nearer to it than the gap; other clips only where they are allowed.
    """
    gap = settings.gap * fps[clip]
    found: list[tuple[float, ReferenceMoment]] = []
    for c, seen in enumerate(clips):
        if c != clip and not settings.across:
            continue
        for person in people[c]:
            if person.number != candidate.person.number:
                continue
            for t, face in person.faces.items():
                if c == clip and window.start - gap <= t < window.stop + gap:
                    continue
                moment = _reference(seen, c, t, face, settings)
                if moment is not None:
                    side = float(face_sides(seen.boxes[face]))
                    found.append((float(seen.scores[face]) * min(1.0, side / 112), moment))
    if len(found) > _CANDIDATES:
        found = [found[i] for i in np.linspace(0, len(found) - 1, _CANDIDATES).round().astype(int)]
    # Stable, so that among equals the earliest moment is first.
    found.sort(key=lambda entry: -entry[0])
    if not found:
        return []
    points = torch.from_numpy(np.stack([clips[moment.clip].embeddings[moment.face] for _, moment in found]))
    return [found[i][1] for i in farthest_points(points, settings.references)]


def name_people(people: Sequence[Person], seen: SeenClip, caption: Caption) -> tuple[dict[int, str], dict[int, str]]:
    """{person's number: name} and {number: description} of a clip's people.

    A caption that names people from left to right names those who fill most of the clip; without names they are
    "Person 1", "Person 2", ... Raises ValueError when it names more people than there are.
    """
    if not caption.names:
        return {person.number: f"Person {n}" for n, person in enumerate(people, 1)}, {}
    if len(people) < len(caption.names):
        raise ValueError(f"its caption names {len(caption.names)} people, and {len(people)} have been found")
    area = [float((face_sides(seen.boxes[list(person.faces.values())]) ** 2).sum()) for person in people]
    most = sorted(sorted(range(len(people)), key=lambda i: -area[i])[: len(caption.names)])
    numbers = [people[i].number for i in most]
    return dict(zip(numbers, caption.names, strict=True)), dict(zip(numbers, caption.descriptions, strict=True))


def unknown_name(caption: Caption, kept: Sequence[str]) -> str | None:
    """The first name that the caption speaks of without its person being kept; a model would not know who it is."""
    _, mentioned = replace_names(caption.text, caption.names, lambda i, again: caption.names[i])
    return next((caption.names[i] for i in sorted(mentioned) if caption.names[i] not in kept), None)


def default_caption(names: Sequence[str]) -> str:
    """What can be said without looking: who is there, from left to right."""
    if len(names) == 1:
        return f"{names[0]} is in the picture."
    return f"From left to right there are {', '.join(names[:-1])} and {names[-1]}."


def largest(subjects: list[WindowSubject]) -> tuple[list[WindowSubject], list[WindowSubject]]:
    """The subjects that fit into one shot, from left to right, and those that do not: the smallest faces."""
    order = sorted(subjects, key=lambda subject: -subject.candidate.side)
    return sorted(order[:MAX_SUBJECTS], key=lambda subject: subject.candidate.left), order[MAX_SUBJECTS:]


def _reference(seen: SeenClip, clip: int, moment: int, face: int, settings: BuildSettings) -> ReferenceMoment | None:
    """A face as a reference, or None where it is too small or blurred, or cannot be had alone."""
    if face_sides(seen.boxes[face]) < settings.min_face or seen.sharpness[face] < settings.min_sharpness:
        return None
    others = seen.boxes[(seen.moment == moment) & (np.arange(len(seen.moment)) != face)]
    close, wide = (
        next((margin for margin in margins if not _shows(seen.boxes[face], margin, others)), None)
        for margins in (_FACE_MARGINS, _WIDE_MARGINS)
    )
    if close is None:
        return None
    return ReferenceMoment(clip, moment, face, (close,) if wide is None else (close, wide))


def _shows(box: np.ndarray, margin: float, others: np.ndarray) -> bool:
    """Whether the surroundings of a box [4] (see `subject_crops.crop_around`) show more of another one [N, 4] than they
    may."""
    reach = margin * float((box[2:] - box[:2]).max())
    shared = np.minimum(others[:, 2:], box[2:] + reach) - np.maximum(others[:, :2], box[:2] - reach)
    return bool((np.maximum(shared, 0.0).prod(1) > _SHOWN * (others[:, 2:] - others[:, :2]).prod(1)).any())
