"""The graphs through comfy-cli, the headless client that people use, in both formats."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"


@pytest.mark.parametrize("graph", ["quickstart", "score_a_video", "relations"])
@pytest.mark.parametrize("folder", [WORKFLOWS, WORKFLOWS / "api"], ids=["ui", "api"])
def test_runs_both_formats(graph, folder, comfyui_server, tmp_path):
    variables = os.environ | {"COMFY_NO_WATCH": "1", "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}

    def comfy(*arguments):
        command = [sys.executable, "-m", "comfy_cli", *arguments]
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)

    assert comfy("tracking", "disable").returncode == 0
    address = ["--where", "local", "--host", "127.0.0.1", "--port", str(comfyui_server.port)]
    done = comfy("run", "--workflow", str(folder / f"{graph}.json"), "--wait", "--json", *address)
    assert done.returncode == 0, done.stdout + done.stderr
    envelope = json.loads(done.stdout.strip().splitlines()[-1])
    assert envelope["ok"] and envelope["data"]["status"] == "completed"
