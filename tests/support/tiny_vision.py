"""Tiny model folders for the reward terms, as `hf download` leaves the released ones: DINO, CLIP with LAION's head, and
Qwen2.5-VL with its processor."""

import json
from pathlib import Path

import torch
import transformers

from support import tiny_judge

WIDTH = 24  # of the embeddings
SIDE = 32
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _vit(**fields) -> dict:
    return {
        "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40,
        "image_size": SIDE, "patch_size": 8, **fields,
    }  # fmt: skip


def _save(model: torch.nn.Module, folder: Path, licence: str) -> Path:
    model.eval().save_pretrained(folder)
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n# A model\n")
    return folder


def write_dino(folder: Path) -> Path:
    """DINO v1 is released without a pooler."""
    torch.manual_seed(1)
    model = transformers.ViTModel(transformers.ViTConfig(**_vit(initializer_range=0.2)), add_pooling_layer=False)
    return _save(model, folder, "apache-2.0")


def write_dinov2(folder: Path) -> Path:
    torch.manual_seed(2)
    return _save(transformers.Dinov2Model(transformers.Dinov2Config(**_vit())), folder, "apache-2.0")


def write_clip(folder: Path, projection: int = WIDTH) -> Path:
    """The whole model, text half included, as released."""
    torch.manual_seed(3)
    text = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 32,
        "projection_dim": projection,
    }  # fmt: skip
    config = transformers.CLIPConfig(
        text_config=text, vision_config=_vit(projection_dim=projection), projection_dim=projection
    )
    return _save(transformers.CLIPModel(config), folder, "mit")


def head_weights(dimensions: int = WIDTH) -> dict[str, torch.Tensor]:
    """LAION's key names; dropout stands at 1, 3 and 5."""
    generator = torch.Generator().manual_seed(4)
    sizes = (dimensions, 1024, 128, 64, 16, 1)
    weights = {}
    for place, rows, columns in zip((0, 2, 4, 6, 7), sizes[1:], sizes, strict=False):
        weights[f"layers.{place}.weight"] = torch.randn(rows, columns, generator=generator) / columns**0.5
        weights[f"layers.{place}.bias"] = torch.randn(rows, generator=generator)
    return weights


def write_head(path: Path, dimensions: int = WIDTH) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(head_weights(dimensions), path)
    return path


def write_vlm(folder: Path, chat: str | None = "chat_template.json") -> Path:
    """Qwen2.5-VL by its published tensor names and files; `chat` is the file with the chat template."""
    tiny_judge.write_base(folder)
    special = dict(zip(("pad_token", "eos_token"), ("<|endoftext|>", "<|im_end|>"), strict=True))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "additional_special_tokens": list(tiny_judge.SPECIAL), **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if chat is not None:
        file = folder / chat
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**known, "chat_template": CHAT}))
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
                "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
                "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
            }
        )
    )  # fmt: skip
    (folder / "README.md").write_text("---\nlicense_name: qwen-research\nlicense: other\n---\n")
    return folder
