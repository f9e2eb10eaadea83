"""A sentence without names on a real server: the nano VLM finds out who is meant, in words and in hidden states."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from support import video
from tools.client import GraphError

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
TABLE, RELATE, PICTURE, PROMPT, GRAPH, NOTE = "10 11 12 13 14 15".split()  # node ids of relations
SENTENCE, ENCODE, TAKES, PICK, VIDEO, READ = "13 16 21 24 27 29".split()  # and of vlm_guidance
NAMES = ("Ada", "Bo", "Cy")


def graph_of(name):
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text("utf-8"))


@pytest.fixture
def related(written):
    """Run the graph relations; `prompt`, `graph` and `note` as shown, and the `picture`."""

    def run(graph):
        entry, files = written(graph)
        shown = {node: entry["outputs"][node]["text"][0] for node in (PROMPT, GRAPH, NOTE)}
        (path,) = files[PICTURE]
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
    assert [subject["name"] for subject in done.graph["subjects"]] == list(NAMES)
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


@pytest.fixture
def render(written):
    """Run the graph vlm_guidance; `clip` [T, H, W, 3], `report`, and what the VLM has `read`."""

    def run(graph):
        entry, files = written(graph)
        report = json.loads(files[PICK][0].read_text("utf-8"))
        read = entry["outputs"].get(READ, {}).get("text", [""])[0]
        return SimpleNamespace(clip=video.frames(files[VIDEO][0]), report=report, read=read)

    return run


@pytest.fixture(scope="module")
def who_is_where(pack):
    """The names of a clip's faces from left to right in its first frame."""
    analyzer = pack.execute("IDCrafterLoadBundle", bundle="nano.json")[3]

    def faces(pixels):
        return analyzer.analyze(torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255)

    photos = [np.asarray(Image.open(WORKFLOWS / "photos" / f"{name.lower()}.png").convert("RGB")) for name in NAMES]
    cast = np.stack([faces(photo)[0].embedding for photo in photos])

    def who_is_where(clip):
        found = sorted(faces(clip[0]), key=lambda face: face.box[0])
        return [NAMES[int((cast @ face.embedding).argmax())] for face in found]

    return who_is_where


def test_everybody_stands_where_a_sentence_without_names_says(render, who_is_where):
    done = render(graph_of("vlm_guidance"))
    assert done.read.startswith("idcrafter_nano_vlm has seen 3 photos;")
    assert done.read.endswith("tokens of width 128, use: replace.")
    assert done.clip.shape == (9, 256, 384, 3) and done.clip.std() > 15
    best = done.report["takes"][done.report["best"]]
    assert set(best["subjects"]) == set(NAMES)
    assert all(scores["similarity"] > 0.3 for scores in best["subjects"].values())
    assert who_is_where(done.clip) == ["Cy", "Ada", "Bo"]


def test_another_sentence_places_them_otherwise(render, who_is_where):
    graph = graph_of("vlm_guidance")
    text = graph[SENTENCE]["inputs"]["value"]
    left, right = "on the left", "on the right"
    graph[SENTENCE]["inputs"]["value"] = text.replace(left, "@").replace(right, left).replace("@", right)
    graph[TAKES]["inputs"]["takes"] = 1
    assert who_is_where(render(graph).clip) == ["Bo", "Ada", "Cy"]


def test_without_the_vlm_it_is_another_video(render):
    graph = graph_of("vlm_guidance")
    graph[TAKES]["inputs"]["takes"] = 1
    guided = render(graph)
    del graph[ENCODE]["inputs"]["vlm"]
    alone = render(graph)
    assert alone.read == "Neither a VLM nor a CLIP is connected: the conditioning is unchanged."
    assert not np.array_equal(guided.clip, alone.clip)


def test_a_missing_aligner_is_named(client):
    graph = graph_of("vlm_guidance")
    graph["11"]["inputs"]["aligner_name"] = "absent.safetensors"
    with pytest.raises(GraphError, match="absent.safetensors") as caught:
        client.run(graph)
    assert caught.value.node_type == "IDCrafterLoadAligner"
