"""Three people through the nano adapter on a real server: who is where, and what the adapter changes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from support import video
from tools.client import GraphError

GRAPH = Path(__file__).resolve().parents[2] / "workflows" / "api" / "identity_injection.json"
ADAPTER, INJECT, SCHEDULE, TAKES, PICK, VIDEO, MAPS, SHOWN = "2 16 18 19 21 25 26 27".split()  # node ids
NAMES = ["Ada", "Bo", "Cy"]


@pytest.fixture
def graph() -> dict:
    graph = json.loads(GRAPH.read_text("utf-8"))
    # Everybody's own map as a row of pictures, in cast order.
    graph["90"] = {"class_type": "MaskToImage", "inputs": {"mask": [MAPS, 1]}}
    graph["91"] = {"class_type": "PreviewImage", "inputs": {"images": ["90", 0]}}
    return graph


@pytest.fixture
def render(written):
    """Run a graph: `clip` [T, H, W, 3], `report`, the `maps` as drawn [T, h, w, 3], and `shares` [S, T, H, W]."""

    def pictures(paths):
        return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])

    def render(graph):
        _, files = written(graph)
        report = json.loads(files[PICK][0].read_text("utf-8"))
        shares = pictures(files["91"])[..., 0] / 255
        return SimpleNamespace(
            clip=video.frames(files[VIDEO][0]),
            report=report,
            maps=pictures(files[SHOWN]),
            shares=shares.reshape(len(NAMES), -1, *shares.shape[1:]),
        )

    return render


def test_three_people_and_who_is_where(render, graph):
    done = render(graph)
    assert done.clip.shape == (9, 256, 384, 3) and done.clip.std() > 15
    best = done.report["takes"][done.report["best"]]
    assert set(best["subjects"]) == set(NAMES) and len(done.report["takes"]) == 4
    assert all(scores["similarity"] > 0.3 for scores in best["subjects"].values())
    # One picture a frame, with a legend below; each place is shared out. In the background the training has ignored
    # whose it is.
    assert len(done.maps) == 9 and done.maps.std() > 10
    assert done.shares.shape == (3, 9, 64, 96) and done.shares.sum(axis=0).max() <= 1.02
    # The prompt puts them from left to right, and so does the router.
    columns = np.arange(96) * np.ones((64, 96))
    middles = [(share * columns).sum() / share.sum() for share in done.shares]
    assert middles[0] + 10 < middles[1] < middles[2] - 10


def test_the_adapter_is_what_changes_the_video(render, graph):
    graph[SCHEDULE]["inputs"]["steps"] = 5
    graph[TAKES]["inputs"]["takes"] = 1
    weak = json.loads(json.dumps(graph))
    weak[INJECT]["inputs"]["strength"] = 0.3
    assert not np.array_equal(render(graph).clip, render(weak).clip)


def test_without_strength_there_is_nobody_to_show(client, graph):
    graph[SCHEDULE]["inputs"]["steps"] = 2
    graph[TAKES]["inputs"]["takes"] = 1
    graph[INJECT]["inputs"]["strength"] = 0.0
    with pytest.raises(GraphError, match="No router has seen anybody") as caught:
        client.run(graph)
    assert caught.value.node_type == "IDCrafterRouterMaps"


@pytest.mark.parametrize(
    "node, inputs, words",
    [
        (ADAPTER, {"adapter_name": "absent.safetensors"}, "absent.safetensors"),
        (INJECT, {"start_percent": 0.6, "end_percent": 0.5}, "start_percent"),
        (INJECT, {"vae": None}, "through the VAE"),
    ],
    ids=["no such file", "no part of the schedule", "no VAE"],
)
def test_mistakes_are_named(client, graph, node, inputs, words):
    graph[node]["inputs"] = {k: v for k, v in (graph[node]["inputs"] | inputs).items() if v is not None}
    with pytest.raises(GraphError, match=words) as caught:
        client.run(graph)
    assert caught.value.node_type == graph[node]["class_type"]
