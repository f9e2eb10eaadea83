"""`python -m idcrafter collect`."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

from . import plan, ray_pool
from .local import LocalSeat
from .run import Collection, Outcome
from .storage import open_storage
from .worker import ROOT, Settings, Stopped, WorkerLost, clean, tools

log = logging.getLogger("idcrafter")
FORMAT, VERSION = "idcrafter-collect", 1

_TABLE = """
The table is CSV with a header. A column is named by the input it sets: `Sample Takes.seed` (title of the node, a point,
its input) or `15.seed` (the node's id). An empty cell leaves what the graph has; a column whose name begins with # is a
note. Each row is one run of the graph. DIR becomes a folder of rollouts for Load Rollouts and for training, with what
else the graph saves in files/ and a note on each finished row in collected/.

Started again, the same command skips finished rows; changed cells, graphs, photos or weights make a row a new one.
Answers with JSON: rows, finished, skipped, failed, left, groups, bytes, lost_workers, seconds, sha256 and error.
Exit code 0: every row is finished; 1: some are not, or the input is wrong; 2: wrong usage; 130: interrupted.
"""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add it to a command line; it sets `run`, which takes the options and returns the exit code."""
    part = commands.add_parser(
        "collect",
        help="run an API graph over a table, on one ComfyUI or on many",
        description="Runs an API graph over a table of casts, prompts and seeds on headless ComfyUIs that it starts.",
        epilog=_TABLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = part.add_argument
    add("graph", type=Path, metavar="GRAPH.json", help="in API format, usually with Save Rollouts in it")
    add("--table", type=Path, required=True, metavar="CASES.csv", help="see below")
    add("--out", required=True, metavar="DIR", help="folder, or a URI that pyarrow opens, such as s3://bucket/folder")
    add("--ray", action="store_true", help="workers anywhere in the Ray cluster of RAY_ADDRESS, or of this host")
    add(
        "--workers",
        type=int,
        metavar="N",
        help="how many ComfyUIs, each with its GPU (default: 1; all GPUs with --ray)",
    )
    add("--comfyui", type=Path, metavar="PATH", help="ComfyUI's folder (default: $IDCRAFTER_COMFYUI, or where this is)")
    add("--input", type=Path, metavar="DIR", help="folder of the graph's photos (default: ComfyUI's input folder)")
    add("--scratch", type=Path, metavar="DIR", help="for unfinished takes, on the worker's own disk (default: a cache)")
    add("--retries", type=int, default=2, metavar="N", help="for a row whose worker is lost (default: %(default)s)")
    add(
        "--hours", type=float, default=24.0, metavar="H", help="after which a row counts as hung (default: %(default)g)"
    )
    part.set_defaults(run=run_collect)


def run_collect(options: argparse.Namespace) -> int:
    """Collect, and write the summary to standard output, whatever happens. Raises what `idcrafter.__main__` reports."""
    start = time.monotonic()
    summary = {
        "format": FORMAT,
        "version": VERSION,
        "graph": str(options.graph),
        "table": str(options.table),
        "out": options.out,
        "ray": options.ray,
        "workers": 0,
        "rows": 0,
        "finished": 0,
        "skipped": 0,
        "failed": [],
        "left": [],
        "groups": 0,
        "files": 0,
        "bytes": 0,
        "lost_workers": 0,
        "interrupted": False,
        "sha256": {},
        "error": None,
    }
    try:
        with _signals_interrupt():
            _collect(options, summary)
    except (ValueError, RuntimeError, OSError) as error:
        summary["error"] = str(error)
        raise
    except KeyboardInterrupt:
        summary["interrupted"] = True
        raise
    finally:
        summary["seconds"] = round(time.monotonic() - start, 2)
        sys.stdout.write(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    return 1 if summary["failed"] else 0


def _collect(options: argparse.Namespace, summary: dict) -> None:
    """Fill the summary in on the way."""
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers {options.workers}: at least one worker is needed.")
    request = plan.read_request(options.graph, options.table)
    summary["rows"] = len(request.table.cases)
    summary["left"] = [case.row for case in request.table.cases]
    settings = _settings(options)
    storage = open_storage(settings.out)
    with contextlib.ExitStack() as held:
        seats = _seats(options, settings, held)
        held.callback(lambda: [seat.close() for seat in seats])
        log.info("starting ComfyUI; its log and unfinished takes are in %s", settings.scratch)
        try:
            seats[0].start()
            schemas = seats[0].schemas(request.classes)
            filled = plan.fill(request, schemas, settings.inputs)
            sha256 = seats[0].digests(plan.names(filled, schemas))
        except (WorkerLost, Stopped) as error:
            raise RuntimeError(f"The first worker was lost before any row began: {error}") from error
        todo = plan.make(request, filled, sha256, storage)
        summary["sha256"] = todo.sha256
        summary["skipped"] = len(todo.finished)
        summary["left"] = [job.row for job in todo.jobs]
        log.info("%d rows to collect into %s, %d are finished", len(todo.jobs), storage, len(todo.finished))
        if todo.jobs:
            seats = seats[: len(todo.jobs)]
            summary["workers"] = len(seats)
            collection = Collection(todo.jobs, seats, options.retries)
            try:
                collection.run()
            finally:
                _count(collection.outcome, summary)
    if not summary["left"] and not summary["failed"]:
        clean(settings.scratch)


def _count(outcome: Outcome, summary: dict) -> None:
    done = outcome.results.values()
    summary["finished"] = len(outcome.results)
    summary["failed"] = [{"row": row, "reason": reason} for row, reason in sorted(outcome.failed.items())]
    summary["left"] = [row for row in summary["left"] if row not in outcome.results and row not in outcome.failed]
    summary["groups"] = sum(result["new_groups"] for result in done)
    summary["files"] = sum(len(result["files"]) for result in done)
    summary["bytes"] = sum(result["new_bytes"] for result in done)
    summary["lost_workers"] = outcome.lost


def _settings(options: argparse.Namespace) -> Settings:
    comfyui = _comfyui(options.comfyui)
    inputs = (options.input or comfyui / "input").absolute()
    if not inputs.is_dir():
        raise FileNotFoundError(f"There is no folder '{inputs}' for the graph's photos; give it by --input.")
    scratch = options.scratch
    if scratch is None:
        name = hashlib.sha256(str(open_storage(options.out)).encode()).hexdigest()[:12]
        scratch = tools("cache").cache_folder() / "collect" / name
    out = options.out if "://" in options.out else str(Path(options.out).absolute())
    return Settings(comfyui, inputs, out, scratch.absolute(), options.hours * 3600)


def _comfyui(given: Path | None) -> Path:
    """Given, from the environment, the one that this pack is installed in, or where python finds it."""
    if given is None and os.environ.get("IDCRAFTER_COMFYUI"):
        given = Path(os.environ["IDCRAFTER_COMFYUI"])
    found = importlib.util.find_spec("comfy") if given is None else None
    places = (
        [given]
        if given
        else [ROOT.parents[1], *(Path(p).parent for p in (found and found.submodule_search_locations) or ())]
    )
    for place in places:
        if (place / "main.py").is_file() and (place / "folder_paths.py").is_file():
            return place.absolute()
    where = f"'{given}' is no ComfyUI: it has no main.py." if given else "ComfyUI was not found."
    raise FileNotFoundError(f"{where} Give its folder by --comfyui.")


def _seats(options: argparse.Namespace, settings: Settings, held: contextlib.ExitStack) -> list:
    if options.ray:
        return ray_pool.seats(held.enter_context(ray_pool.connected()), settings, options.workers)
    count = options.workers or 1
    environment = tools("environment").Environment(Path(sys.executable), settings.comfyui, pinned=False)
    devices = count > 1 and tools("server").sees_accelerator(environment)
    return [LocalSeat(settings, f"worker-{n}", n if devices else None) for n in range(count)]


@contextlib.contextmanager
def _signals_interrupt():
    """SIGTERM ends it as Ctrl-C does; and so does SIGINT where a shell has started it in the background."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
