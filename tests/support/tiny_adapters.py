"""Tiny identity adapters in this pack's layout and in that of Ingredients' release, and a tiny EVA02-CLIP."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from . import tiny_families, tiny_models

RECOGNISER_WIDTH = 12
EVA = {"image": 28, "width": 16, "depth": 21, "heads": 1, "inner": 20, "out_width": 6}
# In Ingredients' layout heads are 64 and 128 wide, whatever the size.
INGREDIENTS = {
    "id_width": RECOGNISER_WIDTH + EVA["out_width"],
    "visual_width": EVA["width"],
    "extractor_width": 16,
    "extractor_heads": 1,
    "extractor_head_width": 64,
    "tokens": 4,
    "id_tokens": 2,
    "token_width": 24,
    "heads": 1,
    "head_width": 128,
}
# An adapter of this pack that looks through the VAE, as nano's do.
OWN = {
    "every": 1,
    "id_width": RECOGNISER_WIDTH,
    "visual_width": 16,
    "scales": 1,
    "extractor_width": 8,
    "extractor_depth": 1,
    "extractor_heads": 2,
    "extractor_head_width": 4,
    "tokens": 4,
    "id_tokens": 2,
    "token_width": 24,
    "heads": 2,
    "head_width": 8,
    "null": True,
    "hierarchy": 2,
    "hierarchy_heads": 2,
    "context_width": 32,
    "visual": "vae",
    "crop": 32,
}


def config(backbone: str, width: int, blocks: int, **sizes):
    from idcrafter.modules.identity_adapter import AdapterConfig

    return AdapterConfig(backbone, width, blocks, **sizes)


def weights(config, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of every tensor, gates and output projections too, so that each of them shows."""
    from idcrafter.modules.identity_adapter import layout

    return tiny_models.random_weights({name: tuple(shape) for name, shape in layout(config).items()}, seed)


def write_own(path: Path, config, seed: int = 0, dtype=torch.float32, edit=None, **metadata: str) -> Path:
    found = {name: tensor.to(dtype) for name, tensor in weights(config, seed).items()}
    if edit is not None:
        edit(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(found, path, {"idcrafter_adapter": config.dumps(), **metadata})
    return path


def write_ingredients(folder: Path, edit=None, dtype=torch.float32) -> Path:
    """The folder of Ingredients' `transformer`: config.json, two shards, their index."""
    found = tiny_families.to_diffusers("cogvideox-i2v", tiny_families.weights("cogvideox-i2v"))
    found |= weights(config("cogvideox", 128, 2, **INGREDIENTS), 1)
    found = {name: tensor.to(dtype) for name, tensor in found.items()}
    if edit is not None:
        edit(found)
    folder.mkdir(parents=True)
    described = tiny_families.diffusers_config("cogvideox-i2v")
    extra = {"cross_attn_interval": 2, "LFE_num_tokens": 32, "LFE_output_dim": 768, "LFE_heads": 12}
    described |= {"_class_name": "ConsisIDTransformer3DModel", "is_train_face": True, **extra}
    (folder / "config.json").write_text(json.dumps(described))
    names = sorted(found)
    placed = {name: f"diffusion_pytorch_model-0000{1 + (i > len(names) // 2)}-of-00002.safetensors"
              for i, name in enumerate(names)}  # fmt: skip
    for shard in set(placed.values()):
        part = {name: found[name].contiguous() for name in names if placed[name] == shard}
        safetensors.torch.save_file(part, folder / shard)
    index = {"metadata": {"total_size": sum(t.nbytes for t in found.values())}, "weight_map": placed}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_eva(path: Path, edit=None) -> Path:
    """A CLIP file as released: the image tower below `visual.`, with its rotary tables, beside a text tower."""
    from idcrafter.modules.eva02 import EvaConfig, EvaTower

    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in EvaTower(EvaConfig(**EVA), torch.nn).state_dict().items()}
    found = {f"visual.{name}": tensor for name, tensor in tiny_models.random_weights(shapes, 4).items()}
    found |= {f"visual.{at}rope.freqs_cos": torch.ones(4, 16) for at in ("", "blocks.0.attn.")}
    found |= {"text.positional_embedding": torch.zeros(7, 6), "logit_scale": torch.ones(())}
    if edit is not None:
        edit(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pt":
        torch.save(found, path)
    else:
        safetensors.torch.save_file(found, path)
    return path


class TinyRecogniser:
    """Embeds a picture as the mean colours of its parts: not of unit length, different for different pictures."""

    crop_size = 16

    def __init__(self, facts=None):
        self.facts = facts
        self.seen: list[np.ndarray] = []

    def embed(self, crops):
        self.seen += crops
        blocks = np.stack(crops).astype(np.float32).reshape(len(crops), 2, 8, 2, 8, 3).mean((2, 4))
        return blocks.reshape(len(crops), RECOGNISER_WIDTH) / 64 - 2

    def with_gradient(self):
        def embed(crops):
            blocks = torch.nn.functional.avg_pool2d(crops * 255, 8).flip(1).permute(0, 2, 3, 1)
            return blocks.reshape(len(crops), RECOGNISER_WIDTH) / 64 - 2

        return embed


class TinyAnalyzer:
    """Finds one face in the middle of every picture."""

    name, licence = "tiny", "none needed"

    def __init__(self, facts=None):
        self.recogniser = TinyRecogniser(facts)

    def describe(self):
        return {"name": self.name, "licence": self.licence}

    def analyze(self, image):
        from idcrafter.subjects.face_features import CROP, CROP_TEMPLATE
        from idcrafter.subjects.faces import DetectedFace

        height, width = image.shape[:2]
        side = min(height, width)
        marks = (CROP_TEMPLATE / CROP - 0.5) * side * 0.8 + (width / 2, height / 2)
        box = np.array([marks[:, 0].min(), marks[:, 1].min(), marks[:, 0].max(), marks[:, 1].max()], np.float32)
        embedding = self.recogniser.embed([np.resize(image.numpy() * 255, (16, 16, 3)).astype(np.uint8)])[0]
        unit = embedding / np.linalg.norm(embedding)
        return [DetectedFace(box, 1.0, marks.astype(np.float32), unit.astype(np.float32))]


def injection(pack, model, path: Path, edit=None):
    """`inject(model)` with a seeded adapter that fits this tiny MODEL: what Inject Identity does to a MODEL."""
    lib = pack.submodule("idcrafter.backbones.identity")
    dit = model.get_model_object("diffusion_model")
    is_wan = hasattr(dit, "num_heads")
    more = {"reference_heads": dit.num_heads} if is_wan else {}
    found = config("wan" if is_wan else "cogvideox", dit.dim, len(dit.blocks), **OWN, **more)
    patcher = pack.submodule("model_loaders.adapter").load_adapter(write_own(path, found, edit=edit))
    return lambda model: lib.inject(model, lib.next_key(model), patcher, lib.Injection(), ["Ada", "Bo"])


def with_people(pack, shot):
    """The Shot with two people, one of two photos, in the positive prompt, and nobody in the negative one."""
    lib = pack.submodule("idcrafter.backbones.identity")
    tokens = torch.randn((2, 2, OWN["tokens"], OWN["token_width"]), generator=torch.Generator().manual_seed(6))
    photos = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    for conditioning in (shot.positive, shot.negative):
        conditioning[0][1]["idcrafter_reference_names"] = ["Ada", "Bo"]
    shot.positive = lib.attach_subjects(shot.positive, f"{lib.KEY}_0", tokens, photos)
    shot.negative = lib.attach_subjects(shot.negative, f"{lib.KEY}_0", tokens, photos * 0)
    return shot
