"""Clips of two to four puppets who change places, pass each other and hide behind each other.

The plain clips of :mod:`scene` keep everybody in place, so a model may learn places instead of people. Here who stands
where changes within a clip, and the caption says how.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from .draw import Face, Pose, draw_puppet
from .identity import Identity
from .scene import (
    ACTIONS,
    FRAMES,
    HEIGHT,
    WIDTH,
    _background,
    _covered,
    _finish,
    _light,
)

# Clip width in pixels and the places from left to right, by the number of people.
WIDTHS = {2: WIDTH, 3: WIDTH, 4: 128}
PLACES = {
    2: ("on the left", "on the right"),
    3: ("on the left", "in the middle", "on the right"),
    4: ("on the far left", "on the left", "on the right", "on the far right"),
}
_CENTRES = {2: (0.27, 0.73), 3: (0.18, 0.5, 0.82), 4: (0.14, 0.38, 0.62, 0.86)}
_SIZES = {2: (0.46, 0.52), 3: (0.38, 0.43), 4: (0.38, 0.43)}
# What can be done while walking or standing, without a part of the body that reaches into the next place.
_STILL = ("stand", "nod", "turn", "talk")
MOVES = {
    "stay": (),
    "swap": (
        "{a} and {b} swap places.",
        "{a} and {b} change places.",
        "{a} walks past {b}, and {b} takes the old place.",
    ),
    "hide": (
        "{a} hides behind {b} and comes back.",
        "{a} steps behind {b} for a moment.",
        "{a} goes behind {b} and returns.",
    ),
}


@dataclass(frozen=True)
class CrowdSpec:
    """A clip in words: identities in cast order, the place (0 is leftmost) and the action of each, and who moves how.

    `move` is one of MOVES; `a` and `b` are the two whom it is about (a hides behind b), or both None for "stay".
    """

    identities: tuple[Identity, ...]
    places: tuple[int, ...]
    actions: tuple[str, ...]
    move: str
    a: int | None
    b: int | None
    seed: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return WIDTHS[len(self.identities)], HEIGHT

    @property
    def final_places(self) -> tuple[int, ...]:
        """Where each stands in the end."""
        places = list(self.places)
        if self.move == "swap":
            places[self.a], places[self.b] = places[self.b], places[self.a]
        return tuple(places)


@dataclass(frozen=True)
class CrowdClip:
    """``frames`` [T, H, W, 3] uint8; ``faces`` [frame][subject in cast order], None where a face cannot be seen."""

    spec: CrowdSpec
    frames: np.ndarray
    faces: tuple[tuple[Face | None, ...], ...] = field(repr=False)


def sample_crowd_spec(identities: tuple[Identity, ...], seed: int, move: str | None = None) -> CrowdSpec:
    """Draws places, actions and, unless given, a movement for two to four identities.

    Who hides does so behind a neighbour.
    """
    rng = np.random.default_rng((seed, 7))
    count = len(identities)
    places = tuple(int(p) for p in rng.permutation(count))
    actions = tuple(str(a) for a in rng.choice(_STILL, count))
    move = move or str(rng.choice(list(MOVES), p=(0.3, 0.4, 0.3)))
    a = b = None
    if move == "swap":
        a, b = (int(i) for i in rng.permutation(count)[:2])
    elif move == "hide":
        a = int(rng.integers(count))
        b = int(rng.choice([i for i in range(count) if abs(places[i] - places[a]) == 1]))
    return CrowdSpec(identities, places, actions, move, a, b, seed)


def caption_crowd(spec: CrowdSpec, names: tuple[str, ...], seed: int) -> str:
    """What happens in a clip, as an artist would type it, with ``names`` for the subjects in cast order."""
    rng = np.random.default_rng((spec.seed, seed, 2))
    sentences = []
    for i in rng.permutation(len(names)):
        does, where = str(rng.choice(ACTIONS[spec.actions[i]])), PLACES[len(names)][spec.places[i]]
        forms = (f"{names[i]} is {where} and {does}.", f"{where}, {names[i]} {does}.", f"{names[i]} {does} {where}.")
        sentence = str(rng.choice(forms))
        sentences.append(sentence[0].upper() + sentence[1:])
    if MOVES[spec.move]:
        sentences.append(str(rng.choice(MOVES[spec.move])).format(a=names[spec.a], b=names[spec.b]))
    return " ".join(sentences)


def _poses(spec: CrowdSpec, rng: np.random.Generator) -> list[list[Pose]]:
    """Poses [frame][subject in cast order]."""
    count, (width, height) = len(spec.identities), spec.size
    size = height * rng.uniform(*_SIZES[count])
    time = np.linspace(0, 1, FRAMES)
    tracks = []
    for place, action in zip(spec.places, spec.actions, strict=True):
        base = Pose(
            x=width * (_CENTRES[count][place] + rng.uniform(-0.02, 0.02)),
            y=height * rng.uniform(0.45, 0.52),
            size=size * rng.uniform(0.95, 1.05),
            yaw=rng.uniform(-0.25, 0.25),
            roll=rng.uniform(-0.08, 0.08),
            smile=rng.uniform(-0.3, 0.9),
        )
        phase = rng.uniform(0, 0.4)
        beat = np.sin(2 * np.pi * (time * 1.5 + phase))
        track = []
        for f in range(FRAMES):
            pose = base
            if action == "nod":
                pose = replace(pose, y=pose.y + 0.07 * size * beat[f])
            elif action == "turn":
                pose = replace(pose, yaw=0.65 * beat[f])
            elif action == "talk":
                pose = replace(pose, mouth_open=0.5 + 0.5 * np.sin(4 * np.pi * time[f] + 6 * phase), smile=0.5)
            track.append(pose)
        tracks.append(track)
    _walk(spec, tracks, time, rng)
    return [[track[f] for track in tracks] for f in range(FRAMES)]


def _walk(spec: CrowdSpec, tracks: list[list[Pose]], time: np.ndarray, rng: np.random.Generator) -> None:
    """Moves the tracks of `a` and `b` along."""
    if spec.move == "stay":
        return
    a, b = tracks[spec.a], tracks[spec.b]
    start, end = a[0].x, b[0].x
    if spec.move == "swap":
        # At rest for a moment at both ends, so that the first and the last frames show everybody in a place.
        share = np.clip((time - 0.15) / 0.7, 0, 1)
        share = share * share * (3 - 2 * share)
        for f in range(FRAMES):
            a[f] = replace(a[f], x=start + (end - start) * share[f])
            b[f] = replace(b[f], x=end + (start - end) * share[f])
    else:
        share = np.clip(1.6 - np.abs(time - rng.uniform(0.45, 0.55)) * 4, 0, 1)
        for f in range(FRAMES):
            a[f] = replace(a[f], x=start + (end - start) * share[f])


def render_crowd(spec: CrowdSpec) -> CrowdClip:
    """Renders a clip; the same spec always gives the same pixels. Who is behind whom is drawn, but for who hides."""
    rng = np.random.default_rng((spec.seed, 8))
    width, height = spec.size
    background, light = _background(rng, width, height), _light(rng, width, height)
    depth = [int(i) for i in rng.permutation(len(spec.identities))]  # the last is nearest
    if spec.move == "hide":
        depth.remove(spec.a)
        depth.insert(depth.index(spec.b), spec.a)
    frames, truth = [], []
    for poses in _poses(spec, rng):
        image = background.copy()
        faces: list[Face] = [None] * len(poses)
        for i in depth:
            faces[i] = draw_puppet(image, spec.identities[i], poses[i])
        frames.append(_finish(image, light))
        truth.append(
            tuple(
                None if _covered(face, [faces[j] for j in depth[depth.index(i) + 1 :]]) else face
                for i, face in enumerate(faces)
            )
        )
    return CrowdClip(spec, np.stack(frames), tuple(truth))
