"""The nano stack with and without the LoRAs of its own takes, on a real server: the same seeds, side by side."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from support import video

GRAPH = Path(__file__).resolve().parents[2] / "workflows" / "api" / "before_after.json"
LORAS, STEPS, TAKES, PICK, VIDEO = ("12", "28"), "14", ("15", "16"), ("21", "22"), "26"  # node ids


@pytest.fixture
def graph() -> dict:
    return json.loads(GRAPH.read_text("utf-8"))


@pytest.fixture
def run(written):
    """Run a graph: the clip [T, H, W, 3] and the reports of both rows of takes."""

    def run(graph):
        _, files = written(graph)
        before, after = (json.loads(files[node][0].read_text("utf-8")) for node in PICK)
        return SimpleNamespace(clip=video.frames(files[VIDEO][0]), before=before["takes"], after=after["takes"])

    return run


def mean_score(takes):
    return np.mean([take["score"] for take in takes])


def test_faces_are_kept_better_on_the_same_seeds(run, graph):
    done = run(graph)
    assert [take["seed"] for take in done.before] == [take["seed"] for take in done.after] == [1, 2, 3, 4]
    assert mean_score(done.after) > mean_score(done.before) + 0.05
    left, gap, right = np.split(done.clip.astype(np.float64), [384, 400], axis=2)
    assert done.clip.shape == (9, 256, 784, 3) and gap[:, :, 4:12].mean() > 240
    # The same scene, and not the same clip.
    assert np.abs(left[0] - right[0]).mean() < 20 < np.abs(left - right).mean(axis=(1, 2, 3)).max()


def test_without_strength_both_are_the_same(run, graph):
    graph[STEPS]["inputs"]["steps"] = 4
    for node in TAKES:
        graph[node]["inputs"]["takes"] = 2
    for node in LORAS:
        graph[node]["inputs"]["strength"] = 0.0
    done = run(graph)
    assert [take["score"] for take in done.before] == [take["score"] for take in done.after]
    left, _, right = np.split(done.clip.astype(np.float64), [384, 400], axis=2)
    assert np.abs(left - right).mean() < 2  # what the codec makes of it
