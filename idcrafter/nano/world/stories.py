"""Sentences about people whom only their photos tell apart, and the truth: who does what to whom.

A story is told of a clip of the world of crowds (:mod:`crowd`): where everybody stands, what everybody does, and who
moves past whom. People go by name, or by something that is to be seen in the photos of one of them only ("the one with
the yellow cap"). Some forms of sentences are never trained on; a story with ``unseen`` uses those alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from .crowd import PLACES, CrowdSpec
from .identity import RGB, Identity, colour_name, shows_hair
from .scene import ACTIONS, BRIGHTNESS, TINT

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
    """What one of them can be called so that nobody else is meant: a single feature, or two where none is enough.

    A colour is only named where the light of a picture does not turn it into another, and does not turn anybody else's
    into it.
    """
    others = [_features(who) for i, who in enumerate(identities) if i != index]
    own = [phrase for phrase, sure in _features(identities[index]).items() if sure]
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


@cache
def _features(who: Identity) -> dict[str, bool]:
    """What may be seen of somebody, as it follows "the one", and whether it is in every picture."""
    sure, coloured = [], []
    if shows_hair(who):
        if who.hair_style == "bald":
            sure += ["without hair"]
        else:
            sure += [f"with {who.hair_style} hair"]
            coloured += [("with {} hair", who.hair)]
    if who.hat_style != "none":
        hat = _HATS[who.hat_style]
        sure += ["with the hat", f"with the {hat}"]
        coloured += [(f"with the {{}} {hat}", who.hat)]
    if who.glasses_style != "none":
        sure += ["with glasses", f"with {who.glasses_style} glasses"]
    if who.beard_style != "none":
        sure += ["with the beard" if who.beard_style == "full" else "with the moustache"]
    coloured += [("in the {} jumper", who.clothes)]
    found = dict.fromkeys(sure, True)
    for phrase, colour in coloured:
        names = _lit(colour)
        found |= {phrase.format(name): len(names) == 1 for name in names}
    return found


def _lit(colour: RGB) -> set[str]:
    """What a colour may be called in the light of a picture."""
    gains = [bright * np.array(tint) for bright in BRIGHTNESS for tint in product(TINT, repeat=3)]
    return {colour_name(tuple(np.clip(gain * colour, 0, 1))) for gain in gains}
