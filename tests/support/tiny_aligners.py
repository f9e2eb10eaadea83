"""Tiny aligners in this pack's layout, and BindWeave's video model around its projector, in each layout it comes in."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

from . import tiny_models

SIZES = {"tokens": 5, "latent_width": 12, "width": 8, "heads": 2, "depth": 2}
# Layout -> the projector's two layers; around them stands a video model in the same names.
BINDWEAVE = {
    "release": ("condition_embedder.text_projector.linear_1", "condition_embedder.text_projector.linear_2"),
    "training code": ("text_projector.linear_1", "text_projector.linear_2"),
    "repackage": ("text_projection.0", "text_projection.2"),
}


def config(in_width: int, out_width: int, **changes):
    from idcrafter.modules.aligner import AlignerConfig, Reading

    reading = changes.pop("reading", {})
    return AlignerConfig(in_width, out_width, **{**SIZES, **changes}, reading=Reading(**reading))


def write_own(path: Path, config, seed: int = 0, edit=None, **metadata: str) -> Path:
    from idcrafter.modules.aligner import aligner_layout

    shapes = {name: tuple(shape) for name, shape in aligner_layout(config).items()}
    found = tiny_models.random_weights(shapes, seed)
    if edit is not None:
        edit(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(found, path, {"idcrafter_aligner": config.dumps(), **metadata})
    return path


def projector_weights(in_width: int, out_width: int) -> dict[str, torch.Tensor]:
    shapes = {"1.weight": (out_width, in_width), "1.bias": (out_width,), "2.weight": (out_width, out_width),
              "2.bias": (out_width,)}  # fmt: skip
    return tiny_models.random_weights(shapes, 11)


def write_bindweave(folder: Path, in_width: int, out_width: int, layout: str = "release", edit=None) -> Path:
    """A folder with an index and two shards for the release, otherwise one file; -> what is to be loaded."""
    first, second = BINDWEAVE[layout]
    found = {
        name.replace("1.", f"{first}.", 1) if name.startswith("1.") else name.replace("2.", f"{second}.", 1): tensor
        for name, tensor in projector_weights(in_width, out_width).items()
    }
    found |= {f"blocks.{i}.ffn.net.0.proj.weight": torch.randn(8, 8) for i in range(2)}
    found["blocks.1.nan"] = torch.full((4,), torch.nan)  # nothing of the video model is read
    if edit is not None:
        edit(found)
    folder.mkdir(parents=True, exist_ok=True)
    if layout != "release":
        path = folder / "bindweave.safetensors"
        safetensors.torch.save_file(found, path)
        return path
    (folder / "config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel"}))
    placed = {
        name: f"diffusion_pytorch_model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(sorted(found))
    }
    for shard in set(placed.values()):
        safetensors.torch.save_file({name: found[name] for name in found if placed[name] == shard}, folder / shard)
    index = {"metadata": {}, "weight_map": placed}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return folder
