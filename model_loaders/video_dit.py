"""A file in diffusion_models -> MODEL, after its header has told which video model it is.

Today's family is the Wan text-to-video layout: Wan 2.1 T2V, Phantom-Wan 1.3B and 14B (whose files have the same keys),
and the nano model, which is the same layout with its sizes in the safetensors metadata
({"config": "{\\"transformer\\": {...}}"}).
"""

from __future__ import annotations

import logging
from pathlib import Path

import comfy.ldm.wan.model
import comfy.model_detection
import comfy.model_sampling
import comfy.sd
import torch

from . import files

log = logging.getLogger(__name__)

FOLDER = "diffusion_models"
ATTACHMENT = "idcrafter"
WAN_CHANNELS = 16
WEIGHT_DTYPES = ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")

# What a key betrays about a file that is no diffusion transformer; the first match wins.
_OTHER_FILES = (
    (("lora_up", "lora_down", "lora_A", "lora_B", ".lokr_", ".hada_", ".diff_b"), "a LoRA (use a LoRA loader)"),
    (("input_blocks.0.0.", "down_blocks.0.resnets."), "a Stable Diffusion UNet"),
    (("control_blocks.", "controlnet", "control_model."), "a ControlNet"),
    (("vision_model.encoder.", "visual.trunk."), "a CLIP vision model"),
    (("encoder.block.0.layer.0.SelfAttention.", "text_model.encoder.", "model.layers.0.self_attn."), "a text encoder"),
    (("decoder.middle.0.", "decoder.mid.block_1.", "decoder.conv_in.", "decoder.up_blocks."), "a VAE"),
)
_WAN_VARIANTS = {
    "i2v": "a Wan image-to-video model",
    "vace": "a Wan VACE model",
    "camera": "a Wan Fun camera model",
    "camera_2.2": "a Wan 2.2 Fun camera model",
    "s2v": "a Wan sound-to-video model",
    "humo": "a Wan HuMo model",
    "animate": "a Wan Animate model",
    "scail": "a SCAIL model",
    "scail2": "a SCAIL-2 model",
    "wandancer": "a WanDancer model",
}


def load_video_dit(path: Path, weight_dtype: str = "default", licence: str | None = None):
    """The MODEL of a file; its facts travel with every clone as the attachment "idcrafter".

    weight_dtype  one of WEIGHT_DTYPES, as core's Load Diffusion Model
    licence       as a bundle states it; otherwise the file's own metadata
    Raises ValueError that says what the file holds when it is no supported video model.
    """
    options = _model_options(weight_dtype)
    header = files.read_header(path)
    facts = identify(header)
    facts["file"] = path.name
    licence = licence or header.licence
    if licence:
        facts["licence"] = licence
    log.info(
        "Loading %s: %s, %.1f M parameters, licence: %s.",
        path.name,
        facts["family"],
        facts["size"] / 1e6,
        licence or "not stated in the file",
    )
    model = comfy.sd.load_diffusion_model(str(path), model_options=options)
    model.set_attachments(ATTACHMENT, facts)
    return model


def identify(header: files.Header) -> dict:
    """{"family", "size", "dtype", "layers", "width"} of a supported file; ValueError for any other."""
    prefix = comfy.model_detection.unet_prefix_from_state_dict(header.tensors)
    if f"{prefix}head.modulation" not in header.tensors:
        prefix = ""
    if f"{prefix}head.modulation" not in header.tensors or f"{prefix}patch_embedding.weight" not in header.tensors:
        raise ValueError(
            f"'{header.path.name}' holds {describe_other(header)}, not a Wan text-to-video model. "
            "Choose a Wan 2.1 T2V or Phantom-Wan file."
        )
    config = _wan_config(header, prefix)
    variant = _wan_variant(config)
    if variant is not None:
        raise ValueError(
            f"'{header.path.name}' holds {variant}; its references work differently. "
            "Choose a Wan 2.1 T2V or Phantom-Wan file here, or load this one with core's Load Diffusion Model."
        )
    files.check_layout(header, _wan_layout(header, config), prefix, "a Wan text-to-video model")
    return {
        "family": "wan-t2v",
        "size": header.parameters,
        "dtype": str(header.dtype).removeprefix("torch."),
        "layers": config["num_layers"],
        "width": config["dim"],
    }


def describe_other(header: files.Header) -> str:
    """The nearest guess at a file that is no Wan model, as a noun phrase."""
    names = header.tensors
    for marks, what in _OTHER_FILES:
        if any(mark in name for name in names for mark in marks):
            return what
    try:
        prefix = comfy.model_detection.unet_prefix_from_state_dict(names)
        config = comfy.model_detection.detect_unet_config(names, prefix) or comfy.model_detection.detect_unet_config(
            names, ""
        )
    except (KeyError, RuntimeError, NotImplementedError, ValueError, IndexError):
        # Core's detection may look at values, which a header does not have.
        config = None
    if config and config.get("image_model"):
        return f"a model of the {config['image_model']} family"
    return f"an unknown model (its first tensor is {next(iter(names))})"


def set_shift(model, shift: float):
    """A clone of the MODEL with another flow shift; what core's ModelSamplingSD3 node does."""

    class ModelSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    sampling = ModelSampling(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=model.get_model_object("model_sampling").multiplier)
    model = model.clone()
    model.add_object_patch("model_sampling", sampling)
    return model


def _model_options(weight_dtype: str) -> dict:
    if weight_dtype not in WEIGHT_DTYPES:
        raise ValueError(f"The weight type '{weight_dtype}' is unknown; choose one of {', '.join(WEIGHT_DTYPES)}.")
    options = {}
    if weight_dtype.startswith("fp8_e4m3fn"):
        options["dtype"] = torch.float8_e4m3fn
    elif weight_dtype == "fp8_e5m2":
        options["dtype"] = torch.float8_e5m2
    if weight_dtype == "fp8_e4m3fn_fast":
        options["fp8_optimizations"] = True
    return options


def _wan_config(header: files.Header, prefix: str) -> dict:
    """Core's own reading of the sizes, with the overrides of the metadata."""
    try:
        config = comfy.model_detection.detect_unet_config(header.tensors, prefix, metadata=header.metadata)
    except KeyError as error:
        raise ValueError(
            f"'{header.path.name}' looks like a Wan model, but the tensor {error} is missing; download the file again."
        ) from error
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"The 'config' metadata of '{header.path.name}' is not a JSON object with a 'transformer' object ({error})."
        ) from error
    if config is None or config.get("image_model") != "wan2.1":
        raise ValueError(f"'{header.path.name}' holds {describe_other(header)}, not a Wan text-to-video model.")
    return config


def _wan_variant(config: dict) -> str | None:
    """What kind of Wan model this is, if it is not plain text-to-video with 16 latent channels."""
    if config["model_type"] != "t2v":
        return _WAN_VARIANTS.get(config["model_type"], f"a Wan '{config['model_type']}' model")
    if config["out_dim"] == 48:
        return "a Wan 2.2 5B model (48 latent channels)"
    if config["in_dim"] > WAN_CHANNELS:
        return "a Wan 2.2 image-to-video or Fun model (extra input channels)"
    if config.get("in_dim_ref_conv") is not None:
        return "a Wan Fun reference model"
    return None


def _wan_layout(header: files.Header, config: dict) -> dict[str, torch.Size]:
    """Every tensor that core's WanModel of this config has, built without memory."""
    arguments = {name: value for name, value in config.items() if name != "image_model"}
    try:
        # Plain torch layers: comfy.ops may leave weights undefined until they are loaded.
        model = comfy.ldm.wan.model.WanModel(**arguments, device="meta", operations=torch.nn)
    except (TypeError, AssertionError, ZeroDivisionError) as error:
        raise ValueError(
            f"The 'config' metadata of '{header.path.name}' does not fit a Wan model ({error})."
        ) from error
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
