"""A sentence without names on a real server: the nano VLM finds out who is meant."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
TABLE, RELATE, PICTURE, PROMPT, GRAPH, NOTE = "10 11 12 13 14 15".split()  # node ids of relations


def graph_of(name):
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text("utf-8"))


@pytest.fixture
def related(client, comfyui_server):
    """Run the graph relations; `prompt`, `graph` and `note` as shown, and the `picture`."""

    def run(graph):
        entry = client.run(graph)
        shown = {node: entry["outputs"][node]["text"][0] for node in (PROMPT, GRAPH, NOTE)}
        (file,) = (file for file in client.files(entry) if file["node"] == PICTURE)
        path = comfyui_server.base / "output" / file["subfolder"] / file["filename"]
        picture = np.asarray(Image.open(path).convert("RGB"))
        graph = json.loads(shown[GRAPH])
        told = [(each["subject"], each["predicate"], each["object"]) for each in graph["relations"]]
        return SimpleNamespace(prompt=shown[PROMPT], graph=graph, told=told, note=shown[NOTE], picture=picture)

    return run


def test_the_vlm_finds_out_who_is_meant(related):
    done = related(graph_of("relations"))
    assert done.note.startswith("Relations by idcrafter_nano_vlm, licence apache-2.0.")
    assert ("Ada", "hides behind", "Bo") in done.told
    places = {"Ada": "is on the left", "Bo": "is in the middle", "Cy": "is on the right"}
    assert {(name, place, None) for name, place in places.items()} <= set(done.told)
    assert [subject["name"] for subject in done.graph["subjects"]] == ["Ada", "Bo", "Cy"]
    assert all(f"The {word} is a puppet" in done.prompt for word in ("first", "second", "third"))
    assert "The first hides behind the second" in done.prompt and "the one with" not in done.prompt
    assert done.picture.std() > 10


def test_each_run_takes_the_next_row(related):
    graph = graph_of("relations")
    first = related(graph)
    graph[TABLE]["inputs"]["row"] = 1
    second = related(graph)
    pair = {frozenset((who, whom)) for who, what, whom in second.told if what == "swaps places with"}
    assert pair == {frozenset(("Bo", "Cy"))} and second.prompt != first.prompt
    graph[TABLE]["inputs"]["row"] = 2
    assert related(graph).prompt == first.prompt


def test_an_edited_graph_makes_the_prompt(related):
    graph = graph_of("relations")
    edited = related(graph).graph
    edited["relations"] = [{"subject": "Cy", "predicate": "waves at", "object": "Ada", "detail": "", "when": ""}]
    graph["90"] = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": json.dumps(edited)}}
    graph[RELATE]["inputs"]["graph"] = ["90", 0]
    done = related(graph)
    assert done.prompt.endswith("The third waves at the first.") and done.told == [("Cy", "waves at", "Ada")]
