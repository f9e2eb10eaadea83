"""Sentences about people whom only their photos tell apart, and the truth: who does what to whom.

A story is told of a clip of the world of crowds (:mod:`crowd`): where everybody stands, what everybody does, and who
moves past whom. People go by name, or by something that is to be seen in the photos of one of them only ("the one with
the yellow cap"). Some forms of sentences are never trained on; a story with ``unseen`` uses those alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .crowd import PLACES, CrowdSpec
from .identity import Identity, colour_name
from .scene import ACTIONS

NAMES = ("Ada", "Bo", "Cy", "Di")
# How a graph says what a clip's action or movement is, for everybody who describes it.
PREDICATES = {
    "stand": "stands still",
    "nod": "nods",
    "turn": "looks around",
    "talk": "talks",
    "swap": "swaps places with",
    "hide": "hides behind",
}
SYMMETRIC = frozenset({"swap"})
# (seen in training, never seen); {who} {where} {does}
_STAND = (
    ("{who} is {where} and {does}.", "{where}, {who} {does}.", "{who} {does} {where}."),
    ("{who}, who is {where}, {does}.", "It is {who} who {does} {where}.", "{where} is {who}, who {does}."),
)
_MOVES = {
    "stay": ((), ()),
    "swap": (
        ("{a} and {b} swap places.", "{a} and {b} change places.", "{a} walks past {b}, and {b} takes the old place."),
        ("{a} swaps places with {b}.", "Then {b} and {a} change places.", "{b} changes places with {a}."),
    ),
    "hide": (
        ("{a} hides behind {b} and comes back.", "{a} steps behind {b} for a moment.",
         "{a} goes behind {b} and returns."),
        ("For a moment {a} hides behind {b}.", "Behind {b}, {a} hides and comes back.",
         "It is {b} behind whom {a} hides."),
    ),
}  # fmt: skip
_HATS = {"cap": "cap", "cone": "pointed hat", "beanie": "beanie"}


@dataclass(frozen=True)
class Fact:
    """`what` is a key of PREDICATES, or a place in words; `other` is whom it is done to, or None. Both are numbers in
    the cast."""

    who: int
    what: str
    other: int | None = None

    @property
    def predicate(self) -> str:
        return PREDICATES.get(self.what, f"is {self.what}")


@dataclass(frozen=True)
class Story:
    """A sentence or some, and the facts in the order in which they are told. `mentions` are what people are called."""

    spec: CrowdSpec
    names: tuple[str, ...]
    mentions: tuple[str, ...]
    text: str
    facts: tuple[Fact, ...]


def tell(spec: CrowdSpec, seed: int, unseen: bool = False, by_name: bool = False) -> Story:
    """The story of a clip; the same arguments give the same words.

    unseen   in the forms that training leaves out
    by_name  people go by their names and not by what they look like
    Raises ValueError when nothing tells two of the people apart.
    """
    rng = np.random.default_rng((spec.seed, seed, 9))
    count = len(spec.identities)
    names = NAMES[:count]
    mentions = names if by_name else tuple(_mention(spec.identities, i, rng) for i in range(count))
    sentences, facts = [], []
    for i in (int(i) for i in rng.permutation(count)):
        does, where = str(rng.choice(ACTIONS[spec.actions[i]])), PLACES[count][spec.places[i]]
        form = str(rng.choice(_STAND[unseen]))
        sentences.append(form.format(who=mentions[i], where=where, does=does))
        facts += [Fact(i, where), Fact(i, spec.actions[i])]
    if _MOVES[spec.move][unseen]:
        form = str(rng.choice(_MOVES[spec.move][unseen]))
        sentences.append(form.format(a=mentions[spec.a], b=mentions[spec.b]))
        facts.append(Fact(spec.a, spec.move, spec.b))
    text = " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)
    return Story(spec, names, mentions, text, tuple(facts))


def true_answer(story: Story, looks: tuple[str, ...]) -> dict:
    """What a VLM should answer, in the layout of `idcrafter/relations/graph.py`; `looks` are the descriptions."""
    names = dict(enumerate(story.names))
    return {
        "subjects": [{"name": n, "description": look} for n, look in zip(story.names, looks, strict=True)],
        "relations": [
            {"subject": names[fact.who], "predicate": fact.predicate, "object": names.get(fact.other), "when": ""}
            for fact in story.facts
        ],
        "scene": "",
        "camera": "",
    }


def tells_apart(identities: tuple[Identity, ...], index: int) -> list[str]:
    """What one of them can be called so that nobody else is meant: a single feature, or two where none is enough."""
    features = [_features(who) for who in identities]
    others = [each for i, each in enumerate(features) if i != index]
    own = features[index]
    found = [phrase for phrase in own if not any(phrase in other for other in others)]
    if not found:
        found = [
            f"{a} and {b}"
            for k, a in enumerate(own)
            for b in own[k + 1 :]
            if a.startswith("with") and b.startswith("with") and not any(a in other and b in other for other in others)
        ]
    return [f"the one {phrase}" for phrase in found]


def _mention(identities: tuple[Identity, ...], index: int, rng: np.random.Generator) -> str:
    phrases = tells_apart(identities, index)
    if not phrases:
        raise ValueError(f"Nothing tells number {index + 1} of these {len(identities)} apart; take other people.")
    return str(rng.choice(phrases))


def _features(who: Identity) -> list[str]:
    """What is to be seen of somebody, as it follows "the one"."""
    found = []
    if who.hair_style != "bald":
        found += [f"with {colour_name(who.hair)} hair", f"with {who.hair_style} hair"]
    elif who.hat_style == "none":
        found += ["without hair"]
    if who.hat_style != "none":
        hat = _HATS[who.hat_style]
        found += ["with the hat", f"with the {hat}", f"with the {colour_name(who.hat)} {hat}"]
    if who.glasses_style != "none":
        found += ["with glasses", f"with {who.glasses_style} glasses"]
    if who.beard_style != "none":
        found += ["with the beard" if who.beard_style == "full" else "with the moustache"]
    return [*found, f"in the {colour_name(who.clothes)} jumper"]
