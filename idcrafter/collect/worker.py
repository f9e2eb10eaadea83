"""One headless ComfyUI that runs rows and brings what they make into the storage."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import itertools
import logging
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from . import delivery, journal
from .graph import ROLLOUTS_NODE
from .storage import open_storage

log = logging.getLogger("idcrafter")
ROOT = Path(__file__).resolve().parents[2]


class WorkerLost(RuntimeError):
    """The worker, or its ComfyUI, ended or no longer answers; another one may do its row."""


class RowFailed(RuntimeError):
    """A node of the row's graph failed; it would fail on any worker."""


class Stopped(RuntimeError):
    """The collection was told to stop."""


@dataclass(frozen=True)
class Job:
    """A row to be collected: its number and id, its graph, where it leaves rollouts, its cells for the record."""

    row: int
    id: str
    graph: dict
    folders: tuple[str, ...] = ()
    cells: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What every worker needs; the paths mean the same on every host.

    comfyui  its folder;  inputs: where the graph's photos are;  out: as in `open_storage`
    scratch  a folder on the worker's own disk
    seconds  after which a row that has not ended is taken for hung
    """

    comfyui: Path
    inputs: Path
    out: str
    scratch: Path
    seconds: float


class Worker:
    """See the module. Its methods are called one after the other, `stop` also while another one runs.

    device  number of the GPU, None for what ComfyUI takes by itself
    """

    def __init__(self, settings: Settings, name: str, device: int | None = None):
        self.settings = settings
        self.name = name
        self.device = device
        self.storage = open_storage(settings.out)
        self.server = None
        self.base = Path()
        self._saved: set[Path] = set()
        self._stopped = threading.Event()
        self._held = contextlib.ExitStack()

    def start(self) -> None:
        """Start ComfyUI and wait until it answers. RuntimeError with the end of its log when it does not."""
        console, environment, server = (tools(name) for name in ("console", "environment", "server"))
        self.base = self._own_folder()
        extra = ["--input-directory", str(self.settings.inputs)]
        if self.device is not None:
            extra += ["--cuda-device", str(self.device)]
        found = environment.Environment(Path(sys.executable), self.settings.comfyui, pinned=False)
        try:
            self.server = server.Server(found, self.base, only_pack=False, extra=tuple(extra))
            self.server.log = self.base / "comfyui.log"
            self.server.log.unlink(missing_ok=True)
            self.server.start(on_wait=self._check)
        except console.Failure as error:
            stopped = self._stopped.is_set()
            self.stop()
            raise Stopped("stopped") if stopped else RuntimeError(str(error)) from error
        except BaseException:
            self.stop()
            raise

    def schemas(self, classes: Iterable[str]) -> dict:
        """/object_info of these classes; {} for one that is not known."""
        with self._guarded():
            return {name: self.server.client.object_info(name).get(name, {}) for name in classes}

    def digests(self, names: Iterable[str]) -> dict[str, str]:
        """sha256 of what these names are in the model folders and the input folder; names of no file are left out."""
        with self._guarded():
            folders = self.server.client.get("/internal/folder_paths")
        places = [Path(path) for name, paths in folders.items() if name != "custom_nodes" for path in paths]
        places = [*dict.fromkeys(places), self.settings.inputs]
        found = {}
        for name in sorted(names):
            total = hashlib.sha256()
            files = [file for place in places for file in _files(place, name)]
            for file in dict.fromkeys(file.resolve() for file in files):
                log.info("reading %s for its sha256 (%.1f MB)", name, file.stat().st_size / 1e6)
                with file.open("rb") as stream:
                    while block := stream.read(1 << 22):
                        self._check()
                        total.update(block)
            if files:
                found[name] = total.hexdigest()
        return found

    def run(self, job: Job) -> dict:
        """Run a row and bring its results over; what `delivery.deliver` tells, with "notes" and "seconds".

        Raises RowFailed, WorkerLost, Stopped; OSError and ValueError when the results cannot be brought over.
        """
        start = time.monotonic()
        output = self.base / "output"
        before = delivery.take_folders(output)
        if journal.is_finished(self.storage, job.id):  # by another command on the same storage
            return {"groups": [], "files": [], "new_groups": 0, "new_bytes": 0, "notes": [], "seconds": 0.0}
        entry = self._run_graph(job.graph)
        files = [file for file in self.server.client.files(entry) if file.get("type") == "output"]
        saved = dict.fromkeys(output / file.get("subfolder", "") / file["filename"] for file in files)
        done = delivery.deliver(output, job.folders, saved, self.storage, job.id)
        done["notes"] = _notes(entry, job)
        done["seconds"] = round(time.monotonic() - start, 2)
        journal.finish(self.storage, job.id, {"row": job.row, "cells": dict(job.cells), "worker": self.name, **done})
        delivery.remove_folders(delivery.take_folders(output) - before)
        for path in self._saved - set(saved):
            path.unlink(missing_ok=True)
        self._saved = set(saved)
        return done

    def _run_graph(self, graph: dict) -> dict:
        """Its history entry. RowFailed, WorkerLost, Stopped."""
        client, deadline = self.server.client, time.monotonic() + self.settings.seconds
        with self._guarded():
            try:
                prompt_id = client.queue(graph)
                while True:
                    try:
                        return client.wait(prompt_id, deadline - time.monotonic(), self._check)
                    except OSError as error:  # busy, it may not answer for a while
                        self._check()
                        if time.monotonic() > deadline:
                            raise WorkerLost(f"{self.name} did not end the row in time ({error})") from error
                        time.sleep(1)
            except tools("client").GraphError as error:
                raise RowFailed(str(error)) from error

    def stop(self) -> None:
        """End ComfyUI. What is sampled stays in the scratch folder for the next start."""
        self._stopped.set()
        if self.server is not None:
            self.server.stop()
        self._held.close()

    def _check(self) -> None:
        """Called while something takes long."""
        if self._stopped.is_set():
            raise Stopped("stopped")
        process = self.server and self.server.process
        if process is not None and process.poll() is not None:
            raise WorkerLost(f"ComfyUI of {self.name} ended (exit {process.returncode}); its log: {self.server.log}")

    @contextlib.contextmanager
    def _guarded(self):
        """A server that does not answer is lost, or it was stopped on purpose."""
        try:
            yield
        except (OSError, ValueError, HTTPException) as error:
            for _ in range(20):  # a process that is killed closes its sockets before it has ended
                self._check()
                time.sleep(0.1)
            raise WorkerLost(f"ComfyUI of {self.name} does not answer ({error})") from error

    def _own_folder(self) -> Path:
        """The first folder of the scratch that no other worker of this host has."""
        cache = tools("cache")
        self.settings.scratch.mkdir(parents=True, exist_ok=True)
        for number in itertools.count():
            with contextlib.suppress(BlockingIOError):
                lock = self.settings.scratch / f"worker-{number}.lock"
                self._held.enter_context(cache.exclusive(lock, _refuse))
                return self.settings.scratch / f"worker-{number}"
        raise AssertionError("unreachable")


def clean(scratch: Path) -> None:
    """Remove what workers of this host have left there, those that still run excepted."""
    for lock in scratch.glob("worker-*.lock"):
        with contextlib.suppress(BlockingIOError), tools("cache").exclusive(lock, _refuse):
            tools("server").unlink_folder(lock.with_suffix("") / "custom_nodes" / tools("server").PACK)
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)


def tools(name: str):
    """A module of tools/, where run.py keeps processes and HTTP: the pack itself starts and asks nothing."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return importlib.import_module(f"tools.{name}")


def _refuse() -> None:
    raise BlockingIOError


def _files(place: Path, name: str) -> list[Path]:
    """A file, or the files of a model that is a folder; nothing outside of `place`."""
    path = place / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        return []
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path.is_file() else []


def _notes(entry: Mapping, job: Job) -> list[str]:
    """Why Save Rollouts has stored nothing, or what else it has to say; not where it stored, which is gone by now."""
    notes = []
    for node_id, outputs in entry["outputs"].items():
        if job.graph.get(node_id, {}).get("class_type") == ROLLOUTS_NODE:
            texts = [text for text in outputs.get("text", ()) if isinstance(text, str)]
            notes += [text for text in texts if not text.startswith("Stored:") or "\n" in text]
    return notes
