"""The files of a data set: clips, references, masks. Each is written in one step."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...rewards.lossy_video import write_h264
from ...rewards.subject_crops import crop_around
from ...rollouts.files import replace
from ...subjects.faces import to_uint8
from .clip import Boxes
from .mask_files import save_masks
from .plan import ReferenceMoment
from .raw import RawClip
from .regions import person_cover
from .seen import SeenClip

# Hardly any loss; H.264's colours are halved in both directions, as they were in nearly every raw clip.
CRF = 8
# A reference's first and second picture.
_KINDS = ("face", "wide")
MASK_SOURCE = "soft rectangles of head and body around the tracked face, no segmentation"


def write_clip(stem: Path, clip: RawClip, indices: Sequence[int], on_frames: Callable[[int], None]) -> Path:
    """Write these frames of a raw clip as `stem` + .mp4, or copy the file where they are all of it.

    on_frames  called with how many frames have been written since, for progress and interruption
    Returns where it is; `written_size` is its size.
    """
    if _is_whole(clip, indices):
        path = stem.with_name(stem.name + clip.path.suffix.lower())
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        try:
            shutil.copyfile(clip.path, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        on_frames(len(indices))
        return path

    def frames() -> Iterator[torch.Tensor]:
        for frame in clip.source.read(indices):
            yield torch.from_numpy(to_uint8(frame))
            on_frames(1)

    path = stem.with_name(f"{stem.name}.mp4")
    data = io.BytesIO()
    write_h264(data, frames(), Fraction(clip.fps).limit_denominator(1001), CRF, 2)
    replace(path, data.getvalue())
    return path


def written_size(clip: RawClip, indices: Sequence[int], seen: SeenClip) -> tuple[int, int]:
    """Height and width of what `write_clip` writes: those of the raw clip, even unless it is copied."""
    odd = 0 if _is_whole(clip, indices) else 1
    height, width = (int(side) + odd * (int(side) % 2) for side in seen.size)
    return height, width


def write_masks(path: Path, faces: Boxes, height: int, width: int) -> None:
    """The regions that `regions.person_cover` gives to a person, as masks [T, height, width] uint8."""
    masks = np.zeros((len(faces), height, width), np.uint8)
    for mask, face in zip(masks, faces, strict=True):
        if face is not None:
            mask[:] = np.rint(255 * person_cover(face, height, width))
    data = io.BytesIO()
    save_masks(data, masks)
    replace(path, data.getvalue())


def write_references(
    folder: Path, moments: Sequence[Sequence[ReferenceMoment]], clips: Sequence[RawClip], seen: Sequence[SeenClip]
) -> list[list[str]]:
    """Cut the references of some subjects out of raw clips, as PNG files in a folder.

    moments  of each subject
    Returns the names of each subject's files, for each moment the face and then the wider picture.
    """
    wanted: dict[int, dict[int, list[tuple[str, ReferenceMoment]]]] = {}
    for k, own in enumerate(moments, 1):
        for n, moment in enumerate(own, 1):
            frame = clips[moment.clip].indices[moment.moment]
            wanted.setdefault(moment.clip, {}).setdefault(frame, []).append((f"{k}-{n}", moment))
    for c, frames in wanted.items():
        order = sorted(frames)
        for frame, image in zip(order, clips[c].source.read(order), strict=True):
            for stem, moment in frames[frame]:
                for kind, margin in zip(_KINDS, moment.margins, strict=False):
                    crop = crop_around(image, seen[c].boxes[moment.face], margin)
                    data = io.BytesIO()
                    Image.fromarray(to_uint8(crop)).save(data, "PNG")
                    replace(folder / f"{stem}-{kind}.png", data.getvalue())
    return [
        [f"{k}-{n}-{kind}.png" for n, moment in enumerate(own, 1) for kind in _KINDS[: len(moment.margins)]]
        for k, own in enumerate(moments, 1)
    ]


def _is_whole(clip: RawClip, indices: Sequence[int]) -> bool:
    return tuple(indices) == tuple(range(clip.source.length))
