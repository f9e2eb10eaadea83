"""A local folder of a vision-language model -> something that answers about pictures: yes or no, or in words."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from PIL import Image

from ..idcrafter.subjects.faces import to_uint8
from . import pretrained

QWEN = ("Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct")
# Listed by the loader whether they are there or not, with where they come from.
KNOWN = dict((QWEN, ("Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-4B-Instruct")))
YES, NO = "Yes", "No"
PRECISIONS = ("default", "bf16", "fp16", "fp32", "4-bit")
TOP_P = 0.9  # of the tokens that a temperature above 0 may choose from

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_PIECES, _PIECE = 64, 1 << 16  # how many bytes of a weight file stand for all of it

# Text and pictures [H, W, 3] (0..1) in the order in which a VLM reads them.
Parts = Sequence["str | torch.Tensor"]


@dataclass(frozen=True, eq=False)
class LocalVLM:
    """A chat model with pictures.

    yes_token  the id with which the answer Yes begins; None where Yes and No begin alike
    precision  one of PRECISIONS
    """

    model: pretrained.Pretrained
    yes_token: int | None
    _processor: Any = field(repr=False)
    precision: str = "default"

    def yes_probability(self, images: Sequence[torch.Tensor], question: str) -> float:
        """The probability that the answer about the images [H, W, 3] (0..1) begins with Yes, of all tokens."""
        if self.yes_token is None:
            raise ValueError(f"The tokenizer of '{self.model.name}' does not tell Yes from No by the first token.")
        inputs = self.inputs(images, question)
        with self.model.use() as (net, device):
            logits = net(**inputs.to(device, net.dtype)).logits[0, -1]
            return float(torch.softmax(logits.float(), -1)[self.yes_token])

    def inputs(self, images: Sequence[torch.Tensor], question: str) -> Any:
        """What the net is given: the pictures and then the question as one turn of a chat, the answer begun."""
        if not images or not question.strip():
            raise ValueError("A VLM needs at least one picture and a question.")
        return self.chat_inputs([*images, question])

    def chat_inputs(self, parts: Parts, answer: str = "") -> Any:
        """What the net is given for one turn of a chat that shows and says `parts` in their order, and the answer, as
        far as it is known.

        Texts cannot end the turn or pretend to be a picture: the tokenizer's special tokens are taken out of them.
        Raises ValueError without any text, or for pixels that are not finite.
        """
        pictures = [part for part in parts if not isinstance(part, str)]
        if not any(isinstance(part, str) and part.strip() for part in parts):
            raise ValueError("A VLM needs words; say what is asked about the pictures.")
        for i, picture in enumerate(pictures):
            if not torch.isfinite(picture).all():
                raise ValueError(f"Picture {i + 1} holds NaN or infinite pixels; look at the node that made it.")
        content = [
            {"type": "text", "text": self._plain(part)} if isinstance(part, str) else {"type": "image"}
            for part in parts
        ]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        shown = [Image.fromarray(to_uint8(picture)) for picture in pictures]
        return self._processor(text=[text + self._plain(answer)], images=shown or None, return_tensors="pt")

    def generate(
        self,
        parts: Parts,
        max_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int = 0,
        on_token: Callable[[], None] | None = None,
    ) -> str:
        """The answer to one turn of a chat (`chat_inputs`), without special tokens.

        temperature  0 takes the likeliest token each time; above 0 tokens are drawn, and `seed` decides which
        on_token     called after each token, for progress
        ComfyUI's interrupt is asked for at every token.
        """
        import transformers

        def stops(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if on_token is not None:
                on_token()
            return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

        inputs = self.chat_inputs(parts)
        with self.model.use() as (net, device), _seeded(device, seed):
            inputs = inputs.to(device, net.dtype)
            ids = net.generate(
                **inputs,
                generation_config=self._generation_config(net, max_tokens, temperature),
                stopping_criteria=transformers.StoppingCriteriaList([stops]),
            )
            answer = ids[0, inputs["input_ids"].shape[1] :].tolist()
        return self._processor.tokenizer.decode(answer, skip_special_tokens=True).strip()

    def describe(self) -> dict:
        return self.model.describe()

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of what decides an answer: the precision, the small files whole, the weights by samples.

        Of a weight file its size, its header and 64 pieces from all over it count: reading every byte of it would take
        longer than most answers do.
        """
        made = hashlib.sha256(f"{self.precision} {self.model.config['model_type']}".encode())
        for path in sorted(self.model.path.iterdir()):
            if path.suffix in (".json", ".jinja", ".txt", ".model"):
                made.update(path.name.encode() + path.read_bytes())
            elif path.suffix in (".safetensors", ".bin"):
                size = path.stat().st_size
                made.update(f"{path.name} {size}".encode())
                with path.open("rb") as file:
                    for i in range(_PIECES):
                        file.seek(i * max(size - _PIECE, 0) // (_PIECES - 1))
                        made.update(file.read(_PIECE))
        return made.hexdigest()

    def _plain(self, text: str) -> str:
        tokenizer = self._processor.tokenizer
        for token in {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}:
            if token.strip():
                text = text.replace(token, " ")
        return text

    def _generation_config(self, net: Any, max_tokens: int, temperature: float) -> Any:
        """Everything is stated, because a folder's generation_config.json likes to ask for sampling."""
        import transformers

        own, tokenizer = net.generation_config, self._processor.tokenizer
        ends = [own.eos_token_id] if isinstance(own.eos_token_id, int) else list(own.eos_token_id or ())
        if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
            ends.append(tokenizer.eos_token_id)
        pad = own.pad_token_id if own.pad_token_id is not None else tokenizer.pad_token_id
        drawn = {"do_sample": True, "temperature": temperature, "top_p": TOP_P, "top_k": 0}
        return transformers.GenerationConfig(
            max_new_tokens=max_tokens,
            num_beams=1,
            repetition_penalty=1.0,
            bos_token_id=own.bos_token_id,
            eos_token_id=ends or None,
            pad_token_id=pad if pad is not None else (ends or [0])[0],
            **(drawn if temperature > 0 else {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}),
        )


def load_vlm(folder: Path, precision: str = "default") -> LocalVLM:
    """Load a model folder.

    precision  one of PRECISIONS; "4-bit" needs the packages bitsandbytes and accelerate, and a GPU
    Raises ValueError for a folder whose model takes no pictures or has no chat template, RuntimeError when the machine
    cannot do 4-bit.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"The precision '{precision}' is unknown; choose one of {', '.join(PRECISIONS)}.")
    config = pretrained.read_config(folder)
    import transformers

    if config["model_type"] not in transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        kind = f"'{folder.name}' is a {config['model_type']}"
        if "vision_config" in config:
            raise ValueError(f"{kind}, which transformers {transformers.__version__} does not know; update it.")
        raise ValueError(f"{kind}, not a model that answers about pictures.")
    extra = _four_bit() if precision == "4-bit" else {}
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
    told = bool(yes and no and yes[0] != no[0])
    model = pretrained.load(
        folder, transformers.AutoModelForImageTextToText, config, _DTYPES.get(precision) or _dtype(), **extra
    )
    return LocalVLM(model, int(yes[0]) if told else None, processor, precision)


def _four_bit() -> dict[str, Any]:
    """What from_pretrained needs to quantise to nf4 (QLoRA, arXiv 2305.14314) while it loads."""
    missing = [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(
            f"4-bit needs {' and '.join(missing)}: pip install {' '.join(missing)} with ComfyUI's Python, or choose "
            "another precision."
        )
    device = comfy.model_management.get_torch_device()
    if comfy.model_management.is_device_cpu(device):
        raise RuntimeError("4-bit needs a GPU, and ComfyUI runs on the CPU; choose another precision.")
    import transformers

    made = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_dtype(),
    )
    return {"quantization_config": made, "device_map": {"": device}}


def _dtype() -> torch.dtype:
    """bfloat16 where the device computes in it, otherwise float32."""
    device = comfy.model_management.get_torch_device()
    with contextlib.suppress(AttributeError):
        if not comfy.model_management.is_device_cpu(device) and comfy.model_management.should_use_bf16(device):
            return torch.bfloat16
    return torch.float32


@contextlib.contextmanager
def _seeded(device: torch.device, seed: int):
    """Draws from this seed inside, and leaves torch's generators as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
