"""Masks of one subject over a clip, from a video, an .npz or a folder of PNG files, read frame by frame."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ...rewards.evidence import VideoFrames, check_indices

_LEVELS = {"b": 1.0, "u": 255.0, "f": 1.0}  # what is white, by numpy's kind of number


class MaskFrames(Protocol):
    """`length` masks of `height` x `width` pixels."""

    length: int
    height: int
    width: int

    def read(self, indices: Sequence[int]) -> Iterator[torch.Tensor]:
        """The masks [H, W] float32 (0..1) of the frames with these ascending indices, one at a time."""


def open_masks(path: Path) -> MaskFrames:
    """The masks in a file or folder. Its pixels are not read yet; ValueError for what holds no masks, naming it."""
    if path.is_dir():
        return _PngMasks(path)
    return _ArrayMasks(path) if path.suffix.lower() == ".npz" else _VideoMasks(path)


def save_masks(file, masks: np.ndarray) -> None:
    """Write masks [T, H, W] uint8 as .npz into a path or an open binary file."""
    np.savez_compressed(file, masks=masks)


class _VideoMasks:
    """Bright is the subject."""

    def __init__(self, path: Path):
        self._frames = VideoFrames(path)
        self.length = self._frames.length
        self.height, self.width = next(self._frames.read([0])).shape[:2]

    def read(self, indices: Sequence[int]) -> Iterator[torch.Tensor]:
        for frame in self._frames.read(indices):
            yield frame.mean(-1)


class _PngMasks:
    """Bright is the subject; transparency is not looked at."""

    def __init__(self, folder: Path):
        self._files = sorted(folder.glob("*.png"))
        self.length = len(self._files)
        if not self.length:
            raise ValueError(f"The folder of masks '{folder.name}' has no .png file.")
        sizes = {}
        for file in self._files:
            try:
                with Image.open(file) as picture:
                    sizes[picture.size] = file.name
            except (OSError, UnidentifiedImageError) as error:
                raise ValueError(f"The mask '{folder.name}/{file.name}' cannot be read ({error}).") from error
        if len(sizes) > 1:
            raise ValueError(
                f"The masks of the folder '{folder.name}' differ in size ({', '.join(list(sizes.values())[:2])})."
            )
        self.width, self.height = next(iter(sizes))

    def read(self, indices: Sequence[int]) -> Iterator[torch.Tensor]:
        for index in check_indices(indices, self.length):
            with Image.open(self._files[index]) as picture:
                yield torch.from_numpy(np.asarray(picture.convert("L"), np.float32) / 255)


class _ArrayMasks:
    """One array [T, H, W]; its header is read first, its numbers when they are wanted."""

    def __init__(self, path: Path):
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(".npy")]
                if len(names) != 1:
                    raise ValueError(f"The masks '{path.name}' hold {len(names)} arrays; save one.")
                with archive.open(names[0]) as file:
                    version = np.lib.format.read_magic(file)
                    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
                    if header is None:
                        raise ValueError(f"The masks '{path.name}' are of an unknown version of .npy.")
                    shape, _, kind = header(file)
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"The masks '{path.name}' cannot be read ({error}).") from error
        if len(shape) != 3 or 0 in shape or kind.kind not in _LEVELS or kind.kind == "u" and kind.itemsize > 1:
            raise ValueError(
                f"The masks '{path.name}' are {kind} of shape {list(shape)}; save booleans, uint8 or floats of shape "
                "[frames, height, width]."
            )
        self._name, self._white = names[0].removesuffix(".npy"), _LEVELS[kind.kind]
        self.length, self.height, self.width = shape

    def read(self, indices: Sequence[int]) -> Iterator[torch.Tensor]:
        indices = check_indices(indices, self.length)
        with np.load(self._path, allow_pickle=False) as archive:
            masks = archive[self._name]
        for index in indices:
            mask = masks[index].astype(np.float32) / self._white
            if not np.isfinite(mask).all():
                raise ValueError(f"Mask {index + 1} of '{self._path.name}' holds NaN or infinite values.")
            yield torch.from_numpy(mask.clip(0.0, 1.0))
