"""CogVideoX 1.0 (5B, 5B-I2V) and 1.5: names in diffusers and in ComfyUI's layout, sizes, and the released positions.

Core loads the network but not the diffusers names, and it places the tokens otherwise than the released models do:
it scales the rotary grid of 1.0 by 1.875, and takes learned positions as a reason to leave the rotary ones out. The
classes below put that right; a test compares the result with diffusers.

Facts: diffusers 0.42 cogvideox_transformer_3d.py, embeddings.py and pipeline_cogvideox.py; transformer/config.json of
THUDM/CogVideoX-5b and of -5b-I2V.
"""

from __future__ import annotations

from collections.abc import Mapping

import comfy.ldm.cogvideo.model
import comfy.model_detection
import torch

from .names import NameMap

# ConsisID and Ingredients are CogVideoX-5B-I2V with an identity adapter in the same files.
DIFFUSERS_CLASSES = ("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel")
ADAPTER = ("local_facial_extractor.", "perceiver_cross_attention.", "router.")
POSITIONS = "patch_embed.pos_embedding"
HEAD_DIM = 64
WIDTH_2B = 1920
# The grid that 1.0 was trained on, in latents of 8 px: 720x480, 49 frames in 13 latent frames.
SAMPLE = {"sample_width": 90, "sample_height": 60, "sample_frames": 49}
MAX_TEXT = 226
IGNORED: tuple[str, ...] = ()
# Entries of core's config that are no arguments of the network's size.
NO_ARGUMENTS = ("image_model", "dtype")

NAMES = NameMap(
    top={
        "patch_embed.proj": "patch_embed.proj",
        "patch_embed.text_proj": "patch_embed.text_proj",
        POSITIONS: POSITIONS,
        "time_embedding.linear_1": "time_embedding_linear_1",
        "time_embedding.linear_2": "time_embedding_linear_2",
        "ofs_embedding.linear_1": "ofs_embedding_linear_1",
        "ofs_embedding.linear_2": "ofs_embedding_linear_2",
        "norm_final": "norm_final",
        "norm_out.linear": "norm_out.linear",
        "norm_out.norm": "norm_out.norm",
        "proj_out": "proj_out",
    },
    block={
        "norm1.linear": "norm1.linear",
        "norm1.norm": "norm1.norm",
        "norm2.linear": "norm2.linear",
        "norm2.norm": "norm2.norm",
        "attn1.to_q": "q",
        "attn1.to_k": "k",
        "attn1.to_v": "v",
        "attn1.to_out.0": "attn_out",
        "attn1.norm_q": "norm_q",
        "attn1.norm_k": "norm_k",
        "ff.net.0.proj": "ff_proj",
        "ff.net.2": "ff_out",
    },
    stems={"transformer_blocks": "blocks"},
)


def is_diffusers(names: Mapping) -> bool:
    return "transformer_blocks.0.norm1.linear.weight" in names and "patch_embed.text_proj.weight" in names


def is_native(names: Mapping, prefix: str = "") -> bool:
    return f"{prefix}blocks.0.norm1.linear.weight" in names and f"{prefix}patch_embed.text_proj.weight" in names


def metadata_of(config: Mapping | None) -> dict[str, str]:
    """Core reads no metadata for CogVideoX: heads are always 64 wide. ValueError for a config.json that differs."""
    if config and config.get("attention_head_dim", HEAD_DIM) != HEAD_DIM:
        raise ValueError(
            f"its config.json has heads of width {config['attention_head_dim']}; ComfyUI's CogVideoX has {HEAD_DIM}"
        )
    if config and not config.get("use_rotary_positional_embeddings", True):
        raise ValueError("it is CogVideoX-2B, which has no rotary positions; take CogVideoX-5B or 5B-I2V")
    return {}


def read_config(tensors: Mapping[str, torch.Tensor], prefix: str, metadata: Mapping[str, str]) -> dict:
    """Core's reading of the sizes in native names, with the rotary positions that all of these models have."""
    try:
        config = comfy.model_detection.detect_unet_config(tensors, prefix, metadata=metadata)
    except (KeyError, IndexError) as error:
        raise ValueError(f"looks like CogVideoX, but the tensor {error} is missing; download it again") from error
    if config is None or config.get("image_model") != "cogvideox":
        raise ValueError("is not read as CogVideoX by this ComfyUI")
    config.setdefault("patch_size_t", None)
    config.update(use_learned_positional_embeddings=False, use_rotary_positional_embeddings=True)
    return config


def width(config: Mapping) -> int:
    return config["num_attention_heads"] * HEAD_DIM


def family(config: Mapping) -> tuple[str | None, str]:
    """(family, noun phrase); the family is None for what has no rule here."""
    if width(config) == WIDTH_2B:
        return None, "CogVideoX-2B (no rotary positions; take 5B or 5B-I2V)"
    kinds = {16: ("cogvideox", "a CogVideoX model"), 32: ("cogvideox-i2v", "a CogVideoX image-to-video model")}
    return kinds.get(config.get("in_channels"), (None, f"a CogVideoX-Fun model ({config.get('in_channels')} channels)"))


def layout(config: Mapping) -> dict[str, torch.Size]:
    """Every tensor of core's network of this config, built without memory, but the learned positions."""
    arguments = {name: value for name, value in config.items() if name not in NO_ARGUMENTS}
    try:
        model = comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel(**arguments, device="meta", operations=torch.nn)
    except (TypeError, ZeroDivisionError) as error:
        raise ValueError(f"does not fit a CogVideoX model ({error})") from error
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def positions_shape(sample: Mapping[str, int], dim: int, patch_size: int = 2) -> tuple[int, int, int]:
    """Of the learned positions [1, text + tokens, dim] for a grid of sample_width x sample_height x sample_frames."""
    frames = (sample["sample_frames"] - 1) // 4 + 1
    tokens = (sample["sample_width"] // patch_size) * (sample["sample_height"] // patch_size) * frames
    return (1, MAX_TEXT + tokens, dim)


def sample_of(config: Mapping | None) -> dict[str, int]:
    """The grid that a model was trained on: its config.json's, or that of the release."""
    return {name: int((config or {}).get(name) or value) for name, value in SAMPLE.items()}


def place_tokens(network, positions: torch.Tensor | None, sample: Mapping[str, int]) -> None:
    """Give core's freshly loaded network the positions that the released CogVideoX 1.0 models have.

    positions  learned ones [1, text + tokens, dim], or None
    sample     see `sample_of`
    1.5 counts its grid in whole steps, as core does; it is left as it is.
    """
    if network.patch_size_t is not None:
        return
    network.__class__ = _ReleasedGrid
    network.base_grid = (sample["sample_height"] // network.patch_size, sample["sample_width"] // network.patch_size)
    if positions is not None:
        embed = network.patch_embed
        embed.__class__ = _LearnedPositions
        embed.sample_height, embed.sample_width = sample["sample_height"], sample["sample_width"]
        embed.sample_frames = sample["sample_frames"]
        embed.register_buffer("pos_embedding", positions.to(embed.proj.weight.device))


class _ReleasedGrid(comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel):
    """Rotary positions over the trained grid: another aspect is fitted inside of it and centred, not extended."""

    base_grid = (30, 45)

    def _get_rotary_emb(self, h: int, w: int, t: int, device) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin), each [t * h * w, head width], for a grid of patches."""
        base_h, base_w = self.base_grid
        if h / w > base_h / base_w:
            fitted_h, fitted_w = base_h, round(base_h / h * w)
        else:
            fitted_h, fitted_w = round(base_w / w * h), base_w
        top, left = round((base_h - fitted_h) / 2), round((base_w - fitted_w) / 2)
        axes = (
            (torch.arange(t, dtype=torch.float32, device=device), HEAD_DIM // 4),
            (torch.linspace(top, (top + fitted_h) * (h - 1) / h, h, device=device), HEAD_DIM // 8 * 3),
            (torch.linspace(left, (left + fitted_w) * (w - 1) / w, w, device=device), HEAD_DIM // 8 * 3),
        )
        rotate = comfy.ldm.cogvideo.model._get_1d_rotary_pos_embed
        waves = [rotate(width, places) for places, width in axes]
        shapes = ((t, 1, 1, -1), (1, h, 1, -1), (1, 1, w, -1))
        parts = [
            torch.cat([wave[i].view(shape).expand(t, h, w, -1) for wave, shape in zip(waves, shapes, strict=True)], -1)
            for i in (0, 1)
        ]
        return parts[0].reshape(t * h * w, -1), parts[1].reshape(t * h * w, -1)


class _LearnedPositions(comfy.ldm.cogvideo.model.CogVideoXPatchEmbed):
    """The image-to-video model's learned positions: on the text as well, and only for the size it was trained on."""

    def forward(self, text_embeds: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
        """text [B, L, C], latents [B, T, C, h, w] -> tokens [B, L + T * h/2 * w/2, dim]."""
        height, width = image_embeds.shape[-2:]
        if (height, width) != (self.sample_height, self.sample_width):
            raise ValueError(
                f"CogVideoX-5B-I2V makes {self.sample_width * 8}x{self.sample_height * 8} px only, its positions are "
                f"learned; {width * 8}x{height * 8} was asked for."
            )
        tokens = super().forward(text_embeds, image_embeds)
        text, images = text_embeds.shape[1], tokens.shape[1] - text_embeds.shape[1]
        if images > self.pos_embedding.shape[1] - self.max_text_seq_length or text > self.max_text_seq_length:
            raise ValueError(
                f"CogVideoX-5B-I2V takes at most {self.sample_frames} frames and {self.max_text_seq_length} text "
                f"tokens; {images} image tokens and {text} text tokens were asked for."
            )
        start = self.max_text_seq_length
        places = torch.cat([self.pos_embedding[:, :text], self.pos_embedding[:, start : start + images]], dim=1)
        return tokens + places.to(tokens)
