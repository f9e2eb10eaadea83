"""The nano VLM's tokenizer: Qwen's special tokens, byte-level BPE, and few tokens for what every request repeats.

The constant text of a request and the keys of an answer are one token each, found by asking for them; the world's words
are one token each; other words, names above all, are spelled by merges that were learned on names, in the end by bytes,
so that any text passes and comes back. All of them are ordinary entries of the vocabulary: special tokens would be
taken out of a user's text.
"""

from __future__ import annotations

import json
import re
from functools import cache

import numpy as np
import torch

from ...relations.request import request_parts
from ...subjects.subject import KINDS, Cast, Subject
from ..world.crowd import PLACES
from ..world.identity import describe
from ..world.stories import NAMES, PREDICATES
from . import vlm_data

# In the order of Qwen's vocabulary.
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PAD, END, IMAGE = "<|endoftext|>", "<|im_end|>", "<|image_pad|>"
SPELLED = 400  # merges for words that have no token of their own
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HOLE = "@@"


def as_chat(parts: tuple[str | None, ...], image_tokens: int) -> str:
    """What the chat template makes of one turn and the processor of its pictures (None)."""
    shown = f"<|vision_start|>{IMAGE * image_tokens}<|vision_end|>"
    said = "".join(shown if part is None else part for part in parts)
    return f"<|im_start|>user\n{said}{END}\n<|im_start|>assistant\n"


@cache
def pieces() -> tuple[str, ...]:
    """The constant texts, the longest first."""
    found = {"user\n", "assistant\n", *PREDICATES.values(), *(f"is {p}" for some in PLACES.values() for p in some)}
    blank = torch.zeros(vlm_data.SIDE, vlm_data.SIDE, 3)
    for kind in KINDS:
        for look in ("", _HOLE):
            cast = Cast(tuple(Subject(_HOLE, kind, look, (blank,), (None,)) for _ in range(2)))
            for part in request_parts(cast, _HOLE):
                found |= set(part.split(_HOLE)) if isinstance(part, str) else set()
    row = {"subject": _HOLE, "predicate": _HOLE, "object": _HOLE, "when": ""}
    for rows in ([row, {**row, "object": None}, row], [{**row, "object": None}] * 2):
        people = [{"name": _HOLE, "description": _HOLE}] * 2
        answer = {"subjects": people, "relations": rows, "scene": "", "camera": ""}
        found |= set(json.dumps(answer).split(_HOLE))
    return tuple(sorted(found - {""}, key=lambda piece: (-len(piece), piece)))


def words(people: vlm_data.People, seed: int, stories: int = 1500) -> list[str]:
    """The words of the world's stories and looks, names left out, and the fillers, in lower case."""
    rng = np.random.default_rng((seed, 12))
    said: set[str] = set(vlm_data.FILLERS)
    for i in range(stories):
        _, story = vlm_data.draw_story(people, rng, 2 + i % 3)
        who = story.spec.identities
        texts = (story.text, *vlm_data.draw_mentions(who, rng), *(describe(each) for each in who))
        said |= set(re.findall(r"\w+", " ".join(texts).lower()))
    return sorted({word.lower() for word in said} - {name.lower() for name in NAMES})


def train(people: vlm_data.People, seed: int):
    """A `tokenizers.Tokenizer`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rng = np.random.default_rng((seed, 13))
    speller = Tokenizer(models.BPE())
    speller.pre_tokenizer = to_bytes
    speller.train_from_iterator(
        (name for _ in range(4000) for name in vlm_data.draw_names(rng, 3)),
        trainers.BpeTrainer(
            vocab_size=256 + SPELLED, initial_alphabet=sorted(to_bytes.alphabet()), show_progress=False
        ),
    )
    model = json.loads(speller.to_str())["model"]
    known = words(people, seed)
    small = [*known, *(word.capitalize() for word in known)]
    wanted = [*pieces(), *NAMES, *small, *(f" {word}" for word in known)]
    vocabulary = dict(model["vocab"])
    for text in wanted:
        token = "".join(part for part, _ in to_bytes.pre_tokenize_str(text))
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    # A piece that is in the vocabulary is one token whatever the merges say.
    made = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    literal = "|".join(re.escape(piece).replace("\\\n", "\\n") for piece in pieces())
    lower, upper = "|".join(known), "|".join(word.capitalize() for word in known)
    pattern = rf"{literal}| ?(?:{lower})(?!\p{{L}})|(?:{upper})(?!\p{{L}})|\p{{L}}+|\p{{N}}"
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), to_bytes])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    return made
