"""The Bernini rule: every reference is a stream of its own, at its own aspect, told apart by a source id.

Core's WanModel appends the tokens of each latent in `context_latents` behind the video and turns their rotary
positions by the stream's number, 1 for the first (its "in-context reference"; Bernini, arXiv 2605.22344). A control
video is the video to edit and comes first, at the video's size; then the references in order. The long edge of a
reference is at most 848 px and its sides are multiples of 16 px, as in core's node.
"""

from __future__ import annotations

import comfy.utils
import torch

from ..backbones.wan import REFERENCE_NAMES
from ..subjects.references import choose_photos, picture
from .shot import PIXEL_STEP, Conditioned, Rule, Shot, check_size, check_vae, empty_latent, names_of, with_values

MAX_SIDE = 848


def condition(shot: Shot) -> Conditioned:
    """Streams for prompt and negative_text; negative_images keeps only the video to edit."""
    check_size(shot.width, shot.height, shot.length)
    check_vae(shot.vae, RULE.title)
    used, left_out = choose_photos(shot.cast, RULE.limit, RULE.title, shot.framing, shot.photos)
    progress = comfy.utils.ProgressBar(len(used))
    source = []
    if shot.control_video is not None:
        video = shot.control_video[: shot.length, :, :, :3].movedim(-1, 1)
        video = comfy.utils.common_upscale(video, shot.width, shot.height, "area", "center")
        source.append(shot.vae.encode(video.movedim(1, -1)))
    frames, latents = [], []
    for ref in used:
        frames.append(own_aspect(picture(shot.cast, ref, shot.cut_out)))
        latents.append(shot.vae.encode(frames[-1].unsqueeze(0)))
        progress.update(1)
    names = [None] * len(source) + names_of(shot.cast, used)
    streams = {"context_latents": source + latents, REFERENCE_NAMES: names}
    return Conditioned(
        positive=with_values(shot.positive, streams),
        negative_text=with_values(shot.negative, streams),
        negative_images=with_values(shot.negative, {"context_latents": source} if source else {}),
        latent=empty_latent(shot),
        references=side_by_side(frames),
        used=used,
        left_out=left_out,
        model=shot.model,
    )


def own_aspect(photo: torch.Tensor) -> torch.Tensor:
    """[H, W, 3] scaled down to a long edge of 848 px, each side the nearest multiple of 16 px."""
    height, width = photo.shape[:2]
    scale = min(MAX_SIDE / max(height, width), 1.0)
    sides = (max(PIXEL_STEP, round(side * scale / PIXEL_STEP) * PIXEL_STEP) for side in (width, height))
    scaled = comfy.utils.common_upscale(photo.movedim(-1, 0).unsqueeze(0), *sides, "area", "disabled")
    return scaled.squeeze(0).movedim(0, -1)


def side_by_side(frames: list[torch.Tensor]) -> torch.Tensor:
    """Pictures of several sizes as one IMAGE batch to look at, each on white of the largest height and width."""
    height, width = (max(frame.shape[side] for frame in frames) for side in (0, 1))
    batch = torch.ones((len(frames), height, width, 3))
    for canvas, frame in zip(batch, frames, strict=True):
        top, left = (height - frame.shape[0]) // 2, (width - frame.shape[1]) // 2
        canvas[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
    return batch


RULE = Rule("bernini", "Bernini", limit=8, kind="t2v", condition=condition, control=True)
