"""`python -m idcrafter`: a data set from a folder of clips, as people start it, and what it says when it cannot."""

import json
import logging
import os
import subprocess
import sys
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from idcrafter.__main__ import main
from idcrafter.nano import world
from idcrafter.rewards.lossy_video import write_h264
from idcrafter.training.dataset import read_dataset
from support import inprocess

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ["--faces", "idcrafter_nano", "--provider", "cpu", "--same", "0.7"]
OPTIONS += ["--frames", "5", "--min-face", "20", "--gap", "0.2"]


@pytest.fixture
def clips(tmp_path):
    cast = [world.sample_identity(number) for number in islice(world.numbers_of_split("val", 40), 3)]
    clip = world.plant_clip("plain", tuple(cast[:2]), cast[2], 5, 1, 2)
    folder = tmp_path / "clips"
    folder.mkdir()
    with (folder / "one.mp4").open("wb") as file:
        write_h264(file, map(torch.from_numpy, clip.frames), Fraction(8), 4, 2)
    return folder


def run(*arguments):
    environment = os.environ | {"IDCRAFTER_COMFYUI": "/nowhere"}
    command = [sys.executable, "-m", "idcrafter", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_clips_become_a_data_set(clips, tmp_path):
    out = tmp_path / "out"
    done = run("build-dataset", clips, out, "--licence", "CC0", "--comfyui", inprocess.comfyui_folder(), *OPTIONS)
    assert done.returncode == 0, done.stderr
    dataset = read_dataset(out)
    assert dataset.licences == ("CC0",) and all(len(clip.subjects) == 2 for clip in dataset.clips)
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert report["settings"]["frames"] == 5 and report["settings"]["same"] == 0.7
    assert f"{len(dataset.clips)} clips with {2 * len(dataset.clips)} subjects from 1 raw clips" in done.stderr
    with Image.open(out / "sheet.jpg") as sheet:
        assert sheet.width == 1280 and len({sheet.getpixel((60, y)) for y in range(0, sheet.height, 8)}) > 4


def test_a_data_set_is_checked(clips, tmp_path, caplog):
    (tmp_path / "metadata.jsonl").write_text('{"video": "clips/one.mp4"}\n', "utf-8")
    assert main(["check-dataset", str(tmp_path)]) == 1
    assert "line 1 (clips/one.mp4): the caption is missing" in caplog.text


def test_what_it_cannot_do_it_says(clips, tmp_path, caplog):
    build = ["build-dataset", str(clips), str(tmp_path / "out"), "--licence", "CC0"]
    assert main([*build, "--frames", "8"]) == 1
    assert "give 4 n + 1" in caplog.text
    assert main([*build, "--comfyui", str(tmp_path)]) == 1
    assert "is no ComfyUI" in caplog.text
    with pytest.raises(SystemExit) as usage:
        main(["build-dataset", str(clips), str(tmp_path / "out")])
    assert usage.value.code == 2


def test_an_interrupt_is_no_error(monkeypatch, tmp_path, caplog):
    def interrupted(folder):
        raise KeyboardInterrupt

    caplog.set_level(logging.INFO)
    monkeypatch.setattr("idcrafter.training.dataset.command.read_dataset", interrupted)
    assert main(["check-dataset", str(tmp_path)]) == 130
    assert "start it again to go on" in caplog.text
