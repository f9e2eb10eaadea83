"""A vision-language model reads photos and a prompt -> its hidden states, for an aligner or an identity hierarchy.

Layers count as in transformers: n is what comes out of the n-th decoder layer, and the last one is normalised. Two
kinds of model are read: a folder of transformers (Load VLM) by its own chat template and processor, and ComfyUI's own
text encoders that see pictures, Qwen2.5-VL and Qwen3-VL, by taking a CLIP. Of those the tokenizer is called with
`images`, because Qwen2.5-VL's drops an `image` without a word, and the inner model is called, because some encoders cut
the beginning of the chat off what they return.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..idcrafter.modules.aligner import PROMPT, Reading, spanned
from ..idcrafter.relations.compose import replace_names
from ..idcrafter.relations.request import request_parts
from ..idcrafter.rewards.naturalness import fit
from ..idcrafter.subjects.subject import Cast
from .vlm import LocalVLM

_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
# Control tokens of the chat, and what makes ComfyUI open an embedding's file.
_MARKUP = re.compile(r"<\|[^<>|\n]{0,40}\|>|embedding\s*:", re.IGNORECASE)
_TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
# The chat templates of the released models, by core's name of the encoder.
_CLIPS = {
    "qwen25_7b": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + _TURN,
    "qwen3vl_4b": _TURN,
    "qwen3vl_8b": _TURN,
}


@dataclass(frozen=True, eq=False)
class VLMStates:
    """What a VLM has made of photos and a text.

    states  [1, L, C] float32, on the CPU
    keys    [1, L] bool, which of them exist
    layer   1..layers, from which they are
    model   the VLM's name
    """

    states: torch.Tensor
    keys: torch.Tensor
    layer: int
    layers: int
    model: str


def states_of_vlm(
    vlm: LocalVLM, shown: Sequence[torch.Tensor] | Cast, prompt: str, reading: Reading, answer: str | None = None
) -> VLMStates:
    """The states of a model of transformers.

    shown   photos, each [H, W, 3] in 0..1; where the reading is "relate", the cast
    answer  the one to read, where the reading has one; the VLM's own unless given
    Raises ValueError for a layer that the model does not have.
    """
    parts = _parts(shown, prompt, reading)
    if not reading.answer:
        answer = ""
    elif answer is None:
        answer = vlm.generate(parts, reading.answer)
    inputs = vlm.chat_inputs(parts, answer)
    with vlm.model.use() as (net, device):
        # The answer's first token is not asked for, so logits of the whole request would be waste.
        less = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(net.forward).parameters else {}
        layers = net.config.get_text_config().num_hidden_layers
        layer = place_of(reading.layer, layers)
        hidden = net(**inputs.to(device, net.dtype), output_hidden_states=True, use_cache=False, **less).hidden_states
        states = spanned(hidden[layer].float().cpu(), reading.span)
    keys = inputs["attention_mask"].bool().cpu()
    return VLMStates(states.clone(), keys.clone(), layer, layers, vlm.model.name)


def states_of_clip(clip, shown: Sequence[torch.Tensor] | Cast, prompt: str, reading: Reading) -> VLMStates:
    """The states of ComfyUI's own Qwen2.5-VL or Qwen3-VL; the same photos, prompt and layer as of transformers.

    Raises ValueError for a CLIP that sees no pictures or whose chat is not known here, for a layer that it does not
    have, and for a reading with an answer.
    """
    if reading.answer:
        raise ValueError("The aligner reads an answer that the VLM writes first; connect a model from Load VLM.")
    encoder = clip.cond_stage_model
    name = getattr(encoder, "clip_name", type(encoder).__name__)
    if name not in _CLIPS:
        raise ValueError(
            f"This CLIP is '{name}', which does not see pictures; connect Qwen2.5-VL or Qwen3-VL from Load CLIP, or a "
            "model from Load VLM."
        )
    inner = getattr(encoder, encoder.clip)
    layers = inner.num_layers
    layer = place_of(reading.layer, layers)
    parts = _parts(shown, prompt, reading)
    said = "".join(_plain(part) if isinstance(part, str) else _PICTURE for part in parts)
    images = [part[None] for part in parts if not isinstance(part, str)]
    tokens = clip.tokenize(_CLIPS[name].format(said), images=images)
    rows = [[token[0] for token in row] for row in tokens[name]]
    seen = sum(isinstance(token, dict) and token.get("type") == "image" for row in rows for token in row)
    if seen != len(images):
        raise ValueError(
            f"The CLIP '{name}' took {seen} of {len(images)} photos; this ComfyUI's tokenizer is not known here, use a "
            "model from Load VLM."
        )
    encoder.reset_clip_options()
    clip.load_model(tokens)
    try:
        # Core counts layers from 0; only without a number it gives the states behind the last norm.
        where = None if layer == layers else layer - 1
        encoder.set_clip_options({"layer": where, "execution_device": clip.patcher.load_device})
        with torch.inference_mode():
            states, _, extra = inner(rows)
            states, keys = spanned(states.float().cpu(), reading.span), extra["attention_mask"].bool().cpu()
    finally:
        encoder.reset_clip_options()
    return VLMStates(states.clone(), keys.clone(), layer, layers, name)


def place_of(layer: int, layers: int) -> int:
    """A layer counted from 1, or from -1 at the end -> 1..layers; ValueError outside."""
    place = layers + 1 + layer if layer < 0 else layer
    if not 1 <= place <= layers:
        raise ValueError(
            f"Layer {layer} was asked for, but the VLM has {layers}; choose 1 to {layers}, or -1 to -{layers}."
        )
    return place


def _plain(text: str) -> str:
    return _MARKUP.sub(" ", text)


def _parts(shown: Sequence[torch.Tensor] | Cast, prompt: str, reading: Reading) -> list[str | torch.Tensor]:
    """The photos and what the VLM is told, in the order in which it reads them."""
    if isinstance(shown, Cast):
        return request_parts(*_renamed(shown, prompt, reading.names))
    photos = [fit(photo, reading.side) for photo in shown]
    said = reading.instruction.replace(PROMPT, prompt)
    return [*photos, said] if reading.pictures == "before" else [said, *photos]


def _renamed(cast: Cast, prompt: str, names: Sequence[str]) -> tuple[Cast, str]:
    """The cast and the prompt with these names, in the order of the cast; as they are where it is larger."""
    if len(names) < len(cast.subjects):
        return cast, prompt
    subjects = tuple(replace(who, name=name) for who, name in zip(cast.subjects, names, strict=False))
    prompt, _ = replace_names(prompt, [who.name for who in cast.subjects], lambda i, again: names[i])
    return replace(cast, subjects=subjects), prompt
