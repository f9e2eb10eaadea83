"""Pixels of a data set: a part of a clip as a model is trained on it, and the cast that its references are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...rewards.evidence import VideoFrames
from ...subjects.subject import Cast, Subject, make_cast, make_subject
from .clip import TrainingClip, TrainingSubject
from .regions import view


def read_window(clip: TrainingClip, width: int, height: int, start: int = 0, frames: int | None = None) -> torch.Tensor:
    """[frames, height, width, 3] float32 in 0..1: a part of the clip, scaled to fill the size and cut in the middle.

    start, frames  as for `regions.token_owners`, which labels the same part
    Raises ValueError for frames that are not in the clip, RuntimeError for a damaged file.
    """
    left, top, right, bottom = view(clip.width, clip.height, width, height)
    count = clip.length - start if frames is None else frames
    out = torch.empty(count, height, width, 3)
    for row, frame in zip(out, VideoFrames(clip.video).read(range(start, start + count)), strict=True):
        pixels = frame[top:bottom, left:right].movedim(-1, 0)[None]
        if pixels.shape[-2:] != (height, width):
            pixels = torch.nn.functional.interpolate(
                pixels, size=(height, width), mode="bicubic", align_corners=False, antialias=True
            ).clamp_(0.0, 1.0)
        row[:] = pixels[0].movedim(0, -1)
    return out


def clip_cast(clip: TrainingClip) -> Cast:
    """The subjects of a clip with their references as photos, without faces yet (`faces.extract_faces`)."""
    return make_cast([_subject(subject) for subject in clip.subjects])


def _subject(subject: TrainingSubject) -> Subject:
    # One at a time, because a batch has one size and photos differ.
    made = [
        make_subject(subject.name, subject.kind, subject.description, _read_picture(path)[None])
        for path in subject.references
    ]
    photos, masks = (tuple(each for one in made for each in getattr(one, key)) for key in ("photos", "masks"))
    return Subject(made[0].name, made[0].kind, made[0].description, photos, masks)


def _read_picture(path: Path) -> torch.Tensor:
    """[H, W, 3 or 4] in 0..1; transparency is kept."""
    with Image.open(path) as picture:
        mode = "RGBA" if "A" in picture.getbands() or "transparency" in picture.info else "RGB"
        return torch.from_numpy(np.asarray(picture.convert(mode), np.float32) / 255)
