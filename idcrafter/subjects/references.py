"""Reference photos, prepared for a backbone: which ones, in which order, and how they fill the frame.

Pure tensor functions; what a backbone then does with the frames is its rule in `conditioning/`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .subject import Cast

# Share of the mask's longer side that is kept around it, so that hair and hands do not touch the frame.
MASK_MARGIN = 0.06


class PhotoRef(NamedTuple):
    """One photo of a cast: indices into `cast.subjects` and its `photos`, both from 0."""

    subject: int
    photo: int

    def label(self, cast: Cast) -> str:
        return f"photo {self.photo + 1} of subject '{cast.subjects[self.subject].name}'"


def order_photos(cast: Cast) -> list[PhotoRef]:
    """The first photo of every subject in cast order, then every second photo, and so on.

    So the n-th reference belongs to the n-th subject, however many photos each of them has.
    """
    rounds = max(len(subject.photos) for subject in cast.subjects)
    return [PhotoRef(s, p) for p in range(rounds) for s, subject in enumerate(cast.subjects) if p < len(subject.photos)]


def choose_photos(cast: Cast, limit: int, rule: str) -> tuple[list[PhotoRef], list[PhotoRef]]:
    """Split `order_photos` into the first `limit` and those left out.

    Raises ValueError when not even one photo of every subject fits: a cast member is never dropped in silence.
    """
    if len(cast.subjects) > limit:
        raise ValueError(
            f"The {rule} rule takes at most {limit} references, but the cast has {len(cast.subjects)} subjects; "
            f"remove {len(cast.subjects) - limit} of them."
        )
    photos = order_photos(cast)
    return photos[:limit], photos[limit:]


def letterbox(
    photo: torch.Tensor, mask: torch.Tensor | None, width: int, height: int, fill: float = 1.0
) -> torch.Tensor:
    """Fit a photo into a frame without cropping or distorting it: [H, W, 3] in 0..1 -> [height, width, 3].

    The photo is scaled (antialiased) until it touches two opposite sides and is centred on `fill` (1.0 = white).
    A mask [H, W] (1 = subject) first cuts the subject out onto `fill` and crops to the mask's box plus a margin,
    so that the subject, not its background, fills the frame.
    """
    if mask is not None:
        photo = cut_out(photo, mask, fill)
    source_height, source_width = photo.shape[:2]
    scale = min(width / source_width, height / source_height)
    fitted_width = min(width, max(1, round(source_width * scale)))
    fitted_height = min(height, max(1, round(source_height * scale)))
    fitted = torch.nn.functional.interpolate(
        photo.movedim(-1, 0).unsqueeze(0),
        size=(fitted_height, fitted_width),
        mode="bicubic",
        align_corners=False,
        antialias=True,
    )
    # Bicubic overshoots at hard edges; the VAE expects 0..1.
    fitted = fitted.squeeze(0).movedim(0, -1).clamp_(0.0, 1.0)
    frame = torch.full((height, width, 3), fill, dtype=photo.dtype)
    top, left = (height - fitted_height) // 2, (width - fitted_width) // 2
    frame[top : top + fitted_height, left : left + fitted_width] = fitted
    return frame


def cut_out(photo: torch.Tensor, mask: torch.Tensor, fill: float) -> torch.Tensor:
    """The masked subject on `fill`, cropped to the mask's box plus MASK_MARGIN: [H, W, 3] -> [h, w, 3]."""
    weight = mask.unsqueeze(-1)
    photo = photo * weight + fill * (1.0 - weight)
    # A soft edge fades to nothing; half-covered pixels are the box.
    rows = torch.nonzero(mask.amax(dim=1) >= 0.5).flatten()
    columns = torch.nonzero(mask.amax(dim=0) >= 0.5).flatten()
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    margin = round(MASK_MARGIN * max(bottom - top, right - left))
    height, width = mask.shape
    return photo[
        max(0, top - margin) : min(height, bottom + margin),
        max(0, left - margin) : min(width, right + margin),
    ]
