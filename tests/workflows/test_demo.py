"""`run.py demo` from end to end, in processes of its own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from support import video
from tools import demo
from tools.console import Failure

ROOT = Path(__file__).resolve().parents[2]


def test_demo_writes_video_report_and_pictures(environment, tmp_path):
    out = tmp_path / "new" / "out"
    command = [sys.executable, ROOT / "run.py", "--comfyui", environment.comfyui, "demo", "--out", out]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in out.iterdir()} == set(demo.RESULTS)
    assert video.frames(out / "video.mp4").shape[0] == 9
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert len(report["takes"]) == 4
    rows = re.findall(r"^ +(\d) +(\d+) +([\d.]+) .*?(best)?$", done.stdout, re.MULTILINE)
    assert [int(row[1]) for row in rows] == [take["seed"] for take in report["takes"]]
    assert [bool(row[3]) for row in rows] == [index == report["best"] for index in range(4)]
    assert Image.open(out / "contact_sheet.png").width > 200 and Image.open(out / "timeline.png").width > 200


def test_demo_names_the_node_that_failed(environment, tmp_path, monkeypatch):
    graph = json.loads(demo.GRAPH.read_text("utf-8"))
    subject = next(node for node in graph.values() if node["class_type"] == "IDCrafterSubject")
    subject["inputs"]["name"] = ""
    (tmp_path / "graph.json").write_text(json.dumps(graph), "utf-8")
    monkeypatch.setattr(demo, "GRAPH", tmp_path / "graph.json")
    with pytest.raises(Failure, match=r"IDCrafterSubject \(node \d+\): (.|\n)*server's log"):
        demo.run_demo(environment, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
