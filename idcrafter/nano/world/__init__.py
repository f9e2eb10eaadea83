"""The puppet world: a procedural stand-in for photographs and clips of people, with exact ground truth.

Identities are continuous, are drawn from an integer, and are split by hash into ``train``, ``val`` and ``sealed``.
Nothing here is learned: :func:`render_photo` and :func:`render_clip` are pure functions of an identity, a pose and a
seed.
"""

from .identity import Identity, identity_split, numbers_of_split, sample_identity
from .planted import HONEST, PLANTED, PlantedClip, PlantedEvent, plant_clip
from .scene import Clip, ClipSpec, render_clip, render_photo, sample_clip_spec, sample_photo_pose

__all__ = [
    "HONEST",
    "PLANTED",
    "Clip",
    "ClipSpec",
    "Identity",
    "PlantedClip",
    "PlantedEvent",
    "identity_split",
    "numbers_of_split",
    "plant_clip",
    "render_clip",
    "render_photo",
    "sample_clip_spec",
    "sample_identity",
    "sample_photo_pose",
]
