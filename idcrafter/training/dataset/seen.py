"""What was seen in a raw clip: every face with its sharpness, and how much the picture changed; kept in a file."""

from __future__ import annotations

import io
import json
import logging
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from ...rewards.assignment import face_sides
from ...rewards.evidence import block_means, read_chunks
from ...rollouts.files import replace
from ...subjects.faces import DetectedFace, FaceAnalyzer, aligned_crop
from .raw import RawClip

log = logging.getLogger(__name__)

# Sharpness is looked at in the face's own pixels: enlarged, a small face would look blurred and a large one noisy.
_SMALLEST, _LARGEST = 32, 112


class ClipError(ValueError):
    """A raw clip cannot be used; the text says why."""


@dataclass(frozen=True, eq=False)
class SeenClip:
    """F faces in T moments (frames that were looked at) of a raw clip.

    size        [2] height and width in pixels
    moment      [F] int, ascending: the moment of each face; within one from left to right
    boxes       [F, 4] pixels
    scores      [F]
    embeddings  [F, D] float32 of unit length
    sharpness   [F], see `sharpness`
    change      [T] mean change since the moment before, 0..1; the first is 0
    """

    size: np.ndarray
    moment: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    embeddings: np.ndarray
    sharpness: np.ndarray
    change: np.ndarray

    @property
    def length(self) -> int:
        return len(self.change)


def look(clip: RawClip, analyzer: FaceAnalyzer, on_frame: Callable[[], None] | None = None) -> SeenClip:
    """Find and embed all faces of a clip, a few frames at a time.

    on_frame  called after each frame, for progress and interruption
    Raises ClipError for a damaged file or frames of different sizes.
    """
    moment, found, sharp, change = [], [], [], []
    before = None
    size = (0, 0)
    for chunk in _readable(clip):
        size = chunk.shape[1:3]
        blocks = block_means(chunk)
        previous = np.concatenate([blocks[:1] if before is None else before, blocks[:-1]])
        change += np.abs(blocks - previous).mean((1, 2, 3)).tolist()
        before = blocks[-1:]
        first = len(change) - len(chunk)
        for t, (frame, faces) in enumerate(zip(chunk, analyzer.analyze_frames(chunk, on_frame), strict=True), first):
            moment += [t] * len(faces)
            found += faces
            sharp += [sharpness(frame, face) for face in faces]
    width = len(found[0].embedding) if found else 0
    return SeenClip(
        np.array(size),
        np.array(moment, np.int64),
        np.array([face.box for face in found], np.float64).reshape(-1, 4),
        np.array([face.score for face in found], np.float64),
        np.array([face.embedding for face in found], np.float32).reshape(len(found), width),
        np.array(sharp, np.float64),
        np.array(change),
    )


def sharpness(image: torch.Tensor, face: DetectedFace) -> float:
    """The variance of the Laplacian (in levels of 255) of a face in an image [H, W, 3], upright and grey.

    A sharp face has hundreds to thousands, one out of focus or smeared by motion less than a hundred; noise adds to it.
    """
    import cv2

    side = float(face_sides(face.box))
    crop = aligned_crop(image, face.landmarks, int(np.clip(side, _SMALLEST, _LARGEST)))
    return float(cv2.Laplacian(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def save_seen(path: Path, seen: SeenClip, key: dict) -> None:
    """Write it in one step, with the key that says what it was made from."""
    arrays = {field.name: getattr(seen, field.name) for field in fields(SeenClip)}
    data = io.BytesIO()
    np.savez_compressed(data, key=np.array(json.dumps(key, sort_keys=True)), **arrays)
    replace(path, data.getvalue())


def load_seen(path: Path, key: dict) -> SeenClip | None:
    """What was saved under the same key; None when there is nothing that can be used."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            if str(archive["key"]) != json.dumps(key, sort_keys=True):
                return None
            return SeenClip(*(archive[field.name] for field in fields(SeenClip)))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read (%s); the clip is looked at again.", path, error)
        return None


def _readable(clip: RawClip) -> Iterator[torch.Tensor]:
    """Chunks of the clip's frames; what makes a file unreadable is said as a ClipError, and nothing else is."""
    chunks = read_chunks(clip.source, clip.indices)
    while True:
        try:
            chunk = next(chunks, None)
        except (ValueError, RuntimeError, OSError) as error:
            raise ClipError(str(error)) from error
        if chunk is None:
            return
        yield chunk
