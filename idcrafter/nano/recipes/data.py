"""Clips, references and captions, encoded once for training the DiT; one safetensors file a shard, so that encoding
resumes.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ...subjects.references import letterbox
from ..world import (
    Clip,
    ClipSpec,
    Identity,
    numbers_of_split,
    render_clip,
    render_photo,
    sample_clip_spec,
    sample_identity,
)
from ..world.scene import FRAMES, HEIGHT, WIDTH
from . import text, vae
from .core import device

log = logging.getLogger("idcrafter.nano")
SHARD = 256
PHOTOS = 2  # reference photos a subject; training picks one of them
CAPTIONS = 3
COUNTS = (0.12, 0.7, 0.18)  # shares of clips with one, two and three subjects
HEAD_WEIGHT = 2.0


def _reference(identity: Identity, seed: int) -> torch.Tensor:
    """[1, 3, 1, HEIGHT, WIDTH] in -1..1, letterboxed by the pack's own rule."""
    size = int(np.random.default_rng((seed, 6)).integers(64, 160))
    photo = torch.from_numpy(render_photo(identity, seed, size)[0]).float() / 255
    return letterbox(photo, None, WIDTH, HEIGHT).permute(2, 0, 1)[None, :, None] * 2 - 1


def _owners(clip: Clip) -> torch.Tensor:
    """[3, HEIGHT/16, WIDTH/16] int8: whose head and body covers the middle of a token of the DiT, -1 where nobody's or
    more than one's does.
    """
    tokens = np.full(((FRAMES - 1) // 4 + 1, HEIGHT // 16, WIDTH // 16), -1, np.int8)
    y, x = np.mgrid[8:HEIGHT:16, 8:WIDTH:16]
    shared = np.zeros(tokens.shape, bool)
    for f, faces in enumerate(clip.faces):
        t = (f + 3) // 4
        for subject, face in enumerate(faces):
            if face is not None:
                x0, y0, x1, y1 = face.box
                covered = (x > x0) & (x < x1) & (y > y0) & (y < 2 * y1 - y0)
                shared[t] |= covered & (tokens[t] >= 0) & (tokens[t] != subject)
                tokens[t][covered] = subject
    tokens[shared] = -1
    return torch.from_numpy(tokens)


def _head_weights(clip: Clip) -> torch.Tensor:
    """[3, HEIGHT/8, WIDTH/8]: more weight where heads are, for each latent frame."""
    weights = np.ones(((FRAMES - 1) // 4 + 1, HEIGHT // 8, WIDTH // 8), np.float32)
    for f, faces in enumerate(clip.faces):
        for face in faces:
            if face is not None:
                x0, y0, x1, y1 = np.clip(np.round(face.box / 8).astype(int), 0, None)
                weights[(f + 3) // 4, y0:y1, x0:x1] = HEAD_WEIGHT
    return torch.from_numpy(weights)


def _specs(split: str, index: int) -> list[tuple[ClipSpec, list[int]]]:
    """The clips of a shard and the seeds of their subjects' photos, ``PHOTOS`` a subject."""
    rng = np.random.default_rng((31, index, len(split)))
    numbers = numbers_of_split(split, index * SHARD * 30)
    specs = []
    for _ in range(SHARD):
        count = int(rng.choice((1, 2, 3), p=COUNTS))
        identities = tuple(sample_identity(next(numbers)) for _ in range(count))
        spec = sample_clip_spec(identities, int(rng.integers(0, 2**31)))
        specs.append((spec, [int(rng.integers(0, 2**31)) for _ in range(count * PHOTOS)]))
    return specs


@torch.no_grad()
def _encode_shard(model, tokenizer, split: str, index: int) -> dict[str, torch.Tensor]:
    from comfy.latent_formats import Wan21

    normalise = Wan21().process_in
    latents, references, weights, owners, counts, tokens = [], [], [], [], [], []
    for spec, photo_seeds in _specs(split, index):
        count = len(spec.identities)
        clip = render_clip(spec)
        video = torch.from_numpy(clip.frames).to(device()).to(torch.bfloat16).permute(3, 0, 1, 2)[None] / 127.5 - 1
        latents.append(normalise(model.encode(video).float())[0])
        people = [identity for identity in spec.identities for _ in range(PHOTOS)]
        photos = torch.cat([_reference(identity, seed) for identity, seed in zip(people, photo_seeds, strict=True)])
        encoded = normalise(model.encode(photos.to(device()).to(torch.bfloat16)).float())[:, :, 0]
        padded = encoded.new_zeros(text.MAX_SUBJECTS, PHOTOS, *encoded.shape[1:])
        padded[:count] = encoded.unflatten(0, (count, PHOTOS))
        references.append(padded)
        weights.append(_head_weights(clip))
        owners.append(_owners(clip))
        counts.append(count)
        tokens.append(tokenizer([text.caption(spec, s)[0] for s in range(CAPTIONS)]))
    return {
        "latents": torch.stack(latents).bfloat16().cpu(),
        "references": torch.stack(references).bfloat16().cpu(),
        "weights": torch.stack(weights).half(),
        "owners": torch.stack(owners),
        "counts": torch.tensor(counts),
        "tokens": torch.stack(tokens).short(),
    }


def prepare(folder: Path, vae_path: Path, text_path: Path, split: str, shards: int) -> dict[str, torch.Tensor]:
    """Encodes what is missing and returns all shards: ``latents`` [N, 16, 3, 8, 12], ``references`` [N, 3, PHOTOS,
    16, 8, 12] (model space), ``weights`` [N, 3, 8, 12], ``owners`` [N, 3, 4, 6], ``counts`` [N], ``tokens``
    [N, CAPTIONS, LENGTH].
    """
    model = vae.build()
    model.load_state_dict({k: v.float() for k, v in load_file(vae_path).items()})
    model.to(device()).to(torch.bfloat16).requires_grad_(False)
    tokenizer, _ = text.load(text_path)
    parts = []
    for index in range(shards):
        path = folder / "data" / f"{split}-{index:03d}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(_encode_shard(model, tokenizer, split, index), path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)
            log.info("encoded %s (%d of %d)", path.name, index + 1, shards)
        parts.append(load_file(path))
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
