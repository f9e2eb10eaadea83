"""What a file holds that is not what was asked for: the nearest guess, as a noun phrase for an error message."""

from __future__ import annotations

import comfy.model_detection

from . import files

# What a key betrays about a file that is no diffusion transformer; the first match wins.
_OTHER_FILES = (
    (("mixins.adaln_layer.",), "CogVideoX in the names of SAT (take the diffusers folder of the same model)"),
    (("lora_up", "lora_down", "lora_A", "lora_B", ".lokr_", ".hada_", ".diff_b"), "a LoRA (use a LoRA loader)"),
    (("input_blocks.0.0.", "down_blocks.0.resnets."), "a Stable Diffusion UNet"),
    (("control_blocks.", "controlnet", "control_model."), "a ControlNet"),
    (("vision_model.encoder.", "visual.trunk."), "a CLIP vision model"),
    (("encoder.block.0.layer.0.SelfAttention.", "text_model.encoder.", "model.layers.0.self_attn."), "a text encoder"),
    (("decoder.middle.0.", "decoder.mid.block_1.", "decoder.conv_in.", "decoder.up_blocks."), "a VAE"),
    (("perceiver_cross_attention.", "local_facial_extractor."), "ConsisID's or Ingredients' face modules"),
    (("vace_blocks.",), "VACE blocks without their video model (merge them with the base model first)"),
)


def describe_other(header: files.Header) -> str:
    """The nearest guess at a file that is no supported video model, as a noun phrase."""
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
