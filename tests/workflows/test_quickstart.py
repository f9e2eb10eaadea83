"""The main job on a real server: two people from photos, four takes, the best one with its report."""

import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from support import video
from tools.client import GraphError, Interrupted

BUNDLE, BO, SHEET, SCHEDULE, TAKES, TIMELINE, PICK, VIDEO = "1 5 8 14 15 17 18 21".split()  # node ids


@pytest.fixture
def render(written):
    """Run a graph and read what it wrote: `video` [T, H, W, 3], `report`, and the files by node."""

    def run(graph):
        entry, files = written(graph)
        report = json.loads(files[PICK][0].read_text("utf-8"))
        return SimpleNamespace(entry=entry, files=files, report=report, path=files[VIDEO][0])

    return run


@pytest.fixture
def forget(client, comfyui_server):
    """Make the server forget what it has computed: its node cache and the takes on disk."""

    def forget():
        client.post("/free", {"unload_models": True, "free_memory": True})
        for file in take_files(comfyui_server):
            file.unlink()
        time.sleep(1)  # the request is carried out by the idle worker, not by the call

    return forget


def take_files(server):
    return sorted(server.base.glob("output/idcrafter/takes/*/*.safetensors"))


def digests(report):
    return [take["latent_sha256"] for take in report["takes"]]


def test_video_can_be_played_and_shows_something_that_moves(render, quickstart):
    done = render(quickstart)
    stream = video.probe(done.path)
    assert (stream["codec_name"], stream["pix_fmt"], stream["r_frame_rate"]) == ("h264", "yuv420p", "8/1")
    assert (stream["width"], stream["height"], int(stream["nb_read_frames"])) == (384, 256, 9)
    clip = video.frames(done.path).astype(float)
    assert clip.shape == (9, 256, 384, 3)
    assert min(frame.std() for frame in clip) > 15  # not one colour
    assert np.abs(np.diff(clip, axis=0)).max() > 60  # somewhere something has moved


def test_report_says_who_is_where_and_which_take_is_best(render, quickstart):
    report = render(quickstart).report
    assert (report["schema"], report["version"]) == ("idcrafter.report", 2)
    assert [subject["name"] for subject in report["subjects"] if subject["scored"]] == ["Ada", "Bo"]
    takes = report["takes"]
    assert [(take["index"], take["seed"]) for take in takes] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert report["best"] == max(range(4), key=lambda index: takes[index]["score"])
    assert report["picked"] == report["best"]
    for take in takes:
        assert 0 <= take["score"] <= 1 and len(take["frames"]) == 9
        assert set(take["subjects"]) == {"Ada", "Bo"}
        for scores in take["subjects"].values():
            assert -1 <= scores["similarity"] <= 1 and 0 <= scores["coverage"] <= 1
    assert report["analyzer"]["licence"] and report["model"]["licence"]


def test_nano_keeps_both_people(render, quickstart):
    """The weights that come with the pack do the job: both faces are there, and they are the right ones."""
    report = render(quickstart).report
    best = report["takes"][report["best"]]
    assert best["score"] > 0.5
    for scores in best["subjects"].values():
        assert scores["coverage"] >= 0.75 and scores["similarity"] > 0.4


def test_pictures_are_written(render, quickstart):
    done = render(quickstart)
    for node, name in ((SHEET, "contact_sheet"), (TIMELINE, "timeline")):
        (path,) = done.files[node]
        picture = Image.open(path)
        assert path.name.startswith(name) and picture.format == "PNG"
        assert picture.width >= 200 and picture.height >= 100
        assert np.asarray(picture.convert("RGB")).std() > 10


def test_same_seed_same_video_other_seed_other_video(render, quickstart, forget):
    quickstart[SCHEDULE]["inputs"]["steps"] = 8
    quickstart[TAKES]["inputs"]["takes"] = 2
    first = render(quickstart)
    forget()
    again = render(quickstart)
    assert not any(take["resumed"] for take in again.report["takes"])  # it was really computed twice
    assert digests(again.report) == digests(first.report)
    assert np.array_equal(video.frames(again.path), video.frames(first.path))
    quickstart[TAKES]["inputs"]["seed"] = 1000
    other = render(quickstart)
    assert not set(digests(other.report)) & set(digests(first.report))
    assert np.abs(video.frames(other.path).astype(int) - video.frames(first.path)).max() > 30


def test_takes_overlap_where_their_seeds_do(render, quickstart):
    """Take k of a batch is what its seed gives, wherever the batch begins."""
    first = render(quickstart)
    quickstart[TAKES]["inputs"].update(seed=3, takes=1)
    alone = render(quickstart)
    assert digests(alone.report) == digests(first.report)[2:3]


def test_interrupt_in_the_third_take_leaves_two(render, quickstart, client, comfyui_server, forget):
    forget()
    quickstart[SCHEDULE]["inputs"]["steps"] = 20  # long enough to be hit in the middle
    prompt_id = client.queue(quickstart)
    deadline = time.monotonic() + 300
    while len(take_files(comfyui_server)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    client.interrupt(prompt_id)
    with pytest.raises(Interrupted) as caught:
        client.wait(prompt_id, timeout=120)
    assert caught.value.node_id == TAKES
    assert [file.stem for file in take_files(comfyui_server)] == ["1", "2"]
    done = render(quickstart)
    assert [take["seed"] for take in done.report["takes"] if take["resumed"]] == [1, 2]
    forget()
    whole = render(quickstart)
    assert digests(done.report) == digests(whole.report)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda graph: graph[BO]["inputs"].update(name="Ada"), ["Ada"]),
        (lambda graph: graph[PICK]["inputs"].update(filename_prefix="../../outside"), ["output"]),
        (lambda graph: graph[PICK]["inputs"].update(take=4), ["4", "0 to 3"]),
        (lambda graph: graph[BUNDLE]["inputs"].update(bundle="absent.json"), ["absent.json"]),
        (lambda graph: graph[TAKES]["inputs"].update(takes=0), ["takes"]),
    ],
    ids=["name twice", "outside of the output folder", "take that does not exist", "no such bundle", "no takes"],
)
def test_mistakes_are_named(client, quickstart, change, words, comfyui_server):
    change(quickstart)
    with pytest.raises(GraphError) as caught:
        client.run(quickstart)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert caught.value.node_type.startswith("IDCrafter")
    assert not list(comfyui_server.base.parent.glob("outside*"))


def test_two_clients_queue_at_once(client, quickstart):
    """The second run waits for the first, and neither takes the other's result."""
    quickstart[TAKES]["inputs"]["takes"] = 1
    results = {}

    def run(seed):
        graph = json.loads(json.dumps(quickstart))
        graph[TAKES]["inputs"]["seed"] = seed
        entry = client.run(graph)
        results[seed] = json.loads(client.download(next(f for f in client.files(entry) if f["node"] == PICK)))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (21, 22)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert {seed: report["takes"][0]["seed"] for seed, report in results.items()} == {21: 21, 22: 22}
