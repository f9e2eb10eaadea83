"""Graphs in sentences, and plain sentences as graphs."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idcrafter.relations.compose import WORDINGS, compose
from idcrafter.relations.graph import Relation, RelationGraph
from idcrafter.relations.sentences import graph_action, graph_prompt, plain_graph
from idcrafter.subjects.subject import make_subject

PHOTO = torch.zeros((1, 16, 16, 3))
CAST = [make_subject(n, "person", d, PHOTO) for n, d in (("Ada", "a woman in red"), ("Bo", "a man"), ("Cy", ""))]


def plain(action):
    return plain_graph(CAST, action)[0]


@pytest.mark.parametrize(
    ("action", "relations"),
    [
        ("Ada hugs Bo.", [Relation(0, "hugs", 1)]),
        ("Ada waves at Bo from afar! Cy nods", [Relation(0, "waves at", 1, "from afar"), Relation(2, "nods")]),
        ("On the left, Ada waves.", [Relation(0, "waves", None, "", "On the left")]),
        ("Then Ada smiles.", [Relation(0, "smiles", None, "", "Then")]),
        ("Ada takes Bo's hat.", [Relation(0, "takes", 1, "'s hat")]),
        ("Ada gives Bo a hat of Cy", [Relation(0, "gives", 1, "a hat of Cy")]),
        ("Ada thinks of Ada.", [Relation(0, "thinks of Ada")]),
        ("The weather is fine.", []),
        ("", []),
    ],
)
def test_the_first_name_acts_on_the_next(action, relations):
    assert list(plain(action).relations) == relations


def test_what_names_nobody_is_the_scene():
    graph = plain("It rains. Ada waves. A dog barks!")
    assert graph.scene == "It rains. A dog barks"
    assert graph_action(graph) == "It rains. A dog barks. Ada waves."


def test_who_is_not_named_is_told():
    assert plain_graph(CAST, "Ada waves.")[1] == ["Bo and Cy are not named in the action."]
    assert plain_graph(CAST, "Ada, Bo and Cy dance.")[1] == plain_graph(CAST, "")[1] == []


@pytest.mark.parametrize(
    "action",
    [
        "Ada hugs Bo. Bo waves at Ada from afar. Then Cy smiles.",
        "On the left, Ada takes Bo's hat. Ada and Bo dance.",
        "The Ada sleeps. Bo wakes the Ada, then leaves with Cy.",
    ],
)
def test_a_sentence_survives_becoming_a_graph(action):
    for wording in WORDINGS:
        assert graph_prompt(CAST, plain(action), wording) == compose(CAST, action, wording)


def test_the_order_is_scene_story_camera():
    graph = RelationGraph(
        ("Ada", "Bo", "Cy"),
        ("a woman in red", "a man", "a cat"),
        (Relation(1, "bows to", 0, "", "at first"), Relation(0, "laughs", None, "", "then")),
        "a dark street",
        "slow zoom",
    )
    assert graph_prompt(CAST, graph, "descriptions") == (
        "A dark street. At first, a man bows to a woman in red. Then the woman in red laughs. Slow zoom. A cat is also "
        "in the scene."
    )


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["Ada", "Bo", "Cy", "hugs", "the", "then", ",", ".", "'s", "!", "\n", "x", "\ue000"]),
                max_size=14))  # fmt: skip
def test_any_sentence_is_a_graph_that_makes_a_prompt(pieces):
    graph = plain(" ".join(pieces))
    prompt = graph_prompt(CAST, graph, "ordinals")
    assert "The first is a woman in red. The second is a man. The third is a person." in prompt
    assert not re.search(r"\b(Ada|Bo|Cy)\b", prompt)
    assert all(each.predicate and each.subject != each.object for each in graph.relations)
