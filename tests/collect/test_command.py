"""`python -m idcrafter collect` as people start it: its answers, its exit codes, and a run on a real ComfyUI."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jsonschema
import psutil
import pytest
from PIL import Image

from idcrafter.__main__ import main
from support.collecting import GRAPH
from tools.demo import copy_photos

ROOT = Path(__file__).resolve().parents[2]
TEXT, NUMBER, ROWS = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "array", "items": {"minimum": 2}}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "format": {"const": "idcrafter-collect"},
        "version": {"const": 1},
        "graph": TEXT,
        "table": TEXT,
        "out": TEXT,
        "ray": {"type": "boolean"},
        "workers": NUMBER,
        "rows": NUMBER,
        "finished": NUMBER,
        "skipped": NUMBER,
        "failed": {"type": "array", "items": {"required": ["row", "reason"], "properties": {"reason": TEXT}}},
        "left": ROWS,
        "groups": NUMBER,
        "files": NUMBER,
        "bytes": NUMBER,
        "lost_workers": NUMBER,
        "interrupted": {"type": "boolean"},
        "sha256": {"type": "object", "additionalProperties": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
        "error": {"type": ["string", "null"]},
        "seconds": {"type": "number", "minimum": 0},
    },
}
SCHEMA["required"] = list(SCHEMA["properties"])


def read_summary(text):
    summary = json.loads(text)
    jsonschema.validate(summary, SCHEMA)
    return summary


@pytest.fixture
def collect(tmp_path, capsys, environment):
    """Exit code and summary of the command, inside this process."""
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH), "utf-8")
    (tmp_path / "input").mkdir()

    def run(table, *options):
        (tmp_path / "cases.csv").write_text(table, "utf-8")
        given = [str(tmp_path / "graph.json"), "--table", str(tmp_path / "cases.csv"), "--out", str(tmp_path / "out")]
        given += ["--input", str(tmp_path / "input"), "--comfyui", str(environment.comfyui), *map(str, options)]
        code = main(["collect", *given])
        return code, read_summary(capsys.readouterr().out)

    return run


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ("2.sead\n1\n2.x", (), "Row 3|no such node"),
        ("2.seed\none\n", (), "Row 2, column '2.seed'"),
        ("2.seed\n1\n", ("--workers", 0), "at least one worker"),
        ("2.seed\n1\n", ("--comfyui", "/nowhere"), "'/nowhere' is no ComfyUI"),
        ("2.seed\n1\n", ("--input", "/nowhere"), "no folder '/nowhere'"),
        ("2.seed\n1\n", ("--out", "nonsense://x"), "cannot be opened|needs pyarrow"),
    ],
)
def test_what_cannot_work_is_said_before_comfyui_is_started(collect, monkeypatch, table, options, message):
    monkeypatch.setattr("tools.server.Server.start", lambda *_, **__: pytest.fail("ComfyUI was started"))
    if table.startswith("2.sead"):  # only the schema can tell that there is no such input
        table = "2.seed,2\n1,2\n"
        message = "Column '2' of"
    code, summary = collect(table, *options)
    assert code == 1 and not summary["interrupted"]
    assert any(part in summary["error"] for part in message.split("|"))


def test_a_comfyui_that_does_not_start_ends_it_with_its_log(collect, monkeypatch, tmp_path):
    monkeypatch.setattr("tools.server.Server.command", lambda self: [sys.executable, "-c", "print('no GPU'); exit(3)"])
    code, summary = collect("2.seed\n1\n", "--scratch", tmp_path / "scratch")
    assert code == 1 and "exit 3" in summary["error"] and "no GPU" in summary["error"]
    assert summary["left"] == [2] and summary["rows"] == 1


def test_wrong_usage_is_2(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["collect", "graph.json"])
    assert caught.value.code == 2 and "--table" in capsys.readouterr().err


def test_an_interrupt_is_130(collect, monkeypatch):
    def start(self, **_):
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(5)

    monkeypatch.setattr("tools.server.Server.start", start)
    before = signal.getsignal(signal.SIGTERM)
    code, summary = collect("2.seed\n1\n")
    assert code == 130 and summary["interrupted"] and signal.getsignal(signal.SIGTERM) == before


# On a real ComfyUI ----------------------------------------------------------------------------------------------------

PICTURES = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "idcrafter_ada.png"}, "_meta": {"title": "Photo"}},
    "2": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], "upscale_method": "area", "width": 16, "height": 16,
                                                 "crop": "disabled"}, "_meta": {"title": "Smaller"}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "small/picture"}},
    "4": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "photo"}},
}  # fmt: skip


@pytest.fixture
def command(tmp_path, environment):
    """Starts the command for two rows of a graph of core nodes, in a process of its own."""
    (tmp_path / "graph.json").write_text(json.dumps(PICTURES), "utf-8")
    (tmp_path / "cases.csv").write_text("# row,Smaller.width\na,24\nb,32\n", "utf-8")
    (tmp_path / "input").mkdir()
    copy_photos(tmp_path / "input")
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    arguments = ["graph.json", "--table", "cases.csv", "--out", out, "--input", "input", "--scratch", scratch]
    arguments = [sys.executable, "-m", "idcrafter", "collect", *arguments, "--comfyui", environment.comfyui]

    def start():
        return subprocess.Popen(
            list(map(str, arguments)), cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def kill_server(process):
    """SIGKILL the ComfyUI of a command as soon as its first row has begun; returns all that it has logged till then."""
    logged = ""
    for line in process.stderr:
        logged += line
        if "row 2 begins" in line:
            children = psutil.Process(process.pid).children()
            assert len(children) == 1
            children[0].send_signal(signal.SIGKILL)
            break
    return logged


def test_a_lost_comfyui_is_replaced_and_a_second_run_has_nothing_to_do(command, tmp_path):
    first = command()
    logged = kill_server(first)
    answer, rest = first.communicate(timeout=800)
    logged += rest
    assert first.returncode == 0, logged
    summary = read_summary(answer)
    assert (summary["rows"], summary["finished"], summary["lost_workers"]) == (2, 2, 1), logged
    assert summary["files"] == 4 and not summary["failed"] and not summary["left"]
    assert list(summary["sha256"]) == ["idcrafter_ada.png"]
    assert "row 2 lost its worker: ComfyUI of worker-0 ended (exit -9)" in logged
    pictures = {}
    for note in (tmp_path / "out" / "collected").glob("*.json"):
        facts = json.loads(note.read_text("utf-8"))
        with Image.open(next((tmp_path / "out" / "files" / note.stem / "small").glob("*.png"))) as picture:
            pictures[facts["row"]] = picture.width
        # The node that need not run again for the second row: its file is with both.
        assert len(list((tmp_path / "out" / "files" / note.stem).glob("photo_*.png"))) == 1
    assert pictures == {2: 24, 3: 32}
    assert not (tmp_path / "scratch" / "worker-0").exists()  # nothing to go on with

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    again = command()
    answer, logged = again.communicate(timeout=800)
    summary = read_summary(answer)
    assert again.returncode == 0 and (summary["finished"], summary["skipped"]) == (0, 2), logged
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")} == times
