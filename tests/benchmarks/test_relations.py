"""The relations benchmark: stories that are true, scores that cannot be gamed, an oracle that reaches everything."""

import importlib
import json
import sys
from collections import Counter

import pytest

from idcrafter.nano import world
from idcrafter.nano.world import crowd, stories
from idcrafter.relations.graph import Relation, RelationGraph
from support.inprocess import ROOT
from support.scripted_vlm import ScriptedVLM

sys.path.append(str(ROOT / "benchmarks"))

import relations  # noqa: E402

PEOPLE = [world.sample_identity(number) for _, number in zip(range(60), world.numbers_of_split("val"), strict=False)]
PLACES = crowd.PLACES[3]


def told(seed, count=3, move=None, **more):
    spec = crowd.sample_crowd_spec(tuple(PEOPLE[seed % 50 : seed % 50 + count]), seed, move)
    return stories.tell(spec, 0, **more)


def graph(*rows):
    return RelationGraph(("Ada", "Bo", "Cy"), ("a", "b", "c"), tuple(Relation(*row) for row in rows))


@pytest.fixture(scope="module")
def bench():
    return relations.Bench(importlib.import_module, 12)


# Stories --------------------------------------------------------------------------------------------------------------


def test_the_same_clip_is_told_in_the_same_words():
    assert told(3) == told(3)
    assert told(3).facts == told(3, unseen=True).facts or Counter(told(3).facts) == Counter(told(3, unseen=True).facts)


@pytest.mark.parametrize("move", crowd.MOVES)
def test_a_story_has_every_fact_of_its_clip(move):
    for seed in range(20):
        story = told(seed, 2 + seed % 3, move, unseen=seed % 2 == 0)
        count, spec = len(story.names), story.spec
        expected = {(i, crowd.PLACES[count][spec.places[i]], None) for i in range(count)}
        expected |= {(i, spec.actions[i], None) for i in range(count)}
        if move != "stay":
            expected.add((spec.a, move, spec.b))
        assert {(fact.who, fact.what, fact.other) for fact in story.facts} == expected
        assert all(mention in story.text or mention.capitalize() in story.text for mention in story.mentions)


def test_unseen_forms_are_never_seen():
    for forms in (stories._STAND, *stories._MOVES.values()):
        assert not set(forms[0]) & set(forms[1])
    seen = {told(seed, by_name=True).text for seed in range(30)}
    assert not seen & {told(seed, unseen=True, by_name=True).text for seed in range(30)}


def test_a_mention_is_true_of_one_person_only():
    for start in range(0, 40, 4):
        cast = tuple(PEOPLE[start : start + 4])
        for i in range(4):
            for phrase in stories.tells_apart(cast, i):
                parts = phrase.removeprefix("the one ").split(" and ")
                holders = [k for k, who in enumerate(cast) if set(parts) <= set(stories._features(who))]
                assert holders == [i], phrase


def test_doubles_cannot_be_told_apart():
    spec = crowd.sample_crowd_spec((PEOPLE[0], PEOPLE[0]), 1)
    with pytest.raises(ValueError, match="Nothing tells number [12] of these 2 apart"):
        stories.tell(spec, 0)
    assert stories.tell(spec, 0, by_name=True).mentions == ("Ada", "Bo")


# Scores ---------------------------------------------------------------------------------------------------------------


def test_triples_are_read_in_other_words_too():
    found = relations.read_triples(
        graph(
            (0, "is on the left and nods"),
            (1, "switches places with", 0),
            (2, "steps behind", 1, "for a moment"),
            (2, "speaks", None, "", "in the middle"),
            (1, "juggles"),
        ),
        PLACES,
    )
    assert found == [(0, "nod", None), (0, "on the left", None), (0, "swap", 1), (2, "hide", 1), (2, "talk", None),
                     (2, "in the middle", None)]  # fmt: skip
    four = relations.read_triples(graph((0, "is on the far left"), (1, "is on the left")), crowd.PLACES[4])
    assert four == [(0, "on the far left", None), (1, "on the left", None)]


def test_all_predicates_of_the_world_are_read_back():
    for count in (2, 3, 4):
        for seed in range(12):
            story = told(seed, count)
            made = graph(*((fact.who, fact.predicate, fact.other) for fact in story.facts))
            assert Counter(relations.read_triples(made, crowd.PLACES[count])) == Counter(relations.true_triples(story))
    for what, words in world.scene.ACTIONS.items():
        if what in stories.PREDICATES:
            for word in words:
                assert relations.read_triples(graph((0, word)), PLACES) == [(0, what, None)], word


def test_grounding_pairs_one_to_one():
    truth = [(0, "nod", None), (1, "nod", None), (0, "hide", 1)]
    assert relations.grounding(truth, truth) == (4, 4)
    assert relations.grounding(truth, [(1, "nod", None), (1, "hide", 0)]) == (1, 4)
    assert relations.grounding(truth, [(0, "hide", 2)]) == (1, 4)
    assert relations.grounding(truth, []) == (0, 4)
    # Everything of everybody costs F1; what is right stays right.
    everything = [(a, what, b) for a in range(3) for what in ("nod", "hide") for b in (None, 0, 1, 2)]
    outcome = relations.Outcome(Counter(truth), Counter(everything), *relations.grounding(truth, everything), 1, False)
    assert relations.f1([outcome]) < 0.3


def test_an_oracle_reaches_everything(bench):
    answers = [stories.true_answer(case.story, ("a puppet",) * len(case.story.names)) for case in bench.cases]
    result = relations.run(bench, ScriptedVLM(*answers))
    row = result["vlm"]
    assert (row["triple_f1"], row["grounding"], row["valid_json"], row["valid_first"]) == (1.0, 1.0, 1.0, 1.0)
    assert all(result["reached"].values()) and row["name"] == "Scripted"
    json.dumps(result)


def test_people_exchanged_and_answers_that_fail_are_seen(bench):
    from idcrafter.relations import store

    turned, broken = [], []
    for case in bench.cases:
        names = case.story.names
        text = json.dumps(stories.true_answer(case.story, ("a puppet",) * len(names)))
        other = dict(zip(names, names[1:] + names[:1], strict=True))
        turned.append("".join(other.get(part, part) for part in text.replace('"', '\0"\0').split("\0")))
        broken += ["no", "no"] if case.by_name else ["no", text]
    store.forget()
    row = relations.run(bench, ScriptedVLM(*turned, digest="turned"))["vlm"]
    assert row["triple_f1"] < 0.4 and row["grounding"] < 0.4 and row["valid_json"] == 1.0
    row = relations.run(bench, ScriptedVLM(*broken, digest="broken"))["vlm"]
    assert (row["valid_json"], row["valid_first"]) == (0.75, 0.0)
    assert row["looks"]["grounding"] == 1.0 and row["names"]["valid_json"] == 0.0


def test_the_floors_are_floors(bench):
    result = relations.run(bench, None)
    assert result["vlm"] is None and result["reached"] is None
    assert result["composer"]["looks"]["grounding"] == 0.0 < result["composer"]["names"]["triple_f1"]
    assert 0.1 < result["guess"]["grounding"] < 0.8 and result["composer"]["valid_json"] is None


def test_cases_are_of_sealed_people_in_unseen_forms(bench):
    for case in bench.cases:
        assert all(world.identity_split(who.number) == "sealed" for who in case.story.spec.identities)
        assert all(not subject.description for subject in case.cast.subjects)
    assert sum(case.by_name for case in bench.cases) * 4 == len(bench.cases)
    assert {len(case.story.names) for case in bench.cases} == {2, 3, 4} and relations.CASES >= 200
