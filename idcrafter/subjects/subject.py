"""Subjects and casts: who is in the video, as named photographs.

A `Subject` is one person, animal or object with one or more photos; a `Cast` is the 1-8 subjects of one shot, in
the order in which they were connected. Both are immutable, hold CPU tensors, and are only made through
`make_subject` and `make_cast`, which refuse what no later stage could use and say what to do about it.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .faces import CastFaces

KINDS = ("person", "animal", "object")
MAX_SUBJECTS = 8
MAX_NAME = 64
MIN_SIDE = 16
MAX_SIDE = 8192


@dataclass(frozen=True, eq=False)
class Subject:
    """One named subject.

    name         NFC-normalised, trimmed, unique within a cast
    kind         one of KINDS
    description  what the subject looks like, for the prompt; may be empty
    photos       each [H, W, 3] float32 in 0..1; sizes may differ
    masks        each [H, W] float32 in 0..1 (1 = subject) or None; as many as photos
    """

    name: str
    kind: str
    description: str
    photos: tuple[torch.Tensor, ...]
    masks: tuple[torch.Tensor | None, ...]


@dataclass(frozen=True, eq=False)
class Cast:
    """The subjects of one shot, in connection order, and their faces once ExtractFaces has run."""

    subjects: tuple[Subject, ...]
    faces: CastFaces | None = None

    def with_faces(self, faces: CastFaces) -> Cast:
        return replace(self, faces=faces)


def make_subject(
    name: str, kind: str, description: str, images: torch.Tensor, mask: torch.Tensor | None = None
) -> Subject:
    """Validate and normalise one subject.

    images  [B, H, W, C] with C = 1 (grey), 3 or 4 (alpha); one photo per batch row
    mask    [B or 1, H, W] or [H, W], 1 = subject; without it an alpha channel becomes the mask.
            A black 64x64 mask is what LoadImage gives for a picture without alpha, and counts as no mask.
    Raises ValueError that names the subject and the photo (counted from 1).
    """
    name = normalise_name(name)
    if kind not in KINDS:
        raise ValueError(f"Subject '{name}' has the kind '{kind}'; choose one of {', '.join(KINDS)}.")
    if images.ndim != 4:
        raise ValueError(
            f"Subject '{name}' needs images of shape [batch, height, width, channels], got {list(images.shape)}."
        )
    if images.shape[0] == 0:
        raise ValueError(f"Subject '{name}' got an empty image batch; connect at least one photo.")
    given_masks = _split_mask(name, images, mask)
    photos, masks = zip(
        *(_prepare(name, i, photo, given_masks[i]) for i, photo in enumerate(images)),
        strict=True,
    )
    return Subject(name, kind, " ".join(description.split()), photos, masks)


def make_cast(subjects: list[Subject] | tuple[Subject, ...]) -> Cast:
    """Join 1-8 subjects in the given order; names must differ after NFC and case folding.

    Raises ValueError that says which two subjects (counted from 1) share a name.
    """
    if not subjects:
        raise ValueError("The cast is empty; connect at least one subject.")
    if len(subjects) > MAX_SUBJECTS:
        raise ValueError(f"The cast has {len(subjects)} subjects; at most {MAX_SUBJECTS} fit in one shot.")
    seen: dict[str, int] = {}
    for i, subject in enumerate(subjects, 1):
        # casefold can leave a string that is no longer NFC, so normalise again before comparing.
        key = unicodedata.normalize("NFC", subject.name.casefold())
        if key in seen:
            other = subjects[seen[key] - 1].name
            raise ValueError(
                f"Subjects {seen[key]} ('{other}') and {i} ('{subject.name}') have the same name; rename one of them."
            )
        seen[key] = i
    return Cast(tuple(subjects))


def normalise_name(name: str) -> str:
    """NFC, single spaces, no control characters; ValueError when nothing is left or it is too long."""
    name = "".join(" " if unicodedata.category(c) == "Cc" else c for c in unicodedata.normalize("NFC", name))
    name = " ".join(name.split())
    if not any(unicodedata.category(c)[0] in "LNS" for c in name):
        raise ValueError(f"A subject needs a name with at least one letter, digit or symbol, got '{name}'.")
    if len(name) > MAX_NAME:
        raise ValueError(f"The subject name '{name[:24]}...' has {len(name)} characters; use at most {MAX_NAME}.")
    return name


def _split_mask(name: str, images: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor | None]:
    """One mask per photo, or None for each; a single mask serves every photo of the batch."""
    count, height, width = images.shape[:3]
    if mask is not None and mask.ndim == 2:
        mask = mask.unsqueeze(0)
    if mask is None or (mask.shape[-2:] == (64, 64) and not mask.any()):
        return [None] * count
    if mask.ndim != 3 or mask.shape[0] not in (1, count):
        raise ValueError(
            f"Subject '{name}' has {count} photos but a mask of shape {list(mask.shape)}; "
            "connect one mask, or one per photo."
        )
    if tuple(mask.shape[1:]) != (height, width):
        raise ValueError(
            f"The mask of subject '{name}' is {mask.shape[2]}x{mask.shape[1]} px, its photos are {width}x{height} px; "
            "make the mask from the same photos."
        )
    if not torch.isfinite(mask).all():
        raise ValueError(f"The mask of subject '{name}' holds NaN or infinite values; repair or disconnect it.")
    return list(mask.expand(count, -1, -1))


def _prepare(
    name: str, index: int, photo: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One batch row [H, W, C] -> ([H, W, 3], mask or None), own memory, on the CPU."""
    who = f"Photo {index + 1} of subject '{name}'"
    height, width, channels = photo.shape
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"{who} is {width}x{height} px; each side must have at least {MIN_SIDE} px.")
    if max(height, width) > MAX_SIDE:
        raise ValueError(f"{who} is {width}x{height} px; resize it to at most {MAX_SIDE} px a side first.")
    if channels not in (1, 3, 4):
        raise ValueError(f"{who} has {channels} channels; connect a greyscale, RGB or RGBA image.")
    # A copy: the batch belongs to the node that made it, and a view would keep the whole batch alive.
    photo = photo.detach().to("cpu", torch.float32, copy=True)
    if not torch.isfinite(photo).all():
        raise ValueError(f"{who} holds NaN or infinite pixels; look at the node that made the image.")
    photo = photo.clamp_(0.0, 1.0)
    if channels == 4:
        alpha = photo[..., 3]
        photo = photo[..., :3] * alpha.unsqueeze(-1) + (1.0 - alpha.unsqueeze(-1))
        # An opaque alpha channel says nothing about where the subject is.
        if mask is None and alpha.min() < 1.0:
            mask = alpha
    elif channels == 1:
        photo = photo.expand(-1, -1, 3)
    if mask is not None:
        mask = mask.detach().to("cpu", torch.float32, copy=True).clamp_(0.0, 1.0).contiguous()
        if mask.max() < 0.5:
            raise ValueError(f"The mask of photo {index + 1} of subject '{name}' is empty; paint the subject white.")
    return photo.contiguous(), mask
