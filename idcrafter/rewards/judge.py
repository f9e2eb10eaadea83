"""What Identity-GRPO's learned judge is shown: four frames, the references, a fixed question; all as it was trained.

The judge is Qwen2.5-VL-3B-Instruct, fine-tuned on which of two clips people prefer for how well its faces match the
references. It writes nothing: the hidden state of one added token goes through a linear head, and that number is the
reward. The weights only mean something on inputs that are built exactly as here.

Source: github.com/alibaba/identity-grpo (MIT, (c) 2025 Alibaba), vace_reward/{prompt_template, inference,
vision_process}.py and train_wan2_1_vace.py, with transformers 4.51.3. This module knows no model and no tokenizer; the
loader is model_loaders/judge.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from PIL import Image

from ..subjects.faces import to_uint8
from .evidence import FrameSource, TensorFrames
from .lossy_video import reencode

READOUT = "<|SA_reward|>"
# The words of the released template, byte for byte: without them the weights measure nothing. What is being made is
# not among them, so the judge never reads the prompt of the clip.
PROMPT = (
    "\nYour task is to evaluate the quality of the video generated based on the all above reference images in the "
    "Subject alignment criteria. Please provide a rating from 0 to 10 for Subject alignment criteria, with 0 being "
    "the worst and 10 being the best. \n\n"
    "**Subject Alignment:**  \n"
    "Evaluate the degree of similarity between the human face in the generated video and the human face in all the "
    "reference images above.\n"
    "The following sub-dimensions should be considered:\n"
    "1. **Per-Face Similarity (Highest Priority)**  \n"
    "   For each reference face, evaluate whether it appears in the video and how closely it matches, in this "
    "order:  \n"
    "   a. **Facial structure and expression** \u2013 eye shape, nose, mouth, jawline, symmetry, emotion "
    "\u2014 *most important*  \n"
    "   b. **Hairstyle, hair color, and facial hair**  \n"
    "   c. **Skin tone and complexion**  \n"
    "   d. **Clothing and accessories** (e.g., glasses, hats) \u2014 *only supportive clues*\n\n"
    "   \u2192 A single strong facial match (especially in structure and expression) outweighs multiple weak or "
    "superficial matches.\n\n"
    f"Please provide the rating of subject alignment: {READOUT}\n"
    "END\n"
)

FRAMES = 4  # the released config says 5.0; round(5.0 / 2) * 2 is 4
MAX_PIXELS = 480 * 832
MIN_PHOTO_PIXELS = 4 * 28 * 28
MIN_FRAME_PIXELS = 128 * 28 * 28
MAX_RATIO = 200
EXPORT_FPS = 10  # the rate at which the reward server writes generated frames into a file

PATCH, MERGE, FRAMES_A_PATCH = 14, 2, 2  # of Qwen2.5-VL's vision tower
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


@dataclass(frozen=True, eq=False)
class JudgeInput:
    """One clip as the judge's net takes it.

    ids        [1, L] int64, tokens; one of them is READOUT
    positions  [3, 1, L] int64, time, row and column of each token
    photos     [N, 1176] float32, patches of all references; photo_grids [R, 3] int64, patches in time, height, width
    video      [M, 1176] float32, patches of the frames; video_grids [1, 3]
    readout    index of READOUT in ids
    """

    ids: torch.Tensor
    positions: torch.Tensor
    photos: torch.Tensor
    photo_grids: torch.Tensor
    video: torch.Tensor
    video_grids: torch.Tensor
    readout: int


def make_input(
    source: FrameSource,
    references: Sequence[torch.Tensor],
    encode: Callable[[str], list[int]],
    tokens_per_second: float,
    on_frame: Callable[[], None] | None = None,
) -> JudgeInput:
    """Everything from pixels to tokens.

    references  photos [H, W, 3] in 0..1, in the order in which the judge is to see them
    encode      text -> token ids, with READOUT as one token and without added ones
    on_frame    called after each frame that is read, for progress and interruption
    Raises ValueError for a clip of fewer than FRAMES frames, no reference, and NaN pixels (frame or photo from 1).
    """
    if not references:
        raise ValueError("The judge compares the clip with references; give it at least one photo.")
    frames, fps = read_clip(source, on_frame)
    photos, grids = zip(*(to_patches(prepare_photo(p, i)[None]) for i, p in enumerate(references)), strict=True)
    video, video_grid = to_patches(prepare_frames(frames))
    ids = encode(chat([_tokens(grid) for grid in grids], _tokens(video_grid)))
    image_pad, video_pad, readout = (_only(encode(token)) for token in (IMAGE_PAD, VIDEO_PAD, READOUT))
    positions = rope_positions(
        ids, {image_pad: list(grids), video_pad: [video_grid]}, {video_pad: time_step(source.length, fps)},
        tokens_per_second,
    )  # fmt: skip
    return JudgeInput(
        ids=torch.tensor(ids)[None],
        positions=positions[:, None],
        photos=torch.cat(photos),
        photo_grids=torch.tensor(grids),
        video=video,
        video_grids=torch.tensor([video_grid]),
        readout=ids.index(readout),
    )


def choose_frames(length: int) -> tuple[int, ...]:
    """The indices of the FRAMES frames that the judge looks at: evenly spread, the first and the last among them."""
    if length < FRAMES:
        raise ValueError(f"The judge looks at {FRAMES} frames, but the clip has {length}; make a longer clip.")
    return tuple(torch.linspace(0, length - 1, FRAMES).round().long().tolist())


def read_clip(source: FrameSource, on_frame: Callable[[], None] | None = None) -> tuple[torch.Tensor, float]:
    """The chosen frames [4, H, W, 3] uint8 and the clip's frames a second.

    Frames from memory go through the lossy file at EXPORT_FPS that the reward server would have written, whatever
    rate they are meant for. A video file was through a codec already: it is judged as it is, at its own rate.
    """
    keep = choose_frames(source.length)
    if isinstance(source, TensorFrames):
        # Truncated, as the reward server does it with what the VAE gives.
        frames = (
            frame.mul(255).clamp(0, 255).to(torch.uint8) for frame in _read(source, range(source.length), on_frame)
        )
        return reencode(frames, keep, EXPORT_FPS), EXPORT_FPS
    frames = [torch.from_numpy(to_uint8(frame)) for frame in _read(source, keep, on_frame)]
    return torch.stack(frames), source.fps or EXPORT_FPS


def fit(height: int, width: int, min_pixels: int) -> tuple[int, int]:
    """The size at which a picture is shown: multiples of 28 near its own, within min_pixels and MAX_PIXELS."""
    if max(height, width) > MAX_RATIO * min(height, width):
        raise ValueError(f"A picture of {width}x{height} pixels is too narrow for the judge; crop it.")
    side = PATCH * MERGE
    rows, columns = (max(side, round(n / side) * side) for n in (height, width))
    if rows * columns > MAX_PIXELS:
        shrink = math.sqrt(height * width / MAX_PIXELS)
        return math.floor(height / shrink / side) * side, math.floor(width / shrink / side) * side
    if rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return math.ceil(height * grow / side) * side, math.ceil(width * grow / side) * side
    return rows, columns


def prepare_photo(photo: torch.Tensor, index: int = 0) -> torch.Tensor:
    """A reference [H, W, 3] in 0..1 -> [h, w, 3] uint8, by Pillow's bicubic filter."""
    if not torch.isfinite(photo).all():
        raise ValueError(f"Reference {index + 1} holds NaN or infinite pixels; look at the node that made it.")
    rows, columns = fit(*photo.shape[:2], MIN_PHOTO_PIXELS)
    picture = Image.fromarray(to_uint8(photo)).resize((columns, rows), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture))


def prepare_frames(frames: torch.Tensor) -> torch.Tensor:
    """Frames [T, H, W, 3] uint8 -> [T, h, w, 3] uint8, by torch's antialiased bicubic filter."""
    size = fit(*frames.shape[1:3], MIN_FRAME_PIXELS)
    pixels = frames.movedim(-1, 1).float()
    resized = torch.nn.functional.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=True)
    return resized.clamp(0, 255).round().to(torch.uint8).movedim(1, -1)


def to_patches(frames: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Frames [T, h, w, 3] uint8 -> patches [t * h/14 * w/14, 1176] float32 and (t, h/14, w/14).

    Two frames make one patch in time; a single picture is shown twice. The four patches that the vision tower merges
    into one token follow each other.
    """
    if len(frames) % FRAMES_A_PATCH:
        frames = torch.cat([frames, frames[-1:]])
    # In double first, then in float: the rounding of the released image processor.
    pixels = ((frames.double() * (1 / 255)).float() - _MEAN) / _STD
    t, rows, columns = len(frames) // FRAMES_A_PATCH, frames.shape[1] // PATCH, frames.shape[2] // PATCH
    split = pixels.reshape(t, FRAMES_A_PATCH, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
    return split.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(t * rows * columns, -1), (t, rows, columns)


def chat(photo_tokens: Sequence[int], video_tokens: int) -> str:
    """The conversation in Qwen's chat format; each picture is held open by as many pads as it has tokens.

    The released code asks for the labels "Picture 1: " and "Video 1: " as well (add_vision_id), but the transformers
    4.51.3 that it pins and was trained with drops the wish in silence: the judge has never read them.
    """
    pads = [IMAGE_PAD * count for count in photo_tokens] + [VIDEO_PAD * video_tokens]
    pictures = "".join(f"<|vision_start|>{each}<|vision_end|>" for each in pads)
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{pictures}{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    )


def time_step(length: int, fps: float) -> float:
    """Seconds between two patches in time, when FRAMES of `length` frames are shown."""
    return FRAMES_A_PATCH / (FRAMES / length * fps)


def rope_positions(
    ids: Sequence[int],
    grids: dict[int, list[tuple[int, int, int]]],
    seconds: dict[int, float],
    tokens_per_second: float,
) -> torch.Tensor:
    """Time, row and column of each token, [3, L]: text counts on, a picture spreads out from where the text stopped.

    grids    pad token -> the grids of its pictures, in order
    seconds  pad token -> seconds between two patches in time; 0 for those that are not named
    After a picture the text goes on behind the largest of its three coordinates, the time among them. So did
    transformers when the judge was trained; newer versions look at rows and columns only, which moves all text of clips
    longer than a frame has tokens to a side (some 30 seconds).
    """
    waiting = {pad: iter(each) for pad, each in grids.items()}
    parts, start = [], 0
    for pad, run in groupby(ids, key=lambda token: token if token in grids else None):
        if pad is None:
            part = torch.arange(len(list(run))).expand(3, -1)
        else:
            t, rows, columns = next(waiting[pad])
            step = torch.tensor(seconds.get(pad, 0.0), dtype=torch.float32)
            times = (torch.arange(t) * step * tokens_per_second).long()
            axes = torch.meshgrid(times, torch.arange(rows // MERGE), torch.arange(columns // MERGE), indexing="ij")
            part = torch.stack(axes).reshape(3, -1)
        parts.append(part + start)
        start = int(parts[-1].max()) + 1
    return torch.cat(parts, 1)


def _read(source: FrameSource, indices: Sequence[int], on_frame: Callable[[], None] | None) -> Iterator[torch.Tensor]:
    for index, frame in zip(indices, source.read(indices), strict=True):
        if not torch.isfinite(frame).all():
            raise ValueError(f"Frame {index + 1} of the clip holds NaN or infinite pixels.")
        yield frame
        if on_frame is not None:
            on_frame()


def _tokens(grid: tuple[int, int, int]) -> int:
    return math.prod(grid) // MERGE**2


def _only(ids: list[int]) -> int:
    (token,) = ids
    return token
