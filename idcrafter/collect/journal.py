"""What is finished, beside the rollouts in the storage: one small JSON file a row, written after all that it names.

    groups/ objects/ photos/     a folder of rollouts (`rollouts.store`)
    files/<row id>/...           videos, reports and pictures that the graph saved
    collected/<row id>.json      the row is finished
    damaged/                     groups whose size is not what was written

A row's id follows from its graph with all values and from the contents of all files, weights and photos, that the graph
chooses from lists. A worker that dies after a group and before the row's file leaves nothing wrong: the row is done
again, and its groups, named by what they are made of, are not written again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence

from ..rollouts.digests import digest
from . import graph as graphs
from .storage import ArrowStorage, LocalStorage

log = logging.getLogger("idcrafter")
FORMAT, VERSION = "idcrafter-collected-row", 1
FOLDER = "collected"


def row_id(graph: Mapping, sha256: Mapping[str, str]) -> str:
    """32 hex digits. `sha256` of every file that the graph may name; only those of this graph count."""
    used = {name: sha256[name] for name in sorted(_texts(graph)) if name in sha256}
    return digest([graphs.bare(graph), used])


def finish(storage: LocalStorage | ArrowStorage, row: str, facts: Mapping) -> None:
    """Note that a row is finished, the first time."""
    text = json.dumps({"format": FORMAT, "version": VERSION, "id": row, **facts}, indent=1, ensure_ascii=False)
    storage.put(f"{FOLDER}/{row}.json", text.encode())


def is_finished(storage: LocalStorage | ArrowStorage, row: str) -> bool:
    return storage.has(f"{FOLDER}/{row}.json")


def finished(storage: LocalStorage | ArrowStorage, rows: Sequence[str]) -> set[str]:
    """Those of `rows` that are finished and whose groups are all there, of their size.

    The others are forgotten, so that they are collected again; groups of another size are put aside into damaged/.
    """
    noted, groups = storage.sizes(FOLDER), storage.sizes("groups")
    whole = set()
    for row in rows:
        if f"{row}.json" not in noted:
            continue
        why = ""
        for group in _groups(storage, row):
            size = groups.get(group["file"])
            if size is None:
                why = f"its group {group['file']} is gone"
            elif size != group["bytes"]:
                why = f"its group {group['file']} has {size} bytes instead of {group['bytes']}; it is in damaged/ now"
                storage.move(f"groups/{group['file']}", f"damaged/{group['file']}")
        if why:
            log.warning("row %s is collected again: %s", row[:12], why)
            storage.remove(f"{FOLDER}/{row}.json")
        else:
            whole.add(row)
    return whole


def _groups(storage: LocalStorage | ArrowStorage, row: str) -> list[dict]:
    """The groups that a row's file names; one that does not exist where the file itself is damaged."""
    try:
        facts = json.loads(storage.read(f"{FOLDER}/{row}.json"))
        return [{"file": str(group["file"]), "bytes": int(group["bytes"])} for group in facts["groups"]]
    except (ValueError, KeyError, TypeError):
        return [{"file": f"of {FOLDER}/{row}.json, which is damaged,", "bytes": 0}]


def _texts(graph: Mapping) -> set[str]:
    return {value for node in graph.values() for value in node["inputs"].values() if isinstance(value, str)}
