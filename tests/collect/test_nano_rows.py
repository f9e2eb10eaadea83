"""Rows of the nano graph on a real ComfyUI: rollouts with all they need, in a storage that can be trained from."""

import json

import pytest

from idcrafter.collect import plan
from idcrafter.collect.storage import LocalStorage
from idcrafter.collect.worker import Settings, Worker
from idcrafter.rollouts.dataset import load
from idcrafter.rollouts.store import RolloutStore

TABLE = "# row,Sample Takes: four.seed,9.action\na,911,\nb,912,Ada waves. Bo stands still.\n"


@pytest.fixture
def request_of_two(tmp_path, quickstart):
    """Two rows of two takes of one step; scored, stored, and a picture saved beside."""
    graph = {node_id: node for node_id, node in quickstart.items() if int(node_id) <= 16}
    graph["12"]["inputs"]["length"] = 5
    graph["14"]["inputs"]["steps"] = 1
    graph["15"]["inputs"]["takes"] = 2
    sampled = graph["15"]["inputs"]
    conditioning = {name: sampled[name] for name in ("model", "positive", "negative_text", "negative_images")}
    inputs = {"takes": ["15", 0], "scorecard": ["16", 0], "cast": ["7", 0], "folder": "rl/nano", "prompt": ["9", 0]}
    graph["30"] = {"class_type": "IDCrafterSaveRollouts", "inputs": {**inputs, **conditioning, "clip": ["1", 1]}}
    (tmp_path / "graph.json").write_text(json.dumps(graph), "utf-8")
    (tmp_path / "cases.csv").write_text(TABLE, "utf-8")
    return plan.read_request(tmp_path / "graph.json", tmp_path / "cases.csv")


@pytest.fixture
def worker(comfyui_server, tmp_path):
    settings = Settings(
        comfyui_server.environment.comfyui, comfyui_server.base / "input", str(tmp_path / "out"), tmp_path, 3600.0
    )
    worker = Worker(settings, "worker-0")
    worker.server, worker.base = comfyui_server, comfyui_server.base
    return worker


def test_rows_become_rollouts(worker, request_of_two, tmp_path):
    schemas = worker.schemas(request_of_two.classes)
    filled = plan.fill(request_of_two, schemas, worker.settings.inputs)
    sha256 = worker.digests(plan.names(filled, schemas))
    assert {"nano.json", "idcrafter_ada.png", "idcrafter_bo.png"} <= set(sha256)
    storage = LocalStorage(tmp_path / "out")
    todo = plan.make(request_of_two, filled, sha256, storage)
    done = [worker.run(job) for job in todo.jobs]
    assert [each["new_groups"] for each in done] == [1, 1], done
    rollouts = load(tmp_path / "out")
    assert sorted(take.seed for group in rollouts.groups for take in group.takes) == [911, 912, 912, 913]
    assert len(rollouts.policies) == 1 and not rollouts.damages and not RolloutStore(tmp_path / "out").verify()
    assert sorted("waves" in group.prompt for group in rollouts.groups) == [False, True]
    assert all(rollouts.conditioning(group)["positive"] for group in rollouts.groups)
    # Nothing is left on the worker but the picture of the last row, which the next one may need again.
    assert not (worker.base / "output" / "rl" / "nano").exists()
    assert all(len(list((tmp_path / "out" / "files" / job.id).rglob("contact_sheet_*.png"))) == 1 for job in todo.jobs)
    again = plan.make(request_of_two, filled, sha256, storage)
    assert again.jobs == () and again.finished == (2, 3)
