"""How much of each cell of a grid a subject covers, and from that whose each token of the DiT is.

Without a segmentation a person is two soft rectangles around the face: the head, a little wider and higher than what
face detectors box (brow to chin), and the body below it. Their sizes are this project's own choice: rather too small
than too large, because a token that is left out costs the router little and a wrong one teaches it nonsense.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...subjects.regions import SPATIAL_STRIDE, TEMPORAL_STRIDE, Box, latent_frame_span
from .clip import Boxes, TrainingClip, TrainingSubject
from .mask_files import open_masks

# In widths of the face to each side of it, and in its heights above and below.
HEAD_ASIDE, HEAD_ABOVE = 0.2, 0.4
BODY_ASIDE, BODY_BELOW = 0.5, 2.0
# Width of the soft edge, in heights of the face.
SOFT = 0.2
# Share of a token that its owner covers, and nobody else does.
OWNED = 0.5
NOBODY = -1


def token_owners(
    clip: TrainingClip,
    width: int,
    height: int,
    start: int = 0,
    frames: int | None = None,
    patch: tuple[int, int] = (2, 2),
) -> torch.Tensor:
    """Labels for the router: [T, H, W] int64, for each token the index of its subject, or -1 to ignore it.

    width, height  of the video in pixels as it is encoded (`loading.read_window`)
    start, frames  the part of the clip that is encoded, 4 n + 1 frames; None: to the end of the clip
    patch          rows and columns of latent cells that are one token
    A token belongs to the subject that covers more than half of it, on average over the video's frames that its latent
    frame stands for, unless another subject does so too. All tokens are -1 where nobody knows the place of a subject.
    Latents are 4 times shorter (the first frame alone) and 8 times smaller, as Wan's and CogVideoX's VAEs make them.
    Raises ValueError for a part that is not in the clip or of another length.
    """
    count = clip.length - start if frames is None else frames
    if start < 0 or start + count > clip.length or count < 1 or (count - 1) % TEMPORAL_STRIDE:
        raise ValueError(
            f"Frames {start + 1} to {start + count} of '{clip.video.name}' ({clip.length} frames) cannot be encoded; "
            f"take {TEMPORAL_STRIDE} n + 1 frames that are in the clip."
        )
    rows, columns = height // SPATIAL_STRIDE, width // SPATIAL_STRIDE
    latents = (count - 1) // TEMPORAL_STRIDE + 1
    if not clip.placed:
        return torch.full((latents, -(-rows // patch[0]), -(-columns // patch[1])), NOBODY)
    cover = subject_cover(clip, width, height, rows, columns, range(start, start + count))
    spans = [latent_frame_span(latent) for latent in range(latents)]
    cover = torch.stack([cover[:, span.start : span.stop].mean(1) for span in spans], 1)
    # A token at an edge that is no whole patch is judged by the cells that it has.
    return owners(torch.nn.functional.avg_pool2d(cover, patch, ceil_mode=True, count_include_pad=False))


def owners(cover: torch.Tensor) -> torch.Tensor:
    """Shares [S, ...] that the subjects cover of each token -> [...] int64, who owns it, -1 for nobody or several."""
    owned = cover > OWNED
    return torch.where(owned.sum(0) == 1, owned.int().argmax(0), NOBODY)


def subject_cover(
    clip: TrainingClip, width: int, height: int, rows: int, columns: int, frames: Sequence[int]
) -> torch.Tensor:
    """[S, len(frames), rows, columns] float32: which share of each cell each subject covers, 0..1.

    width, height  of the frame that the cells divide, in pixels: `view` says which part of the clip it shows
    frames         ascending, from 0
    """
    left, top, right, bottom = part = view(clip.width, clip.height, width, height)
    fractions = (left / clip.width, top / clip.height, right / clip.width, bottom / clip.height)
    covers = []
    for subject in clip.subjects:
        if subject.masks is not None:
            covers.append(_mask_cover(subject, part, rows, columns, frames))
        elif subject.track is not None:
            covers.append(_box_cover(subject.track, fractions, rows, columns, frames, box_cover))
        else:
            faces = subject.faces or (None,) * clip.length
            covers.append(_box_cover(faces, fractions, rows, columns, frames, person_cover))
    return torch.stack(covers)


def view(width: int, height: int, target_width: int, target_height: int) -> tuple[int, int, int, int]:
    """The largest part in the middle of a width x height picture that has the target's aspect: left, top, right,
    bottom in whole pixels."""
    scale = max(target_width / width, target_height / height)
    wide, high = min(width, round(target_width / scale)), min(height, round(target_height / scale))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def person_cover(face: Box, rows: int, columns: int) -> np.ndarray:
    """[rows, columns]: what the module's head and body cover of each cell, for a face in fractions of the frame."""
    left, top, right, bottom = face
    wide, high = right - left, bottom - top
    # The same edge in pixels to all sides: a cell is 1 / columns wide and 1 / rows high.
    soft = SOFT * high
    head = np.outer(
        _share(top - HEAD_ABOVE * high, bottom, soft, rows),
        _share(left - HEAD_ASIDE * wide, right + HEAD_ASIDE * wide, SOFT * wide, columns),
    )
    body = np.outer(
        _share(bottom, bottom + BODY_BELOW * high, soft, rows),
        _share(left - BODY_ASIDE * wide, right + BODY_ASIDE * wide, SOFT * wide, columns),
    )
    # Their soft edges at the chin add up to one.
    return head + body


def box_cover(box: Box, rows: int, columns: int) -> np.ndarray:
    """[rows, columns]: what a box in fractions of the frame covers of each cell."""
    left, top, right, bottom = box
    return np.outer(_share(top, bottom, 0.0, rows), _share(left, right, 0.0, columns))


def _box_cover(boxes: Boxes, part: Box, rows: int, columns: int, frames: Sequence[int], cover) -> torch.Tensor:
    """[len(frames), rows, columns] for boxes of the whole frame, of which `part` is seen."""
    left, top, right, bottom = part
    cells = np.zeros((len(frames), rows, columns), np.float32)
    for cell, frame in zip(cells, frames, strict=True):
        if boxes[frame] is not None:
            x1, y1, x2, y2 = boxes[frame]
            xs, ys = right - left, bottom - top
            seen = ((x1 - left) / xs, (y1 - top) / ys, (x2 - left) / xs, (y2 - top) / ys)
            cell[:] = cover(seen, rows, columns)
    return torch.from_numpy(cells)


def _mask_cover(
    subject: TrainingSubject, part: tuple[int, int, int, int], rows: int, columns: int, frames: Sequence[int]
) -> torch.Tensor:
    left, top, right, bottom = part
    cells = [
        torch.nn.functional.interpolate(mask[None, None, top:bottom, left:right], (rows, columns), mode="area")[0, 0]
        for mask in open_masks(subject.masks).read(frames)
    ]
    return torch.stack(cells)


def _share(low: float, high: float, soft: float, count: int) -> np.ndarray:
    """[count]: the mean over each of `count` equal cells of 0..1 of an interval whose edges rise over `soft`."""
    edges = np.arange(count + 1) / count
    return np.diff(_risen(edges, low, soft) - _risen(edges, high, soft)) * count


def _risen(x: np.ndarray, at: float, soft: float) -> np.ndarray:
    """The integral up to x of a step from 0 to 1 at `at` that rises over a width of `soft`."""
    if soft <= 0:
        return np.maximum(x - at, 0.0)
    inside = np.clip(x - at + soft / 2, 0.0, soft)
    return inside**2 / (2 * soft) + np.maximum(x - at - soft / 2, 0.0)
