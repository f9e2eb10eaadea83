"""ComfyUI's own text-generating CLIPs (Qwen3-VL, Qwen3.5, Gemma) -> something that answers about pictures.

Facts: ComfyUI 0.30, comfy/text_encoders/{qwen_image, qwen3vl, qwen35, lt, gemma4}.py and comfy_extras/nodes_textgen.py.
Qwen's tokenizers put a list of pictures in the places of <|image_pad|>, and leave a text alone that begins with
<|im_start|>. Core's own Generate Text node hands a picture over as `image`, which the tokenizer of Qwen2.5-VL does not
read, so that the model answers without having seen it; here the tokens are counted. The other tokenizers take one
picture; they are shown all of them on one sheet.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import comfy.sd
import comfy.sd1_clip
import torch
from PIL import Image, ImageDraw

from ..idcrafter import drawing
from ..idcrafter.subjects.faces import to_uint8
from .vlm import TOP_P, Parts

_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
# What starts, ends or stands for something in the chats of these models, and what makes ComfyUI open an embedding.
_MARKUP = re.compile(r"</?[|\w][^<>\n]{0,40}>|<\|?|\|?>|embedding\s*:", re.IGNORECASE)
# What released chat templates put in front; core's names of the encoders, their size cut off.
_SYSTEM = {"qwen25": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"}
# How an answer begins that does without thinking aloud; the other Qwens' is in `tokens`.
_SILENT = {"qwen25": "", "qwen35": "<think>\n</think>\n"}
_TILE = 384  # pixels a picture on the sheet
_LABEL = 30
_VALUES = 16  # sampled from each weight


@dataclass(frozen=True, eq=False)
class ClipVLM:
    """A CLIP that writes about pictures."""

    clip: comfy.sd.CLIP

    def tokens(self, parts: Parts) -> Any:
        """One turn of a chat that shows and says `parts`, as the CLIP's tokens, with every picture among them.

        Raises ValueError when the CLIP has not taken all of the pictures.
        """
        pictures = [part for part in parts if not isinstance(part, str)]
        tokenizer = self.clip.tokenizer
        if "<|image_pad|>" in getattr(tokenizer, "llama_template_images", ""):
            name = getattr(tokenizer, "clip_name", "")[:6]
            told = "".join(_plain(part) if isinstance(part, str) else _PICTURE for part in parts)
            text = f"{_SYSTEM.get(name, '')}<|im_start|>user\n{told}<|im_end|>\n<|im_start|>assistant\n"
            text += _SILENT.get(name, "<think>\n\n</think>\n\n")
            expected = len(pictures)
            tokens = self.clip.tokenize(text, images=[picture[None] for picture in pictures], min_length=1)
        else:
            expected, count = min(len(pictures), 1), 0
            told = ""
            for part in parts:
                count += not isinstance(part, str)
                told += _plain(part) if isinstance(part, str) else f"[picture {count} of the sheet]"
            image = {"image": _sheet(pictures)} if pictures else {}
            tokens = self.clip.tokenize(told, skip_template=False, min_length=1, thinking=False, **image)
        seen = sum(isinstance(token[0], dict) for rows in tokens.values() for row in rows for token in row)
        if seen != expected:
            raise ValueError(
                f"The CLIP '{self.describe()['name']}' took {seen} of {expected} pictures; use one that sees pictures, "
                "such as Qwen3-VL."
            )
        return tokens

    def generate(
        self,
        parts: Parts,
        max_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int = 0,
        on_token: Callable[[], None] | None = None,
    ) -> str:
        """The answer, as `LocalVLM.generate` gives it. ComfyUI shows the progress and asks for interrupts itself, so
        that `on_token` is not called."""
        ids = self.clip.generate(
            self.tokens(parts),
            do_sample=temperature > 0,
            max_length=max_tokens,
            temperature=temperature or 1.0,
            top_k=0,
            top_p=TOP_P,
            seed=seed,
        )
        return self.clip.decode(ids, skip_special_tokens=True).strip()

    def yes_probability(self, images: Sequence[torch.Tensor], question: str) -> float:
        """Raises ValueError: ComfyUI's encoders write, and do not say how likely their words were."""
        raise ValueError("A CLIP cannot say how likely a Yes is; choose a model folder in Load VLM, without a clip.")

    def describe(self) -> dict:
        name = getattr(self.clip.tokenizer, "clip_name", type(self.clip.cond_stage_model).__name__)
        return {"name": f"CLIP {name}", "licence": "that of the loaded file"}

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of the weights' names, shapes, types and some of their values, and of the patches on them."""
        patcher = self.clip.patcher
        made = hashlib.sha256(str(patcher.patches_uuid if patcher.patches else "").encode())
        for name, weight in sorted(self.clip.cond_stage_model.state_dict().items()):
            made.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            if type(weight) not in (torch.Tensor, torch.nn.Parameter):
                continue  # ComfyUI's quantised tensors do not let their values be sampled
            flat = weight.detach().reshape(-1)
            step = max(1, flat.numel() // _VALUES)
            made.update(flat[::step][:_VALUES].cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return made.hexdigest()


def vlm_of_clip(clip: comfy.sd.CLIP) -> ClipVLM:
    """Raises ValueError for a CLIP that cannot write, or that does not see pictures."""
    whole = clip.cond_stage_model
    inner = getattr(whole, getattr(whole, "clip", ""), None)
    writer = whole if inner is None else getattr(inner, "transformer", inner)
    vlm = ClipVLM(clip)
    if not hasattr(writer, "generate") or not _ends(inner, writer):
        raise ValueError(
            f"The CLIP '{vlm.describe()['name']}' only encodes text and cannot write in this ComfyUI; load Qwen3-VL by "
            "Load CLIP, or leave the socket unconnected and choose a model folder."
        )
    try:
        vlm.tokens(["?", torch.zeros(64, 64, 3)])
    except TypeError as error:
        raise ValueError(
            f"The CLIP '{vlm.describe()['name']}' takes no pictures ({error}); use one that sees pictures, such as "
            "Qwen3-VL."
        ) from error
    return vlm


def _ends(inner: Any, writer: Any) -> bool:
    """Whether the encoder knows with which token an answer ends.

    Core's common way of writing asks the network's config. That of Qwen2.5-VL does not say in ComfyUI 0.30, whose
    network is without the output layer, too: it was made for encoding.
    """
    if getattr(type(inner), "generate", None) is not comfy.sd1_clip.SDClipModel.generate:
        return True
    return hasattr(getattr(getattr(writer, "model", None), "config", None), "stop_tokens")


def _plain(text: str) -> str:
    return _MARKUP.sub(" ", text)


def _sheet(pictures: Sequence[torch.Tensor]) -> torch.Tensor:
    """The pictures side by side, numbered from 1: [1, H, W, 3]."""
    columns = min(len(pictures), 4)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * _TILE, rows * (_TILE + _LABEL)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        x, y = i % columns * _TILE, i // columns * (_TILE + _LABEL)
        tile = Image.fromarray(to_uint8(picture))
        tile.thumbnail((_TILE, _TILE), Image.Resampling.LANCZOS)
        sheet.paste(tile, (x, y + _LABEL))
        drawing.draw_text(draw, (x + 8, y + 4), f"picture {i + 1}", 20, (0, 0, 0))
    return drawing.to_tensor(sheet)
