"""What a reward may look at: the frames of one clip, the faces in them, and who is who.

`gather_evidence` reads a clip once, a few frames at a time, so that its memory does not grow with the clip's pixels;
what stays is the faces. A reward that needs pixels reads the frames that it wants from `ClipEvidence.source` again.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch

from ..subjects.faces import DetectedFace, FaceAnalyzer, SubjectFaces, is_finite, similarities
from ..subjects.subject import Cast
from . import identity

# Frames that are held at once, by their float pixels: 8 frames of 1280x720, at least one of any size.
CHUNK_BYTES = 96 * 2**20
MAX_CHUNK = 32

_BLOCK = 8
# Block means of a decoded still picture differ by a level or two of 255; a blink or a moving lip changes some block
# by tens. A clip below this is a picture, and a picture of the references would get the best likeness of all.
STILL_CHANGE = 4 / 255


class NotFiniteError(ValueError):
    """A frame holds NaN or infinite pixels."""


class FrameSource(Protocol):
    """A clip that can be read frame by frame. `fps` is None where nobody has said it."""

    length: int
    fps: float | None

    def read(self, indices: Sequence[int]) -> Iterator[torch.Tensor]:
        """The frames [H, W, 3] float32 (0..1, CPU) with these ascending indices, one at a time."""


class TensorFrames:
    """A clip in memory: images [T, H, W, 3 or more] in 0..1, on any device."""

    def __init__(self, images: torch.Tensor, fps: float | None = None):
        if images.ndim != 4 or len(images) == 0 or images.shape[-1] < 3:
            raise ValueError(f"A clip needs frames of shape [frames, height, width, 3], got {list(images.shape)}.")
        self.images = images[..., :3]
        self.length = len(images)
        self.fps = fps

    def read(self, indices: Sequence[int]) -> Iterator[torch.Tensor]:
        for index in check_indices(indices, self.length):
            yield self.images[index].detach().to("cpu", torch.float32)


class VideoFrames:
    """A video file, decoded as it is read: PyAV, one frame in memory at a time.

    file             a path, or an open binary file that can seek
    start, duration  seconds of the part that counts; a duration of 0 goes on to the end
    Raises ValueError for a file without (usable) video, naming it.
    """

    def __init__(self, file: str | Path | BinaryIO, start: float = 0.0, duration: float = 0.0):
        import av

        self._file = str(file) if isinstance(file, Path) else file
        self._name = os.path.basename(self._file) if isinstance(self._file, str) else "the given file"
        try:
            with self._open() as (container, stream):
                packets = [
                    (packet.pts, packet.is_keyframe)
                    for packet in container.demux(stream)
                    if packet.size and packet.pts is not None and not packet.is_discard
                ]
                unit = float(stream.time_base or 0)
                self.fps = float(stream.average_rate) if stream.average_rate else None
        except av.FFmpegError as error:
            raise ValueError(f"The video '{self._name}' cannot be read ({error}).") from error
        origin = min((pts for pts, _ in packets), default=0)
        first = origin + start / unit if unit else origin
        last = first + duration / unit if duration and unit else float("inf")
        # Half a unit of slack: seconds are not exact.
        self._pts = sorted({pts for pts, _ in packets if first - 0.5 <= pts < last - 0.5})
        self._keys = sorted(pts for pts, key in packets if key)
        self.length = len(self._pts)
        if not self.length:
            part = f" from second {start:g} on" if start or duration else ""
            raise ValueError(f"The video '{self._name}' has no frames with a time{part}; re-encode it as mp4.")

    def read(self, indices: Sequence[int]) -> Iterator[torch.Tensor]:
        indices = check_indices(indices, self.length)
        with self._open() as (container, stream):
            stream.thread_type = "AUTO"
            frames, frame = container.decode(stream), None
            for index in indices:
                wanted = self._pts[index]
                key = self._keys[max(bisect_right(self._keys, wanted) - 1, 0)] if self._keys else None
                if key is not None and key > (frame.pts if frame is not None else self._pts[0]):
                    container.seek(key, stream=stream)
                    frames, frame = container.decode(stream), None
                while frame is None or frame.pts is None or frame.pts < wanted:
                    frame = self._next(frames, index)
                pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).float().div_(255.0)
                turns = round(getattr(frame, "rotation", 0) / 90) % 4
                yield torch.rot90(pixels, turns).contiguous() if turns else pixels

    def _next(self, frames: Iterator, index: int):
        import av

        try:
            return next(frames)
        except (StopIteration, av.FFmpegError) as error:
            raise RuntimeError(
                f"Frame {index + 1} of the video '{self._name}' cannot be decoded; it may be damaged, re-encode it."
            ) from error

    @contextmanager
    def _open(self) -> Iterator[tuple]:
        import av

        if not isinstance(self._file, str):
            self._file.seek(0)
        with av.open(self._file) as container:
            if not container.streams.video:
                raise ValueError(f"'{self._name}' holds no video.")
            yield container, container.streams.video[0]


@dataclass(frozen=True, eq=False)
class ClipEvidence:
    """One clip as the rewards see it.

    source    the clip
    indices   the T scored frames of it, ascending
    faces     the faces of each scored frame, left to right
    identity  who is who, `identity.score_identity` on these faces; S rows
    cast      with faces; cast.faces.subjects[i].mean and .faces, cast.subjects[i].photos
    scored    indices into cast.subjects of the S subjects that can be scored
    prompt    what was asked for; may be empty
    change    greatest change of any block between the first scored frame and another one, 0..1
    monitor   [T, S] cosines by the embedder that only watches, NaN where a subject is missing; None without one
    """

    source: FrameSource
    indices: tuple[int, ...]
    faces: tuple[tuple[DetectedFace, ...], ...]
    identity: identity.ClipIdentity
    cast: Cast
    scored: tuple[int, ...]
    prompt: str = ""
    change: float = 0.0
    monitor: np.ndarray | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the scored subjects."""
        return tuple(self.cast.subjects[i].name for i in self.scored)

    @property
    def still(self) -> bool:
        """Whether nothing moves, so that it is a picture and not a clip."""
        return len(self.indices) > 1 and self.change < STILL_CHANGE

    @property
    def score(self) -> float:
        """The identity score, 0..1; 0 for a still picture, because one of the references has the best likeness."""
        return 0.0 if self.still else self.identity.score


def gather_evidence(
    source: FrameSource,
    indices: Sequence[int],
    cast: Cast,
    analyzer: FaceAnalyzer | None = None,
    monitor: FaceAnalyzer | None = None,
    prompt: str = "",
    on_frame: Callable[[], None] | None = None,
) -> ClipEvidence:
    """Find the faces of the chosen frames and who they are.

    indices   ascending, without repetition
    analyzer  the one that made the cast's faces unless given; another one's embeddings do not compare
    monitor   a second analyzer: it embeds the faces that were found and has no say in who is who
    on_frame  called after each frame, for progress and interruption
    Raises ValueError for a cast without faces or no frames, NotFiniteError that names the frame (from 1) for bad
    pixels.
    """
    scored = scored_subjects(cast)
    analyzer = analyzer or cast.faces.analyzer
    indices = check_indices(indices, source.length)
    means = None if monitor is None else _monitor_means(cast, scored, monitor)
    faces: list[tuple[DetectedFace, ...]] = []
    watched: list[list[DetectedFace]] = []
    first, change = None, 0.0
    for chunk in read_chunks(source, indices):
        blocks = block_means(chunk)
        first = blocks[:1] if first is None else first
        change = max(change, float(np.abs(blocks - first).max()))
        seen = analyzer.analyze_frames(chunk, on_frame)
        faces += [tuple(each) for each in seen]
        if monitor is not None:
            watched += monitor.embed(chunk, seen)
        del chunk  # before the next one is read
    who = np.stack([cast.faces.subjects[i].mean for i in scored])
    times = [index / source.fps for index in indices] if source.fps else None
    found = [identity.FrameFaces.of(each, who.shape[1]) for each in faces]
    result = identity.score_identity(found, who, times=times)
    watching = None if means is None else _watched_similarity(result, watched, means)
    return ClipEvidence(source, indices, tuple(faces), result, cast, scored, prompt, change, watching)


def scored_subjects(cast: Cast) -> tuple[int, ...]:
    """Indices of the subjects that can be scored.

    Raises ValueError when the cast has not been through face extraction or no subject has a face.
    """
    if cast.faces is None:
        raise ValueError("The cast has no faces yet; wire IDCrafterExtractFaces before the node that scores.")
    scored = tuple(i for i, own in enumerate(cast.faces.subjects) if own is not None)
    if not scored:
        raise ValueError(
            "No subject of the cast has a usable face, so there is nothing to score; give at least one person a photo "
            "that shows the face."
        )
    return scored


def check_indices(indices: Sequence[int], length: int) -> tuple[int, ...]:
    """The indices as a tuple; ValueError unless they ascend and lie in the clip."""
    indices = tuple(int(index) for index in indices)
    ascending = all(a < b for a, b in zip(indices, indices[1:], strict=False))
    if not indices or not ascending or not 0 <= indices[0] <= indices[-1] < length:
        raise ValueError(f"Frames to read must ascend within 0 to {length - 1}, got {list(indices[:8])}.")
    return indices


def read_chunks(source: FrameSource, indices: Sequence[int]) -> Iterator[torch.Tensor]:
    """The frames with these ascending indices, a few at a time: [N, H, W, 3].

    Raises NotFiniteError for bad pixels, ValueError for frames of different sizes; both name the frame (from 1).
    """
    chunk: list[torch.Tensor] = []
    shape = None
    for index, frame in zip(indices, source.read(indices), strict=True):
        if not is_finite(frame):
            raise NotFiniteError(f"Frame {index + 1} of the clip holds NaN or infinite pixels.")
        if shape not in (None, frame.shape):
            raise ValueError(f"Frame {index + 1} of the clip has another size than the frames before it.")
        shape = frame.shape
        chunk.append(frame)
        if len(chunk) >= min(MAX_CHUNK, CHUNK_BYTES // (frame.numel() * 4)):
            chunk = [torch.stack(chunk)]
            yield chunk.pop()  # so that the frames are not held here as well
    if chunk:
        yield torch.stack(chunk)


def block_means(frames: torch.Tensor) -> np.ndarray:
    """Means of 8x8 blocks, [T, H, W, C] -> [T, H / 8, W / 8, C]: what a decoder's noise does not change."""
    count, height, width, channels = frames.shape
    side = min(_BLOCK, height, width)
    rows, columns = height // side, width // side
    # numpy and not torch's pooling: see `faces.to_uint8`.
    blocks = frames.numpy()[:, : rows * side, : columns * side]
    lines = blocks.reshape(count, rows, side, columns * side * channels).sum(2)
    return lines.reshape(count, rows, columns, side, channels).sum(3) / side**2


def _monitor_means(cast: Cast, scored: Sequence[int], monitor: FaceAnalyzer) -> np.ndarray:
    """[S, D] the subjects' mean embeddings by the monitor, from the faces that the cast's analyzer found."""
    means = []
    for i in scored:
        own: SubjectFaces = cast.faces.subjects[i]
        embedded = [
            monitor.embed(photo[None], [[face]])[0][0].embedding
            for photo, face in zip(cast.subjects[i].photos, own.faces, strict=True)
            if face is not None
        ]
        mean = np.mean(embedded, 0, dtype=np.float64)
        means.append(mean / max(float(np.linalg.norm(mean)), 1e-12))
    return np.stack(means).astype(np.float32)


def _watched_similarity(
    result: identity.ClipIdentity, watched: Sequence[Sequence[DetectedFace]], means: np.ndarray
) -> np.ndarray:
    """[T, S] the monitor's cosines of the faces that the identity score has assigned."""
    similarity = np.full(result.similarity.shape, np.nan)
    for t, face_of in enumerate(result.assigned):
        for subject in np.flatnonzero(face_of >= 0):
            face = watched[t][face_of[subject]]
            similarity[t, subject] = similarities(means[subject][None], face.embedding[None])[0, 0]
    return similarity
