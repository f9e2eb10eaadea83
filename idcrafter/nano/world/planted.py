"""Clips with something planted in them, and the truth about it: what a scorer must find, and what must not fool it.

plain     nothing happens
crossing  two walk past each other; the one behind is covered for a while
turned    a head turns away and back
flash     for one frame two faces are exchanged, as a bad decode may show
leaves    one walks out of the picture, or is gone from one frame to the next, and does not come back
absent    one never comes
stranger  somebody else stands there from the start
swap      two exchange their identities while they stay in place
clone     one identity stands in two places; the other one is missing
twin      everybody is there, and one of them a second time
guest     everybody is there, and somebody else comes or has been there all the time
blend     one is half another one of the cast
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import numpy as np

from .draw import Face, Pose, draw_puppet
from .identity import Identity
from .scene import FRAMES, HEIGHT, WIDTH, _background, _covered, _finish, _light, _poses, sample_clip_spec

HONEST = ("plain", "crossing", "turned", "flash")
PLANTED = ("leaves", "absent", "stranger", "swap", "clone", "twin", "guest", "blend")
# These need a third place for somebody.
_WITH_ONE_MORE = ("twin", "guest")
_LAST = FRAMES - 1


@dataclass(frozen=True)
class PlantedEvent:
    """`kind` is missing, extra, swapped, cloned or blended; `subjects` are numbers in the cast, none for extra, and for
    a blend first whose face it should be; frames `first` to `last`, both included."""

    kind: str
    subjects: tuple[int, ...]
    first: int
    last: int


@dataclass(frozen=True)
class PlantedClip:
    """`frames` [T, H, W, 3] uint8; `faces` [frame][place] and `who` [frame][place], an index into the cast, or None for
    a stranger; `faces` is None where a face cannot be seen.
    """

    plan: str
    frames: np.ndarray
    events: tuple[PlantedEvent, ...]
    faces: tuple[tuple[Face | None, ...], ...] = field(repr=False)
    who: tuple[tuple[int | None, ...], ...] = field(repr=False)


@dataclass
class _Script:
    """A clip before it is drawn: by frame and place the poses and who it is, and who stands nowhere.

    `a` and `b` are the two of the cast to whom it happens, `at` is when: with three frames or more on either side.
    """

    poses: list[list[Pose]]
    who: list[list[int | None]]
    gone: list[set[int]]
    a: int
    b: int
    at: int
    events: list[PlantedEvent] = field(default_factory=list)

    def note(self, kind: str, *subjects: int, first: int = 0) -> None:
        self.events.append(PlantedEvent(kind, subjects, first, _LAST))


def plant_clip(
    plan: str, cast: tuple[Identity, ...], stranger: Identity, seed: int, scale: int = 1, slow: int = 1
) -> PlantedClip:
    """Render a clip of two or three people by a plan of HONEST or PLANTED; the same arguments give the same pixels.

    scale  the picture is this many times WIDTH x HEIGHT
    slow   everything takes this many times as long: slow * (FRAMES - 1) + 1 frames
    Raises ValueError for a plan that does not exist or another number of people (twin and guest: two).
    """
    most = 2 if plan in _WITH_ONE_MORE else 3
    if plan not in HONEST + PLANTED or not 2 <= len(cast) <= most:
        raise ValueError(
            f"A planted clip has 2 or 3 people ({' and '.join(_WITH_ONE_MORE)}: 2) and a plan of "
            f"{', '.join(HONEST + PLANTED)}."
        )
    rng = np.random.default_rng((seed, 6))
    places = (*cast, stranger) if plan in _WITH_ONE_MORE else cast
    spec = sample_clip_spec(places, seed)
    if plan in ("crossing", "turned"):
        # Other movements would hide what the plan is about.
        spec = replace(spec, together=None, actions=tuple(str(rng.choice(("stand", "nod", "talk"))) for _ in places))
    poses = [list(frame) for frame in _poses(spec, rng)]
    a, b = (int(i) for i in rng.permutation(len(cast))[:2])
    who: list[list[int | None]] = [list(range(len(cast))) for _ in range(FRAMES)]
    script = _Script(poses, who, [set() for _ in range(FRAMES)], a, b, int(rng.integers(3, 6)))
    if plan in _PLANS:
        _PLANS[plan](script, rng)
    drawn = list(cast)
    if plan == "blend":
        drawn[a] = _mixture(cast[a], cast[b], rng)
    _stretch(script, scale, slow)
    frames, faces = _render(script, drawn, stranger, scale, rng)
    return PlantedClip(plan, frames, tuple(script.events), faces, tuple(tuple(each) for each in script.who))


def _cross(script: _Script, rng: np.random.Generator) -> None:
    """Exchange the places of two over the clip, at an even pace."""
    poses, a, b = script.poses, script.a, script.b
    start, end = poses[0][a].x, poses[0][b].x
    for t, frame in enumerate(poses):
        share = t / (len(poses) - 1)
        frame[a] = replace(frame[a], x=start + (end - start) * share)
        frame[b] = replace(frame[b], x=end + (start - end) * share)


def _turn_away(script: _Script, rng: np.random.Generator) -> None:
    """To the side, away for one to three frames, and back by the same side."""
    a, length = script.a, int(rng.integers(1, 4))
    side = 1 if script.poses[0][a].yaw >= 0 else -1
    for t, frame in enumerate(script.poses):
        distance = max(script.at - t, t - (script.at + length - 1), 0)
        if distance == 0:
            frame[a] = replace(frame[a], away=True)
        elif distance == 1:
            frame[a] = replace(frame[a], yaw=1.1 * side)


def _flash(script: _Script, rng: np.random.Generator) -> None:
    _exchange(script, slice(script.at, script.at + 1))


def _leave(script: _Script, rng: np.random.Generator) -> None:
    if rng.uniform() < 0.5:
        _walk_out(script)
    else:
        for absent in script.gone[script.at :]:
            absent.add(script.a)
    script.note("missing", script.a, first=script.at)


def _walk_out(script: _Script) -> None:
    """Over the nearer edge, so that from frame `at` on more than half of the face is outside."""
    poses, a, at = script.poses, script.a, script.at
    goes_left = poses[at][a].x < WIDTH / 2
    # Whoever stands in the middle would be hidden by the one beside; the stride is what brings the face out by `at`.
    way = poses[at][a].x if goes_left else WIDTH - poses[at][a].x
    first = max(at - 1, 1)
    for t in range(first, len(poses)):
        step = (way + 4) * (t - first + 1) / (at - first + 1)
        poses[t][a] = replace(poses[t][a], x=poses[t][a].x + (-step if goes_left else step))


def _stay_away(script: _Script, rng: np.random.Generator) -> None:
    for absent in script.gone:
        absent.add(script.a)
    script.note("missing", script.a)


def _replace_by_stranger(script: _Script, rng: np.random.Generator) -> None:
    for each in script.who:
        each[script.a] = None
    script.note("missing", script.a)


def _swap(script: _Script, rng: np.random.Generator) -> None:
    _exchange(script, slice(script.at, None))
    script.events.append(PlantedEvent("swapped", tuple(sorted((script.a, script.b))), script.at, script.at))


def _clone(script: _Script, rng: np.random.Generator) -> None:
    first = 0 if rng.uniform() < 0.5 else script.at
    for each in script.who[first:]:
        each[script.b] = script.a
    script.note("cloned", script.a, first=first)
    script.note("missing", script.b, first=first)


def _add_twin(script: _Script, rng: np.random.Generator) -> None:
    for each in script.who:
        each.append(0)
    script.note("cloned", 0)
    script.note("extra")


def _add_guest(script: _Script, rng: np.random.Generator) -> None:
    first = 0 if rng.uniform() < 0.5 else script.at
    for absent in script.gone[:first]:
        absent.add(len(script.who[0]))
    for each in script.who:
        each.append(None)
    script.note("extra", first=first)


def _blend(script: _Script, rng: np.random.Generator) -> None:
    script.note("blended", script.a, script.b)


_PLANS: dict[str, Callable[[_Script, np.random.Generator], None]] = {
    "crossing": _cross,
    "turned": _turn_away,
    "flash": _flash,
    "leaves": _leave,
    "absent": _stay_away,
    "stranger": _replace_by_stranger,
    "swap": _swap,
    "clone": _clone,
    "twin": _add_twin,
    "guest": _add_guest,
    "blend": _blend,
}


def _exchange(script: _Script, when: slice) -> None:
    for each in script.who[when]:
        each[script.a], each[script.b] = each[script.b], each[script.a]


def _mixture(a: Identity, b: Identity, rng: np.random.Generator) -> Identity:
    """Half one and half the other: the middle of every measure and colour, styles from either."""
    mixed = {}
    for part in fields(Identity):
        own, other = getattr(a, part.name), getattr(b, part.name)
        if isinstance(own, str):
            mixed[part.name] = own if rng.uniform() < 0.5 else other
        elif part.name != "number":
            mixed[part.name] = tuple(np.mean([own, other], 0)) if isinstance(own, tuple) else (own + other) / 2
    return replace(a, **mixed)


def _stretch(script: _Script, scale: int, slow: int) -> None:
    """The same, larger and slower, in place."""
    moments = np.arange(slow * _LAST + 1) / slow
    before = moments.astype(int)
    frames = []
    for moment, t in zip(moments, before, strict=True):
        pairs = zip(script.poses[t], script.poses[min(t + 1, _LAST)], strict=True)
        frames.append([_between(pose, after, moment - t, scale) for pose, after in pairs])
    script.poses = frames
    script.who = [list(script.who[t]) for t in before]
    script.gone = [script.gone[t] for t in before]
    script.events = [replace(event, first=event.first * slow, last=event.last * slow) for event in script.events]


def _between(pose: Pose, after: Pose, share: float, scale: int) -> Pose:
    """`pose` on its way to `after`; what is not a number stays as it is."""
    moved = {}
    for part in fields(Pose):
        start, end = getattr(pose, part.name), getattr(after, part.name)
        if part.name in ("x", "y", "size"):
            moved[part.name] = scale * (start + (end - start) * share)
        elif isinstance(start, float) and end is not None:
            moved[part.name] = start + (end - start) * share
    return replace(pose, **moved)


def _render(
    script: _Script, cast: list[Identity], stranger: Identity, scale: int, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[tuple[Face | None, ...], ...]]:
    """Frames, and [frame][place] the faces that can be seen."""
    width, height = scale * WIDTH, scale * HEIGHT
    background, light = _background(rng, width, height), _light(rng, width, height)
    depth = [int(i) for i in rng.permutation(len(script.poses[0]))]  # the last is nearest
    frames, truth = [], []
    for poses, who, gone in zip(script.poses, script.who, script.gone, strict=True):
        image = background.copy()
        faces: list[Face | None] = [None] * len(poses)
        for place in depth:
            if place not in gone:
                number = who[place]
                faces[place] = draw_puppet(image, stranger if number is None else cast[number], poses[place])
        seen: list[Face | None] = []
        for place, face in enumerate(faces):
            front = [faces[p] for p in depth[depth.index(place) + 1 :] if faces[p] is not None]
            hidden = face is None or poses[place].away or not 0 <= poses[place].x <= width or _covered(face, front)
            seen.append(None if hidden else face)
        frames.append(_finish(image, light))
        truth.append(tuple(seen))
    return np.stack(frames), tuple(truth)
