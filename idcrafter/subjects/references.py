"""Reference photos, prepared for a backbone: which ones, in which order, and how they fill the frame.

Pure tensor functions; what a backbone then does with the frames is its rule in `conditioning/`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .diversity import most_diverse
from .subject import Cast

# What of a photo becomes a reference: all of it, the crop around the face, or first the one and then the other.
FRAMINGS = ("whole", "faces", "both")
MAX_PHOTOS = 8
# Key of a LATENT: how many of its first latent frames are references and not video.
LEADING = "idcrafter_leading_references"
# Share of the mask's longer side that is kept around it, so that hair and hands do not touch the frame.
MASK_MARGIN = 0.06
# Share of the face box's longer side that is kept on each side of it: detectors box brows to chin, likeness needs hair.
FACE_MARGIN = 0.4


class PhotoRef(NamedTuple):
    """One picture of a cast: indices into `cast.subjects` and its `photos`, both from 0, and whether only the face."""

    subject: int
    photo: int
    face: bool = False

    def label(self, cast: Cast) -> str:
        what = f"photo {self.photo + 1} of subject '{cast.subjects[self.subject].name}'"
        return f"the face in {what}" if self.face else what


def order_photos(cast: Cast, framing: str = "whole") -> list[PhotoRef]:
    """The first picture of every subject in cast order, then every second picture, and so on.

    So the n-th reference belongs to the n-th subject, however many photos each of them has. A subject without a
    usable face (an object) is shown whole whatever the framing.
    Raises ValueError when faces are wanted and none have been looked for.
    """
    return _in_rounds([_pictures(cast, s, _photos(cast, s), framing) for s in range(len(cast.subjects))])


def choose_photos(
    cast: Cast, limit: int, rule: str, framing: str = "whole", photos: int = MAX_PHOTOS
) -> tuple[list[PhotoRef], list[PhotoRef]]:
    """The references of a cast, at most `limit` of them from at most `photos` photos a subject, and those left out.

    Room is given in turns, one picture a subject, in cast order; a subject that has more photos than room shows those
    that differ most (`most_diverse`), its first photo always among them.
    Raises ValueError when not even one photo of every subject fits: a cast member is never dropped in silence.
    """
    if len(cast.subjects) > limit:
        raise ValueError(
            f"The {rule} rule takes at most {limit} references, but the cast has {len(cast.subjects)} subjects; "
            f"remove {len(cast.subjects) - limit} of them."
        )
    everything = order_photos(cast, framing)
    room = [0] * len(cast.subjects)
    for ref in everything:
        if sum(room) < limit:
            room[ref.subject] += 1
    chosen = []
    for s, count in enumerate(room):
        pictures = [ref for ref in everything if ref.subject == s]
        candidates = sorted({ref.photo for ref in pictures})
        own: list[PhotoRef] = []
        # The face of a photo may be missing, so how many photos fill the room shows only on trying.
        for kept in range(1, min(photos, len(candidates)) + 1):
            diverse = most_diverse(cast, s, candidates, kept)
            own = [ref for ref in pictures if ref.photo in diverse][:count]
            if len(own) == count:
                break
        chosen.append(own)
    used = _in_rounds(chosen)
    return used, [ref for ref in everything if ref not in used]


def picture(cast: Cast, ref: PhotoRef, cut: bool = True, fill: float = 1.0) -> torch.Tensor:
    """What the reference shows, at the photo's own scale: [h, w, 3].

    cut  a photo's mask removes its background (replaced by `fill`) and crops to the subject; else masks are ignored
    """
    subject = cast.subjects[ref.subject]
    photo = subject.photos[ref.photo]
    mask = subject.masks[ref.photo] if cut else None
    if not ref.face:
        return photo if mask is None else cut_out(photo, mask, fill)
    if mask is not None:
        photo = on_fill(photo, mask, fill)
    return crop_face(photo, cast.faces.subjects[ref.subject].faces[ref.photo].box)


def crop_face(photo: torch.Tensor, box) -> torch.Tensor:
    """The square around a face box (x1 y1 x2 y2 in pixels) with FACE_MARGIN, as far as the photo reaches: [h, w, 3]."""
    height, width = photo.shape[:2]
    x1, y1, x2, y2 = (float(value) for value in box)
    reach = max(x2 - x1, y2 - y1) * (0.5 + FACE_MARGIN)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    left, right = max(0, round(x - reach)), min(width, round(x + reach))
    top, bottom = max(0, round(y - reach)), min(height, round(y + reach))
    return photo[top:bottom, left:right]


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
    photo = on_fill(photo, mask, fill)
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


def on_fill(photo: torch.Tensor, mask: torch.Tensor, fill: float) -> torch.Tensor:
    """The photo [H, W, 3] with everything outside of the mask [H, W] replaced by `fill`."""
    weight = mask.unsqueeze(-1)
    return photo * weight + fill * (1.0 - weight)


def _photos(cast: Cast, subject: int) -> list[int]:
    return list(range(len(cast.subjects[subject].photos)))


def _pictures(cast: Cast, subject: int, photos: list[int], framing: str) -> list[PhotoRef]:
    """The pictures that these photos of one subject give, in order."""
    if framing not in FRAMINGS:
        raise ValueError(f"The framing '{framing}' is unknown; choose one of {', '.join(FRAMINGS)}.")
    if framing == "whole":
        return [PhotoRef(subject, i) for i in photos]
    if cast.faces is None:
        raise ValueError(
            f"The framing '{framing}' needs to know where the faces are; connect the cast that comes out of Extract "
            "Faces, or set the framing to whole."
        )
    own = cast.faces.subjects[subject]
    with_face = [i for i in photos if own is not None and own.faces[i] is not None]
    if framing == "faces":
        return [PhotoRef(subject, i, True) for i in with_face] or [PhotoRef(subject, i) for i in photos]
    return [PhotoRef(subject, i, face) for i in photos for face in (False, True) if not face or i in with_face]


def _in_rounds(pictures: list[list[PhotoRef]]) -> list[PhotoRef]:
    """One list a subject -> everybody's first, then everybody's second, and so on."""
    rounds = max(len(own) for own in pictures)
    return [own[i] for i in range(rounds) for own in pictures if i < len(own)]
