"""Frames as they come back from a lossy H.264 file: what a model that was trained on such files expects to see."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, BinaryIO

import torch

# diffusers' export_to_video (imageio) at quality 7.5: int((1 - 7.5 / 10) * 51), and sides that are multiples of 16.
CRF = 12
BLOCK = 16
# x264's AVX-512 code for macroblock trees reads memory that nobody wrote, so that one clip gives another file each
# time (by a third of a grey level), and the number of threads changes it too; this makes it the same everywhere.
_REPEATABLE = "cpu-independent=1:threads=1"


def reencode(frames: Iterable[torch.Tensor], keep: Sequence[int], fps: int) -> torch.Tensor:
    """Write frames [H, W, 3] uint8 as libx264 yuv420p at CRF 12 into memory, and read some of them back.

    frames  all frames of the clip, of one size; they are taken one at a time
    keep    ascending indices of the frames to return
    Returns [len(keep), H', W', 3] uint8; H' and W' are H and W rounded up to multiples of 16 (scaled, not padded).
    Raises ValueError for a frame of another size, RuntimeError when this PyAV cannot write H.264.
    """
    import av

    file = io.BytesIO()
    write_h264(file, frames, Fraction(fps))
    wanted, kept = set(keep), []
    file.seek(0)
    with av.open(file) as container:
        for index, picture in enumerate(container.decode(video=0)):
            if index in wanted:
                rgb = picture.reformat(format="rgb24", interpolation="BICUBIC").to_ndarray()
                kept.append(torch.from_numpy(rgb))
    return torch.stack(kept)


def write_h264(
    file: BinaryIO, frames: Iterable[torch.Tensor], fps: Fraction, crf: int = CRF, block: int = BLOCK
) -> None:
    """Write frames [H, W, 3] uint8, all of one size and taken one at a time, as an mp4 of libx264 yuv420p.

    block  both sides are rounded up to multiples of this (scaled, not padded); even, as the pixel format wants it
    The same frames always give the same file. Errors as `reencode`.
    """
    import av

    try:
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=fps)
            stream.options = {"crf": str(crf), "x264-params": _REPEATABLE}
            graph, shape = None, None
            for index, frame in enumerate(frames):
                if graph is None:
                    shape = frame.shape
                    stream.height, stream.width = (-(-side // block) * block for side in shape[:2])
                    graph = _to_yuv(shape, stream, fps)
                if frame.shape != shape:
                    raise ValueError(f"Frame {index + 1} of the clip has another size than the frames before it.")
                picture = av.VideoFrame.from_ndarray(frame.contiguous().numpy(), format="rgb24")
                picture.pts, picture.time_base = index, 1 / fps
                graph.push(picture)
                container.mux(stream.encode(graph.pull()))
            container.mux(stream.encode())
    except (av.error.FFmpegError, av.codec.codec.UnknownCodecError) as error:
        raise RuntimeError(f"The installed PyAV cannot write H.264 ({error}); reinstall the package 'av'.") from error


def _to_yuv(shape: Sequence[int], stream: Any, fps: Fraction) -> Any:
    """The filters that ffmpeg puts before its encoder, because PyAV's own conversion rounds colours differently."""
    import av

    stream.pix_fmt = "yuv420p"
    graph = av.filter.Graph()
    source = graph.add_buffer(width=shape[1], height=shape[0], format=av.VideoFormat("rgb24"), time_base=1 / fps)
    graph.link_nodes(
        source,
        graph.add("scale", f"{stream.width}:{stream.height}"),
        graph.add("format", stream.pix_fmt),
        graph.add("buffersink"),
    ).configure()
    return graph
