"""A local folder of a vision-language model -> something that can be asked a yes-or-no question about pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from PIL import Image

from ..idcrafter.subjects.faces import to_uint8
from . import pretrained

QWEN = ("Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct")
YES, NO = "Yes", "No"


@dataclass(frozen=True, eq=False)
class LocalVLM:
    """A chat model with pictures. yes_token is the id with which the answer Yes begins."""

    model: pretrained.Pretrained
    yes_token: int
    _processor: Any = field(repr=False)

    def yes_probability(self, images: Sequence[torch.Tensor], question: str) -> float:
        """The probability that the answer about the images [H, W, 3] (0..1) begins with Yes, of all tokens."""
        inputs = self.inputs(images, question)
        with self.model.use() as (net, device):
            logits = net(**inputs.to(device, net.dtype)).logits[0, -1]
            return float(torch.softmax(logits.float(), -1)[self.yes_token])

    def inputs(self, images: Sequence[torch.Tensor], question: str) -> Any:
        """What the net is given: the pictures and then the question as one turn of a chat, the answer begun."""
        if not images or not question.strip():
            raise ValueError("A VLM needs at least one picture and a question.")
        for i, image in enumerate(images):
            if not torch.isfinite(image).all():
                raise ValueError(f"Picture {i + 1} holds NaN or infinite pixels; look at the node that made it.")
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        pictures = [Image.fromarray(to_uint8(image)) for image in images]
        return self._processor(text=[text], images=pictures, return_tensors="pt")

    def describe(self) -> dict:
        return self.model.describe()


def load_vlm(folder: Path) -> LocalVLM:
    """Raises ValueError for a folder whose model takes no pictures, has no chat template, or cannot say Yes."""
    config = pretrained.read_config(folder)
    import transformers

    if config["model_type"] not in transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ValueError(f"'{folder.name}' is a {config['model_type']}, not a model that answers about pictures.")
    try:
        processor = transformers.AutoProcessor.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # noqa: BLE001 - a missing or damaged file has many types here
        raise ValueError(
            f"The processor in '{folder}' could not be loaded ({str(error).strip().splitlines()[0][:200]}); download "
            "the whole repository into the folder."
        ) from error
    # Some repositories keep it with the tokenizer only.
    processor.chat_template = processor.chat_template or processor.tokenizer.chat_template
    if not processor.chat_template:
        raise ValueError(f"'{folder.name}' has no chat template; use an instruction-tuned model, such as {QWEN[1]}.")
    yes, no = (processor.tokenizer(word, add_special_tokens=False).input_ids for word in (YES, NO))
    if not yes or not no or yes[0] == no[0]:
        raise ValueError(f"The tokenizer of '{folder.name}' does not tell Yes from No by the first token.")
    model = pretrained.load(folder, transformers.AutoModelForImageTextToText, config, _dtype())
    return LocalVLM(model, int(yes[0]), processor)


def _dtype() -> torch.dtype:
    """bfloat16 where the device computes in it, otherwise float32."""
    device = comfy.model_management.get_torch_device()
    with contextlib.suppress(AttributeError):
        if not comfy.model_management.is_device_cpu(device) and comfy.model_management.should_use_bf16(device):
            return torch.bfloat16
    return torch.float32
