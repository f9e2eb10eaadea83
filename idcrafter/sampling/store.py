"""Finished takes on disk, so that an interrupted run continues where it stopped.

One folder a run, named by a key that stands for everything that shapes a take except its seed; one safetensors file a
take. A file that cannot be read, or does not hold what it should, is made again. A take search also leaves

    <seed>.part/          the tape of a take that is not finished (`tape.Tape`); goes when it is finished or pruned
    <seed>.previews.json  what its previews showed, so that the same search ends the same way without repeating it
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from .sde.record import SdeRecord
from .takes import Take
from .tape import Tape

log = logging.getLogger(__name__)
FORMAT = "idcrafter-take"
VERSION = "1"
_SDE = "sde."  # before the names of a record's tensors


@dataclass(frozen=True)
class Look:
    """A preview of a take.

    score   None when it was not finite
    passes  model passes of the take up to there
    looked  model passes for looking ahead from there
    """

    score: float | None
    passes: int
    looked: int


class TakeStore:
    """The takes of one run under `<root>/<key>/<seed>.safetensors`."""

    def __init__(self, root: str | os.PathLike, key: str):
        self.folder = Path(root) / key
        self.key = key

    def path(self, seed: int) -> Path:
        return self.folder / f"{seed}.safetensors"

    def load(self, seed: int, shape: torch.Size) -> Take | None:
        """The stored take of this seed, or None when there is none that can be used (a warning says why)."""
        path = self.path(seed)
        if not path.is_file():
            return None
        try:
            with safetensors.safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                samples = file.get_tensor("samples")
                sde = _read_sde(file, metadata)
            seconds = float(metadata["seconds"])
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            log.warning("The stored take %s cannot be read (%s); it is sampled again.", path, error)
            return None
        expected = {"format": FORMAT, "version": VERSION, "key": self.key, "seed": str(seed)}
        wrong = [name for name, value in expected.items() if metadata.get(name) != value]
        if wrong or samples.shape != shape or not torch.isfinite(samples).all():
            log.warning("The stored take %s does not belong to this run; it is sampled again.", path)
            return None
        return Take(seed=seed, samples=samples.to(torch.float32), seconds=seconds, resumed=True, sde=sde)

    def save(self, take: Take) -> None:
        """Write the take in one step: a reader sees the whole file or none.

        A take that cannot be written (a full disk, a read-only folder) is still usable now, so that is a warning.
        """
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "key": self.key,
            "seed": str(take.seed),
            "seconds": repr(take.seconds),
        }
        tensors = {"samples": take.samples.contiguous()}
        if take.sde is not None:
            metadata["sde"] = json.dumps(take.sde.settings())
            tensors |= {f"{_SDE}{name}": tensor for name, tensor in take.sde.tensors().items()}
        self._write(self.path(take.seed), safetensors.torch.save(tensors, metadata))

    def tape(self, seed: int) -> Tape:
        """The tape of this seed, with what an interrupted run has left on it."""
        return Tape(self.folder / f"{seed}.part", self.key)

    def load_previews(self, seed: int, score_key: str) -> tuple[dict[tuple[int, int], Look], int]:
        """Looks and passes as `save_previews` wrote them under the same key; ({}, 0) when nothing can be used."""
        path = self._previews_path(seed)
        try:
            data = json.loads(path.read_text("utf-8"))
            if data["key"] != [self.key, score_key]:
                return {}, 0
            looks = {
                (int(step), int(ahead)): Look(None if score is None else float(score), int(passes), int(looked))
                for step, ahead, score, passes, looked in data["looks"]
            }
            return looks, int(data["passes"])
        except FileNotFoundError:
            return {}, 0
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s); the previews are made again.", path, error)
            return {}, 0

    def save_previews(self, seed: int, score_key: str, looks: dict[tuple[int, int], Look], passes: int) -> None:
        """Keep what the previews of a take showed.

        score_key  stands for what shapes a score besides the take: VAE, cast, face analyzer
        looks      by (steps done, evaluations ahead)
        passes     model passes of the whole take; 0 while it is not finished
        """
        rows = [[step, ahead, look.score, look.passes, look.looked] for (step, ahead), look in looks.items()]
        data = {"key": [self.key, score_key], "looks": rows, "passes": passes}
        self._write(self._previews_path(seed), json.dumps(data).encode())

    def _previews_path(self, seed: int) -> Path:
        return self.folder / f"{seed}.previews.json"

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be written (%s); an interrupted run will repeat this work.", path, error)


def _read_sde(file, metadata: dict) -> SdeRecord | None:
    """The take's random steps; ValueError or KeyError when they are damaged."""
    if "sde" not in metadata:
        return None
    tensors = {name[len(_SDE) :]: file.get_tensor(name) for name in file.keys() if name.startswith(_SDE)}  # noqa: SIM118
    return SdeRecord.from_parts(tensors, json.loads(metadata["sde"]))
