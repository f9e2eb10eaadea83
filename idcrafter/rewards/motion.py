"""How much moves: the optical flow of the fastest 5 % of the picture.

For each scored frame and the frame after it: Farneback flow (OpenCV, with the parameters of OpenS2V's motion
amplitude: pyramid 0.5 x 3, window 15, 3 iterations, polynomials of 5 and 1.2), the mean of the largest 5 % of its
magnitudes, then the mean over the pairs. The share of 5 % is VBench's, whose dynamic_degree asks for a yes or no at
6 px (of a short side of 256) between frames 1/8 s apart; a number says more and can be a gate. OpenS2V averages the
signed flow instead, so that a gesture to and fro cancels out and a camera pan does not.

Frames are first brought to a short side of 256 and blurred by 2 px: the window belongs to that size, and a decoder's
noise would look like motion. Unit: pixels per frame at that size. Flow counts only where it explains what changed:
where the next frame, moved back by it, is nearer to this one than the next frame as it is. Without that a still picture
with flat areas passes for a lively one: there OpenCV's flow runs away, to hundreds of pixels between equal frames.

A camera that pans over a photo counts as motion, as flat backgrounds do not show Farneback that they move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..subjects.faces import to_uint8

if TYPE_CHECKING:
    from .evidence import ClipEvidence

SHORT_SIDE = 256
TOP_SHARE = 0.05
BLUR = 2.0
WINDOW = 15
# By how many of 255 levels, on average over the window, flow must bring two frames nearer. Noise seldom does.
EXPLAINS = 0.25
# Equal frames give 0, noise with a standard deviation of 1.5 levels 0.01, people who drift by a fifth of a pixel a
# frame 0.2 to 0.5, one who talks 0.5 to 1.3, gestures 4 and more (nano clips).
FLOOR = 0.3


def flow_magnitude(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Magnitudes [H, W] in pixels of the flow between two grey frames [H, W] uint8; 0 where it explains nothing."""
    import cv2

    flow = cv2.calcOpticalFlowFarneback(
        before, after, None, pyr_scale=0.5, levels=3, winsize=WINDOW, iterations=3, poly_n=5, poly_sigma=1.2, flags=0
    )
    height, width = before.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    now, then = before.astype(np.float32), after.astype(np.float32)
    moved_back = cv2.remap(
        then, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    left, unmoved = (cv2.blur(np.abs(each - now), (WINDOW, WINDOW)) for each in (moved_back, then))
    return np.where(left + EXPLAINS < unmoved, np.linalg.norm(flow, axis=-1), 0.0)


def top_mean(values: np.ndarray, share: float = TOP_SHARE) -> float:
    """The mean of the largest `share` of values, at least of one. Raises ValueError where one is not finite."""
    flat = np.asarray(values, np.float64).ravel()
    if not len(flat) or not np.isfinite(flat).all():
        raise ValueError("The optical flow is empty, or holds NaN or infinite values.")
    count = max(1, round(share * len(flat)))
    return float(np.partition(flat, len(flat) - count)[-count:].mean())


def motion(before: torch.Tensor, after: torch.Tensor) -> float:
    """The module's number for two frames [H, W, 3] in 0..1."""
    return top_mean(flow_magnitude(_grey(before), _grey(after)))


def measure(evidence: ClipEvidence, options: Mapping[str, Any], model: None) -> float:
    """The module's number for a clip; 0 for a single picture."""
    pairs = [index for index in evidence.indices if index + 1 < evidence.source.length]
    wanted = sorted({*pairs, *(index + 1 for index in pairs)})
    if not wanted:
        return 0.0
    starts, before, moved = set(pairs), None, []
    for index, frame in zip(wanted, evidence.source.read(wanted), strict=True):
        if not torch.isfinite(frame).all():
            raise ValueError(f"Frame {index + 1} of the clip holds NaN or infinite pixels.")
        if index - 1 in starts:
            moved.append(motion(before, frame))
        before = frame
    return float(np.mean(moved))


def _grey(frame: torch.Tensor) -> np.ndarray:
    """[H, W, 3] in 0..1 -> grey uint8 whose short side is SHORT_SIDE, blurred."""
    import cv2

    grey = cv2.cvtColor(to_uint8(frame), cv2.COLOR_RGB2GRAY)
    scale = SHORT_SIDE / min(grey.shape)
    size = tuple(max(SHORT_SIDE, round(side * scale)) for side in grey.shape[::-1])
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return cv2.GaussianBlur(grey, (0, 0), BLUR)
