"""Any video and photos in, a scorecard out, on a real server: in the example one of two people becomes the other."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.client import GraphError

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
VIDEO, SCORE = "11", "12"  # node ids


@pytest.fixture
def graph() -> dict:
    return json.loads((WORKFLOWS / "api" / "score_a_video.json").read_text("utf-8"))


@pytest.fixture
def results(written):
    """Run a graph; returns the paths that the scoring node wrote, by ending."""

    def run(graph):
        _, files = written(graph)
        return {path.suffix.removeprefix("."): path for path in files[SCORE]}

    return run


def test_the_example_needs_no_video_model(graph):
    used = {node["class_type"] for node in graph.values()}
    assert "IDCrafterScoreVideo" in used
    assert not used & {
        "IDCrafterLoadBundle",
        "IDCrafterLoadVideoDiT",
        "IDCrafterSampleTakes",
        "VAELoader",
        "CLIPLoader",
    }


def test_report_says_what_went_wrong_with_whom_and_when(graph, results):
    files = results(graph)
    report = json.loads(files["json"].read_text("utf-8"))
    (take,) = report["takes"]
    assert len(take["frames"]) == 33 and take["fps"] == 8.0
    events = {(event["kind"], *event["subjects"]): (event["first"], event["last"]) for event in take["events"]}
    assert events == {("missing", "Bo"): (20, 32), ("cloned", "Ada"): (20, 32)}
    ada, bo = take["subjects"]["Ada"], take["subjects"]["Bo"]
    assert ada["coverage"] == 1.0 and ada["similarity"] > 0.8
    assert bo["coverage"] == pytest.approx(20 / 33, abs=1e-4) and bo["similarity_seen"] > 0.8 > bo["similarity"]
    assert report["analyzer"]["name"] == "idcrafter_nano" and report["software"]["comfyui"]


def test_csv_and_picture_lie_beside_the_report(graph, results):
    files = results(graph)
    assert set(files) == {"json", "csv", "png"} and len({path.with_suffix("") for path in files.values()}) == 1
    with files["csv"].open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 33
    gone = [row for row in rows if row["seen"] == "0"]
    assert {(row["subject"], row["events"]) for row in gone} == {("Bo", "missing")}
    assert [float(row["seconds"]) for row in gone] == [frame / 8 for frame in range(20, 33)]
    picture = np.asarray(Image.open(files["png"]).convert("RGB"))
    assert picture.shape[1] == 1280 and picture.std() > 10


def test_fewer_frames_are_enough_to_see_it(graph, results):
    graph[SCORE]["inputs"]["frames"] = 12
    (take,) = json.loads(results(graph)["json"].read_text("utf-8"))["takes"]
    assert len(take["frames"]) == 12
    assert {event["kind"] for event in take["events"]} == {"missing", "cloned"}


def test_a_trimmed_video_counts_from_its_own_start(graph, results):
    graph["trim"] = {
        "class_type": "Video Slice",
        "inputs": {"video": [VIDEO, 0], "start_time": 0.5, "duration": 1.5, "strict_duration": False},
    }
    graph[SCORE]["inputs"]["video"] = ["trim", 0]
    (take,) = json.loads(results(graph)["json"].read_text("utf-8"))["takes"]
    assert [frame["frame"] for frame in take["frames"]] == list(range(12)) and take["events"] == []


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda graph: graph[SCORE]["inputs"].update(filename_prefix="../../outside"), ["output"]),
        (lambda graph: graph[SCORE]["inputs"].update(cast=["7", 0]), ["IDCrafterExtractFaces"]),
        (lambda graph: graph[VIDEO]["inputs"].update(file="idcrafter_broken.mp4"), ["cannot be read"]),
    ],
    ids=["outside of the output folder", "cast without faces", "a file that is no video"],
)
def test_mistakes_are_named(client, graph, change, words, comfyui_server):
    (comfyui_server.base / "input" / "idcrafter_broken.mp4").write_bytes(b"no video" * 100)
    change(graph)
    with pytest.raises(GraphError) as caught:
        client.run(graph)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not list(comfyui_server.base.parent.glob("outside*"))
