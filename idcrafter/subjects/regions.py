"""Where in the video a subject is: a mask, one a frame, or a box that moves; and which tokens of a model that means.

Places are fractions of the frame, so one region serves every video size. Frames of the video are counted from 0 here
and from 1 in everything that people write and read.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .subject import Cast

# Wan's causal VAE: latent frame 0 is the first frame, each further one covers this many; a cell has this many pixels.
TEMPORAL_STRIDE = 4
SPATIAL_STRIDE = 8
# What belongs to a face, in its own widths to each side and heights above it; and all of the frame that is below.
FACE_ASIDE, FACE_ABOVE = 1.0, 0.75
# Share of a cell below which an overlap is rounding.
_EPSILON = 1e-6
_LINE = re.compile(r"\s*(?:@\s*(?P<frame>\d+)\s*)?:\s*(?P<box>.+?)\s*", re.DOTALL)

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class MaskRegion:
    """mask  [F, H, W] bool, one a frame, or F = 1 for all frames; stretched to the video's frame"""

    mask: torch.Tensor

    def cells(self, frames: Sequence[Sequence[int]], rows: int, columns: int) -> torch.Tensor:
        """[len(frames), rows, columns] bool: cells that the mask touches in any of each entry's frames."""
        if self.mask.shape[0] == 1:
            united = self.mask
        else:
            united = torch.stack([self.mask[list(group)].any(dim=0) for group in frames])
        cells = torch.nn.functional.adaptive_max_pool2d(united.float(), (rows, columns)) > 0
        return cells.expand(len(frames), -1, -1)


@dataclass(frozen=True)
class Track:
    """A box at some frames, moving on a straight line from one to the next and standing still before and after.

    keyframes  (frame, box or None), ascending; a box is (left, top, right, bottom) in fractions of the frame.
               None: the subject is away from this frame until the next keyframe
    """

    keyframes: tuple[tuple[int, Box | None], ...]

    def box(self, frame: int) -> Box | None:
        """The box at a frame."""
        before = [entry for entry in self.keyframes if entry[0] <= frame]
        after = [entry for entry in self.keyframes if entry[0] > frame]
        if not before:
            return after[0][1]
        start, box = before[-1]
        if box is None or not after or after[0][1] is None:
            return box
        stop, target = after[0]
        share = (frame - start) / (stop - start)
        return tuple(a + (b - a) * share for a, b in zip(box, target, strict=True))

    def cells(self, frames: Sequence[Sequence[int]], rows: int, columns: int) -> torch.Tensor:
        """[len(frames), rows, columns] bool: cells that the box touches in any of each entry's frames."""
        cells = torch.zeros((len(frames), rows, columns), dtype=torch.bool)
        for i, group in enumerate(frames):
            for box in {self.box(frame) for frame in group} - {None}:
                left, top, right, bottom = box
                cells[i] |= _touched(top, bottom, rows)[:, None] & _touched(left, right, columns)
        return cells


@dataclass(frozen=True)
class FaceTrack:
    """Where a face was seen: (frame, its box in pixels of the video), ascending. The region is the person below it."""

    faces: tuple[tuple[int, Box], ...]

    def track(self, rows: int, columns: int) -> Track:
        """The person's box in a video with a latent of this size."""
        width, height = columns * SPATIAL_STRIDE, rows * SPATIAL_STRIDE
        keyframes = []
        for frame, (left, top, right, bottom) in self.faces:
            aside, above = FACE_ASIDE * (right - left), FACE_ABOVE * (bottom - top)
            keyframes.append((frame, ((left - aside) / width, (top - above) / height, (right + aside) / width, 1.0)))
        return Track(tuple(keyframes))

    def cells(self, frames: Sequence[Sequence[int]], rows: int, columns: int) -> torch.Tensor:
        """As `Track.cells`."""
        return self.track(rows, columns).cells(frames, rows, columns)


Region = MaskRegion | Track | FaceTrack


def check_region(region: Region, name: str, frames: int, rows: int, columns: int) -> None:
    """ValueError, with the subject's name, unless the region fits a video with a latent of this size."""
    length = latent_frame_span(frames - 1).stop
    if isinstance(region, MaskRegion) and region.mask.shape[0] not in (1, length):
        raise ValueError(
            f"The region of subject '{name}' has {region.mask.shape[0]} frames, the video has {length}; connect one "
            "mask, or one for each frame of the video."
        )
    if isinstance(region, FaceTrack):
        width, height = columns * SPATIAL_STRIDE, rows * SPATIAL_STRIDE
        for frame, (left, top, right, bottom) in region.faces:
            if frame >= length or left + right > 2 * width or top + bottom > 2 * height:
                raise ValueError(
                    f"The scorecard has the face of subject '{name}' in frame {frame + 1} at {left:.0f}, {top:.0f} px, "
                    f"which is not in this video ({width}x{height} px, {length} frames); connect the scorecard of a "
                    "video of the same size and length."
                )
    if not region.cells([latent_frame_span(frame) for frame in range(frames)], rows, columns).any():
        raise ValueError(f"The region of subject '{name}' lies outside of the whole video; give it a place in it.")


def token_regions(
    regions: Sequence[Region], frames: Sequence[int], rows: int, columns: int, patch: tuple[int, int]
) -> torch.Tensor:
    """[len(regions), T * H * W] bool: the tokens of each region. H and W are rows and columns in patches, rounded up.

    frames         [T] which latent frames there are, in order (a context window has some of the video's)
    rows, columns  of the latent, before it is padded to whole patches
    A token belongs to a region when the region touches its patch in any of the frames that its latent frame covers.
    """
    spans = [latent_frame_span(frame) for frame in frames]
    tokens = []
    for region in regions:
        cells = region.cells(spans, rows, columns)
        padded = torch.nn.functional.pad(cells, (0, -columns % patch[1], 0, -rows % patch[0]))
        patches = padded.unflatten(2, (-1, patch[1])).unflatten(1, (-1, patch[0]))
        tokens.append(patches.any(dim=4).any(dim=2).flatten())
    return torch.stack(tokens)


def latent_frame_span(frame: int) -> range:
    """The video frames that a latent frame covers: 0 -> 0; 1 -> 1..4; 2 -> 5..8."""
    return range(max(0, TEMPORAL_STRIDE * (frame - 1) + 1), TEMPORAL_STRIDE * frame + 1)


def make_mask_region(name: str, image: torch.Tensor) -> MaskRegion:
    """From a MASK [F, H, W] or an IMAGE [F, H, W, C] (bright = the subject's region).

    Raises ValueError that names the subject.
    """
    mask = image[..., :3].mean(dim=-1) if image.ndim == 4 else image
    if mask.ndim != 3 or not mask.numel():
        raise ValueError(
            f"The region of subject '{name}' has the shape {list(image.shape)}; connect a MASK or an IMAGE."
        )
    if not torch.isfinite(mask).all():
        raise ValueError(
            f"The region of subject '{name}' holds NaN or infinite values; look at the node that made the mask."
        )
    mask = mask.cpu() >= 0.5
    if not mask.any():
        raise ValueError(
            f"The region of subject '{name}' is empty (Load Image gives a black mask for a picture without "
            "transparency); paint the region white, or disconnect it."
        )
    return MaskRegion(mask)


def tracks_from_report(report: dict, cast: Cast) -> dict[int, FaceTrack]:
    """{subject's index: where the best take of a report has the subject's face}; subjects never seen are left out.

    report  as `rewards.scorecard` makes it. Raises ValueError when it knows nobody of the cast.
    """
    names = {subject.name: i for i, subject in enumerate(cast.subjects)}
    if not any(subject["name"] in names for subject in report["subjects"]):
        raise ValueError(
            f"The scorecard has nobody of this cast ({', '.join(names)}); connect the scorecard of takes of this cast."
        )
    found: dict[int, list[tuple[int, Box]]] = {}
    for frame in report["takes"][report["best"]]["frames"]:
        for name, seen in frame["subjects"].items():
            if seen is not None and name in names:
                found.setdefault(names[name], []).append((frame["frame"], tuple(seen["box"])))
    return {subject: FaceTrack(tuple(sorted(faces))) for subject, faces in found.items()}


def parse_tracks(text: str, cast: Cast) -> dict[int, Track]:
    """{subject's index: track} from lines "NAME: LEFT TOP RIGHT BOTTOM" or "NAME @ FRAME: LEFT TOP RIGHT BOTTOM".

    Frames count from 1; "none" in place of a box: away from this frame on. Raises ValueError that quotes the line.
    """
    keyframes: dict[int, dict[int, Box | None]] = {}
    # Longest first: a name may begin with another one.
    names = sorted(((s.name, i) for i, s in enumerate(cast.subjects)), key=lambda entry: -len(entry[0]))
    for line in filter(None, (line.strip() for line in unicodedata.normalize("NFC", text).splitlines())):
        starts = ((n, i) for n, i in names if line[: len(n)].casefold() == n.casefold())
        matches = ((n, i, _LINE.fullmatch(line[len(n) :])) for n, i in starts)
        name, subject, match = next((found for found in matches if found[2]), (None, None, None))
        if match is None:
            raise ValueError(
                f"The box line '{line}' does not begin with a name of the cast and a colon; write for example "
                f"'{cast.subjects[0].name}: 0.1 0.2 0.5 1.0' or '{cast.subjects[0].name} @ 41: 0.1 0.2 0.5 1.0'."
            )
        frame = int(match["frame"] or 1)
        if frame < 1:
            raise ValueError(f"The box line '{line}' has frame 0; frames count from 1.")
        if frame - 1 in keyframes.setdefault(subject, {}):
            raise ValueError(f"The box line '{line}' gives frame {frame} of subject '{name}' a second box; remove one.")
        keyframes[subject][frame - 1] = _parse_box(line, match["box"])
    tracks = {subject: Track(tuple(sorted(boxes.items()))) for subject, boxes in keyframes.items()}
    for subject, track in tracks.items():
        if all(box is None for _, box in track.keyframes):
            raise ValueError(f"The track of subject '{cast.subjects[subject].name}' has no box; give it one.")
    return tracks


def _parse_box(line: str, text: str) -> Box | None:
    if text.casefold() == "none":
        return None
    try:
        left, top, right, bottom = box = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise ValueError(f"The box line '{line}' needs four numbers (left top right bottom), or 'none'.") from error
    if not (-1 <= left < right <= 2 and -1 <= top < bottom <= 2):
        raise ValueError(
            f"The box line '{line}' is no box in fractions of the frame (0 0 1 1 is all of it, left < right, "
            "top < bottom); divide pixels by the video's width and height."
        )
    return box


def _touched(low: float, high: float, count: int) -> torch.Tensor:
    """[count] bool: which of `count` equal cells of 0..1 the interval overlaps."""
    edges = torch.arange(count + 1, dtype=torch.float64)
    return (low * count < edges[1:] - _EPSILON) & (high * count > edges[:-1] + _EPSILON)
