"""What the nano aligner is trained on: stories of the DiT's training clips as the nano VLM has understood them, and
what the text encoder makes of the same clips' captions.

A story calls people by their looks or names; a caption, in the world's own words, counts them. The two are the two ends
of the aligner. Each word of a caption has a place of its own among the tokens, whatever the others are, so that each of
the aligner's latents always says the same kind of thing. The DiT cannot tell that from the plain order: its attention
to the text has no positions, and the zeros between the words are as many as those behind them would be.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ...modules.aligner import Reading, spanned
from ...relations.compose import ORDINALS, capitalise
from ...training.aligner import AlignmentBatch, pad_batch
from ..world import render_photo
from ..world.crowd import MOVES, PLACES, CrowdSpec
from ..world.identity import describe_visible
from ..world.scene import ACTIONS
from ..world.stories import NAMES, Story, tell, true_answer
from . import data, text

log = logging.getLogger("idcrafter.nano")
PHOTO = 128  # pixels
STORIES = 2  # of each clip
BY_NAME = 0.25
# As Relate asks, because that is all that the nano VLM has learned to read; it knows who is meant when it has answered.
# Behind its last layer but one there is more than the next word; a name, what separates it, and a predicate are three
# tokens.
READING = Reading(layer=-2, pictures="relate", answer=256, span=3, names=NAMES)
# Where the parts of a caption begin: introductions, "The first is", a place, an action, a movement, and the end.
_INTRODUCTION, _SUBJECTS, _PLACE, _ACTION, _MOVE, _END = 6, 24, 3, 7, 76, 88
_SUBJECT = 13


@dataclass(frozen=True)
class Told:
    """A story of a clip, the clip's row among the encoded ones, and the seeds of its people's photos."""

    row: int
    story: Story
    photos: tuple[int, ...]


def told(split: str, shard: int) -> Iterator[Told]:
    """`STORIES` of each clip of a shard whose people can be told apart and are in the world of crowds."""
    rng = np.random.default_rng((33, shard, len(split)))
    for i, (spec, seeds) in enumerate(data.specs(split, shard)):
        by_name = rng.uniform(size=STORIES) < BY_NAME
        if not isinstance(spec, CrowdSpec):
            continue
        try:
            stories = [tell(spec, k, by_name=bool(named)) for k, named in enumerate(by_name)]
        except ValueError:
            continue
        for k, story in enumerate(stories):
            yield Told(shard * data.SHARD + i, story, tuple(seeds[k % data.PHOTOS :: data.PHOTOS]))


def caption_parts(spec: CrowdSpec) -> list[tuple[int, str]]:
    """A caption in parts, each with the place of its first token."""
    names = [f"the {ordinal}" for ordinal in ORDINALS[: len(spec.identities)]]
    places = PLACES[len(names)]
    parts = [(_INTRODUCTION * i, f"{capitalise(name)} is a puppet.") for i, name in enumerate(names)]
    for i, name in enumerate(names):
        at = _SUBJECTS + _SUBJECT * i
        parts += [
            (at, f"{capitalise(name)} is"),
            (at + _PLACE, places[spec.places[i]]),
            (at + _ACTION, f"and {ACTIONS[spec.actions[i]][0]}."),
        ]
    if MOVES[spec.move]:
        parts.append((_MOVE, capitalise(MOVES[spec.move][0].format(a=names[spec.a], b=names[spec.b]))))
    return parts


def caption(spec: CrowdSpec) -> str:
    return " ".join(part for _, part in caption_parts(spec))


@torch.no_grad()
def targets(tokenizer: text.Tokenizer, encoder, specs: Sequence[CrowdSpec]) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions as the aligner should say them: [B, LENGTH, d_model], zeros between the words; which are words."""
    ids = torch.full((len(specs), text.LENGTH), text.PAD)
    places = []
    for row, spec in zip(ids, specs, strict=True):
        said, own = [], []
        for at, part in caption_parts(spec):
            tokens = tokenizer.processor.encode(part)
            said += tokens
            own += range(at, at + len(tokens))
        row[: len(said) + 1] = torch.tensor([*said, text.END])
        places.append(torch.tensor([*own, _END]))
    states = text.encode(encoder, ids.to(next(encoder.parameters()).device)).cpu()
    placed, words = torch.zeros_like(states), torch.zeros(ids.shape, dtype=torch.bool)
    for i, own in enumerate(places):
        placed[i, own] = states[i, : len(own)]
        words[i, own] = True
    return placed, words


class States:
    """A VLM's hidden states of stories, each [L, C], by their numbers."""

    def __init__(self, parts: Sequence[dict[str, torch.Tensor]]):
        self.rows = [row for part in parts for row in part["states"].split(part["lengths"].tolist())]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """Of what the aligner reads."""
        return self.rows[0].shape[1] * READING.span

    def batch(self, which: Sequence[int], said: torch.Tensor, words: torch.Tensor) -> AlignmentBatch:
        """With the captions of `targets` of the same stories."""
        states, keys = pad_batch([self.rows[i] for i in which])
        return AlignmentBatch(spanned(states, READING.span), keys, said, words)


def read(folder: Path, vlm_folder: Path, split: str, shards: int) -> States:
    """The states of what the VLM has read and answered of all stories, from `folder` where an earlier run has left
    them. The answers are the true ones: what the VLM should have written.
    """
    from ...training.host import load_pack, pack_module

    pack = load_pack()
    vlm = pack_module(pack, "model_loaders.vlm").load_vlm(vlm_folder)
    parts = []
    for shard in range(shards):
        said = f"{vlm.digest[:12]}-{READING.layer}"
        path = folder / "guidance" / f"{split}-{shard:03d}-{said}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [_read(pack, vlm, each) for each in told(split, shard)]
            made = {"states": torch.cat(rows), "lengths": torch.tensor([len(row) for row in rows])}
            save_file(made, path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)
            log.info("read %d stories (%d of %d)", len(rows), shard + 1, shards)
        parts.append(load_file(path))
    return States(parts)


def _read(pack, vlm, each: Told) -> torch.Tensor:
    """[L, C] bfloat16."""
    from ...training.host import pack_module

    subjects = pack_module(pack, "idcrafter.subjects.subject")
    story, people = each.story, each.story.spec.identities
    photos = [
        torch.from_numpy(render_photo(who, seed, PHOTO)[0])[None].float() / 255
        for who, seed in zip(people, each.photos, strict=True)
    ]
    cast = subjects.make_cast(
        [subjects.make_subject(name, "person", "", photo) for name, photo in zip(story.names, photos, strict=True)]
    )
    answer = json.dumps(true_answer(story, tuple(describe_visible(who) for who in people)), ensure_ascii=False)
    lib = pack_module(pack, "model_loaders.vlm_states")
    # The span is made of them when they are used.
    return lib.states_of_vlm(vlm, cast, story.text, replace(READING, span=1), answer).states[0].bfloat16()
