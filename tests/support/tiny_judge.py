"""A tiny judge in the layout of Identity-GRPO's release: Qwen's folder, the config, the LoRA and what is not LoRA.

Names are those of transformers 4.51 under PEFT, as in the released files; every tensor is seeded by its name.
"""

import json
import zlib
from pathlib import Path

import safetensors.torch
import tokenizers
import torch

HIDDEN, HEADS, KV_HEADS, FFN, LAYERS = 32, 4, 2, 48, 2
VISION_HIDDEN, VISION_FFN, DEPTH = 32, 40, 2
RANK, ALPHA = 4, 8
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
           "<|image_pad|>", "<|video_pad|>")  # fmt: skip
TOKENS = 256 + len(SPECIAL)  # the readout's id
PADDED = TOKENS + 11  # Qwen pads its table, too
STEP = 210
TOKENS_PER_SECOND = 2

CONFIG = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "attention_dropout": 0.0,
    "bos_token_id": 256,
    "eos_token_id": 258,
    "vision_start_token_id": 259,
    "vision_end_token_id": 260,
    "vision_token_id": 261,
    "image_token_id": 262,
    "video_token_id": 263,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": FFN,
    "max_position_embeddings": 8192,
    "max_window_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 8192,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": DEPTH,
        "hidden_act": "silu",
        "hidden_size": VISION_HIDDEN,
        "intermediate_size": VISION_FFN,
        "num_heads": 2,
        "in_chans": 3,
        "out_hidden_size": HIDDEN,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "tokens_per_second": TOKENS_PER_SECOND,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    "vocab_size": PADDED,
}

RECIPE = {
    "data_config": {
        "max_frame_pixels": 399360,
        "num_frames": 5.0,
        "fps": None,
        "eval_dim": ["SA"],
        "prompt_template_type": "subject_alignment_special",
        "sample_type": "uniform",
    },
    "model_config": {
        "model_name_or_path": "Qwen/Qwen2.5-VL-3B-Instruct",
        "output_dim": 1,
        "use_special_tokens": True,
        "freeze_vision_tower": False,
        "tune_merger": True,
        "reward_token": "special",
        "loss_type": "btt",
    },
    "peft_lora_config": {
        "lora_enable": True,
        "vision_lora": False,
        "lora_r": RANK,
        "lora_alpha": ALPHA,
        "lora_namespan_exclude": ["lm_head", "rm_head", "embed_tokens", "visual"],
        "use_rslora": False,
    },
}


def values(name: str, *shape: int, salt: str = "") -> torch.Tensor:
    """Seeded by the name alone, so that a file can be written in any order."""
    generator = torch.Generator().manual_seed(zlib.crc32((salt + name).encode()))
    drawn = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 0.1 * drawn if name.endswith("bias") else 1.0 + 0.1 * drawn
    return drawn if "embed_tokens" in name else drawn * (0.9 / shape[-1] ** 0.5)


def base_shapes() -> dict[str, tuple[int, ...]]:
    """Qwen's tensors by their published names."""
    shapes = {"model.embed_tokens.weight": (PADDED, HIDDEN), "model.norm.weight": (HIDDEN,)}
    kv = HIDDEN * KV_HEADS // HEADS
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        for name, rows in (("q", HIDDEN), ("k", kv), ("v", kv)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, HIDDEN)
            shapes[f"{layer}self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        for name in ("gate", "up"):
            shapes[f"{layer}mlp.{name}_proj.weight"] = (FFN, HIDDEN)
        shapes[f"{layer}mlp.down_proj.weight"] = (HIDDEN, FFN)
        shapes[f"{layer}input_layernorm.weight"] = shapes[f"{layer}post_attention_layernorm.weight"] = (HIDDEN,)
    shapes["visual.patch_embed.proj.weight"] = (VISION_HIDDEN, 3, 2, 14, 14)
    for i in range(DEPTH):
        block = f"visual.blocks.{i}."
        for name, rows, columns in (
            ("attn.qkv", 3 * VISION_HIDDEN, VISION_HIDDEN),
            ("attn.proj", VISION_HIDDEN, VISION_HIDDEN),
            ("mlp.gate_proj", VISION_FFN, VISION_HIDDEN),
            ("mlp.up_proj", VISION_FFN, VISION_HIDDEN),
            ("mlp.down_proj", VISION_HIDDEN, VISION_FFN),
        ):
            shapes[f"{block}{name}.weight"], shapes[f"{block}{name}.bias"] = (rows, columns), (rows,)
        shapes[f"{block}norm1.weight"] = shapes[f"{block}norm2.weight"] = (VISION_HIDDEN,)
    shapes["visual.merger.ln_q.weight"] = (VISION_HIDDEN,)
    for name, rows in (("mlp.0", 4 * VISION_HIDDEN), ("mlp.2", HIDDEN)):
        shapes[f"visual.merger.{name}.weight"] = (rows, 4 * VISION_HIDDEN)
        shapes[f"visual.merger.{name}.bias"] = (rows,)
    return shapes


def base_weights() -> dict[str, torch.Tensor]:
    return {name: values(name, *shape) for name, shape in base_shapes().items()}


def lora_weights() -> dict[str, torch.Tensor]:
    """adapter_model.safetensors; PEFT adds the token table because the judge has resized it."""
    weights = {}
    for name, shape in base_shapes().items():
        if name.startswith("model.layers.") and "_proj.weight" in name:
            layer = "base_model.model." + name.removesuffix(".weight")
            weights[f"{layer}.lora_A.weight"] = values(layer + "A", RANK, shape[1])
            weights[f"{layer}.lora_B.weight"] = values(layer + "B", shape[0], RANK)
    table = values("model.embed_tokens.weight", PADDED, HIDDEN)[: TOKENS + 1].clone()
    table[TOKENS] = values("readout", 1, HIDDEN)[0]
    weights["base_model.model.model.embed_tokens.weight"] = table
    weights["base_model.model.lm_head.weight"] = table.clone()
    return weights


def rest_weights() -> dict[str, torch.Tensor]:
    """non_lora_state_dict.pth: the tuned vision tower and the head."""
    weights = {
        f"base_model.model.{name}": values(name, *shape, salt="tuned ")
        for name, shape in base_shapes().items()
        if name.startswith("visual.")
    }
    weights["base_model.model.rm_head.weight"] = values("rm_head", 1, HIDDEN)
    return weights


def tokenizer() -> tokenizers.Tokenizer:
    """Bytes as tokens, and Qwen's special ones behind them."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, [])
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    return made


def write_base(folder: Path, edit=None) -> Path:
    """Qwen's folder, its weights in two shards; `edit(weights)` may damage them."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer().save(str(folder / "tokenizer.json"))
    weights = base_weights()
    if edit is not None:
        edit(weights)
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in shards.items():
        safetensors.torch.save_file({name: weights[name] for name in held}, folder / shard, {"format": "pt"})
    size = sum(weights[name].nbytes for name in names)
    placed = {name: shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": placed})
    )
    return folder


def write_judge(folder: Path, edit_lora=None, edit_rest=None, recipe: dict = RECIPE, safe: bool = False) -> Path:
    """The judge's folder with an older checkpoint beside the last; the edits may damage its two files."""
    lora, rest = lora_weights(), rest_weights()
    (folder / "checkpoint-21").mkdir(parents=True)
    last = folder / f"checkpoint-{STEP}"
    last.mkdir()
    (folder / "model_config.json").write_text(json.dumps(recipe))
    if edit_lora is not None:
        edit_lora(lora)
    if edit_rest is not None:
        edit_rest(rest)
    safetensors.torch.save_file(lora, last / "adapter_model.safetensors")
    if safe:
        safetensors.torch.save_file(rest, last / "non_lora_state_dict.safetensors")
    else:
        torch.save(rest, last / "non_lora_state_dict.pth")
    return folder


def clip(frames: int = 9, height: int = 60, width: int = 84) -> torch.Tensor:
    """A smooth moving picture [T, H, W, 3] in 0..1."""
    t = torch.arange(frames).view(-1, 1, 1, 1) / max(frames - 1, 1)
    y = torch.linspace(0, 1, height).view(1, -1, 1, 1)
    x = torch.linspace(0, 1, width).view(1, 1, -1, 1)
    c = torch.tensor([0.0, 0.7, 1.9])
    return 0.5 + 0.45 * torch.sin(5 * x + 3 * t + c) * torch.cos(4 * y - 2 * t + c)


def photos() -> list[torch.Tensor]:
    return [clip(1, 50, 41)[0], clip(1, 33, 90)[0].flip(0)]
