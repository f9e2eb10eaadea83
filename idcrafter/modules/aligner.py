"""From a vision-language model's hidden states to what a video model reads as text.

A VLM that has seen all photos and the prompt at once knows who is who without tags; its hidden states carry that. A
video model was trained on the states of a text encoder, so a net that is trained for it has to stand between:

*Aligner*, CINEMA's AlignerNet (arXiv 2503.10391): learned latents look at the states and become the text encoder's
tokens. Published are 6 attention layers, width 768, 8 heads, 226 latents (the length of CogVideoX's text), and a latent
width of 2048; neither code nor weights. Here 2048 is the width of the latents between the layers and 768 that of the
attention, of which each layer has one over states and latents at once, as in the facial extractor; the feed-forward
net is four times as wide as the attention, the states are normalised and projected before the first layer.

*Projector*, BindWeave's (ByteDance/BindWeave, s2v/models/predictor/wan_dit_mllm.py): two linear layers with GELU (tanh)
between them, 3584 -> 4096 -> 4096, state by state; its tokens go before those of the text.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import nn

from .facial_extractor import PerceiverAttention

# Where the tokens go: in the place of the prompt's, behind or before them, or to the identity hierarchy alone.
USES = ("replace", "append", "prepend", "hierarchy")
# "relate": everybody's photos behind the name, and the prompt, in the request that IDCrafterRelate makes.
PICTURES = ("before", "after", "relate")
PROMPT = "{prompt}"
INSTRUCTION = (
    "The pictures show the subjects of a video. Keep each of them as it looks here, tell them apart, and understand "
    "who does what with whom, when and where. The video: {prompt}"
)


@dataclass(frozen=True)
class Reading:
    """How a VLM is read: an aligner knows the states that come from this, and no others.

    layer        of the VLM: 1 is its first, -1 its last, whose states are normalised
    instruction  what it is told; {prompt} stands for the prompt. "relate" has an instruction of its own
    pictures     one of PICTURES, where they are, seen from the text
    side         in px, the most that the long side of a photo has; "relate" has its own as well
    use          one of USES, what the video model was trained with
    answer       in tokens: the VLM first writes an answer of at most so many, whose states follow those of what it was
                 told; 0 for none
    span         how many states are read as one, each behind those before it: with a few, what belongs together in an
                 answer (who, does what) is found in one place, however small the VLM is
    names        what subjects are called in Relate's request and in the prompt, in cast order, so that states do not
                 depend on how people name them; a cast that is larger keeps its own names
    """

    layer: int = -1
    instruction: str = INSTRUCTION
    pictures: str = PICTURES[0]
    side: int = 448
    use: str = USES[0]
    answer: int = 0
    span: int = 1
    names: tuple[str, ...] = ()


# BindWeave, branch feature_extraction, s2v/tasks/inference/pipeline/qwen2vl_pipeline.py: the bare prompt, then the
# photos (at 0.75 or 0.3 of their size), the states behind the last norm.
BINDWEAVE = Reading(-1, PROMPT, "after", 640, "prepend")


@dataclass(frozen=True)
class AlignerConfig:
    """What an aligner's file says of itself. The sizes are CINEMA's.

    in_width, out_width  of the VLM's states, `reading.span` of them, and of the text encoder's
    tokens               latents, which become as many tokens
    latent_width, width  of the latents, and of the attention inside
    reading              how the VLM is read
    """

    in_width: int
    out_width: int
    tokens: int = 226
    latent_width: int = 2048
    width: int = 768
    heads: int = 8
    depth: int = 6
    reading: Reading = field(default_factory=Reading)

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> AlignerConfig:
        """ValueError if the text is not an aligner's description."""
        try:
            values = dict(json.loads(text))
            reading = _known(Reading, dict(values.pop("reading", {})))
            reading["names"] = tuple(reading.get("names", ()))
            config = cls(**_known(cls, values), reading=Reading(**reading))
        except (TypeError, ValueError) as error:
            raise ValueError(f"this is not the description of an aligner ({error})") from error
        sizes = [getattr(config, each.name) for each in fields(cls) if each.name != "reading"]
        sizes += [config.reading.side, config.reading.span]
        if any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in sizes):
            raise ValueError("the sizes of the aligner must be whole numbers of at least 1")
        if config.width % config.heads:
            raise ValueError(f"the aligner's width {config.width} can't be shared out to {config.heads} heads")
        read = config.reading
        if isinstance(read.layer, bool) or not isinstance(read.layer, int) or read.layer == 0:
            raise ValueError(f"the aligner reads layer {read.layer!r}; layers count from 1, or from -1 at the end")
        if isinstance(read.answer, bool) or not isinstance(read.answer, int) or read.answer < 0:
            raise ValueError(f"the aligner reads an answer of {read.answer!r} tokens; it must be a whole number from 0")
        if not all(isinstance(name, str) and name for name in read.names) or len(set(read.names)) < len(read.names):
            raise ValueError("the aligner's names of subjects must be different words")
        if not isinstance(read.instruction, str) or PROMPT not in read.instruction:
            raise ValueError(f"the aligner's instruction must be a text with {PROMPT} in it")
        if read.pictures not in PICTURES or read.use not in USES:
            raise ValueError(
                f"the aligner wants its pictures '{read.pictures}' the text and its tokens used as '{read.use}'; known "
                f"are {', '.join(PICTURES)}, and {', '.join(USES)}"
            )
        return config


class Aligner(nn.Module):
    """States [B, L, in_width], keys [B, L] bool -> tokens [B, tokens, out_width] and the keys of those (all exist).

    operations  has Linear and LayerNorm: torch.nn, or comfy.ops for memory management
    States whose key is False change nothing.
    """

    def __init__(self, config: AlignerConfig, operations: Any, **factory):
        super().__init__()
        self.config = c = config
        self.norm_in = operations.LayerNorm(c.in_width, **factory)
        self.proj_in = operations.Linear(c.in_width, c.latent_width, **factory)
        self.latents = nn.Parameter(torch.empty(c.tokens, c.latent_width, **factory))
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attention": PerceiverAttention(operations, c.latent_width, c.heads, c.width // c.heads, **factory),
                    "feed_forward": nn.Sequential(
                        operations.LayerNorm(c.latent_width, **factory),
                        operations.Linear(c.latent_width, 4 * c.width, **factory),
                        nn.GELU(),
                        operations.Linear(4 * c.width, c.latent_width, **factory),
                    ),
                }
            )
            for _ in range(c.depth)
        )
        self.norm_out = operations.LayerNorm(c.latent_width, **factory)
        self.proj_out = operations.Linear(c.latent_width, c.out_width, **factory)

    def forward(self, states: torch.Tensor, keys: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        context = self.proj_in(self.norm_in(states))
        latents = self.latents.to(context).expand(len(context), -1, -1)
        for layer in self.layers:
            latents = latents + layer["attention"](context, latents, keys)
            latents = latents + layer["feed_forward"](latents)
        return self.proj_out(self.norm_out(latents)), latents.new_ones(latents.shape[:2], dtype=torch.bool)


class Projector(nn.Module):
    """States [B, L, in_width], keys [B, L] bool -> tokens [B, L, out_width] and their keys.

    The names are BindWeave's. Where a key is False, the token is zero.
    """

    def __init__(self, in_width: int, out_width: int, operations: Any, **factory):
        super().__init__()
        self.linear_1 = operations.Linear(in_width, out_width, **factory)
        self.linear_2 = operations.Linear(out_width, out_width, **factory)

    def forward(self, states: torch.Tensor, keys: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        if keys is None:
            keys = states.new_ones(states.shape[:2], dtype=torch.bool)
        tokens = self.linear_2(nn.functional.gelu(self.linear_1(states), approximate="tanh"))
        return tokens * keys[..., None].to(tokens), keys


def spanned(states: torch.Tensor, span: int) -> torch.Tensor:
    """States [B, L, C] -> [B, L, span * C], each with those before it behind it; before the first are zeros."""
    padded = nn.functional.pad(states, (0, 0, span - 1, 0))
    length = states.shape[1]
    return torch.cat([padded[:, span - 1 - k :][:, :length] for k in range(span)], dim=-1)


def join(text: torch.Tensor, tokens: torch.Tensor, use: str) -> torch.Tensor:
    """Tokens in the place of the text's, behind or before them, along axis 1; use: replace, append, prepend."""
    return torch.cat({"replace": [tokens], "append": [text, tokens], "prepend": [tokens, text]}[use], dim=1)


def aligner_layout(config: AlignerConfig) -> dict[str, torch.Size]:
    """Tensor name -> shape of an aligner's file."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in Aligner(config, nn).state_dict().items()}


def projector_layout(in_width: int = 3584, out_width: int = 4096) -> dict[str, torch.Size]:
    """Tensor name -> shape of a projector."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in Projector(in_width, out_width, nn).state_dict().items()}


@torch.no_grad()
def initialise(aligner: Aligner, seed: int) -> None:
    """Weights to start a training from, the same for the same seed on every machine."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in aligner.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 1:  # the weight of a norm
            parameter.fill_(1)
        else:
            scale = 1.0 if name == "latents" else parameter.shape[-1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def _known(kind: type, values: dict) -> dict:
    if unknown := sorted(set(values) - {each.name for each in fields(kind)}):
        raise ValueError(f"unknown entries {', '.join(unknown)}")
    return values
