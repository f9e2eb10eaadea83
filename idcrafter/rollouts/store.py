"""A folder of rollouts that many writers on many machines may fill at the same time.

    groups/<part>.safetensors       takes with their rewards (`record`); written once, never changed
    objects/<sha256>.safetensors    tensors of the conditioning, each once (`conditioning`)
    photos/<sha256>.png             reference photos, where the user wants them kept
    index/*.parquet                 a cache of the groups (`index`)
    damaged/                        what `repair` has put aside

A file has its name only when it is whole and on the disk, so a killed writer loses the group that it was writing and
nothing else; what it leaves is found by `scan` and removed by `repair`. The name of a group file follows from what it
is made of, so that the same group is never there twice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from . import conditioning, files, index, record

log = logging.getLogger(__name__)
SUFFIX = ".safetensors"
# A writer stores the objects first and the group that needs them last; until then they belong to nobody.
ORPHAN_SECONDS = 3600.0
_TENSOR = "tensor"


@dataclass(frozen=True)
class Damage:
    """A file that is not what it should be. `file` is relative to the folder; `whole` when only another one is."""

    file: str
    reason: str
    whole: bool = False


@dataclass(frozen=True, eq=False)
class Entry:
    """A group file: its path, size in bytes and facts."""

    path: Path
    bytes: int
    facts: dict


@dataclass(frozen=True, eq=False)
class Scan:
    """What is in a folder: the whole files, oldest first, and everything that is not."""

    entries: tuple[Entry, ...]
    damages: tuple[Damage, ...]


class RolloutStore:
    """See the module. Making one touches nothing on the disk."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.groups = self.folder / "groups"
        self.objects = self.folder / "objects"
        self.photos = self.folder / "photos"
        self.index = self.folder / "index"

    def path(self, part: str) -> Path:
        return self.groups / f"{part}{SUFFIX}"

    def has(self, part: str) -> bool:
        """Whether this part is finished, for a run that goes on where another has stopped."""
        return self.path(part).is_file()

    def save(self, part: record.Part, objects: Mapping[str, torch.Tensor] | None = None) -> bool:
        """Write a group, after the objects that it needs. False when it was there already.

        Raises OSError (a full disk, say): then the group is not there, and every group before it is.
        """
        if self.has(part.name):
            return False
        for name, tensor in (objects or {}).items():
            self.save_object(name, tensor)
        written = files.write_once(self.path(part.name), part.to_bytes())
        if written:
            index.add(self.index, self.path(part.name), part.facts)
        return written

    def save_object(self, name: str, tensor: torch.Tensor) -> None:
        path = self._object_path(name)
        if not path.is_file():
            files.write_once(path, safetensors.torch.save({_TENSOR: tensor.contiguous()}))

    def load_object(self, name: str) -> torch.Tensor:
        """FileNotFoundError, or ValueError when its content is not what its name says."""
        path = self._object_path(name)
        if not path.is_file():
            raise FileNotFoundError(
                f"The rollouts in {self.folder} lack the object {name[:12]}: it was not stored, or it was deleted; "
                "make the conditioning again with Cast to Video from the same photos and prompt."
            )
        try:
            with safetensors.safe_open(path, framework="pt", device="cpu") as file:
                tensor = file.get_tensor(_TENSOR)
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"The object '{path.name}' cannot be read ({error}); run repair.") from error
        if conditioning.object_name(tensor) != name:
            raise ValueError(f"The object '{path.name}' is damaged: its sha256 is another one; run repair.")
        return tensor

    def scan(self, on_file: Callable[[], None] | None = None) -> Scan:
        """Every group, by the index as far as it goes, and what is damaged or left behind by dead writers.

        Truncated and foreign files are found; values that changed inside a file of the right size are not: `verify`.
        on_file  called for each file, for progress and interruption
        """
        known, damages = self._read_index()
        entries, unknown = [], 0
        for path, size in self._group_files():
            if on_file:
                on_file()
            try:
                entry = None
                if known.get(path.name, (None, ""))[0] == size:
                    with contextlib.suppress(ValueError):  # then the file itself is asked
                        entry = Entry(path, size, record.check_facts(known[path.name][1], path.name))
                if entry is None:
                    entry, unknown = Entry(path, size, record.read_facts(path)), unknown + 1
                entries.append(entry)
            except ValueError as error:
                damages.append(Damage(f"groups/{path.name}", str(error)))
        for folder in (self.groups, self.objects, self.photos, self.index):
            for path in files.unfinished(folder):
                damages.append(
                    Damage(f"{folder.name}/{path.name}", "left by a writer that was stopped before it ended")
                )
        entries.sort(key=lambda entry: (entry.facts["created"], entry.path.name))
        if (unknown or len(index.shards(self.index)) > 32) and index.available():
            self._write_index(entries)
        return Scan(tuple(entries), tuple(damages))

    def verify(self, on_file: Callable[[], None] | None = None) -> list[Damage]:
        """All damages, after every tensor of every group and object was read and compared with its digest."""
        scan = self.scan()
        damages = list(scan.damages)
        for entry in scan.entries:
            if on_file:
                on_file()
            try:
                facts = record.read_facts(entry.path)  # the file's own, whatever the index says
                record.read_tensors(entry.path, list(facts["tensors"]), facts)
                missing = [n for n in conditioning.names_of(facts["shot"].get("conditioning", {})) if not self._has(n)]
                if missing:
                    damages.append(
                        Damage(f"groups/{entry.path.name}", f"its object {missing[0][:12]} is missing", True)
                    )
            except ValueError as error:
                damages.append(Damage(f"groups/{entry.path.name}", str(error)))
        for path in sorted(self.objects.glob(f"*{SUFFIX}")):
            if on_file:
                on_file()
            try:
                self.load_object(path.stem)
            except ValueError as error:
                damages.append(Damage(f"objects/{path.name}", str(error)))
        return damages

    def repair(self, on_file: Callable[[], None] | None = None) -> list[Damage]:
        """Put damaged files aside into damaged/, remove what dead writers left, make the index anew.

        Returns what was found. No whole file is touched, and of a damaged one nothing is deleted. A group whose object
        is missing stays: its takes are whole, only its conditioning has to be made again.
        """
        damages = self.verify(on_file)
        for damage in damages:
            path = self.folder / damage.file
            if path.suffix == files.SUFFIX or path.suffix == index.SUFFIX:
                path.unlink(missing_ok=True)
            elif not damage.whole and path.is_file():
                aside = self.folder / "damaged" / path.name
                aside.parent.mkdir(exist_ok=True)
                os.replace(path, aside)
        if index.available() and self.groups.is_dir():
            self._write_index(self.scan().entries)
        return damages

    def save_photo(self, name: str, data: bytes) -> None:
        """Keep a reference photo, a PNG, under the sha256 by which groups name it."""
        files.write_once(self.photo(name), data)

    def photo(self, name: str) -> Path:
        return self.photos / f"{name}.png"

    def size(self) -> int:
        """Bytes of all groups, objects and photos."""
        return sum(s for folder in (self.groups, self.objects, self.photos) for _, s in _listing(folder, "*"))

    def prune(self, budget: int, keep: Iterable[str] = ()) -> list[Entry]:
        """Delete groups until all files fit into `budget` bytes: first those whose takes differ least, then the oldest.

        keep  parts that stay
        Returns what was deleted. Objects that no group needs any more go too, but for young ones: a writer may be about
        to use them.
        """
        scan = self.scan()
        keep, deleted, size = set(keep), [], self.size()
        for entry in sorted(scan.entries, key=lambda entry: record.spread(entry.facts)):
            if size <= budget:
                break
            if entry.facts["part"] not in keep:
                entry.path.unlink(missing_ok=True)
                deleted.append(entry)
                size -= entry.bytes
        if deleted:
            gone = {entry.path for entry in deleted}
            left = [entry for entry in scan.entries if entry.path not in gone]
            self._delete_orphans(left)
            if index.available():
                self._write_index(left)
        return deleted

    def _delete_orphans(self, entries: Iterable[Entry]) -> None:
        needed = set().union(
            *(conditioning.names_of(entry.facts["shot"].get("conditioning", {})) for entry in entries), set()
        )
        for path, _ in _listing(self.objects, f"*{SUFFIX}"):
            with contextlib.suppress(OSError):
                if path.stem not in needed and time.time() - path.stat().st_mtime > ORPHAN_SECONDS:
                    path.unlink()

    def _read_index(self) -> tuple[dict[str, tuple[int, str]], list[Damage]]:
        if not index.available():
            return {}, []
        known, damaged = index.read(self.index)
        return known, [Damage(f"index/{path.name}", reason) for path, reason in damaged]

    def _write_index(self, entries: Iterable[Entry]) -> None:
        try:
            index.merge(self.index, ((entry.path.name, entry.bytes, entry.facts) for entry in entries))
        except OSError as error:
            log.warning("The index of %s cannot be written (%s); reading goes on without it.", self.folder, error)

    def _group_files(self) -> list[tuple[Path, int]]:
        return _listing(self.groups, f"*{SUFFIX}")

    def _object_path(self, name: str) -> Path:
        return self.objects / f"{name}{SUFFIX}"

    def _has(self, name: str) -> bool:
        return self._object_path(name).is_file()


def _listing(folder: Path, pattern: str) -> list[tuple[Path, int]]:
    """(path, size) of the files of a folder, temporary ones excluded; a file that goes meanwhile is left out."""
    found = []
    for path in sorted(folder.glob(pattern)):
        with contextlib.suppress(OSError):
            if path.suffix != files.SUFFIX:
                found.append((path, path.stat().st_size))
    return found
