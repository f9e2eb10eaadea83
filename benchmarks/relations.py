"""How well relations are understood: who is meant, and who does what to whom.

Casts of two to four sealed identities, one photo each and no descriptions; sentences in forms that no training has
seen, in three of four cases without names ("the one with the yellow cap hides behind the one with glasses"). The truth
is the spec that the sentence is told of. What a graph says is read by the words of the world's own vocabulary, so a
relation in other words, or a place and an action in one line, count as well.

Keys of a row, over all cases; `looks` and `names` have the same for the two kinds of sentences:

    triple_f1     F1 of the triples (who, what, whom) of all cases together; whom is None for what is done alone;
                  swapping places is the same both ways
    grounding     of the people in the true triples how many are the right ones in the graph's: true and found triples
                  of the same `what` are paired one to one, equal ones first; without a partner everybody is wrong
    valid_json    answers that could be used, at most one repair included; None without a VLM
    valid_first   the same without a repair

Rows: `vlm` (the nano VLM, or the folder of --vlm; None when there is none), and two floors: `composer`, which reads
names and nothing else, and `guess`, which knows every triple but for the people, whom it draws. Rates have a 95 %
Wilson interval, triple_f1 one that is bootstrapped over cases. `reached` compares the VLM with what is required.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from nano import inprocess, wilson

CASES, QUICK = 240, 24
PHOTO = 128  # pixels
SEED = 90_000
NANO_VLM = "idcrafter_nano_vlm"
REQUIRED = {"triple_f1": 0.80, "grounding": 0.90, "valid_json": 0.99}
DRAWS = 1000

Triple = tuple[int, str, int | None]

# What says that somebody does something; of several that are found the longer one counts for its place in the text.
_SAID = {
    "stand": r"stands? still|stays? still|waits?\b|motionless",
    "nod": r"\bnods?\b|nodding",
    "turn": r"turns? (?:around|the head|(?:his|her|their|its) head)|looks? (?:around|from side to side)",
    "talk": r"\btalks?\b|\bspeaks?\b|\blaughs?\b|talking|speaking|laughing",
    "swap": r"(?:swap|chang|exchang|trad|switch)\w* (?:places?|positions?|sides?)|takes? the (?:old )?place"
    r"|walks? past",
    "hide": r"hid(?:e|es|ing)\b|(?:steps?|goes|moves?|walks?) behind",
}


@dataclass(frozen=True)
class Case:
    """A story, its cast, and whether people go by their names."""

    story: object
    cast: object
    by_name: bool


@dataclass(frozen=True)
class Outcome:
    """What was made of a case: true and found triples, and after how many requests (0: no VLM, None: unusable)."""

    truth: Counter
    found: Counter
    grounded: int
    people: int
    requests: int | None
    by_name: bool


def read_triples(graph, places: Sequence[str]) -> list[Triple]:
    """The triples of a relation graph in the vocabulary of the world; what is not of it is left out.

    places  where one can stand with that many people, in words
    """
    triples = []
    for relation in graph.relations:
        text = f"{relation.when} {relation.predicate} {relation.detail}".lower()
        for what, said in _SAID.items():
            if not re.search(said, text):
                continue
            if what in ("swap", "hide"):
                if relation.object is not None:
                    triples.append(_ordered(relation.subject, what, relation.object))
            else:
                triples.append((relation.subject, what, None))
        # "On the far left" has no "on the left" in it, but people leave the words in front away.
        where = [place for place in places if re.search(rf"\b{place.split(' the ', 1)[1]}\b", text)]
        where = [place for place in where if not any(place != other and place in other for other in where)]
        if "far left" in text or "far right" in text:
            where = [place for place in where if "far" in place]
        triples += [(relation.subject, place, None) for place in where]
    return list(dict.fromkeys(triples))


def true_triples(story) -> list[Triple]:
    return [_ordered(fact.who, fact.what, fact.other) for fact in story.facts]


def grounding(truth: Sequence[Triple], found: Sequence[Triple]) -> tuple[int, int]:
    """(people that are right, people) of the true triples; each found triple is the partner of one at most."""
    people = sum(1 + (triple[2] is not None) for triple in truth)
    equal = Counter(truth) & Counter(found)
    right = sum(count * (1 + (triple[2] is not None)) for triple, count in equal.items())
    rest = list((Counter(found) - equal).elements())
    for who, what, whom in (Counter(truth) - equal).elements():
        partners = [each for each in rest if each[1] == what]
        if partners:
            partner = max(partners, key=lambda each: (each[0] == who) + (whom is not None and each[2] == whom))
            rest.remove(partner)
            right += (partner[0] == who) + (whom is not None and partner[2] == whom)
    return right, people


def judge(case: Case, found: Sequence[Triple], requests: int | None) -> Outcome:
    truth = true_triples(case.story)
    return Outcome(Counter(truth), Counter(found), *grounding(truth, found), requests, case.by_name)


def summarise(outcomes: Sequence[Outcome], asked: bool) -> dict:
    """A row; see above."""
    row = _numbers(outcomes, asked)
    for kind, by_name in (("looks", False), ("names", True)):
        some = [each for each in outcomes if each.by_name == by_name]
        row[kind] = _numbers(some, asked) if some else None
    return row


def f1(outcomes: Sequence[Outcome]) -> float:
    return float(_f1(_counts(outcomes).sum(0)))


def _counts(outcomes: Sequence[Outcome]) -> np.ndarray:
    """[cases, 2]: triples that are in both, and triples in either, those in both twice."""
    return np.array([((o.truth & o.found).total(), o.truth.total() + o.found.total()) for o in outcomes], float)


def _f1(counts: np.ndarray) -> np.ndarray:
    return 2 * counts[..., 0] / np.maximum(counts[..., 1], 1)


def _numbers(outcomes: Sequence[Outcome], asked: bool) -> dict:
    rng = np.random.default_rng(0)
    draws = _f1(_counts(outcomes)[rng.integers(len(outcomes), size=(DRAWS, len(outcomes)))].sum(1))
    right, people = (sum(getattr(each, name) for each in outcomes) for name in ("grounded", "people"))
    row = {
        "cases": len(outcomes),
        "triple_f1": round(f1(outcomes), 4),
        "triple_f1_interval": [round(float(q), 4) for q in np.quantile(draws, (0.025, 0.975))],
        **_rate("grounding", right, people),
    }
    for name, most in (("valid_json", 2), ("valid_first", 1)):
        valid = sum(each.requests is not None and each.requests <= most for each in outcomes)
        row |= _rate(name, valid, len(outcomes)) if asked else {name: None}
    return row


def _rate(name: str, right: int, total: int) -> dict:
    return {
        name: round(right / max(total, 1), 4),
        f"{name}_interval": [round(q, 4) + 0.0 for q in wilson(right, total)],
    }


def _ordered(who: int, what: str, whom: int | None) -> Triple:
    return (min(who, whom), what, max(who, whom)) if what == "swap" and whom is not None else (who, what, whom)


class Bench:
    """The cases, and what is asked about them. `module` gives a module of the package that is measured."""

    def __init__(self, module: Callable[[str], ModuleType], cases: int):
        self.relate = module("idcrafter.relations.relate")
        self.subject = module("idcrafter.subjects.subject")
        self.world, self.crowd = module("idcrafter.nano.world"), module("idcrafter.nano.world.crowd")
        self.stories = module("idcrafter.nano.world.stories")
        self.cases = self._cases(cases)

    def _cases(self, count: int) -> list[Case]:
        people = (self.world.sample_identity(number) for number in self.world.numbers_of_split("sealed"))
        cases, seed = [], SEED
        while len(cases) < count:
            seed += 1
            identities = tuple(islice(people, 2 + len(cases) % 3))
            spec = self.crowd.sample_crowd_spec(identities, seed)
            by_name = len(cases) % 4 == 3
            try:
                story = self.stories.tell(spec, 0, unseen=True, by_name=by_name)
            except ValueError:
                continue  # people whom no words tell apart
            cases.append(Case(story, self._cast(story, seed), by_name))
        return cases

    def _cast(self, story, seed: int):
        subjects = []
        for i, (name, who) in enumerate(zip(story.names, story.spec.identities, strict=True)):
            photo = torch.from_numpy(self.world.render_photo(who, 10 * seed + i, PHOTO)[0] / np.float32(255))
            subjects.append(self.subject.make_subject(name, "person", "", photo[None]))
        return self.subject.make_cast(subjects)

    def places(self, case: Case) -> tuple[str, ...]:
        return self.crowd.PLACES[len(case.story.names)]

    def composer(self, case: Case) -> Outcome:
        graph = self.relate.relate(case.cast, case.story.text).graph
        return judge(case, read_triples(graph, self.places(case)), 0)

    def guess(self, case: Case) -> Outcome:
        """Every triple with people drawn anew, the same ones wherever the same ones are meant."""
        drawn = np.random.default_rng((case.story.spec.seed, 11)).permutation(len(case.story.names))
        found = [_ordered(int(drawn[a]), what, None if b is None else int(drawn[b]))
                 for a, what, b in true_triples(case.story)]  # fmt: skip
        return judge(case, found, 0)

    def ask(self, case: Case, vlm) -> Outcome:
        related = self.relate.relate(case.cast, case.story.text, vlm)
        requests = related.requests if related.source == "vlm" else None
        return judge(case, read_triples(related.graph, self.places(case)), requests)


def run(bench: Bench, vlm) -> dict:
    """The result; `vlm` may be None."""
    result = {"cases": len(bench.cases), "required": REQUIRED, "vlm": None, "reached": None}
    for name, answer in (("composer", bench.composer), ("guess", bench.guess)):
        result[name] = summarise([answer(case) for case in bench.cases], asked=False)
    if vlm is not None:
        started, outcomes = time.time(), []
        for i, case in enumerate(bench.cases):
            outcomes.append(bench.ask(case, vlm))
            if i % 20 == 19:
                print(f"case {i + 1}: triple_f1 {f1(outcomes):.3f}, {time.time() - started:.0f} s", flush=True)
        seconds = (time.time() - started) / len(bench.cases)
        result["vlm"] = {**vlm.describe(), **summarise(outcomes, asked=True), "seconds_a_case": round(seconds, 2)}
        result["reached"] = {name: result["vlm"][name] >= least for name, least in REQUIRED.items()}
    return result


def load(pack, folder: Path | None):
    """The VLM in a folder, or the nano VLM if it is there."""
    loader, files = pack.submodule("model_loaders.vlm"), pack.submodule("model_loaders.files")
    folder = folder or files.find(pack.submodule("model_loaders.pretrained").FOLDER, NANO_VLM)
    return None if folder is None else loader.load_vlm(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} cases")
    parser.add_argument("--vlm", type=Path, help="folder of the VLM; the nano VLM when left out")
    arguments = parser.parse_args()
    inprocess.prepare_path()
    with tempfile.TemporaryDirectory() as folder:
        inprocess.configure(Path(folder))
        pack = inprocess.Pack()
        bench = Bench(pack.submodule, QUICK if arguments.quick else CASES)
        result = run(bench, load(pack, arguments.vlm))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
