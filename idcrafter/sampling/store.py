"""Finished takes on disk, so that an interrupted run continues where it stopped.

One folder a run, named by a key that stands for everything that shapes a take except its seed; one safetensors file a
take. A file that cannot be read, or does not hold what it should, is made again.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from .takes import Take

log = logging.getLogger(__name__)
FORMAT = "idcrafter-take"
VERSION = "1"


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
            seconds = float(metadata["seconds"])
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            log.warning("The stored take %s cannot be read (%s); it is sampled again.", path, error)
            return None
        expected = {"format": FORMAT, "version": VERSION, "key": self.key, "seed": str(seed)}
        wrong = [name for name, value in expected.items() if metadata.get(name) != value]
        if wrong or samples.shape != shape or not torch.isfinite(samples).all():
            log.warning("The stored take %s does not belong to this run; it is sampled again.", path)
            return None
        return Take(seed=seed, samples=samples.to(torch.float32), seconds=seconds, resumed=True)

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
        data = safetensors.torch.save({"samples": take.samples.contiguous()}, metadata)
        path = self.path(take.seed)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be written (%s); an interrupted run will repeat this take.", path, error)
