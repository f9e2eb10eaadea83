"""Who a puppet is: a continuous identity, its split, and the words that describe it."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

WORLD_SEED = 20261
SPLITS = ("train", "val", "sealed")

HAIR_STYLES = ("bald", "short", "bob", "spiky", "curly")
HAT_STYLES = ("none", "cap", "cone", "beanie")
GLASSES_STYLES = ("none", "round", "square")
BEARD_STYLES = ("none", "full", "moustache")

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Identity:
    """What stays the same about a puppet in every picture. Lengths are in units of the head's height; colours are RGB
    in 0..1.
    """

    number: int
    skin: RGB
    head_width: float
    head_squareness: float
    jaw: float
    ear: float
    hair_style: str
    hair: RGB
    fringe: float
    eye_size: float
    eye_gap: float
    eye_height: float
    iris: RGB
    brow_width: float
    brow_tilt: float
    nose: RGB
    nose_width: float
    nose_length: float
    mouth: RGB
    mouth_width: float
    cheek: float
    glasses_style: str
    glasses: RGB
    beard_style: str
    hat_style: str
    hat: RGB
    clothes: RGB
    stripe: RGB


def identity_split(number: int) -> str:
    """The split of an identity, from a hash of its number: 80 % train, 10 % val, 10 % sealed. It never changes."""
    bucket = hashlib.sha256(f"{WORLD_SEED}/identity/{number}".encode()).digest()[0] % 10
    return "sealed" if bucket == 0 else "val" if bucket == 1 else "train"


def numbers_of_split(split: str, start: int = 0) -> Iterator[int]:
    """Endless ascending identity numbers of one split."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
    number = start
    while True:
        if identity_split(number) == split:
            yield number
        number += 1


def _colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> RGB:
    return colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(*saturation), rng.uniform(*value))


def sample_identity(number: int) -> Identity:
    """The identity with this number; the same number always gives the same puppet."""
    rng = np.random.default_rng((WORLD_SEED, number))
    skin = _colour(rng, (0.2, 0.8), (0.5, 0.97))
    return Identity(
        number=number,
        skin=skin,
        head_width=rng.uniform(0.72, 0.95),
        head_squareness=rng.uniform(1.8, 3.2),
        jaw=rng.uniform(-0.18, 0.12),
        ear=rng.uniform(0.05, 0.12),
        hair_style=str(rng.choice(HAIR_STYLES, p=(0.1, 0.25, 0.25, 0.2, 0.2))),
        hair=_colour(rng, (0.1, 0.95), (0.1, 0.9)),
        fringe=rng.uniform(-0.32, -0.2),
        eye_size=rng.uniform(0.085, 0.125),
        eye_gap=rng.uniform(0.16, 0.22),
        eye_height=rng.uniform(-0.1, -0.02),
        iris=_colour(rng, (0.5, 1.0), (0.2, 0.7)),
        brow_width=rng.uniform(0.02, 0.06),
        brow_tilt=rng.uniform(-0.35, 0.35),
        nose=_colour(rng, (0.3, 0.9), (0.4, 0.95)),
        nose_width=rng.uniform(0.05, 0.11),
        nose_length=rng.uniform(0.1, 0.18),
        mouth=_colour(rng, (0.5, 0.95), (0.3, 0.85)),
        mouth_width=rng.uniform(0.13, 0.21),
        cheek=rng.uniform(0.0, 0.5) if rng.uniform() < 0.5 else 0.0,
        glasses_style=str(rng.choice(GLASSES_STYLES, p=(0.6, 0.2, 0.2))),
        glasses=_colour(rng, (0.6, 1.0), (0.05, 0.6)),
        beard_style=str(rng.choice(BEARD_STYLES, p=(0.6, 0.2, 0.2))),
        hat_style=str(rng.choice(HAT_STYLES, p=(0.55, 0.15, 0.15, 0.15))),
        hat=_colour(rng, (0.5, 1.0), (0.4, 1.0)),
        clothes=_colour(rng, (0.3, 1.0), (0.25, 0.9)),
        stripe=_colour(rng, (0.0, 0.5), (0.6, 1.0)),
    )


def colour_name(rgb: RGB) -> str:
    """One plain English word for a colour."""
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
    if value < 0.2:
        return "black"
    if saturation < 0.18:
        return "white" if value > 0.8 else "grey"
    hue *= 360
    if (hue < 20 or hue >= 345) and saturation < 0.6 and value > 0.75:
        return "pink"
    if 15 <= hue < 50 and value < 0.6:
        return "brown"
    for limit, word in (
        (15, "red"),
        (42, "orange"),
        (68, "yellow"),
        (160, "green"),
        (195, "teal"),
        (255, "blue"),
        (290, "purple"),
        (345, "pink"),
    ):
        if hue < limit:
            return word
    return "red"


def shows_hair(identity: Identity) -> bool:
    """Whether pictures show what hair somebody has: a hat hides all but a bob and curls."""
    return identity.hat_style == "none" or identity.hair_style in ("bob", "curly")


def describe_visible(identity: Identity) -> str:
    """A description of what pictures show; as :func:`describe`, but without hair that a hat hides."""
    hair = {"hair"} if shows_hair(identity) else set()
    return describe(identity, {"glasses", "beard", "hat", "clothes"} | hair)


def describe(identity: Identity, keep: set[str] | None = None) -> str:
    """A short stable description, such as ``a puppet with curly red hair and a yellow cap in a blue jumper``.

    ``keep`` limits it to some of ``hair``, ``glasses``, ``beard``, ``hat``, ``clothes``; ``None`` keeps all of them.
    """
    parts = []
    if keep is None or "hair" in keep:
        hair = colour_name(identity.hair)
        parts.append("no hair" if identity.hair_style == "bald" else f"{identity.hair_style} {hair} hair")
    if identity.beard_style != "none" and (keep is None or "beard" in keep):
        parts.append("a beard" if identity.beard_style == "full" else "a moustache")
    if identity.glasses_style != "none" and (keep is None or "glasses" in keep):
        parts.append(f"{identity.glasses_style} glasses")
    if identity.hat_style != "none" and (keep is None or "hat" in keep):
        noun = {"cap": "cap", "cone": "pointed hat", "beanie": "beanie"}[identity.hat_style]
        article = "an" if colour_name(identity.hat)[0] in "aeiou" else "a"
        parts.append(f"{article} {colour_name(identity.hat)} {noun}")
    text = "a puppet"
    if parts:
        text += " with " + (parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1])
    if keep is None or "clothes" in keep:
        clothes = colour_name(identity.clothes)
        text += f" in {'an' if clothes[0] in 'aeiou' else 'a'} {clothes} jumper"
    return text
