"""The reward of a graph: terms with weights, gates, and how they are combined.

`measure_terms` measures one clip, `combine.combine` makes one number a clip of what several clips measured.
`recommended_reward` is what to search and train with, unless you know better. Kinds of terms, each a function of its
own module, where the formula and its source stand:

    identity         this project's identity score (identity.py)
    id_crafter_face  ID-Crafter's face term, mean and worst subject (id_crafter.py)
    subject_crops    PSR's pairwise subject crops (subject_crops.py); model: an image encoder
    distinct_faces   DisCo's distinctness of the faces in a frame (disco.py)
    exact_count      DisCo's count of people (disco.py)
    copy_paste       WithAnyone's copy-paste score (copy_paste.py); 1 is bad, so give it a negative weight
    motion           Farneback flow of the fastest 5 % (motion.py); mostly a gate
    aesthetics       LAION's aesthetic predictor (aesthetic.py); model: an aesthetic predictor
    naturalness      a VLM's Yes (naturalness.py); model: a VLM
    judge            a learned judge's raw score; model: a judge
    opens2v_facesim  OpenS2V's FaceSim (opens2v.py): can be gamed, for comparison
    ingredients_max  Ingredients' face similarity (ingredients.py): can be gamed, for comparison
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from . import aesthetic, copy_paste, disco, id_crafter, ingredients, motion, naturalness, opens2v, subject_crops
from .combine import COMBINATIONS

if TYPE_CHECKING:
    import torch

    from .evidence import ClipEvidence, FrameSource

# Copying gains up to half a point of identity over what a model makes of real people.
COPY_WEIGHT = 0.5

_Measure = Callable[["ClipEvidence", Mapping[str, Any], Any], float]


@dataclass(frozen=True)
class Kind:
    """What a kind of term needs: its function, its options with their defaults, and what its model is called.

    zero  whether a value of 0 means nothing at all; a logit has no such point
    """

    measure: _Measure
    options: Mapping[str, object] = field(default_factory=dict)
    model: str | None = None
    zero: bool = True


@dataclass(frozen=True, eq=False)
class _Watched:
    """A clip that says so after every frame that is read from it."""

    source: FrameSource
    on_frame: Callable[[], None]

    @property
    def length(self) -> int:
        return self.source.length

    @property
    def fps(self) -> float | None:
        return self.source.fps

    def read(self, indices: Sequence[int]) -> Iterator[torch.Tensor]:
        for frame in self.source.read(indices):
            yield frame
            self.on_frame()


def _identity(evidence: ClipEvidence, options: Mapping, model: None) -> float:
    return evidence.score


def _judge(evidence: ClipEvidence, options: Mapping, model: Any) -> float:
    # One photo a person, as in the judge's training.
    references = []
    for i in evidence.scored:
        faces = evidence.cast.faces.subjects[i].faces
        references.append(
            next(p for p, f in zip(evidence.cast.subjects[i].photos, faces, strict=True) if f is not None)
        )
    source, on_frame = evidence.source, None
    if isinstance(source, _Watched):  # the judge treats clips in memory and files differently
        source, on_frame = source.source, source.on_frame
    return float(model.score(source, references, on_frame))


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "identity": Kind(_identity),
        "id_crafter_face": Kind(id_crafter.measure_face, {"worst_share": id_crafter.GAMMA}),
        "subject_crops": Kind(subject_crops.measure, {"margin": subject_crops.MARGIN}, "an image encoder"),
        "distinct_faces": Kind(disco.measure_distinctness),
        "exact_count": Kind(disco.measure_count),
        "copy_paste": Kind(copy_paste.measure, {"single_photo": copy_paste.SINGLE_PHOTO[0]}),
        "motion": Kind(motion.measure),
        "aesthetics": Kind(aesthetic.measure, {}, "an aesthetic predictor"),
        "naturalness": Kind(
            naturalness.measure, {"question": naturalness.QUESTION, "frames": naturalness.FRAMES}, "a VLM"
        ),
        "judge": Kind(_judge, {}, "a judge", zero=False),
        "opens2v_facesim": Kind(opens2v.measure_facesim),
        "ingredients_max": Kind(ingredients.measure),
    }
)


@dataclass(frozen=True)
class RewardTerm:
    """One term: a kind of KINDS, its weight, options as (name, value) pairs, and the model that measures it.

    floor  above 0 the term is also a gate: a clip below it loses its reward in proportion (see `combine`)
    Raises ValueError for a kind, an option or a number that does not exist, and for a missing model.
    """

    kind: str
    weight: float = 1.0
    options: tuple[tuple[str, object], ...] = ()
    model: object | None = None
    floor: float = 0.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"A reward term is one of {', '.join(KINDS)}; got '{self.kind}'.")
        kind = KINDS[self.kind]
        unknown = [name for name, _ in self.options if name not in kind.options]
        if unknown:
            raise ValueError(f"The reward term '{self.kind}' has no option '{unknown[0]}'.")
        if kind.model and self.model is None:
            raise ValueError(f"The reward term '{self.kind}' needs a model; connect {kind.model} to it.")
        if not math.isfinite(self.weight) or not math.isfinite(self.floor) or self.floor < 0:
            raise ValueError(
                f"The reward term '{self.kind}' has the weight {self.weight} and the floor {self.floor}; the weight "
                "must be a finite number and the floor 0 or more."
            )

    def measure(self, evidence: ClipEvidence) -> float:
        """The raw value of one clip."""
        kind = KINDS[self.kind]
        return float(kind.measure(evidence, {**kind.options, **dict(self.options)}, self.model))


@dataclass(frozen=True)
class RewardSpec:
    """Terms and how they become one number: `combine` is one of combine.COMBINATIONS."""

    terms: tuple[RewardTerm, ...]
    combine: str = "sum"

    def __post_init__(self):
        if not self.terms:
            raise ValueError("A reward needs at least one term.")
        if self.combine not in COMBINATIONS:
            raise ValueError(f"Rewards are combined by one of {', '.join(COMBINATIONS)}, got '{self.combine}'.")

    @property
    def names(self) -> tuple[str, ...]:
        """One name a term: its kind, numbered from the second of a kind on ("motion", "motion 2")."""
        names: list[str] = []
        for i, term in enumerate(self.terms):
            before = sum(other.kind == term.kind for other in self.terms[:i])
            names.append(f"{term.kind} {before + 1}" if before else term.kind)
        return tuple(names)

    @property
    def without_zero(self) -> frozenset[str]:
        """The names of the terms whose values have no zero point."""
        return frozenset(n for n, term in zip(self.names, self.terms, strict=True) if not KINDS[term.kind].zero)

    @property
    def gates(self) -> tuple[tuple[str, float], ...]:
        """(name, floor) of the terms that are gates."""
        return tuple((name, term.floor) for name, term in zip(self.names, self.terms, strict=True) if term.floor > 0)

    def describe(self) -> dict:
        """JSON-able facts for a report: terms with weights, floors, options and models (name and licence)."""
        return {
            "combine": self.combine,
            "terms": {
                name: {
                    "kind": term.kind,
                    "weight": term.weight,
                    "floor": term.floor,
                    "options": {**KINDS[term.kind].options, **dict(term.options)},
                    "model": None if term.model is None else term.model.describe(),
                }
                for name, term in zip(self.names, self.terms, strict=True)
            },
        }


def default_reward() -> RewardSpec:
    """The identity score alone."""
    return RewardSpec((RewardTerm("identity"),))


def recommended_reward(weight: float = 1.0, floor: float = 0.0) -> RewardSpec:
    """Identity that cannot be had by copying a photo or by standing still: weight * (identity - 0.5 copy_paste), gated
    by motion.

    Likeness is what search and training push up, and a pasted or frozen reference has the most of it: copying costs
    (of subjects with two photos or more), and a clip with less motion than motion.FLOOR keeps its reward only in
    proportion. A `floor` above 0 is one of the identity score.
    """
    return RewardSpec(
        (
            RewardTerm("identity", weight, floor=floor),
            RewardTerm("copy_paste", -COPY_WEIGHT * weight, (("single_photo", "skip"),)),
            RewardTerm("motion", 0.0, floor=motion.FLOOR),
        )
    )


def measure_terms(
    evidence: ClipEvidence, spec: RewardSpec, on_step: Callable[[], None] | None = None, clip: str = "the clip"
) -> dict[str, float]:
    """The raw value of each term for one clip, by name.

    on_step  called after each frame that a term reads and after each term, for interruption
    clip     what errors call the clip, such as "take 3"
    Raises ValueError where the clip or the cast lacks what a term needs, RuntimeError where a value is not finite; both
    name the term and the clip.
    """
    if on_step:
        evidence = replace(evidence, source=_Watched(evidence.source, on_step))
    values = {}
    for name, term in zip(spec.names, spec.terms, strict=True):
        try:
            values[name] = term.measure(evidence)
        except ValueError as error:
            raise ValueError(f"The reward term '{name}' cannot measure {clip}. {error}") from error
        if not math.isfinite(values[name]):
            raise RuntimeError(
                f"The reward term '{name}' of {clip} came out as {values[name]}; its model or the clip is damaged."
            )
        if on_step:
            on_step()
    return values
