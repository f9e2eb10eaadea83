"""Best of eight on a real server: eight takes begun, few finished, within the budget."""

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from support import video
from tools.client import GraphError, Interrupted

GRAPH = Path(__file__).resolve().parents[2] / "workflows" / "api" / "best_of_eight.json"
TAKES, SCORECARD, PICK, VIDEO, PRUNED = "15 17 18 21 25".split()  # node ids


@pytest.fixture
def graph():
    return json.loads(GRAPH.read_text("utf-8"))


@pytest.fixture
def takes_folder(client, comfyui_server):
    """Where takes are kept, empty; the server has forgotten what it computed before."""
    client.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(1)  # carried out by the idle worker, not by the call
    folder = comfyui_server.base / "output" / "idcrafter" / "takes"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@pytest.fixture
def render(written):
    def run(graph):
        entry, files = written(graph)
        report = json.loads(files[PICK][0].read_text("utf-8"))
        return SimpleNamespace(entry=entry, files=files, report=report, search=report.get("search"))

    return run


def without_seconds(search):
    return {key: value for key, value in search.items() if not key.endswith("_seconds")}


def test_the_best_of_eight_within_the_budget(render, graph, takes_folder):
    done = render(graph)
    takes, search = done.report["takes"], done.search
    assert search["takes"] == 8 and search["cost"] <= search["budget"] == 3.0
    finished, pruned = {take["seed"] for take in takes}, {take["seed"] for take in search["pruned"]}
    assert finished | pruned == set(range(1, 9)) and not finished & pruned and 1 <= len(finished) <= 3
    best = takes[done.report["best"]]
    assert best["score"] == max(take["score"] for take in takes) > 0.5
    # All eight were looked at, and the text says when and why each of the others went.
    first = [look for look in search["previews"] if look["step"] == search["rungs"][0]["step"]]
    assert {look["seed"] for look in first} == set(range(1, 9)) and all(0 <= look["score"] <= 1 for look in first)
    (text,) = done.entry["outputs"][PRUNED]["text"]
    assert text.startswith(f"Take search: {len(finished)} of 8 takes finished")
    for take in search["pruned"]:
        assert f"Pruned seed {take['seed']} after step {take['step']} of 20" in text
    assert video.frames(done.files[VIDEO][0]).shape == (9, 256, 384, 3)
    assert np.asarray(Image.open(done.files[SCORECARD][0]).convert("RGB")).std() > 10


def test_a_survivor_is_what_its_seed_gives_alone(render, graph, takes_folder):
    survivor = render(graph).report["takes"][0]
    shutil.rmtree(takes_folder)
    graph[TAKES]["inputs"].update(seed=survivor["seed"], takes=1, budget=0)
    alone = render(graph).report
    assert "search" not in alone and [take["resumed"] for take in alone["takes"]] == [False]
    assert alone["takes"][0]["latent_sha256"] == survivor["latent_sha256"]


def test_an_interrupted_search_goes_on_where_it_was(render, graph, client, takes_folder):
    prompt_id = client.queue(graph)
    deadline = time.monotonic() + 300
    while len(list(takes_folder.glob("*/*.part/*"))) < 17 and time.monotonic() < deadline:
        time.sleep(0.02)
    client.interrupt(prompt_id)
    with pytest.raises(Interrupted) as caught:
        client.wait(prompt_id, timeout=120)
    assert caught.value.node_id == TAKES
    (folder,) = takes_folder.iterdir()
    assert len(list(folder.glob("*.part/*"))) >= 17 and not list(folder.glob("*.safetensors"))
    resumed = render(graph)
    assert not list(folder.glob("*.part"))
    shutil.rmtree(takes_folder)
    client.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(1)
    whole = render(graph)
    assert without_seconds(resumed.search) == without_seconds(whole.search)
    digests = [[take["latent_sha256"] for take in done.report["takes"]] for done in (resumed, whole)]
    assert digests[0] == digests[1]


def test_a_budget_that_is_too_small_says_what_is_enough(client, graph):
    graph[TAKES]["inputs"]["budget"] = 1.1
    with pytest.raises(GraphError, match="at least 1.35"):
        client.run(graph)
