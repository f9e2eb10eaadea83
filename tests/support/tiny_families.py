"""Tiny video models of every family that the loader knows, seeded, in ComfyUI's names or in those of diffusers.

The sizes that core fixes stay as they are (HuMo's audio projection: 40 M weights, written in bf16).
"""

import json
from pathlib import Path

import safetensors.torch
import torch

from . import tiny_models

WAN = {"dim": 32, "ffn_dim": 48, "num_layers": 2, "in_dim": 16, "out_dim": 16, **tiny_models.DIT_CONFIG}
COG = {"num_attention_heads": 2, "time_embed_dim": 32, "text_embed_dim": 32, "num_layers": 2, "in_channels": 16}
# A grid of latents (width, height) and frames that the tiny image-to-video model has learned positions for.
COG_SAMPLE = {"sample_width": 8, "sample_height": 6, "sample_frames": 9}
# What each family adds to the sizes above, and the class of core that it is.
_WAN_FAMILIES = {
    "wan-t2v": ("WanModel", {}),
    "phantom": ("WanModel", {}),
    "skyreels-v3": ("WanModel", {}),
    "refalign": ("WanModel", {}),
    "bernini": ("WanModel", {}),
    "wan-i2v": ("WanModel", {"model_type": "i2v", "in_dim": 36}),
    "wan-ti2v": ("WanModel", {"in_dim": 48, "out_dim": 48}),
    "vace": ("VaceWanModel", {"num_layers": 4, "vace_layers": 2, "vace_in_dim": 96}),
    "humo": ("HumoWanModel", {}),
}
_COG_FAMILIES = {"cogvideox": 16, "cogvideox-i2v": 32}
FAMILIES = (*_WAN_FAMILIES, *_COG_FAMILIES)


def names_of(family: str):
    """The NameMap of a family."""
    from model_loaders.layouts import cogvideox, wan

    return cogvideox.NAMES if family in _COG_FAMILIES else wan.NAMES


def shapes(family: str, sample: dict = COG_SAMPLE, **changes) -> dict:
    """Native name -> shape. `changes` are arguments of core's network."""
    if family in _COG_FAMILIES:
        import comfy.ldm.cogvideo.model

        config = {**COG, "in_channels": _COG_FAMILIES[family], "use_rotary_positional_embeddings": True, **changes}
        model = comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel(**config, device="meta", operations=torch.nn)
        found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if family == "cogvideox-i2v":
            grid = (sample["sample_width"] // 2) * (sample["sample_height"] // 2)
            tokens = grid * ((sample["sample_frames"] - 1) // 4 + 1)
            found["patch_embed.pos_embedding"] = (1, 226 + tokens, config["num_attention_heads"] * 64)
        return found
    import comfy.ldm.wan.model

    kind, extra = _WAN_FAMILIES[family]
    model = getattr(comfy.ldm.wan.model, kind)(**{**WAN, **extra, **changes}, device="meta", operations=torch.nn)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def weights(family: str, seed: int = 0, **changes) -> dict[str, torch.Tensor]:
    found = tiny_models.random_weights(shapes(family, **changes), seed)
    if "patch_embed.pos_embedding" in found:
        found["patch_embed.pos_embedding"] *= 5  # so that leaving them out, or shifting them, shows
    if family == "humo":
        found = {name: tensor.bfloat16() for name, tensor in found.items()}
    return found


def diffusers_config(family: str, sample: dict = COG_SAMPLE, **changes) -> dict:
    """The config.json of a diffusers transformer of this family."""
    if family in _COG_FAMILIES:
        learned = family == "cogvideox-i2v"
        return {
            "_class_name": "CogVideoXTransformer3DModel",
            **{**COG, "in_channels": _COG_FAMILIES[family]},
            "attention_head_dim": 64,
            "use_rotary_positional_embeddings": True,
            "use_learned_positional_embeddings": learned,
            **(sample if learned else {}),
            **changes,
        }
    _, extra = _WAN_FAMILIES[family]
    sizes = {**WAN, **extra}
    config = {
        "_class_name": "WanVACETransformer3DModel" if family == "vace" else "WanTransformer3DModel",
        "num_attention_heads": sizes["num_heads"],
        "attention_head_dim": sizes["dim"] // sizes["num_heads"],
        "in_channels": sizes["in_dim"],
        "out_channels": sizes["out_dim"],
        "text_dim": sizes["text_dim"],
        "freq_dim": sizes["freq_dim"],
        "ffn_dim": sizes["ffn_dim"],
        "num_layers": sizes["num_layers"],
    }
    if family == "vace":
        config |= {"vace_layers": [0, 2], "vace_in_channels": 96}
    if family == "wan-i2v":
        config |= {"image_dim": 1280, "added_kv_proj_dim": sizes["dim"]}
    return {**config, **changes}


def to_diffusers(family: str, native: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed, unknown = names_of(family).diffusers(native)
    assert not unknown, unknown
    return {renamed[name]: tensor for name, tensor in native.items()}


def write(
    path: Path, family: str, layout: str = "native", seed: int = 0, edit=None, shards: int = 3, dtype=None, **changes
) -> Path:
    """A file (layout "native"), or a folder with config.json ("diffusers": one file, "shards": several and an index).

    edit  edit(weights) may damage the named weights before they are written
    Tiny CogVideoX image-to-video files need their config.json for the size of the grid, so their native file lies in
    a folder with one.
    """
    found = weights(family, seed, **changes)
    if dtype is not None:
        found = {name: tensor.to(dtype) for name, tensor in found.items()}
    if layout != "native":
        found = to_diffusers(family, found)
    if edit is not None:
        edit(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    if layout == "native":
        if family == "cogvideox-i2v":
            sample = changes.get("sample", COG_SAMPLE)
            (path.parent / "config.json").write_text(json.dumps(diffusers_config(family, sample)))
        sizes = {name: changes.get(name, value) for name, value in tiny_models.DIT_CONFIG.items()}
        metadata = {} if family in _COG_FAMILIES else {"config": json.dumps({"transformer": sizes})}
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(found, path, metadata=metadata)
        else:
            torch.save(found, path)
        return path
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(diffusers_config(family)))
    stem = "diffusion_pytorch_model"
    if layout == "diffusers":
        safetensors.torch.save_file(found, path / f"{stem}.safetensors")
        return path
    placed = {name: f"{stem}-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(found)}
    for shard in set(placed.values()):
        safetensors.torch.save_file({n: t for n, t in found.items() if placed[n] == shard}, path / shard)
    size = sum(tensor.nbytes for tensor in found.values())
    index = {"metadata": {"total_size": size}, "weight_map": placed}
    (path / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return path
