"""What every reference rule takes and gives, and the few things that all of them do alike.

A rule is a file of this folder with a `RULE`; `rules` lists them and finds the one for a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.utils
import node_helpers
import torch

from ..subjects.references import LEADING, MAX_PHOTOS, PhotoRef, choose_photos, letterbox, picture
from ..subjects.subject import Cast

LATENT_CHANNELS = 16
SPATIAL_STRIDE = 8
TEMPORAL_STRIDE = 4
# The DiT's patches are 2x2 latents, so a side must be a multiple of this many pixels.
PIXEL_STEP = SPATIAL_STRIDE * 2


@dataclass(frozen=True, eq=False)
class Shot:
    """One cast in one video of one size.

    positive, negative  CONDITIONING, left unchanged
    vae                 a Wan 2.1 VAE
    width, height       pixels, multiples of 16
    length              frames, 4n + 1
    framing             one of subjects.references.FRAMINGS
    photos              at most this many photos a subject
    cut_out             whether masks remove the background of the photos
    strength            of the references, for rules that have one
    control_video       [F, H, W, 3] in 0..1 or None, for rules that take one
    control_masks       [F, H, W] or [H, W], 1 = to be made anew, or None
    model               MODEL, for rules that patch it; never changed, a patched clone is given back
    """

    positive: list
    negative: list
    vae: Any
    cast: Cast
    width: int
    height: int
    length: int
    framing: str = "whole"
    photos: int = MAX_PHOTOS
    cut_out: bool = True
    strength: float = 1.0
    control_video: torch.Tensor | None = None
    control_masks: torch.Tensor | None = None
    model: Any = None

    @property
    def frames(self) -> int:
        """Latent frames of the video."""
        return (self.length - 1) // TEMPORAL_STRIDE + 1

    def grid(self, channels: int, frames: int) -> list[int]:
        """The shape of a latent of this size."""
        return [1, channels, frames, self.height // SPATIAL_STRIDE, self.width // SPATIAL_STRIDE]


@dataclass(frozen=True, eq=False)
class Conditioned:
    """What CastToVideo hands to the graph.

    positive, negative_text  CONDITIONING with the references
    negative_images          CONDITIONING of the negative prompt without them, or negative_text where a model has no
                             guidance by images
    latent                   LATENT of zeros, batch 1, [1, 16, trim + T, height / 8, width / 8]
    references               IMAGE batch: the pictures as the VAE saw them, in order
    used, left_out           which those are, and which did not fit
    trim                     leading latent frames that are references and not video
    model                    the MODEL, patched where the rule needs it, or None when none was given
    """

    positive: list
    negative_text: list
    negative_images: list
    latent: dict
    references: torch.Tensor
    used: list[PhotoRef]
    left_out: list[PhotoRef]
    trim: int = 0
    model: Any = None


@dataclass(frozen=True)
class Rule:
    """How a family of models takes references.

    name        as in the node's widget
    title       as in messages
    limit       references at most
    kind        the model that it needs, one of rules.KINDS
    condition   Shot -> Conditioned
    strength    whether the model has a meaning for a strength of the references
    control     whether it takes a control video
    masks       whether it takes control masks
    patches     whether it changes the MODEL, so that one must be connected
    """

    name: str
    title: str
    limit: int
    kind: str
    condition: Callable[[Shot], Conditioned]
    strength: bool = False
    control: bool = False
    masks: bool = False
    patches: bool = False


@dataclass(frozen=True, eq=False)
class References:
    """The chosen pictures, letterboxed ([1, height, width, 3] each) and encoded alone ([1, 16, 1, h, w] each)."""

    frames: list[torch.Tensor]
    latents: list[torch.Tensor]
    used: list[PhotoRef]
    left_out: list[PhotoRef]


def encode_references(shot: Shot, rule: Rule) -> References:
    """Each picture on a white canvas of the video's size, as one latent frame that knows nothing of the others."""
    check_size(shot.width, shot.height, shot.length)
    check_vae(shot.vae, rule.title)
    used, left_out = choose_photos(shot.cast, rule.limit, rule.title, shot.framing, shot.photos)
    # Its update is also where an interrupt takes effect.
    progress = comfy.utils.ProgressBar(len(used))
    frames, latents = [], []
    for ref in used:
        shown = picture(shot.cast, ref, shot.cut_out)
        frames.append(letterbox(shown, None, shot.width, shot.height).unsqueeze(0))
        latents.append(shot.vae.encode(frames[-1]))
        progress.update(1)
    return References(frames, latents, used, left_out)


def names_of(cast: Cast, used: list[PhotoRef]) -> list[str | None]:
    """The subject's name of each reference, for who binds references to regions."""
    return [cast.subjects[ref.subject].name for ref in used]


def zero_latents(like: torch.Tensor) -> torch.Tensor:
    """Latents that are zero for the model, in the VAE's space: core normalises what a conditioning holds."""
    return comfy.latent_formats.Wan21().process_out(torch.zeros_like(like))


def empty_latent(shot: Shot, leading: int = 0) -> dict:
    """The LATENT to start from: the video and, before it, `leading` reference frames."""
    shape = shot.grid(LATENT_CHANNELS, leading + shot.frames)
    latent = {"samples": torch.zeros(shape, device=comfy.model_management.intermediate_device())}
    return {**latent, LEADING: leading} if leading else latent


def with_values(conditioning: list, values: dict, append: bool = False) -> list:
    """A copy of the CONDITIONING with these values; `append` adds lists to the lists that are there."""
    return node_helpers.conditioning_set_values(conditioning, values, append=append)


def check_size(width: int, height: int, length: int) -> None:
    """ValueError unless both sides are multiples of 16 px and the length is 4n + 1 frames."""
    for side, pixels in (("width", width), ("height", height)):
        if pixels < PIXEL_STEP or pixels % PIXEL_STEP:
            raise ValueError(f"The {side} is {pixels} px; a Wan model needs a multiple of {PIXEL_STEP} px.")
    if length < 1 or (length - 1) % TEMPORAL_STRIDE:
        lower = max(1, (length - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1)
        raise ValueError(
            f"The length is {length} frames; a Wan model makes 4n + 1, so use {lower} or {lower + TEMPORAL_STRIDE}."
        )


def check_vae(vae, rule: str, family: str = "Wan 2.1") -> None:
    """ValueError unless the VAE has the latent layout of Wan 2.1 and CogVideoX (16 channels, 8 px, video)."""
    channels, strides = vae.latent_channels, vae.spacial_compression_encode()
    if vae.latent_dim != 3 or channels != LATENT_CHANNELS or strides != SPATIAL_STRIDE:
        raise ValueError(
            f"The {rule} rule needs the {family} VAE (video, {LATENT_CHANNELS} channels, {SPATIAL_STRIDE} px); "
            f"the connected one has {channels} channels and {strides} px. Load "
            + ("wan_2.1_vae.safetensors or a bundle." if family == "Wan 2.1" else "the one of the model.")
        )
