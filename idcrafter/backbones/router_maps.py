"""Who is where, as the router sees it: one call of the model on a video that is noised again.

Nothing of a run is kept: the maps are a function of the model, the conditioning, the clean latent, the level of noise
and the seed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import comfy.sample
import comfy.samplers
import numpy as np
import torch
from PIL import Image, ImageDraw

from ..drawing import BACKGROUND, TEXT, draw_text, ink_on, subject_colour
from .identity import IDENTITY_NAMES, RECORD

# Pictures narrower than this are enlarged, so that the legend can be read.
MIN_WIDTH = 480
# Of the colours over the frames of the video.
OPACITY = 0.6
_ROW = 28


@dataclass(frozen=True, eq=False)
class RouterMaps:
    """The routers' weights, the mean over all insertions: weights [S, T, h, w], names of the S subjects."""

    weights: torch.Tensor
    names: tuple[str, ...]


class _OneCall(comfy.samplers.Sampler):
    """Calls the model once at the first sigma and gives the latent back."""

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        sampling = model_wrap.inner_model.model_sampling
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, False)
        options = {"model_options": extra_args["model_options"], "seed": extra_args.get("seed")}
        model_wrap(x, sigmas[:1].expand(len(x)), **options)
        return latent_image


def router_maps(model, positive: list, samples: torch.Tensor, level: float, seed: int) -> RouterMaps:
    """The router's maps for the first video of a batch.

    model     from `inject`, positive from `attach_subjects`
    samples   [B, C, T, H, W], clean
    level     share of the schedule that is still to come, 0..1: 1 is pure noise
    Raises ValueError where no router has seen anybody.
    """
    model = model.clone()
    model.model_options["transformer_options"][RECORD] = record = deque()
    sampling = model.get_model_object("model_sampling")
    sigma = min(float(sampling.percent_to_sigma(1 - level)), float(sampling.sigma_max))
    samples = comfy.sample.fix_empty_latent_channels(model, samples[:1])
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    noise = comfy.sample.prepare_noise(samples, seed)
    guider.sample(noise, samples, _OneCall(), torch.tensor([sigma, 0.0]), disable_pbar=True, seed=seed)
    found = [routing for routing in record if routing.logits is not None]
    if not found:
        raise ValueError(
            "No router has seen anybody: connect the MODEL and the positive conditioning that come out of Inject "
            "Identity, with an adapter that has a router, and a noise level inside of its start and end percent."
        )
    if (
        len({(routing.grid, routing.weights.shape[-1]) for routing in found}) > 1
        or found[0].grid[0] != samples.shape[2]
    ):
        raise ValueError(
            "The routers have looked at different parts of the video or at different people; connect the MODEL of one "
            "Inject Identity, without context windows."
        )
    weights = torch.stack([routing.weights[0].float().cpu() for routing in found]).mean(dim=0)
    names = tuple(positive[0][1].get(IDENTITY_NAMES) or ())
    count = weights.shape[-1]
    names = names if len(names) == count else tuple(f"subject {i + 1}" for i in range(count))
    return RouterMaps(weights.T.unflatten(1, found[0].grid), names)


def to_frames(maps: RouterMaps, height: int, width: int, stride: int, trim: int = 0) -> torch.Tensor:
    """Maps of every frame of the video, not smoothed: [S, F, height, width] in 0..1.

    stride  frames of a latent frame after the first one
    trim    latent frames at the front that are not the video's
    """
    weights = maps.weights[:, trim:]
    if not weights.shape[1]:
        raise ValueError(f"All {maps.weights.shape[1]} latent frames are cut off; trim_latent must be less.")
    sized = torch.nn.functional.interpolate(weights, (height, width), mode="nearest")
    return torch.cat([sized[:, :1], sized[:, 1:].repeat_interleave(stride, dim=1)], dim=1)


def draw_maps(frames: torch.Tensor, names: Sequence[str], video: torch.Tensor | None = None) -> torch.Tensor:
    """One picture a frame, each place in the colours of who is there, and a legend with everybody's share.

    frames  [S, F, H, W] of `to_frames`; what nobody gets (a null identity) stays dark
    video   [F, H, W, 3] in 0..1 to lay the colours over
    -> [F, h, w, 3]
    """
    count, length, height, width = frames.shape
    colours = torch.tensor([subject_colour(i) for i in range(count)], dtype=torch.float32) / 255
    mixed = torch.einsum("sfhw,sc->fhwc", frames, colours)
    taken = frames.sum(dim=0)[..., None].clamp(max=1)
    if video is None:
        under, opacity = torch.tensor(BACKGROUND) / 255, taken
    else:
        under, opacity = _fit(video, length, height, width).mean(dim=-1, keepdim=True), OPACITY * taken
    pictures = under * (1 - opacity) + mixed / taken.clamp(min=1e-6) * opacity
    zoom = max(1, -(-MIN_WIDTH // width))
    pictures = pictures.repeat_interleave(zoom, dim=1).repeat_interleave(zoom, dim=2)
    shares = frames.mean(dim=(2, 3))
    strips = [_legend(names, shares[:, t].tolist(), width * zoom) for t in range(length)]
    return torch.cat([pictures, torch.stack(strips)], dim=1).clamp(0, 1)


def _fit(video: torch.Tensor, length: int, height: int, width: int) -> torch.Tensor:
    if len(video) < length:
        raise ValueError(f"The video has {len(video)} frames, but its latent stands for {length}; decode that latent.")
    planes = video[:length, ..., :3].movedim(-1, 1)
    return torch.nn.functional.interpolate(planes, (height, width), mode="area").movedim(1, -1)


def _legend(names: Sequence[str], shares: Sequence[float], width: int) -> torch.Tensor:
    """[rows, width, 3]: for each subject a bar in its colour as long as its share of the frame, with the name on it."""
    strip = Image.new("RGB", (width, _ROW * len(names)), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for i, (name, share) in enumerate(zip(names, shares, strict=True)):
        top = i * _ROW
        label = 0.4 * width
        draw.rectangle((0, top + 2, label, top + _ROW - 3), fill=subject_colour(i))
        draw_text(draw, (8, top + _ROW / 2), name, 14, ink_on(subject_colour(i)), "lm", label - 16)
        end = label + 8 + (width - label - 72) * share
        draw.rectangle((label + 8, top + 8, end, top + _ROW - 9), fill=subject_colour(i))
        draw_text(draw, (width - 8, top + _ROW / 2), f"{share:.0%}", 14, TEXT, "rm")
    return torch.from_numpy(np.asarray(strip, np.float32) / 255)
