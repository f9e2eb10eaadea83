"""The VACE rule: references are the leading latent frames of the video and of its control context.

Each reference is letterboxed on white, encoded alone and put before the control video, its second half (what is to be
made anew) zero for the model and its mask zero: nothing there is to be changed. The order on the time axis is the
cast's, first to last, as in the release (ali-vilab/VACE and Wan2.1: `vace_latent`); diffusers' pipeline puts each
reference before the previous one and so holds them in reverse.

The video that comes out begins with those frames: drop `trim` latent frames before decoding.

Without a control video the context is mid-grey and its mask is one everywhere: all of it is to be made. A mask
splits the control video into what is kept (0) and what is made anew (1); see arXiv 2503.07598, 3.2. The model has no
guidance by images, but `strength` scales all that its context blocks add.
"""

from __future__ import annotations

import comfy.utils
import torch

from .shot import (
    SPATIAL_STRIDE,
    Conditioned,
    Rule,
    Shot,
    empty_latent,
    encode_references,
    with_values,
    zero_latents,
)

GREY = 0.5


def condition(shot: Shot) -> Conditioned:
    """References before the control video; both prompts get the same context."""
    references = encode_references(shot, RULE)
    latents = torch.cat(references.latents, dim=2)
    count = latents.shape[2]
    control, mask = encode_control(shot)
    context = torch.cat([torch.cat([latents, zero_latents(latents)], dim=1), control], dim=2)
    mask = torch.cat([torch.zeros_like(mask[:, :, :1]).expand(-1, -1, count, -1, -1), mask], dim=2)
    values = {"vace_frames": [context], "vace_mask": [mask], "vace_strength": [shot.strength]}
    negative = with_values(shot.negative, values, append=True)
    return Conditioned(
        positive=with_values(shot.positive, values, append=True),
        negative_text=negative,
        negative_images=negative,
        latent=empty_latent(shot, leading=count),
        references=torch.cat(references.frames),
        used=references.used,
        left_out=references.left_out,
        trim=count,
        model=shot.model,
    )


def encode_control(shot: Shot) -> tuple[torch.Tensor, torch.Tensor]:
    """The control video in the VAE's space [1, 32, T, h, w] (kept, then made anew) and its mask [1, 64, T, h, w].

    A single mask holds for all frames. A video or masks that are shorter than the shot go on as grey, to be made;
    longer ones are cut. Both are scaled and cropped about their middle to the shot's size, as core's own node does.
    """
    video = shot.control_video
    if video is None:
        video = torch.full((shot.length, shot.height, shot.width, 3), GREY)
    else:
        video = _fit(video[: shot.length, :, :, :3].movedim(-1, 1), shot, GREY).movedim(1, -1)
    masks = shot.control_masks
    if masks is None:
        masks = torch.ones((shot.length, shot.height, shot.width, 1))
    else:
        masks = masks.reshape(-1, 1, *masks.shape[-2:])
        if masks.shape[0] == 1:
            masks = masks.expand(shot.length, -1, -1, -1)
        masks = _fit(masks[: shot.length], shot, 1.0).movedim(1, -1)
    video = video - GREY
    kept = shot.vae.encode(video * (1 - masks) + GREY)
    made = shot.vae.encode(video * masks + GREY)
    return torch.cat([kept, made], dim=1), fold_mask(masks[..., 0], shot.frames)


def fold_mask(mask: torch.Tensor, frames: int) -> torch.Tensor:
    """A mask in pixels [F, H, W] as the model reads it: [1, 64, frames, H / 8, W / 8], one channel a pixel of 8x8."""
    length, height, width = mask.shape
    step = SPATIAL_STRIDE
    cells = mask.reshape(length, height // step, step, width // step, step).permute(2, 4, 0, 1, 3).flatten(0, 1)
    size = (frames, height // step, width // step)
    return torch.nn.functional.interpolate(cells.unsqueeze(0), size=size, mode="nearest-exact")


def _fit(frames: torch.Tensor, shot: Shot, fill: float) -> torch.Tensor:
    """[F, C, H, W] -> [length, C, height, width], missing frames filled."""
    frames = comfy.utils.common_upscale(frames, shot.width, shot.height, "bilinear", "center")
    missing = shot.length - frames.shape[0]
    return torch.nn.functional.pad(frames, (0, 0, 0, 0, 0, 0, 0, missing), value=fill) if missing else frames


RULE = Rule("vace", "VACE", limit=4, kind="vace", condition=condition, strength=True, control=True, masks=True)
