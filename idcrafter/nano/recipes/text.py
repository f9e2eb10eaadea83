"""The nano text encoder: core's UMT5 at width 128 with a sentencepiece vocabulary of its own.

It learns to read captions: from its token states, one query a subject must tell that subject's side, action and
looks. Captions are worded by the pack's own composer, so that what ``IDCrafterRelate`` writes is what the encoder
knows.
"""

from __future__ import annotations

import io
import json
import math
import string
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ...relations.compose import compose
from ...subjects.subject import Subject
from ...training.loop import Trainer
from ..world import ClipSpec, numbers_of_split, sample_clip_spec, sample_identity
from ..world.crowd import MOVES, PLACES, CrowdSpec, caption_crowd, sample_crowd_spec
from ..world.identity import colour_name
from ..world.scene import ACTIONS, TOGETHER, caption_action, partial_description
from .core import device, use_comfyui

CONFIG = {"d_model": 128, "d_ff": 256, "d_kv": 32, "num_heads": 4, "num_layers": 3, "vocab_size": 384}
LENGTH = 128
PAD, END = 0, 1
STEPS, BATCH = 600, 64
MAX_SUBJECTS = 4
SIDES = ("none", "left", "middle", "right", "far left", "far right")
COLOURS = (
    "unsaid",
    "black",
    "white",
    "grey",
    "pink",
    "brown",
    "red",
    "orange",
    "yellow",
    "green",
    "teal",
    "blue",
    "purple",
)
NAMES = ("Ada", "Bo", "Cy", "Di")


def caption(spec: ClipSpec | CrowdSpec, seed: int) -> tuple[str, list[dict[str, int]]]:
    """A caption of a clip in the pack's ``ordinals`` wording, and what it says of each subject (class indices)."""
    rng = np.random.default_rng((spec.seed, seed, 5))
    looks = [partial_description(identity, rng) for identity in spec.identities]
    names = NAMES[: len(looks)]
    subjects = [Subject(name, "person", look, (), ()) for name, look in zip(names, looks, strict=True)]
    crowd = isinstance(spec, CrowdSpec)
    text = compose(subjects, (caption_crowd if crowd else caption_action)(spec, names, seed), "ordinals")
    facts = []
    for i, (identity, look, action) in enumerate(zip(spec.identities, looks, spec.actions, strict=True)):
        said = f" {look} "
        side = PLACES[len(looks)][spec.places[i]].split("the ")[1] if crowd else spec.sides[i]
        facts.append(
            {
                "side": SIDES.index(side),
                "action": 1 + list(ACTIONS).index(action),
                "together": 0 if crowd else list(TOGETHER).index(spec.together),
                "hat": int(any(word in said for word in ("cap", "hat", "beanie"))),
                "glasses": int("glasses" in said),
                "clothes": COLOURS.index(colour_name(identity.clothes)) if "jumper" in said else 0,
                "hair": COLOURS.index(colour_name(identity.hair)) if " hair " in said and "no hair" not in said else 0,
                **_movement(spec, i),
            }
        )
    return text, facts


def _movement(spec: ClipSpec | CrowdSpec, subject: int) -> dict[str, int]:
    """Whether a subject changes places, hides or is hidden behind, and with whom (1 is the first; 0 with nobody)."""
    if not isinstance(spec, CrowdSpec) or subject not in (spec.a, spec.b):
        return {"move": 0, "partner": 0}
    first = subject == spec.a
    move = list(MOVES).index(spec.move) if first or spec.move == "swap" else len(MOVES)
    return {"move": move, "partner": 1 + (spec.b if first else spec.a)}


FACTS = {
    "side": len(SIDES),
    "action": 1 + len(ACTIONS),
    "together": len(TOGETHER),
    "hat": 2,
    "glasses": 2,
    "clothes": len(COLOURS),
    "hair": len(COLOURS),
    "move": 1 + len(MOVES),
    "partner": 1 + MAX_SUBJECTS,
}


# Shares of clips with one to four subjects, and of those with two or three in which they change places.
COUNTS = (0.08, 0.44, 0.26, 0.22)
CROWDS = 0.5


def sample_spec(rng: np.random.Generator, numbers) -> ClipSpec | CrowdSpec:
    """Any clip of the world, with identities from an iterator of numbers."""
    count = int(rng.choice((1, 2, 3, 4), p=COUNTS))
    identities = tuple(sample_identity(next(numbers)) for _ in range(count))
    crowd = count == 4 or count > 1 and rng.uniform() < CROWDS
    return (sample_crowd_spec if crowd else sample_clip_spec)(identities, int(rng.integers(0, 2**31)))


def random_spec(rng: np.random.Generator) -> ClipSpec | CrowdSpec:
    return sample_spec(rng, numbers_of_split("train", int(rng.integers(0, 10_000_000))))


class Tokenizer:
    """Sentencepiece ids with the end token, padded to ``LENGTH`` as core's tokenizer does it with ``min_length``."""

    def __init__(self, model_proto: bytes):
        import sentencepiece

        self.proto = model_proto
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model_proto)

    @classmethod
    def train(cls, seed: int) -> Tokenizer:
        import sentencepiece

        rng = np.random.default_rng(seed)
        texts = [caption(random_spec(rng), 0)[0] for _ in range(6000)]
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=out,
            vocab_size=CONFIG["vocab_size"],
            model_type="bpe",
            normalization_rule_name="identity",
            required_chars=string.printable.strip(),
            pad_id=PAD,
            eos_id=END,
            unk_id=2,
            bos_id=-1,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        return cls(out.getvalue())

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """[B, LENGTH] int64."""
        ids = torch.full((len(texts), LENGTH), PAD, dtype=torch.int64)
        for row, text in zip(ids, texts, strict=True):
            tokens = [*self.processor.encode(text)[: LENGTH - 1], END]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids


def build(operations=None, dtype=torch.float32):
    use_comfyui()
    import comfy.ops
    from comfy.text_encoders.t5 import T5

    full = {"dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "model_type": "umt5", **CONFIG}
    return T5(full, dtype, None, operations or comfy.ops.disable_weight_init)


def encode(encoder, ids: torch.Tensor) -> torch.Tensor:
    """Token states [B, LENGTH, d_model], zero at padding: what core's Wan text encoder gives to the DiT."""
    from comfy.ldm.modules.attention import optimized_attention_for_device

    kept = (torch.cumsum((ids == END).int(), 1) - (ids == END).int()) == 0
    mask = (
        torch.zeros(kept.shape, device=ids.device)
        .masked_fill(~kept, -torch.finfo(torch.float32).max)[:, None, None]
        .expand(-1, -1, ids.shape[1], -1)
    )
    attention = optimized_attention_for_device(ids.device, mask=True, small_input=True)
    x = encoder.shared(ids, out_dtype=torch.float32)
    # core's T5Block adds in place, which autograd does not allow: the same sums, out of place
    for block in encoder.encoder.block:
        attend, feed = block.layer
        x = x + attend.SelfAttention(attend.layer_norm(x), mask=mask, optimized_attention=attention)[0]
        x = x + feed.DenseReluDense(feed.layer_norm(x))
    return encoder.encoder.final_layer_norm(x) * kept[..., None]


class Reader(nn.Module):
    """The encoder and the questions that train it; only the encoder is kept."""

    def __init__(self):
        super().__init__()
        self.encoder = build()
        import comfy.ops

        operations = comfy.ops.disable_weight_init
        width = CONFIG["d_model"]
        self.queries = nn.Parameter(torch.empty(MAX_SUBJECTS, width))
        self.key = operations.Linear(width, width, bias=False)
        self.value = operations.Linear(width, 2 * width)
        self.answers = nn.ModuleDict({name: operations.Linear(2 * width, count) for name, count in FACTS.items()})

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [B, MAX_SUBJECTS, classes] for each fact."""
        states = encode(self.encoder, ids)
        heads = 4
        keys = self.key(states).unflatten(-1, (heads, -1)).transpose(1, 2)
        values = self.value(states).unflatten(-1, (heads, -1)).transpose(1, 2)
        queries = self.queries.unflatten(-1, (heads, -1)).transpose(0, 1).expand(len(ids), -1, -1, -1)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(keys.shape[-1])
        read = scores.masked_fill((ids == PAD)[:, None, None], float("-inf")).softmax(-1) @ values
        read = nn.functional.gelu(read.transpose(1, 2).flatten(2))
        return {name: answer(read) for name, answer in self.answers.items()}


def _position_prior(buckets: int, heads: int) -> torch.Tensor:
    """[buckets, heads]: heads start out looking near, before, after and everywhere.

    Position enters a T5 encoder through this bias alone; from zeros it takes thousands of steps to learn who does what.
    """
    distance = torch.arange(buckets) % (buckets // 2)
    after = torch.arange(buckets) >= buckets // 2
    near, far = -0.5 * distance, torch.full((buckets,), -5.0)
    kinds = [near, torch.where(after, far, 0.7 * near), torch.where(after, 0.7 * near, far), torch.zeros(buckets)]
    return torch.stack([kinds[head % len(kinds)] for head in range(heads)], dim=1)


def _initialise(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.ndim == 1:
            torch.nn.init.zeros_(p) if name.endswith("bias") else torch.nn.init.ones_(p)
        elif "relative_attention_bias" in name:
            p.data.copy_(_position_prior(*p.shape))
        else:
            # core's T5 multiplies keys by sqrt(head width), so queries start smaller
            scale = CONFIG["d_kv"] ** -0.5 if name.endswith("SelfAttention.q.weight") else 1.0
            p.data.normal_(
                0, scale * (1.0 if "shared" in name or "queries" in name else p.shape[1] ** -0.5), generator=generator
            )


def _loss(model: Reader, tokenizer: Tokenizer, n: int, seed: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng((seed, n))
    texts, labels = [], {name: np.full((BATCH, MAX_SUBJECTS), 0) for name in FACTS}
    for b in range(BATCH):
        text, facts = caption(random_spec(rng), n)
        texts.append(text)
        for i, fact in enumerate(facts):
            for name, value in fact.items():
                labels[name][b, i] = value
    logits = model(tokenizer(texts).to(device()))
    losses, right = [], []
    for name, out in logits.items():
        target = torch.from_numpy(labels[name]).to(out.device)
        losses.append(nn.functional.cross_entropy(out.flatten(0, 1), target.flatten()))
        right.append((out.argmax(-1) == target).float().mean())
    return {
        "loss": torch.stack(losses).mean(),
        "right": torch.stack(right).mean().detach(),
        "worst": torch.stack(right).min().detach(),
    }


def train(folder: Path, seed: int = 21) -> Path:
    tokenizer = Tokenizer.train(seed)
    model = Reader()
    _initialise(model, seed)
    model.to(device())
    Trainer(
        model,
        folder,
        "text",
        STEPS,
        2e-3,
        dtype=torch.float32,
        adam=("shared", "queries", "answers", "relative_attention_bias"),
    ).run(lambda m, n: _loss(m, tokenizer, n, seed), log_every=100)
    weights = {k: v.half().contiguous().cpu() for k, v in model.encoder.state_dict().items()}
    weights["spiece_model"] = torch.frombuffer(bytearray(tokenizer.proto), dtype=torch.uint8)
    path = folder / "idcrafter_nano_umt5.safetensors"
    save_file(
        weights,
        path,
        {"config": json.dumps(CONFIG), "min_length": str(LENGTH), "licence": "Apache-2.0", "made_by": "idcrafter.nano"},
    )
    return path


def load(path: Path) -> tuple[Tokenizer, nn.Module]:
    """The trained tokenizer and encoder, frozen, for training the DiT."""
    weights = load_file(path)
    tokenizer = Tokenizer(bytes(weights.pop("spiece_model").numpy()))
    encoder = build()
    encoder.load_state_dict({k: v.float() for k, v in weights.items()})
    return tokenizer, encoder.requires_grad_(False).to(device())
