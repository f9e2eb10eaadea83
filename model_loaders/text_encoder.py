"""A file -> CLIP with a UMT5 encoder, as Wan models read it.

The real UMT5-XXL goes through core's own loader. A smaller encoder of the same layout (the nano one) says so in its
metadata: "config", JSON that overrides core's UMT5-XXL config (d_model, d_ff, num_layers, ...), and "min_length",
the number of tokens that every prompt is padded to. Core knows no such file, so its classes are put together here.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import comfy.sd
import comfy.text_encoders.t5
import comfy.text_encoders.wan
import comfy.utils
import folder_paths
import torch

from . import files
from .guess import describe_other

log = logging.getLogger(__name__)

TOKENIZER = "spiece_model"
_FIRST_BLOCK = "encoder.block.0.layer.0.SelfAttention.q.weight"
# A UMT5 encoder has a position bias in every block, T5 only in the first.
_SECOND_BIAS = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
_UMT5_XXL = {"d_ff": 10240, "d_kv": 64, "d_model": 4096, "num_heads": 64, "num_layers": 24, "vocab_size": 256384}
_CONFIG_KEYS = frozenset({*_UMT5_XXL, "dense_act_fn", "is_gated_act", "model_type"})


def load_text_encoder(path: Path, licence: str | None = None) -> comfy.sd.CLIP:
    """Raises ValueError that says what the file holds when it is no UMT5 encoder."""
    header = files.read_header(path)
    config = check(header)
    log.info(
        "Loading %s: UMT5 encoder, width %d, licence: %s.",
        path.name,
        config["d_model"],
        licence or header.licence or "not stated in the file",
    )
    if _overrides(header) is None:
        return comfy.sd.load_clip(
            ckpt_paths=[str(path)],
            embedding_directory=folder_paths.get_folder_paths("embeddings"),
            clip_type=comfy.sd.CLIPType.WAN,
        )
    return _load_small(path, config, _min_length(header))


def check(header: files.Header) -> dict:
    """The encoder's full config; ValueError unless keys and shapes are exactly those of it."""
    names = header.tensors
    if "blocks.0.attn.q.weight" in names and "token_embedding.weight" in names:
        raise ValueError(
            f"'{header.path.name}' is UMT5 in Wan's original key names; "
            "use the repackaged umt5_xxl_fp16.safetensors or umt5_xxl_fp8_e4m3fn_scaled.safetensors."
        )
    if _FIRST_BLOCK not in names:
        raise ValueError(f"'{header.path.name}' holds {describe_other(header)}, not a UMT5 text encoder.")
    config = {
        **_UMT5_XXL,
        "dense_act_fn": "gelu_pytorch_tanh",
        "is_gated_act": True,
        "model_type": "umt5",
        **(_overrides(header) or {}),
    }
    if config["num_layers"] > 1 and _SECOND_BIAS not in names:
        raise ValueError(f"'{header.path.name}' holds a T5 encoder; Wan models need UMT5 (umt5_xxl_*.safetensors).")
    if TOKENIZER not in names:
        raise ValueError(
            f"'{header.path.name}' has no '{TOKENIZER}' tensor (its tokenizer); use the repackaged UMT5 file."
        )
    try:
        # Plain torch layers: comfy.ops may leave weights undefined until they are loaded.
        model = comfy.text_encoders.t5.T5(config, torch.float32, "meta", torch.nn)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"The 'config' metadata of '{header.path.name}' does not fit a UMT5 encoder ({error})."
        ) from error
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    files.check_layout(header, expected, "", "a UMT5 text encoder")
    return config


def _overrides(header: files.Header) -> dict | None:
    """The config in the metadata, None when there is none."""
    text = header.metadata.get("config")
    if text is None:
        return None
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ValueError(f"The 'config' metadata of '{header.path.name}' is not valid JSON ({error}).") from error
    if not isinstance(config, dict):
        raise ValueError(f"The 'config' metadata of '{header.path.name}' is not a JSON object.")
    return {name: value for name, value in config.items() if name in _CONFIG_KEYS}


def _min_length(header: files.Header) -> int:
    text = header.metadata.get("min_length", "512")
    if not text.isdigit() or int(text) < 1:
        raise ValueError(
            f"The 'min_length' metadata of '{header.path.name}' is '{text}'; it must be a number of tokens."
        )
    return int(text)


def _load_small(path: Path, config: dict, min_length: int, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    weights = comfy.utils.load_torch_file(str(path), safe_load=True)

    class Tokenizer(comfy.text_encoders.wan.WanT5Tokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {})
            # Core's class states the XXL width; textual inversions are matched against it.
            self.clip_umt5xxl.embedding_size = config["d_model"]

    dtype = weights["shared.weight"].dtype
    clip = comfy.sd.CLIP(
        SimpleNamespace(params={}, clip=comfy.text_encoders.wan.te(dtype_t5=dtype), tokenizer=Tokenizer),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        tokenizer_data={TOKENIZER: weights.pop(TOKENIZER), "umt5xxl_min_length": min_length},
        parameters=comfy.utils.calculate_parameters(weights),
        state_dict=[weights],
        model_options={"umt5xxl_model_config": config},
        disable_dynamic=disable_dynamic,
    )
    clip.patcher.cached_patcher_init = (_small_patcher, (path, config, min_length))
    return clip


def _small_patcher(path: Path, config: dict, min_length: int, disable_dynamic: bool = False):
    """Called by core when it needs an independent copy of the encoder, for instance on another device."""
    return _load_small(path, config, min_length, disable_dynamic).patcher
