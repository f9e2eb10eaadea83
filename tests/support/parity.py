"""The loaded networks against diffusers' own modules on the same tiny weights.

Every measurement is {"name": ..., "max_abs": ..., "ok": ...}. The tests and `run.py bench parity` read the same ones.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from . import tiny_families

LIMIT = 1e-4
TEXT_TOKENS = 7
# Latent frames, height, width: another aspect each, one of them with an odd grid.
SIZES = ((3, 8, 8), (2, 6, 10), (5, 4, 14))
FAMILIES = ("wan-t2v", "wan-i2v", "wan-ti2v", "vace", "cogvideox", "cogvideox-i2v")
REFERENCES = 3


def family_checks(load: Callable, folder: Path, family: str) -> Iterator[dict]:
    """One family at several sizes. `load(path)` is the pack's load_video_dit."""
    if family != "cogvideox-i2v":
        yield from _compare(load, folder, family, SIZES)
        return
    for frames, height, width in SIZES:
        # Its learned positions fit one size, so each size is another model.
        sample = {"sample_width": width, "sample_height": height, "sample_frames": 4 * frames - 3}
        yield from _compare(load, folder / f"{frames}", family, ((frames, height, width),), sample=sample)


def _compare(load: Callable, folder: Path, family: str, sizes: tuple, **changes) -> Iterator[dict]:
    """Native weights renamed for diffusers, and a folder of shards that diffusers has written itself."""
    theirs = _diffusers_module(family, **changes)
    native = tiny_families.weights(family, **changes)
    theirs.load_state_dict(tiny_families.to_diffusers(family, native), strict=True)
    theirs.eval()
    path = tiny_families.write(folder / f"{family}-native" / "model.safetensors", family, **changes)
    saved = folder / f"{family}-diffusers"
    theirs.save_pretrained(saved, max_shard_size=sum(tensor.nbytes for tensor in native.values()) // 3)
    assert len(list(saved.glob("*-of-*.safetensors"))) > 1
    sources = {"native file": load(path), "diffusers folder": load(saved)}
    for name, model in sources.items():
        ours = model.model.diffusion_model
        for size in sizes:
            arguments = _inputs(family, size)
            difference = (_run_ours(ours, arguments) - _run_theirs(family, theirs, arguments)).abs().max()
            yield {
                "name": f"{family}, {name}, {'x'.join(map(str, size))} latents",
                "max_abs": float(difference),
                "ok": bool(difference <= LIMIT),
            }


def _diffusers_module(family: str, **changes):
    import diffusers

    config = tiny_families.diffusers_config(family, **changes)
    return getattr(diffusers, config.pop("_class_name"))(**config)


def _inputs(family: str, size: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(size))

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    frames, height, width = size
    channels = {"wan-i2v": 36, "wan-ti2v": 48, "cogvideox-i2v": 32}.get(family, 16)
    found = {
        "x": noise(2, channels, frames + (REFERENCES if family == "vace" else 0), height, width),
        "timestep": torch.tensor([37.0, 900.0]),
        # diffusers splits image tokens from 512 text tokens; CogVideoX's positions begin behind 226.
        "context": noise(2, {"wan-i2v": 512, "cogvideox-i2v": 226}.get(family, TEXT_TOKENS), 32),
    }
    if family == "wan-i2v":
        found["clip_fea"] = noise(2, 257, 1280)
    if family == "wan-ti2v":
        found["timestep"] = torch.rand((2, frames), generator=generator) * 1000
    if family == "vace":
        context = noise(2, 96, frames + REFERENCES, height, width)
        context[:, 16:32, :REFERENCES] = 0  # a reference has no reactive part and an empty mask
        context[:, 32:, :REFERENCES] = 0
        found["vace_context"] = context
    return found


@torch.inference_mode()
def _run_ours(network, inputs: dict) -> torch.Tensor:
    extra = {"clip_fea": inputs["clip_fea"]} if "clip_fea" in inputs else {}
    if "vace_context" in inputs:
        extra = {"vace_context": inputs["vace_context"].unsqueeze(1), "vace_strength": [0.7]}
    return network(inputs["x"], inputs["timestep"], inputs["context"], transformer_options={}, **extra)


@torch.inference_mode()
def _run_theirs(family: str, network, inputs: dict) -> torch.Tensor:
    x, timestep, context = inputs["x"], inputs["timestep"], inputs["context"]
    if family.startswith("cogvideox"):
        out = network(
            hidden_states=x.movedim(1, 2),
            encoder_hidden_states=context,
            timestep=timestep,
            image_rotary_emb=_cogvideox_grid(network, *x.shape[2:]),
        )
        return out.sample.movedim(1, 2)
    extra = {"encoder_hidden_states_image": inputs["clip_fea"]} if "clip_fea" in inputs else {}
    if "vace_context" in inputs:
        scale = torch.full((len(network.config.vace_layers),), 0.7)
        extra = {"control_hidden_states": inputs["vace_context"], "control_hidden_states_scale": scale}
    if timestep.ndim == 2:
        timestep = timestep.repeat_interleave(x.shape[-1] * x.shape[-2] // 4, dim=1)  # a time a token
    return network(hidden_states=x, timestep=timestep, encoder_hidden_states=context, **extra).sample


def _cogvideox_grid(network, frames: int, height: int, width: int):
    """As diffusers' pipeline makes it."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    base = (network.config.sample_width // 2, network.config.sample_height // 2)
    grid = (height // 2, width // 2)
    crops = get_resize_crop_region_for_grid(grid, *base)
    return get_3d_rotary_pos_embed(embed_dim=64, crops_coords=crops, grid_size=grid, temporal_size=frames)
