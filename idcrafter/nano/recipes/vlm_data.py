"""What the nano VLM is trained on: photos, and stories of the people in them as `IDCrafterRelate` asks about them."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ...relations.request import request_parts
from ...subjects.subject import Subject, make_cast
from ..world import Identity, numbers_of_split, render_photo, sample_identity
from ..world.crowd import sample_crowd_spec
from ..world.identity import describe_visible
from ..world.scene import ACTIONS, partial_description
from ..world.stories import NAMES, Fact, Story, tell, tells_apart, true_answer

log = logging.getLogger("idcrafter.nano")
SIDE = 128  # pixels of a photo
SHARD, SHARDS, PHOTOS = 250, 48, 2
# Where the people of the training begin among the identities of their split, which other recipes use from 0 on.
FIRST = 200_000

# Shares of casts of one to four in the first steps, which are short, and afterwards.
EASY_STEPS, EASY_COUNTS = 450, (0.06, 0.74, 0.2, 0.0)
COUNTS = (0.04, 0.33, 0.35, 0.28)
# Shares of stories that go by names, of casts of the world's own names, of people with a
# description beside their photos, of casts with two photos each, and of sentences with stray words.
BY_NAME, OWN_NAMES, DESCRIBED, TWO_PHOTOS, STRAY = 0.3, 0.4, 0.08, 0.06, 0.5
# In a sentence with stray words: how often one comes after a word, and how often a word is capitalised.
STRAY_WORD, STRAY_CAPITAL = 0.05, 0.05
KINDS, KIND_SHARES = ("person", "animal", "object"), (0.94, 0.03, 0.03)
_ONSETS = "b br c ch cl d dr f fl g gr h j k kr l m n p ph pr qu r s sh st t th tr v w y z".split()
_VOWELS = "a e i o u ai ee ie oa y".split()
_ENDS = ("", "", "", "n", "l", "r", "s", "m", "x", "nd", "ck")
# Answers of which some descriptions are wrong, as the model's own may be, and people in them with a wrong one. Only
# their relations are learned: who is meant can still be seen in the photos.
MISTAKEN, MISTAKES = 0.3, 0.5
# In other forms than the world tells stories in: so many stories, and {who} {where} {does}, {a} {b}. None is one of the
# forms that only the benchmarks tell.
REPHRASED = 0.5
STANDING = (
    "{who} {does}, {where}.",
    "{who} can be seen {where} and {does}.",
    "Who {does} {where}? {who}.",
    "We look at {who}, {where}, and {who} {does}.",
    "The person {where} is {who} and {does}.",
    "There is {who}, {where}, somebody who {does}.",
    "{where}: {who}, and this person {does}.",
    "{does}: that is {who}, {where}.",
    "While {who} is {where}, this person {does}.",
    "See how {who} {does} {where}.",
)
# Of the two the first one that is named is the one that does it; who swaps with whom is the same.
SWAPPING = (
    "{a} and {b} trade places.",
    "{a} takes the place of {b}, and the other way round.",
    "There is a change of places between {a} and {b}.",
    "{a} goes to where {b} was, and {b} to where {a} was.",
    "{a} trades places with {b}.",
    "{a} is now where {b} was, and {b} where {a} was.",
    "Between {a} and {b} the places are swapped.",
    "Who changes the place with {a}? {b}.",
)
HIDING = (
    "{a} disappears behind {b} for a while.",
    "{b} is in front of {a}, who hides and comes back.",
    "It is behind {b} that {a} hides.",
    "{a} is gone behind {b} and returns.",
    "Who hides behind {b}? {a}.",
    "{b} is the one that {a} hides behind.",
    "{a} slips behind {b}, then comes back.",
    "{b} covers {a}, who goes behind and returns.",
    "Behind the back of {b} hides {a}.",
    "A moment later {a} goes behind {b}.",
)
# Words that mean nothing in the world's sentences: they come between the others, as they do when people write.
FILLERS = tuple(
    "it that this there here then now next soon later finally first also too again still just only even so and but or "
    "who whom whose which what when while where as if because for from to of by at about into with over under "
    "is are was were be been has have had do does did can could will would shall should may might must let lets make "
    "makes get gets go goes keep keeps see sees a an the one ones some all both each every other another any "
    "he she they him her them his their its we you I my your our very quite rather almost please moment while time "
    "once twice more most much many few little long short slowly quickly gently suddenly after before during until "
    "meanwhile afterwards together alone everybody somebody person someone video scene".split()
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A request in texts and photos, and the answer to it.

    parts     texts, and None for a photo
    photos    (row, photo) of `People`, in the order of the parts
    text      the story, which is in the last of the parts
    mentions  (person, start, end) of what people are called in `text`, in characters
    facts     (who, whom or None) of the answer's relations
    by_name   whether people are called by their names
    mistaken  whether descriptions in the answer may be wrong
    """

    parts: tuple[str | None, ...]
    answer: str
    photos: tuple[tuple[int, int], ...]
    text: str
    mentions: tuple[tuple[int, int, int], ...]
    facts: tuple[tuple[int, int | None], ...]
    by_name: bool
    mistaken: bool


class People:
    """Identities and their photos [people, PHOTOS, SIDE, SIDE, 3] uint8."""

    def __init__(self, identities: Sequence[Identity], photos: torch.Tensor):
        self.identities, self.photos = tuple(identities), photos


def prepare(folder: Path, split: str = "train", shards: int = SHARDS, size: int = SHARD) -> People:
    """Photos of `shards` * `size` identities of a split, from `folder` where an earlier run has left them."""
    numbers = list(islice(numbers_of_split(split, FIRST), shards * size))
    photos = []
    for i in range(shards):
        path = folder / f"vlm-photos-{split}-{i}.safetensors"
        if not path.exists():
            some = [sample_identity(number) for number in numbers[i * size : (i + 1) * size]]
            made = np.stack([[render_photo(who, 7 * who.number + k, SIDE)[0] for k in range(PHOTOS)] for who in some])
            part = path.with_suffix(".part")
            save_file({"photos": torch.from_numpy(made)}, part)
            os.replace(part, path)
            log.info("photos: %d of %d people", (i + 1) * size, shards * size)
        photos.append(load_file(path)["photos"])
    return People([sample_identity(number) for number in numbers], torch.cat(photos))


def draw_example(people: People, rng: np.random.Generator, count: int, photos: int = 1) -> Example:
    """A story about `count` people with as many photos each, told in the forms that training may see."""
    rows, story = draw_story(people, rng, count)
    if rng.uniform() < REPHRASED:
        story = rephrase(story, rng)
    identities, names, by_name = story.spec.identities, draw_names(rng, count), bool(rng.uniform() < BY_NAME)
    called = names if by_name else draw_mentions(identities, rng)
    text = story.text
    for i, name in enumerate(story.names):
        text = re.sub(rf"\b{name}\b", f"\0{i}\0", text)
    if rng.uniform() < STRAY:
        text = stray(text, rng)
        called = called if by_name else tuple(stray(each, rng) for each in called)
    text, mentions = _call(text, called)
    described = rng.uniform() < DESCRIBED
    kind = str(rng.choice(KINDS, p=KIND_SHARES))
    blank = torch.zeros(SIDE, SIDE, 3)
    subjects = [
        Subject(name, kind, partial_description(who, rng) if described else "", (blank,) * photos, (None,) * photos)
        for name, who in zip(names, identities, strict=True)
    ]
    parts = request_parts(make_cast(subjects), text)
    mistaken = bool(rng.uniform() < MISTAKEN)
    looks = tuple(describe_visible(_mistake(people, who, rng) if mistaken else who) for who in identities)
    answer = true_answer(replace(story, names=names), looks)
    first = rng.integers(PHOTOS, size=count)
    return Example(
        tuple(part if isinstance(part, str) else None for part in parts),
        json.dumps(answer, ensure_ascii=False),
        tuple((int(row), int(k + j) % PHOTOS) for row, k in zip(rows, first, strict=True) for j in range(photos)),
        text,
        mentions,
        tuple((fact.who, fact.other) for fact in story.facts),
        by_name,
        mistaken,
    )


def _call(text: str, called: Sequence[str]) -> tuple[str, tuple[tuple[int, int, int], ...]]:
    """The text with people's numbers between zeros replaced by what they are called, and where that stands."""
    said, mentions = "", []
    plain = text == text.lower()
    for i, part in enumerate(text.split("\0")):
        if i % 2:
            name = called[int(part)]
            begins = not said or said.endswith(". ")
            part = name[0].upper() + name[1:] if begins and not plain else name
            mentions.append((called.index(name), len(said), len(said) + len(part)))
        said += part
    return said, tuple(mentions)


def _mistake(people: People, who: Identity, rng: np.random.Generator) -> Identity:
    """Somebody with one thing of somebody else, or as they are."""
    if rng.uniform() >= MISTAKES:
        return who
    what = str(rng.choice(("hair_style", "hair", "glasses_style", "beard_style", "hat_style", "hat", "clothes")))
    return replace(who, **{what: getattr(people.identities[rng.integers(len(people.identities))], what)})


def draw_story(people: People, rng: np.random.Generator, count: int) -> tuple[np.ndarray, Story]:
    """Rows of `people`, all of whom can be told apart, and a story about them by the world's own names."""
    while True:
        rows = rng.choice(len(people.identities), count, replace=False)
        identities, seed = tuple(people.identities[row] for row in rows), int(rng.integers(2**31))
        if not all(tells_apart(identities, i) for i in range(count)):
            continue
        if count > 1:
            return rows, tell(sample_crowd_spec(identities, seed), 0, by_name=True)
        spec = sample_crowd_spec(identities, seed, "stay")
        text = f"{NAMES[0]} {rng.choice(ACTIONS[spec.actions[0]])}."
        return rows, Story(spec, NAMES[:1], NAMES[:1], text, (Fact(0, spec.actions[0]),))


def rephrase(story: Story, rng: np.random.Generator) -> Story:
    """The same facts in other forms; who is named first of two that swap places is drawn anew."""
    sentences, facts, names = [], list(story.facts), story.names
    if len(names) == 1:
        return story
    alone = [fact for fact in facts if fact.other is None]
    for place, action in zip(alone[::2], alone[1::2], strict=True):
        form, does = str(rng.choice(STANDING)), str(rng.choice(ACTIONS[action.what]))
        sentences.append(form.format(who=names[place.who], where=place.what, does=does))
    if facts[-1].other is not None:
        a, b = facts[-1].who, facts[-1].other
        if facts[-1].what == "swap" and rng.uniform() < 0.5:
            a, b = b, a
        facts[-1] = Fact(a, facts[-1].what, b)
        form = str(rng.choice(SWAPPING if facts[-1].what == "swap" else HIDING))
        sentences.append(form.format(a=names[a], b=names[b]))
    text = " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)
    return replace(story, text=text, facts=tuple(facts))


def draw_mentions(identities: Sequence[Identity], rng: np.random.Generator) -> tuple[str, ...]:
    """What people can be called by what is to be seen of them."""
    identities = tuple(identities)
    return tuple(str(rng.choice(tells_apart(identities, i))) for i in range(len(identities)))


def draw_names(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    """Different names: the world's own, or made of syllables or letters, as the users' names may be anything."""
    if rng.uniform() < OWN_NAMES:
        return tuple(str(name) for name in rng.permutation(NAMES)[:count])
    names: dict[str, str] = {}
    while len(names) < count:
        kind = rng.uniform()
        if kind < 0.15:
            name = str(rng.choice(NAMES))
        elif kind < 0.85:
            syllables = rng.choice((1, 2, 3), p=(0.4, 0.5, 0.1))
            name = "".join(f"{rng.choice(_ONSETS)}{rng.choice(_VOWELS)}" for _ in range(syllables))
            name = (name + str(rng.choice(_ENDS))).capitalize()
        else:
            letters = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
            name = "".join(rng.choice(letters, int(rng.integers(2, 8)))).strip("-") or "X"
        names.setdefault(name.casefold(), name)
    return tuple(names.values())


def stray(text: str, rng: np.random.Generator) -> str:
    """The text with words that say nothing in between, commas that do not belong there, and other capitals."""
    if rng.uniform() < 0.15:
        text = text.lower()
    words = []
    for word in text.split(" "):
        if rng.uniform() < STRAY_WORD:
            filler = str(rng.choice(FILLERS)) + ("," if rng.uniform() < 0.2 else "")
            if word[0].isupper():
                filler, word = filler[0].upper() + filler[1:], word[0].lower() + word[1:]
            words.append(filler)
        if rng.uniform() < STRAY_CAPITAL:
            word = word[0].upper() + word[1:]
        if word[-1].isalpha() and rng.uniform() < 0.02:
            word += ","
        words.append(word)
    return " ".join(words)
