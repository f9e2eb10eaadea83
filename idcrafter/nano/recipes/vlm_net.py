"""The nano VLM as a folder of transformers' Qwen2.5-VL: config, processor files, and the untrained network."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from . import vlm_data, vlm_hops, vlm_tokens

NAME = "idcrafter_nano_vlm"
WIDTH, LAYERS, HEADS = 192, 6, 3
PATCH, MERGE = 16, 2
HEAD, THETA = WIDTH // HEADS, 1e6
PIXELS = vlm_data.SIDE**2
IMAGE_TOKENS = PIXELS // (PATCH * MERGE) ** 2
VISION = {
    "depth": 4,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_heads": 4,
    "in_chans": 3,
    "in_channels": 3,
    "hidden_act": "silu",
    "out_hidden_size": WIDTH,
    "patch_size": PATCH,
    "spatial_patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": vlm_data.SIDE,
    "fullatt_block_indexes": [0, 1, 2, 3],
}


def config(tokenizer) -> dict:
    """config.json, in the layout in which Qwen2.5-VL was published."""
    token = tokenizer.token_to_id
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": token(vlm_tokens.PAD),
        "eos_token_id": token(vlm_tokens.END),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
        "vision_token_id": token("<|vision_pad|>"),
        "image_token_id": token(vlm_tokens.IMAGE),
        "video_token_id": token("<|video_pad|>"),
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": 384,
        "max_position_embeddings": 8192,
        "max_window_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "rms_norm_eps": 1e-06,
        "rope_theta": THETA,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "sliding_window": 8192,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "vision_config": VISION,
        "vocab_size": tokenizer.get_vocab_size(),
    }


def write_processor(folder: Path, tokenizer) -> None:
    """What a folder of the released model has besides its weights: config, tokenizer, processor, chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    end, pad = vlm_tokens.END, vlm_tokens.PAD
    files = {
        "config": config(tokenizer),
        "generation_config": {
            "bos_token_id": tokenizer.token_to_id(pad),
            "pad_token_id": tokenizer.token_to_id(pad),
            "eos_token_id": [tokenizer.token_to_id(end), tokenizer.token_to_id(pad)],
            "do_sample": False,
        },
        "tokenizer_config": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "additional_special_tokens": list(vlm_tokens.SPECIAL),
            "pad_token": pad,
            "eos_token": end,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 8192,
            "chat_template": vlm_tokens.CHAT,
        },
        "preprocessor_config": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
            "min_pixels": PIXELS * 3 // 4,
            "max_pixels": PIXELS,
            "patch_size": PATCH,
            "temporal_patch_size": 2,
            "merge_size": MERGE,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
        "chat_template": {"chat_template": vlm_tokens.CHAT},
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def build(folder: Path, seed: int):
    """The untrained model of a folder's config."""
    import transformers

    settings = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
    model = transformers.AutoModelForImageTextToText.from_config(settings).float()
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.ndim == 1:
            torch.nn.init.zeros_(p) if name.endswith("bias") else torch.nn.init.ones_(p)
            continue
        scale = p[0].numel() ** -0.5
        if "language_model" in name and name.endswith(("o_proj.weight", "down_proj.weight")):
            scale = 0.0
        if name.endswith("attn.proj.weight"):
            scale *= (2 * LAYERS) ** -0.5
        # Photos begin as loud as words.
        p.data.normal_(0, scale * (0.1 if "merger.mlp.2" in name else 1.0), generator=generator)
    attentions = [layer.self_attn for layer in model.model.language_model.layers]
    _look_back(attentions[0])
    _find_names(attentions, generator)
    return model


def _look_back(attention) -> None:
    """The first two heads begin by looking at the token before and at the one before that: names are copied by what
    stood before them, which a short training hardly finds.

    With k = (a, 0) and q = a (cos d t, -sin d t) in the planes of the rotary angles t, the score of places i and j is
    a^2 times the sum of cos((i - j - d) t), which is largest for i - j = d.
    """
    planes, loud = HEAD // 4, 5.0  # the fastest angles tell neighbours apart
    angles = THETA ** (-torch.arange(0, HEAD, 2) / HEAD)[:planes]
    with torch.no_grad():
        for head in range(2):
            start, turn = head * HEAD, (head + 1) * angles
            attention.k_proj.bias[start : start + planes] = loud
            attention.q_proj.bias[start : start + planes] = loud * turn.cos()
            attention.q_proj.bias[start + HEAD // 2 : start + HEAD // 2 + planes] = -loud * turn.sin()
            for projection in (attention.q_proj, attention.k_proj):
                projection.weight[start : start + HEAD] *= 0.1


def _find_names(attentions, generator: torch.Generator) -> None:
    """The heads that :mod:`vlm_hops` tells where to look begin with a use for what they find there.

    Each word knows the one before it. What somebody is called by is copied to where a name is missing, as the mean of
    its words; a description is the likelier the more of these words, and pairs of words, it has; with it comes the name
    that stands in front of it, and that name is the likeliest. So "the one with the green cap" gets the name of whoever
    has a green cap.
    """
    basis = [torch.linalg.qr(torch.randn(WIDTH, HEAD, generator=generator))[0] for _ in range(4)]

    def copies(hop: tuple[int, int], read: torch.Tensor, write: torch.Tensor, loud: float = 0.5) -> None:
        layer, head = hop[0], slice(hop[1] * HEAD, (hop[1] + 1) * HEAD)
        attentions[layer].v_proj.weight[head] = read.T
        attentions[layer].o_proj.weight[:, head] = loud * write

    def compares(hop: tuple[int, int], read: torch.Tensor) -> None:
        layer, head = hop[0], slice(hop[1] * HEAD, (hop[1] + 1) * HEAD)
        # Only planes whose angle stays small over a whole request compare words wherever they stand.
        slow = torch.arange(HEAD // 2)[THETA ** (-torch.arange(0, HEAD, 2) / HEAD) < 0.003]
        slow = torch.cat([slow, slow + HEAD // 2])
        for projection in (attentions[layer].q_proj, attentions[layer].k_proj):
            projection.weight[head] *= 0.1
            projection.weight[head][slow] = 1.3 * read.T[: len(slow)]

    with torch.no_grad():
        copies((0, 0), basis[0], basis[1], 0.1)
        copies(vlm_hops.MENTION, basis[2], basis[2])
        compares(vlm_hops.LOOK, basis[2])
        copies(vlm_hops.OWNER, basis[3], basis[3])
        copies(vlm_hops.LOOK, basis[3], basis[3])
        compares(vlm_hops.NAME, basis[3])
