"""From a worker's own output folder into the storage that all share."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..rollouts import files, record
from .storage import ArrowStorage, LocalStorage

SHARED = ("objects", "photos", "groups")  # a group comes after what it needs


def deliver(
    output: Path, folders: Sequence[str], saved: Iterable[Path], storage: LocalStorage | ArrowStorage, row: str
) -> dict:
    """Bring rollouts and saved files over, and remove the rollouts here. The files stay: a node that need not run again
    for the next row reports them again.

    output   the worker's output folder;  folders: of rollouts inside it;  saved: files that the row's nodes reported
    Returns "groups": [{file, bytes, group, policy}], "files": their names, "new_groups" and "new_bytes": what was not
    in the storage before. Raises ValueError for a damaged group and OSError; then nothing is removed that is not there.
    """
    answer: dict = {"groups": [], "files": [], "new_groups": 0, "new_bytes": 0}
    for folder in folders:
        for kind in SHARED:
            for path in _whole(output / folder / kind):
                data = path.read_bytes()
                facts = record.read_facts(path) if kind == "groups" else None
                new = storage.put(f"{kind}/{path.name}", data)
                answer["new_bytes"] += len(data) * new
                if facts is not None:
                    # Made again after a worker was lost, it is the one in the storage that counts.
                    size = len(data) if new else storage.sizes(kind)[path.name]
                    answer["new_groups"] += new
                    answer["groups"].append(
                        {
                            "file": path.name,
                            "bytes": size,
                            "group": facts["group"],
                            "policy": facts["hashes"]["policy"],
                        }
                    )
        shutil.rmtree(output / folder, ignore_errors=True)
    for path in saved:
        if path.is_file():
            data = path.read_bytes()
            name = f"files/{row}/{path.relative_to(output).as_posix()}"
            answer["new_bytes"] += len(data) * storage.put(name, data)
            answer["files"].append(name)
    return answer


def take_folders(output: Path) -> set[Path]:
    """Where Sample Takes keeps finished takes, so that an interrupted row goes on where it stopped."""
    return set((output / "idcrafter" / "takes").glob("*"))


def remove_folders(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _whole(folder: Path) -> list[Path]:
    found = []
    with contextlib.suppress(FileNotFoundError):
        found = [path for path in folder.iterdir() if path.suffix != files.SUFFIX and path.is_file()]
    return sorted(found)
