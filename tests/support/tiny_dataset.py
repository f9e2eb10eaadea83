"""A data set of three short clips of the nano world, two people each, with two references a person."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import torch
from PIL import Image

FRAMES, FPS = 9, 8
NAMES = ("Ada", "Bo")


def write(folder: Path, clips: int = 3, length: int = FRAMES) -> Path:
    """The folder, with metadata.jsonl; the last clip does not say where anybody is."""
    from idcrafter.nano.world import numbers_of_split, render_clip, render_photo, sample_clip_spec, sample_identity
    from idcrafter.rewards.lossy_video import write_h264

    folder.mkdir(parents=True)
    numbers = numbers_of_split("train")
    lines = []
    for k in range(clips):
        people = (sample_identity(next(numbers)), sample_identity(next(numbers)))
        clip = render_clip(sample_clip_spec(people, k, ("left", "right")))
        height, width = clip.frames.shape[1:3]
        with (folder / f"{k}.mp4").open("wb") as file:
            write_h264(file, (torch.from_numpy(frame) for frame in clip.frames[:length]), Fraction(FPS), 4, 2)
        subjects = []
        for s, who in enumerate(people):
            references = []
            for n in range(2):
                references.append(f"{k}-{s}-{n}.png")
                Image.fromarray(render_photo(who, 100 * k + 10 * s + n, 48)[0]).save(folder / references[-1])
            faces = [
                None
                if frame[s] is None
                else [float(v) / side for v, side in zip(frame[s].box, (width, height) * 2, strict=True)]
                for frame in clip.faces[:length]
            ]
            subject = {"name": NAMES[s], "references": references, "description": "a puppet"}
            subjects.append(subject | ({"faces": faces} if k < clips - 1 else {}))
        line = {
            "video": f"{k}.mp4",
            "caption": "Ada waves. Bo nods.",
            "licence": f"licence {k % 2}",
            "subjects": subjects,
        }
        lines.append(json.dumps(line))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
