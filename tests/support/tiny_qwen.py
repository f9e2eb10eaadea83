"""Tiny Qwen-VLs to read hidden states from: Qwen3-VL as a folder of transformers, and ComfyUI's own Qwen2.5-VL and
Qwen3-VL as a CLIP, each with a twin of transformers that has the same weights."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers

from support import tiny_judge, tiny_models
from support.tiny_vision import CHAT

WIDTH, LAYERS, DEEPSTACK = 128, 4, 2  # core's heads are 128 wide, whatever the size
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
_TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
}
_VISION = {"hidden_size": 32, "intermediate_size": 40, "num_heads": 2, "depth": 3}
_SPECIAL = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652,
            "vision_end_token_id": 151653}  # fmt: skip
_QWEN25 = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "patch_size": 14, "min_pixels": 3136, "max_pixels": 12845056,
}  # fmt: skip
_QWEN3 = {
    "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16, "min_pixels": 3136, "max_pixels": 12845056,
}  # fmt: skip


def write_qwen3vl(folder: Path) -> Path:
    """Qwen3-VL with the files of a release, interleaved mrope and deepstack included."""
    config = transformers.Qwen3VLConfig(
        text_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "vocab_size": tiny_judge.PADDED, "max_position_embeddings": 8192,
            "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True},
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 40, "num_heads": 2, "depth": 2, "out_hidden_size": 32,
            "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=262, video_token_id=263, vision_start_token_id=259, vision_end_token_id=260,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(5)
    model = transformers.Qwen3VLForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # biases too, and far enough from one another
    model.save_pretrained(folder)
    tiny_judge.tokenizer().save(str(folder / "tokenizer.json"))
    special = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    settings = {"tokenizer_class": "Qwen2Tokenizer", "additional_special_tokens": list(tiny_judge.SPECIAL), **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT}))
    settings = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": 1024, "longest_edge": 16777216},
        "temporal_patch_size": 2,
        "merge_size": 2,
        **{name: _QWEN3[name] for name in ("patch_size", "image_mean", "image_std")},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def core_clip(kind: str, patch):
    """(CLIP, twin): ComfyUI's own encoder, `kind` "qwen25_7b" or "qwen3vl_4b", and transformers' with its weights.

    patch  a MonkeyPatch, which makes core's fixed sizes of the vision towers small
    twin   has `hidden(text, pictures)`: all hidden states of transformers' own calls
    """
    import comfy.sd
    from comfy.text_encoders import qwen3vl, qwen_image, qwen_vl

    if kind == "qwen25_7b":
        tower = qwen_vl.Qwen2VLVisionTransformer
        sizes = {k if k != "depth" else "num_layers": v for k, v in _VISION.items()}
        patch.setattr(qwen_vl, "Qwen2VLVisionTransformer", lambda **given: tower(**{**given, **sizes}))
        encoder, tokenizer = qwen_image.te(), qwen_image.QwenImageTokenizer
        vision = {**_VISION, "out_hidden_size": WIDTH, "patch_size": 14, "window_size": 112,
                  "fullatt_block_indexes": [7, 15, 23, 31]}  # fmt: skip
        rope = {"type": "mrope", "mrope_section": [16, 24, 24]}
        text = {**_TEXT, "rope_theta": 1000000.0, "rope_scaling": rope}
        config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_SPECIAL)
        twin, settings = transformers.Qwen2_5_VLModel(config), _QWEN25
    else:
        own = {"hidden_size": 32, "intermediate_size": 40, "depth": 3, "deepstack_visual_indexes": [0, 2]}
        patch.setitem(qwen3vl.QWEN3VL_VISION, kind, own)
        patch.setitem(qwen3vl.QWEN3VL_VISION_COMMON, "num_heads", 2)
        encoder, tokenizer = qwen3vl.te(model_type=kind), qwen3vl.tokenizer(kind)
        vision = {**_VISION, **own, "out_hidden_size": WIDTH, "patch_size": 16, "num_position_embeddings": 2304}
        rope = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True, "rope_theta": 5e6}
        text = {**_TEXT, "head_dim": 128, "rope_theta": 5e6, "rope_scaling": rope}
        config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **_SPECIAL)
        twin, settings = transformers.Qwen3VLModel(config), _QWEN3
    target = SimpleNamespace(params={}, clip=encoder, tokenizer=tokenizer)
    options = {f"{kind}_model_config": _TEXT, "dtype": torch.float32}
    clip = comfy.sd.CLIP(target, model_options=options)
    model = getattr(clip.cond_stage_model, kind).transformer
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = tiny_models.random_weights(shapes, 3)
    weights["model.embed_tokens.weight"] *= 10
    model.load_state_dict(weights)
    renamed = {
        "language_model." + name.removeprefix("model.") if name.startswith("model.") else name: tensor
        for name, tensor in weights.items()
    }
    twin.load_state_dict(renamed, strict=True, assign=True)
    return clip, _Twin(twin.eval(), clip.tokenizer, kind, settings)


class _Twin:
    def __init__(self, model, tokenizer, kind, settings):
        self.model, self.settings = model, settings
        self.tokenizer = getattr(tokenizer, tokenizer.clip).tokenizer

    def hidden(self, text: str, pictures: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        from PIL import Image

        images = [Image.fromarray((picture * 255).round().byte().numpy()) for picture in pictures]
        inputs = {}
        if images:
            processor = transformers.Qwen2VLImageProcessor(**self.settings)
            inputs = dict(processor(images=images, return_tensors="pt"))
            for t, h, w in inputs["image_grid_thw"].tolist():
                text = text.replace("<|image_pad|>", "<|here|>" * (t * h * w // 4), 1)
            text = text.replace("<|here|>", "<|image_pad|>")
        ids = torch.tensor([self.tokenizer(text)["input_ids"]])
        inputs["mm_token_type_ids"] = (ids == _SPECIAL["image_token_id"]).int()
        with torch.inference_mode():
            return self.model(input_ids=ids, **inputs, output_hidden_states=True, use_cache=False).hidden_states
