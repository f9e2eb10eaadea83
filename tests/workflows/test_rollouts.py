"""Collecting and training on a real server: a group of rollouts becomes a LoRA that core's loader finds."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from idcrafter.rollouts.dataset import load
from support import video
from tools.client import GraphError

API = Path(__file__).resolve().parents[2] / "workflows" / "api"
TAKES, SAVE, BEST_AND_WORST, LOAD, TRAIN, SUMMARY = "15", "18", "24", "3", "5", "7"


def graph_of(name, **changes):
    """The API graph; changes are inputs by node id."""
    graph = json.loads((API / f"{name}.json").read_text("utf-8"))
    for node_id, inputs in changes.items():
        graph[node_id.removeprefix("n")]["inputs"].update(inputs)
    return graph


@pytest.fixture
def output(comfyui_server):
    """The server's output folder without rollouts and trainings."""
    folder = comfyui_server.base / "output"
    for name in ("idcrafter/rollouts", "idcrafter_training"):
        shutil.rmtree(folder / name, ignore_errors=True)
    # The folder stays: once it has listed it, ComfyUI cannot list LoRAs without it.
    for path in folder.glob("loras/*"):
        path.unlink()
    return folder


def test_a_group_becomes_a_lora(client, output):
    collect = graph_of("collect_rollouts", n14={"steps": 3}, n15={"takes": 3})
    entry = client.run(collect)
    rollouts = load(output / "idcrafter" / "rollouts")
    (group,) = rollouts.groups
    assert entry["outputs"][SAVE]["text"][0].startswith("Stored: group") and len(group.takes) == 3
    assert {"identity", "motion", "monitor"} <= set(group.takes[0].rewards)
    assert group.takes[0].sde["steps"] == [1]  # the last of three steps adds no noise
    (shown,) = (file for file in client.files(entry) if file["node"] == BEST_AND_WORST)
    assert video.frames(output / shown["subfolder"] / shown["filename"]).shape == (9, 256, 768, 3)

    for method in ("nft", "flash_grpo"):
        changes = {"steps": 2, "takes": 3, "validate_every": 2, "method": method, "name": f"nano {method}"}
        trained = client.run(graph_of("train_lora", n5=changes))
        (text,) = trained["outputs"][SUMMARY]["text"]
        assert "2 steps on 1 groups of 3 takes" in text and "Kept: step 2, where the monitor saw" in text
        with safe_open(output / "loras" / f"nano {method}_00001_.safetensors", "pt") as file:
            assert file.metadata()["policy"] == rollouts.policies[0] and len(list(file.keys())) > 30
        assert list((output / "idcrafter_training" / f"nano {method}" / "videos").iterdir())

    again = graph_of("collect_rollouts", n14={"steps": 3}, n15={"takes": 2, "seed": 50})
    kept = {node_id: node for node_id, node in again.items() if int(node_id) <= 18}
    kept["40"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["1", 0], "lora_name": "nano nft_00001_.safetensors", "strength_model": 1.0},
    }
    for node_id in (TAKES, SAVE):
        kept[node_id]["inputs"]["model"] = ["40", 0]
    client.run(kept)
    assert len(load(output / "idcrafter" / "rollouts").policies) == 2
    # A graph whose Load Rollouts knows the MODEL trains on its own takes only.
    train = graph_of("train_lora", n5={"steps": 2, "takes": 3, "validate_every": 0, "name": "own"})
    del train[TRAIN]["inputs"]["monitor"]
    done = client.run(train)
    assert "on 1 groups of 3 takes" in done["outputs"][SUMMARY]["text"][0]


def test_without_rollouts_it_says_what_to_do(client, output):
    with pytest.raises(GraphError, match="collect some with Save Rollouts"):
        client.run(graph_of("train_lora"))
