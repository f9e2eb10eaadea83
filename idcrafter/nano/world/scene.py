"""Photos and clips of puppets: who stands where, what they do, the caption, and the ground truth."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from .draw import SUPERSAMPLE, Face, Pose, draw_puppet
from .identity import Identity, describe

WIDTH, HEIGHT, FRAMES, FPS = 96, 64, 9, 8
SIDES = {1: ("middle",), 2: ("left", "right"), 3: ("left", "middle", "right")}
ORDINALS = ("the first", "the second", "the third")

# What one puppet can do, in the words that captions use for it.
ACTIONS = {
    "stand": ("stands still", "waits", "stays still"),
    "wave": ("waves", "waves a hand", "says hello with a wave"),
    "nod": ("nods", "nods twice"),
    "sway": ("sways", "rocks from side to side", "dances"),
    "jump": ("jumps", "jumps up", "hops"),
    "turn": ("turns around to look", "looks from side to side", "turns the head"),
    "talk": ("talks", "speaks", "laughs"),
}
# What they can do together: how far each moves towards the others, as a share of the gap.
TOGETHER = {
    None: (0.0, ()),
    "approach": (0.3, ("They move closer together.", "They walk towards each other.", "They approach each other.")),
    "part": (-0.3, ("They move apart.", "They step away from each other.", "They back off.")),
}


@dataclass(frozen=True)
class ClipSpec:
    """A clip in words: identities in cast order, the side and the action of each, and how they move together."""

    identities: tuple[Identity, ...]
    sides: tuple[str, ...]
    actions: tuple[str, ...]
    together: str | None
    seed: int


@dataclass(frozen=True)
class Clip:
    """``frames`` [T, H, W, 3] uint8; ``faces`` [frame][subject in cast order], ``None`` where a face is hidden by
    another head.
    """

    spec: ClipSpec
    frames: np.ndarray
    faces: tuple[tuple[Face | None, ...], ...] = field(repr=False)


def sample_clip_spec(identities: tuple[Identity, ...], seed: int, sides: tuple[str, ...] | None = None) -> ClipSpec:
    """Draws sides (unless given), actions and a common movement for these identities."""
    rng = np.random.default_rng((seed, 1))
    drawn = tuple(str(s) for s in rng.permutation(SIDES[len(identities)]))
    actions = tuple(str(a) for a in rng.choice(list(ACTIONS), len(identities)))
    together = str(rng.choice(["approach", "part"])) if len(identities) == 2 and rng.uniform() < 0.3 else None
    return ClipSpec(identities, sides or drawn, actions, together, seed)


def caption_action(spec: ClipSpec, names: tuple[str, ...], seed: int) -> str:
    """What happens in a clip, as an artist would type it, with ``names`` for the subjects in cast order."""
    rng = np.random.default_rng((spec.seed, seed, 2))
    sentences = []
    for i in rng.permutation(len(names)):
        name, does = names[i], str(rng.choice(ACTIONS[spec.actions[i]]))
        where = f"on the {spec.sides[i]}" if spec.sides[i] != "middle" else "in the middle"
        forms = [f"{name} is {where} and {does}.", f"{where}, {name} {does}.", f"{name} {does} {where}."]
        if len(names) == 1:
            forms.append(f"{name} {does}.")
        sentence = str(rng.choice(forms))
        sentences.append(sentence[0].upper() + sentence[1:])
    if spec.together:
        sentences.append(str(rng.choice(TOGETHER[spec.together][1])))
    return " ".join(sentences)


def partial_description(identity: Identity, rng: np.random.Generator) -> str:
    """A description as people really write them: some of what is visible, sometimes nothing."""
    if rng.uniform() < 0.25:
        return "a puppet"
    keep = {part for part in ("hair", "glasses", "beard", "hat", "clothes") if rng.uniform() < 0.5}
    return describe(identity, keep)


def sample_photo_pose(rng: np.random.Generator, height: int) -> Pose:
    """A portrait pose in a square photo with this many pixels a side."""
    return Pose(
        x=height * rng.uniform(0.46, 0.54),
        y=height * rng.uniform(0.44, 0.52),
        size=height * rng.uniform(0.5, 0.6),
        yaw=rng.uniform(-0.4, 0.4),
        roll=rng.uniform(-0.12, 0.12),
        smile=rng.uniform(-0.6, 1.0),
        mouth_open=max(0.0, rng.uniform(-1.0, 1.0)),
        blink=0.0 if rng.uniform() < 0.85 else rng.uniform(0.3, 0.9),
    )


def _background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A soft two-colour wall with a floor line and a few blurred blocks; uint8, supersampled."""
    import cv2

    w, h = width * SUPERSAMPLE, height * SUPERSAMPLE
    top, bottom = rng.uniform(0.35, 1.0, 3), rng.uniform(0.25, 0.95, 3)
    image = np.linspace(top, bottom, h)[:, None, :].repeat(w, 1).astype(np.float32)
    for _ in range(rng.integers(0, 4)):
        x, y = rng.uniform(0, w), rng.uniform(0, h * 0.7)
        size = rng.uniform(0.1, 0.35, 2) * h
        colour = (image[int(y), int(min(x, w - 1))] * rng.uniform(0.75, 1.25, 3)).clip(0, 1)
        cv2.rectangle(
            image, (int(x - size[0]), int(y - size[1])), (int(x + size[0]), int(y + size[1])), colour.tolist(), -1
        )
    if rng.uniform() < 0.5:
        image[int(h * rng.uniform(0.7, 0.9)) :] *= rng.uniform(0.6, 0.9)
    image = cv2.GaussianBlur(image, (0, 0), h * 0.02)
    return (image.clip(0, 1) * 255).astype(np.uint8)


# How bright the light of a picture is, and its tint: factors of all channels, and of each.
BRIGHTNESS, TINT = (0.85, 1.1), (0.96, 1.04)


def _light(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A smooth light field [H, W, 3] around 1: brightness, a slight tint, and a gradient."""
    gain = rng.uniform(*BRIGHTNESS) * rng.uniform(*TINT, 3)
    slope = rng.uniform(-0.12, 0.12, 2)
    field_ = 1 + slope[0] * np.linspace(-1, 1, width)[None, :] + slope[1] * np.linspace(-1, 1, height)[:, None]
    return (field_[:, :, None] * gain).astype(np.float32)


def _finish(image: np.ndarray, light: np.ndarray) -> np.ndarray:
    import cv2

    small = cv2.resize(image, (light.shape[1], light.shape[0]), interpolation=cv2.INTER_AREA)
    return (small * light).clip(0, 255).astype(np.uint8)


def render_photo(
    identity: Identity, seed: int, size: int = 64, pose: Pose | None = None, white: bool | None = None
) -> tuple[np.ndarray, Face]:
    """A square portrait [size, size, 3] uint8 of one puppet and its face. ``white`` forces or forbids a white
    background.
    """
    rng = np.random.default_rng((seed, 3))
    pose = pose or sample_photo_pose(rng, size)
    white = rng.uniform() < 0.5 if white is None else white
    image = (
        np.full((size * SUPERSAMPLE, size * SUPERSAMPLE, 3), 255, np.uint8) if white else _background(rng, size, size)
    )
    face = draw_puppet(image, identity, pose)
    light = np.ones((size, size, 3), np.float32) if white else _light(rng, size, size)
    return _finish(image, light), face


def _poses(spec: ClipSpec, rng: np.random.Generator) -> list[list[Pose]]:
    """Poses [frame][subject in cast order] for a clip."""
    count = len(spec.identities)
    centres = {1: (0.5,), 2: (0.27, 0.73), 3: (0.18, 0.5, 0.82)}[count]
    size = HEIGHT * {1: rng.uniform(0.5, 0.58), 2: rng.uniform(0.48, 0.56), 3: rng.uniform(0.38, 0.43)}[count]
    time = np.linspace(0, 1, FRAMES)
    pull = TOGETHER[spec.together][0]
    tracks = []
    for side, action in zip(spec.sides, spec.actions, strict=True):
        centre = centres[SIDES[count].index(side)]
        base = Pose(
            x=WIDTH * (centre + rng.uniform(-0.03, 0.03)),
            y=HEIGHT * rng.uniform(0.45, 0.52),
            size=size * rng.uniform(0.95, 1.05),
            yaw=rng.uniform(-0.25, 0.25),
            roll=rng.uniform(-0.08, 0.08),
            smile=rng.uniform(-0.3, 0.9),
            wave_side=-1 if side == "left" else 1 if side == "right" else int(rng.choice((-1, 1))),
        )
        phase, drift = rng.uniform(0, 0.4), rng.uniform(-1.0, 1.0)
        shift = pull * (0.5 - centre) * WIDTH * (time - (1.0 if pull < 0 else 0.0)) if pull else drift * (time - 0.5)
        beat = np.sin(2 * np.pi * (time * 1.5 + phase))
        track = []
        for f in range(FRAMES):
            pose = replace(base, x=base.x + shift[f])
            if action == "wave":
                pose = replace(pose, wave=0.1 + 0.45 * beat[f])
            elif action == "nod":
                pose = replace(pose, y=pose.y + 0.07 * size * beat[f], mouth_open=0.0)
            elif action == "sway":
                pose = replace(pose, x=pose.x + 0.09 * size * beat[f], roll=pose.roll + 0.16 * beat[f])
            elif action == "jump":
                pose = replace(pose, y=pose.y - 0.2 * size * abs(beat[f]) + 0.06 * size)
            elif action == "turn":
                pose = replace(pose, yaw=0.65 * beat[f])
            elif action == "talk":
                pose = replace(pose, mouth_open=0.5 + 0.5 * np.sin(4 * np.pi * time[f] + 6 * phase), smile=0.5)
            track.append(pose)
        tracks.append(track)
    return [[track[f] for track in tracks] for f in range(FRAMES)]


def _covered(face: Face, others: list[Face]) -> bool:
    """Whether a head in front hides the middle of this face."""
    x, y = face.landmarks[2]
    return any(o.box[0] < x < o.box[2] and o.box[1] < y < o.box[3] for o in others)


def render_clip(spec: ClipSpec, only: tuple[int, ...] | None = None) -> Clip:
    """Renders a clip, or ``only`` some of its frames; the same spec always gives the same pixels."""
    rng = np.random.default_rng((spec.seed, 4))
    background, light = _background(rng, WIDTH, HEIGHT), _light(rng, WIDTH, HEIGHT)
    depth = rng.permutation(len(spec.identities))  # who stands in front; last is nearest
    frames, truth = [], []
    poses_of = _poses(spec, rng)
    for poses in poses_of if only is None else [poses_of[f] for f in only]:
        image = background.copy()
        faces: list[Face | None] = [None] * len(poses)
        for i in depth:
            faces[i] = draw_puppet(image, spec.identities[i], poses[i])
        order = list(depth)
        visible = [
            None if _covered(faces[i], [faces[j] for j in order[order.index(i) + 1 :]]) else faces[i]
            for i in range(len(faces))
        ]
        frames.append(_finish(image, light))
        truth.append(tuple(visible))
    return Clip(spec, np.stack(frames), tuple(truth))
