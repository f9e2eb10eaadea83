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

from ...subjects.face_features import FaceFeatures, Recogniser, align_face, face_features, vae_look
from ...subjects.references import letterbox
from ..world import (
    Clip,
    ClipSpec,
    Identity,
    numbers_of_split,
    render_clip,
    render_photo,
)
from ..world.crowd import WIDTHS, CrowdClip, CrowdSpec, render_crowd
from ..world.scene import FRAMES, HEIGHT
from . import text, vae
from .core import device

log = logging.getLogger("idcrafter.nano")
SHARD = 256
PHOTOS = 2  # reference photos a subject; training picks one of them
CAPTIONS = 3
WIDEST = max(WIDTHS.values())
CROP = 64  # px of the face's crop as the VAE sees it
HEAD_WEIGHT = 2.0


def width_of(count: int) -> int:
    """Clip width in pixels with this many subjects."""
    return WIDTHS.get(count, WIDTHS[2])


def _photo(identity: Identity, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """A photo [H, W, 3] in 0..1, and the upright crop of its face.

    The landmarks are the true ones, a little off, as a detector's are.
    """
    rng = np.random.default_rng((seed, 6))
    photo, face = render_photo(identity, seed, int(rng.integers(64, 160)))
    photo = torch.from_numpy(photo).float() / 255
    off = rng.normal(0, 0.02, (5, 2)) * (face.box[2] - face.box[0])
    return photo, align_face(photo, face.landmarks + off)


def _reference(photo: torch.Tensor, width: int) -> torch.Tensor:
    """[1, 3, 1, HEIGHT, width] in -1..1, letterboxed by the pack's own rule."""
    return letterbox(photo, None, width, HEIGHT).permute(2, 0, 1)[None, :, None] * 2 - 1


class _Recogniser:
    """The nano recogniser, for the embeddings of crops."""

    crop_size = 112

    def __init__(self, path: Path):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def embed(self, crops: list[np.ndarray]) -> np.ndarray:
        pixels = (np.stack(crops)[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) - 127.5) / 127.5
        (found,) = self.session.run(None, {self.session.get_inputs()[0].name: pixels})
        return found


def _features(model, normalise, recogniser: Recogniser, crops: list[np.ndarray]) -> FaceFeatures:
    """What an identity adapter of the nano model sees of faces."""

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        video = (pixels.movedim(-1, 1)[:, :, None] * 2 - 1).to(device()).to(torch.bfloat16)
        return normalise(model.encode(video).float()).cpu()

    return face_features(crops, recogniser, vae_look(encode, CROP))


def _owners(clip: Clip | CrowdClip) -> torch.Tensor:
    """[3, HEIGHT/16, WIDEST/16] int8: whose head and body covers the middle of a token of the DiT, -1 where nobody's or
    more than one's does.
    """
    tokens = np.full(((FRAMES - 1) // 4 + 1, HEIGHT // 16, WIDEST // 16), -1, np.int8)
    y, x = np.mgrid[8:HEIGHT:16, 8:WIDEST:16]
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


def _head_weights(clip: Clip | CrowdClip) -> torch.Tensor:
    """[3, HEIGHT/8, WIDEST/8]: more weight where heads are, for each latent frame."""
    weights = np.ones(((FRAMES - 1) // 4 + 1, HEIGHT // 8, WIDEST // 8), np.float32)
    for f, faces in enumerate(clip.faces):
        for face in faces:
            if face is not None:
                x0, y0, x1, y1 = np.clip(np.round(face.box / 8).astype(int), 0, None)
                weights[(f + 3) // 4, y0:y1, x0:x1] = HEAD_WEIGHT
    return torch.from_numpy(weights)


def specs(split: str, index: int) -> list[tuple[ClipSpec | CrowdSpec, list[int]]]:
    """The clips of a shard and the seeds of their subjects' photos, ``PHOTOS`` a subject."""
    rng = np.random.default_rng((32, index, len(split)))
    numbers = numbers_of_split(split, index * SHARD * 30)
    specs = []
    for _ in range(SHARD):
        spec = text.sample_spec(rng, numbers)
        specs.append((spec, [int(rng.integers(0, 2**31)) for _ in range(len(spec.identities) * PHOTOS)]))
    return specs


def _widen(latents: torch.Tensor) -> torch.Tensor:
    """Zeros on the right, up to the width of the widest clip."""
    return torch.nn.functional.pad(latents, (0, WIDEST // 8 - latents.shape[-1]))


@torch.no_grad()
def _encode_shard(model, tokenizer, recogniser: Recogniser, split: str, index: int) -> dict[str, torch.Tensor]:
    from comfy.latent_formats import Wan21

    normalise = Wan21().process_in
    latents, references, weights, owners, counts, tokens, faces, crops = [], [], [], [], [], [], [], []
    for spec, photo_seeds in specs(split, index):
        count = len(spec.identities)
        width = width_of(count)
        clip = render_crowd(spec) if isinstance(spec, CrowdSpec) else render_clip(spec)
        video = torch.from_numpy(clip.frames).to(device()).to(torch.bfloat16).permute(3, 0, 1, 2)[None] / 127.5 - 1
        latents.append(_widen(normalise(model.encode(video).float())[0]))
        people = [identity for identity in spec.identities for _ in range(PHOTOS)]
        taken = [_photo(identity, seed) for identity, seed in zip(people, photo_seeds, strict=True)]
        photos = torch.cat([_reference(photo, width) for photo, _ in taken])
        encoded = _widen(normalise(model.encode(photos.to(device()).to(torch.bfloat16)).float())[:, :, 0])
        seen = _features(model, normalise, recogniser, [crop for _, crop in taken])
        references.append(_by_subject(encoded, count))
        faces.append(_by_subject(seen.identity, count))
        crops.append(_by_subject(seen.maps[0], count))
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
        "faces": torch.stack(faces).half(),
        "crops": torch.stack(crops).bfloat16(),
    }


def _by_subject(values: torch.Tensor, count: int) -> torch.Tensor:
    """Values [count * PHOTOS, ...] -> [MAX_SUBJECTS, PHOTOS, ...], zeros where there is nobody."""
    padded = values.new_zeros(text.MAX_SUBJECTS, PHOTOS, *values.shape[1:])
    padded[:count] = values.unflatten(0, (count, PHOTOS))
    return padded


def prepare(folder: Path, vae_path: Path, text_path: Path, split: str, shards: int) -> dict[str, torch.Tensor]:
    """Encodes what is missing and returns all shards, in model space, zeros where nobody is:

    latents     [N, 16, 3, 8, WIDEST / 8], clips narrower than the widest with zeros on the right
    references  [N, MAX_SUBJECTS, PHOTOS, 16, 8, WIDEST / 8]
    weights     [N, 3, 8, WIDEST / 8]; owners [N, 3, 4, WIDEST / 16]; counts [N]
    tokens      [N, CAPTIONS, LENGTH]
    faces       [N, MAX_SUBJECTS, PHOTOS, 512], embeddings of the photos' crops; crops [N, MAX_SUBJECTS, PHOTOS,
                CROP / 8 * CROP / 8, 16], the VAE's view of them
    """
    model = vae.build()
    model.load_state_dict({k: v.float() for k, v in load_file(vae_path).items()})
    model.to(device()).to(torch.bfloat16).requires_grad_(False)
    tokenizer, _ = text.load(text_path)
    recogniser = _Recogniser(folder / "idcrafter_nano" / "rec_nano.onnx")
    parts = []
    for index in range(shards):
        path = folder / "data" / f"{split}-{index:03d}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(_encode_shard(model, tokenizer, recogniser, split, index), path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)
            log.info("encoded %s (%d of %d)", path.name, index + 1, shards)
        parts.append(load_file(path))
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
