"""The nano VAE: Wan 2.1's VAE (core's ``comfy.ldm.wan.vae.WanVAE``) at width 16, trained on puppets.

First as an image auto-encoder (one frame, which leaves the temporal taps alone), then as a video auto-encoder whose
temporal taps start as "repeat the last frame". At the end, an affine map is folded into ``conv1`` and ``conv2`` so
that latents have the channel means and deviations that ``comfy.latent_formats.Wan21`` expects of Wan's own VAE.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from ...training.loop import Trainer
from ..world import numbers_of_split, render_clip, render_photo, sample_clip_spec, sample_identity
from ..world.scene import FRAMES, HEIGHT, WIDTH
from .core import device, use_comfyui

log = logging.getLogger("idcrafter.nano")
DIM = 16
IMAGE_STEPS, IMAGE_BATCH = 3000, 4
VIDEO_STEPS, VIDEO_BATCH = 220, 2
LATENT_NOISE = (
    0.1  # the deviation of the noise that the decoder must bear, in units where the penalty below holds latents near 1
)
LATENT_PENALTY = 2e-4
HEAD_WEIGHT = 3.0


def build():
    use_comfyui()
    from comfy.ldm.wan.vae import WanVAE

    return WanVAE(
        dim=DIM,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
    )


def _initialise(model, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.ones_(p)
        elif p.ndim == 1:
            torch.nn.init.zeros_(p)
        else:
            p.data.normal_(0, 1, generator=generator)
            p.data.mul_((1.0 / (p.shape[1] * p[0, 0].numel())) ** 0.5)
            if p.ndim == 5 and p.shape[2] == 3:  # only the last temporal tap acts on a single frame
                p.data.mul_(3**0.5)
                p.data[:, :, :2] = 0
            if ".residual.6." in name:  # residual branches start small
                p.data.mul_(0.3)
            if "time_conv" in name:
                p.data.zero_()
                eye = torch.eye(p.shape[1])
                p.data[:, :, 2, 0, 0] = torch.cat([eye] * (p.shape[0] // p.shape[1]))


def _last_tap(weight: torch.Tensor) -> torch.Tensor:
    """The part of a parameter that acts on a single frame."""
    return weight[:, :, -1:] if weight.ndim == 5 else weight


def _training_numbers(rng: np.random.Generator, count: int) -> list[int]:
    numbers = numbers_of_split("train", int(rng.integers(0, 10_000_000)))
    return [next(numbers) for _ in range(count)]


def _to_tensor(frames: np.ndarray) -> torch.Tensor:
    """uint8 [T, H, W, 3] -> float [3, T, H, W] in -1..1, as core's VAE feeds Wan's."""
    return torch.from_numpy(frames).float().permute(3, 0, 1, 2) / 127.5 - 1


def _video(rng: np.random.Generator, only: tuple[int, ...] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    count = int(rng.choice((1, 2, 3), p=(0.15, 0.65, 0.2)))
    identities = tuple(sample_identity(n) for n in _training_numbers(rng, count))
    clip = render_clip(sample_clip_spec(identities, int(rng.integers(0, 2**31))), only)
    weight = np.ones((len(clip.frames), HEIGHT, WIDTH), np.float32)
    for f, faces in enumerate(clip.faces):
        for face in faces:
            if face is not None:
                x0, y0, x1, y1 = np.clip(face.box.round().astype(int), 0, None)
                weight[f, y0:y1, x0:x1] = HEAD_WEIGHT
    return _to_tensor(clip.frames), torch.from_numpy(weight)


def _image(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    if rng.uniform() < 0.5:
        video, weight = _video(rng, (int(rng.integers(0, FRAMES)),))
        x = int(rng.integers(0, WIDTH - HEIGHT + 1))
        return video[..., x : x + HEIGHT], weight[..., x : x + HEIGHT]
    photo, face = render_photo(sample_identity(_training_numbers(rng, 1)[0]), int(rng.integers(0, 2**31)), HEIGHT)
    weight = np.ones((1, HEIGHT, HEIGHT), np.float32)
    x0, y0, x1, y1 = np.clip(face.box.round().astype(int), 0, None)
    weight[0, y0:y1, x0:x1] = HEAD_WEIGHT
    return _to_tensor(photo[None]), torch.from_numpy(weight)


def _loss(model, video: torch.Tensor, weight: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    dtype = next(model.parameters()).dtype
    mean = model.encode(video.to(dtype)).float()
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed)).to(mean.device)
    decoded = model.decode((mean + LATENT_NOISE * noise).to(dtype)).float()
    weight = (weight / weight.mean())[:, None]
    error = (weight * (decoded - video).abs()).mean()
    edges = sum(
        (weight.narrow(d, 1, weight.shape[d] - 1) * (decoded.diff(dim=d) - video.diff(dim=d)).abs()).mean()
        for d in (3, 4)
    )
    return {
        "loss": error + 0.5 * edges + LATENT_PENALTY * mean.pow(2).mean(),
        "l1": error.detach(),
        "z": mean.detach().pow(2).mean().sqrt(),
    }


def _batch(make, seed: int, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng((seed, n))
    videos, weights = zip(*(make(rng) for _ in range(size)), strict=True)
    return torch.stack(videos).to(device()), torch.stack(weights).to(device())


def train(folder: Path, seed: int = 1) -> Path:
    model = build()
    _initialise(model, seed)
    model.to(device())
    frozen = [p for n, p in model.named_parameters() if "time_conv" in n]
    for p in frozen:
        p.requires_grad_(False)
        p.data = p.data.to(torch.bfloat16)
    images = Trainer(model, folder, "vae-image", IMAGE_STEPS, 2e-3, view=_last_tap)
    images.run(lambda m, n: _loss(m, *_batch(_image, seed, n, IMAGE_BATCH), seed=n), log_every=200)
    for p in frozen:
        p.requires_grad_(True)
    model.float()
    videos = Trainer(model, folder, "vae-video", VIDEO_STEPS, 7e-4, decay_from=0.2)
    videos.run(lambda m, n: _loss(m, *_batch(_video, seed + 1, n, VIDEO_BATCH), seed=n), log_every=20)
    return export(model.float(), folder / "idcrafter_nano_vae.safetensors", seed)


@torch.no_grad()
def export(model, path: Path, seed: int) -> Path:
    """Folds the latent statistics of training clips into the quantisation convolutions and writes float16 weights."""
    from comfy.latent_formats import Wan21

    latents = torch.cat([model.encode(_batch(_video, seed + 2, n, 8)[0]).float() for n in range(8)])
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    target = Wan21()
    scale = target.latents_std.flatten().to(std.device) / std
    shift = target.latents_mean.flatten().to(std.device) - mean * scale
    model.conv1.weight[:16] *= scale[:, None, None, None, None]
    model.conv1.bias[:16] = model.conv1.bias[:16] * scale + shift
    weight = model.conv2.weight.clone()
    model.conv2.weight.copy_(weight / scale[None, :, None, None, None])
    model.conv2.bias.sub_(weight[:, :, 0, 0, 0] @ (shift / scale))
    save_file(
        {k: v.half().contiguous().cpu() for k, v in model.state_dict().items()},
        path,
        {"format": "pt", "licence": "Apache-2.0", "made_by": "idcrafter.nano"},
    )
    return path


@torch.no_grad()
def evaluate(path: Path, clips: int = 16, split: str = "val") -> dict[str, float]:
    """PSNR in dB over whole frames and over heads, and the time-change error, on identities of ``split``."""
    from safetensors.torch import load_file

    model = build().to(device())
    model.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    whole, heads = [], []
    numbers = numbers_of_split(split)
    for i in range(clips):
        clip = render_clip(sample_clip_spec(tuple(sample_identity(next(numbers)) for _ in range(2)), i))
        video = _to_tensor(clip.frames)[None].to(device())
        error = ((model.decode(model.encode(video)).clamp(-1, 1) - video) / 2).pow(2)[0].mean(0).cpu().numpy()
        whole.append(error.mean())
        heads += [
            error[f, max(0, int(face.box[1])) : int(face.box[3]), max(0, int(face.box[0])) : int(face.box[2])].mean()
            for f, faces in enumerate(clip.faces)
            for face in faces
            if face
        ]
    return {"psnr": float(-10 * np.log10(np.mean(whole))), "psnr_heads": float(-10 * np.log10(np.mean(heads)))}
