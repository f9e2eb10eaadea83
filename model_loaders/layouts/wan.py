"""Wan 2.1 and 2.2: names in diffusers and in the native (original) layout, and the sizes of a file.

Phantom, VACE, HuMo, Bernini-R, SkyReels-V3-R2V and RefAlign are this network with the tensors that core's detection
knows. Names: diffusers 0.42 transformer_wan.py and transformer_wan_vace.py; Wan-Video/Wan2.2 wan/modules/model.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import comfy.ldm.wan.model
import comfy.model_detection
import torch

from .names import NameMap

LATENT_CHANNELS = 16
# Diffusers calls the class by what the file holds; a folder of another class is another model.
DIFFUSERS_CLASSES = ("WanTransformer3DModel", "WanVACETransformer3DModel")
# Weights that a released file carries beyond its network: the rotation table of the original code's buffer
# (Phantom-Wan-1.3B.pth), and a norm that diffusers' I2V conversion has written and nothing reads.
IGNORED = ("freqs", ".norm_added_q.weight")

# Entries of core's config that are no arguments of the network's size.
NO_ARGUMENTS = ("image_model", "dtype")

_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o", "norm_q": "norm_q", "norm_k": "norm_k"}
_IMAGE_ATTENTION = {"add_k_proj": "k_img", "add_v_proj": "v_img", "norm_added_k": "norm_k_img"}
NAMES = NameMap(
    top={
        "patch_embedding": "patch_embedding",
        "vace_patch_embedding": "vace_patch_embedding",
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
        "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
        "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
        "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
        "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
        "scale_shift_table": "head.modulation",
        "proj_out": "head.head",
    },
    block={
        **{f"attn1.{old}": f"self_attn.{new}" for old, new in _ATTENTION.items()},
        **{f"attn2.{old}": f"cross_attn.{new}" for old, new in {**_ATTENTION, **_IMAGE_ATTENTION}.items()},
        # The only norm with weights is the one before the cross-attention; the two layouts number it differently.
        "norm2": "norm3",
        "ffn.net.0.proj": "ffn.0",
        "ffn.net.2": "ffn.2",
        "scale_shift_table": "modulation",
        "proj_in": "before_proj",
        "proj_out": "after_proj",
    },
    stems={"blocks": "blocks", "vace_blocks": "vace_blocks"},
)

_CLASSES = {
    "t2v": comfy.ldm.wan.model.WanModel,
    "i2v": comfy.ldm.wan.model.WanModel,
    "vace": comfy.ldm.wan.model.VaceWanModel,
    "humo": comfy.ldm.wan.model.HumoWanModel,
}
_OTHER_VARIANTS = {
    "camera": "a Wan Fun camera model",
    "camera_2.2": "a Wan 2.2 Fun camera model",
    "s2v": "a Wan sound-to-video model",
    "animate": "a Wan Animate model",
    "scail": "a SCAIL model",
    "scail2": "a SCAIL-2 model",
    "wandancer": "a WanDancer model",
}


def is_diffusers(names: Mapping) -> bool:
    return "condition_embedder.time_proj.weight" in names


def is_native(names: Mapping, prefix: str = "") -> bool:
    return f"{prefix}head.modulation" in names and f"{prefix}patch_embedding.weight" in names


def overrides(config: Mapping | None) -> dict:
    """What a diffusers config.json says that the shapes do not: as core's metadata {"transformer": {...}} wants it.

    Raises ValueError when the blocks that feed VACE are not the evenly spaced ones of core's network.
    """
    if not config:
        return {}
    names = {"num_attention_heads": "num_heads", "freq_dim": "freq_dim", "text_dim": "text_dim", "eps": "eps"}
    found = {new: config[old] for old, new in names.items() if config.get(old) is not None}
    layers, total = config.get("vace_layers"), config.get("num_layers")
    if layers and total and list(layers) != list(range(0, total, total // len(layers)))[: len(layers)]:
        raise ValueError(f"its config.json spreads the VACE blocks over {layers}, which ComfyUI's network cannot do")
    return found


def metadata_of(config: Mapping | None) -> dict[str, str]:
    """The safetensors metadata that makes core build the network of a diffusers config.json."""
    found = overrides(config)
    return {"config": json.dumps({"transformer": found})} if found else {}


def read_config(tensors: Mapping[str, torch.Tensor], prefix: str, metadata: Mapping[str, str]) -> dict:
    """Core's own reading of the sizes, with the overrides of the metadata. ValueError says what is wrong."""
    try:
        config = comfy.model_detection.detect_unet_config(tensors, prefix, metadata=metadata)
    except KeyError as error:
        raise ValueError(f"looks like a Wan model, but the tensor {error} is missing; download it again") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"has a 'config' metadata that is not a JSON object with a 'transformer' object ({error})"
        ) from error
    if config is None or config.get("image_model") != "wan2.1":
        raise ValueError("is not read as a Wan model by this ComfyUI")
    return config


def family(config: Mapping) -> tuple[str | None, str]:
    """(family, noun phrase) of a config; the family is None for a Wan model that this pack has no rule for.

    The files of Phantom, SkyReels-V3, RefAlign and Bernini-R have the tensors of plain text-to-video.
    """
    kind = config["model_type"]
    if config.get("in_dim_ref_conv") is not None:
        return None, "a Wan Fun reference model"
    if kind in _OTHER_VARIANTS:
        return None, _OTHER_VARIANTS[kind]
    if kind == "vace":
        return "vace", "a Wan VACE model"
    if kind == "humo":
        return "humo", "a HuMo model"
    if kind not in ("t2v", "i2v"):
        return None, f"a Wan '{kind}' model"
    if config["out_dim"] == 48:
        return "wan-ti2v", "a Wan 2.2 5B text-and-image-to-video model"
    if config["in_dim"] == 2 * LATENT_CHANNELS + 4:
        return "wan-i2v", "a Wan image-to-video model"
    if kind == "t2v" and config["in_dim"] == LATENT_CHANNELS:
        return "wan-t2v", "a Wan text-to-video model"
    return None, f"a Wan Fun model ({config['in_dim']} input channels)"


def width(config: Mapping) -> int:
    return config["dim"]


def layout(config: Mapping) -> dict[str, torch.Size]:
    """Every tensor of core's network of this config, built without memory. ValueError when it cannot be built."""
    arguments = {name: value for name, value in config.items() if name not in NO_ARGUMENTS}
    try:
        # Plain torch layers: comfy.ops may leave weights undefined until they are loaded.
        model = _CLASSES[config["model_type"]](**arguments, device="meta", operations=torch.nn)
    except (TypeError, AssertionError, ZeroDivisionError) as error:
        raise ValueError(f"has a 'config' metadata that does not fit a Wan model ({error})") from error
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
