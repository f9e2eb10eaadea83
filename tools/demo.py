"""The demo: the quickstart graph on a real server, its results under stable names, and the scores in a table."""

import json
import re
import shutil
from pathlib import Path

from .cache import ROOT
from .client import GraphError
from .console import Failure, Progress, last_line
from .environment import Environment
from .server import Server

GRAPH = ROOT / "workflows" / "api" / "quickstart.json"
PHOTOS = ROOT / "workflows" / "photos"
RESULTS = ("video.mp4", "report.json", "report.csv", "contact_sheet.png", "timeline.png")


def run_demo(environment: Environment, out: Path) -> dict:
    """Render, score, copy the results to `out` and return the report. Failure names the node that failed."""
    out.mkdir(parents=True, exist_ok=True)
    graph = json.loads(GRAPH.read_text("utf-8"))
    server = Server(environment)
    try:
        progress = Progress("starting ComfyUI")
        server.start(on_wait=progress.update)
        progress.done(server.url)
        copy_photos(server.base / "input")
        progress = Progress("rendering")
        try:
            server.client.run(graph, timeout=3600, on_wait=lambda: progress.update(stage(server, graph)))
        except GraphError as error:
            progress.done("failed")
            raise Failure(f"{error}\nThe server's log: {server.log}") from error
        progress.done()
        found = collect(server.base / "output", out)
    finally:
        server.stop()
    if missing := [name for name in RESULTS if name not in found]:
        raise Failure(f"The graph ended well but wrote no {', '.join(missing)}. The server's log: {server.log}")
    return json.loads((out / "report.json").read_text("utf-8"))


def stage(server: Server, graph: dict) -> str:
    """Which take is being sampled, from the finished ones on disk, and the sampler's own bar from the log."""
    takes = next(node["inputs"]["takes"] for node in graph.values() if node["class_type"] == "IDCrafterSampleTakes")
    finished = len(list(server.base.glob("output/idcrafter/takes/*/*.safetensors")))
    return f"take {finished + 1} of {takes}: {last_line(server.log)}" if finished < takes else "scoring, writing"


def copy_photos(folder: Path) -> None:
    """The graphs' reference photos and the example video, under the names that they load."""
    for photo in sorted(PHOTOS.iterdir()):
        shutil.copyfile(photo, folder / f"idcrafter_{photo.name}")


def collect(output: Path, out: Path) -> set[str]:
    """Copy the newest of each result to `out`, without the counter that ComfyUI appends to a name."""
    found = set()
    for path in sorted((output / "idcrafter").glob("*_*.*")):
        if match := re.fullmatch(r"(.+?)_\d+_?\.(\w+)", path.name):
            name = f"{match[1]}.{match[2]}"
            shutil.copyfile(path, out / name)
            found.add(name)
    return found


def table(report: dict) -> str:
    """One line a take: its seed, its score, the similarity of each subject, a mark at the best."""
    names = list(report["takes"][0]["subjects"])
    head = ["take", "seed", "score", *names]
    rows = [
        [
            str(index),
            str(take["seed"]),
            number(take["score"]),
            *(number(take["subjects"][name]["similarity"]) for name in names),
            "best" if index == report["best"] else "",
        ]
        for index, take in enumerate(report["takes"])
    ]
    head.append("")
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)).rstrip() for line in lines)


def number(value: float | None) -> str:
    """A subject that was never seen has no similarity."""
    return "-" if value is None else f"{value:.3f}"
