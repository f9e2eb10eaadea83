"""A Parquet index of the group files, so that a large folder opens without reading every file's head.

A cache and nothing more: the files are the truth. Every writer has shards of its own, so no update can be lost; they
are merged when they are read, and a row counts only while its file is there and as long as the row says. What no row
tells is read from the file. One row a take, for pandas and DuckDB to look at; the first row of a file also has all of
its facts as JSON.

pyarrow is optional: without it nothing is indexed and every head is read. Only `read` and `write` need it.
"""

from __future__ import annotations

import io
import logging
import os
import platform
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from . import files
from .digests import canonical
from .record import spread

log = logging.getLogger(__name__)
SUFFIX = ".parquet"
PARTS_A_SHARD = 64
# The shards of this process: (process, folder) -> (name of the shard, its rows by file)
_OPEN: dict[tuple[int, str], tuple[str, dict[str, list[dict]]]] = {}


def available() -> bool:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        return False
    return True


def require():
    """(pyarrow, pyarrow.parquet); RuntimeError that says how to get them."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RuntimeError(
            "Parquet needs pyarrow, which is not installed; run: python -m pip install pyarrow (in ComfyUI's python)."
        ) from error
    return pyarrow, pyarrow.parquet


def add(folder: Path, file: Path, facts: dict) -> None:
    """Note a new group file in this process's shard; what cannot be written is only logged."""
    if not available():
        return
    key = (os.getpid(), str(folder))
    name, rows = _OPEN.get(key, ("", {}))
    if not name or len(rows) >= PARTS_A_SHARD:
        name, rows = f"{_writer()}-{secrets.token_hex(4)}{SUFFIX}", {}
        _OPEN[key] = (name, rows)
    try:
        rows[file.name] = rows_of(file.name, file.stat().st_size, facts)
        write(folder / name, [row for each in rows.values() for row in each])
    except OSError as error:
        log.warning("The index %s cannot be written (%s); it is rebuilt when the rollouts are read.", folder, error)


def rows_of(file: str, size: int, facts: dict) -> list[dict]:
    """The rows of one group file."""
    text = canonical(facts)
    licences = "; ".join(dict.fromkeys(entry["licence"] or "not stated" for entry in facts["licences"]))
    return [
        {
            "file": file,
            "bytes": size,
            "part": facts["part"],
            "group": facts["group"],
            "take": take["index"],
            "seed": str(take["seed"]),
            "total": take["total"],
            "rewards": list(take["rewards"].items()),
            "spread": spread(facts),
            "policy": facts["hashes"]["policy"],
            "text_encoder": facts["hashes"]["text_encoder"],
            "prompt": facts["shot"].get("prompt"),
            "subjects": [subject["name"] for subject in facts["shot"].get("subjects", ())],
            "licences": licences,
            "created": facts["created"],
            "label": facts.get("label", ""),
            "facts": text if take["index"] == 0 else None,
        }
        for take in facts["takes"]
    ]


def write(path: Path, rows: list[dict]) -> None:
    """Write a shard in one step. Raises RuntimeError without pyarrow, OSError."""
    pyarrow, parquet = require()
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=_schema(pyarrow)), buffer, compression="zstd")
    files.replace(path, buffer.getvalue())


def read(folder: Path) -> tuple[dict[str, tuple[int, str]], list[tuple[Path, str]]]:
    """({group file: (its size, facts as JSON)}, damaged shards with the reason). RuntimeError without pyarrow."""
    pyarrow, parquet = require()
    known: dict[str, tuple[int, str]] = {}
    damaged = []
    for shard in shards(folder):
        try:
            # From memory: a shard that is replaced while it is read would be a mixture of two.
            table = parquet.read_table(io.BytesIO(shard.read_bytes()), columns=["file", "bytes", "facts"])
            columns = table.filter(table["facts"].is_valid()).to_pydict()
        except FileNotFoundError:
            continue  # merged by another process since it was listed
        except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
            damaged.append((shard, f"the index shard cannot be read ({error})"))
            continue
        for file, size, facts in zip(columns["file"], columns["bytes"], columns["facts"], strict=True):
            known.setdefault(file, (size, facts))
    return known, damaged


def merge(folder: Path, entries: Iterable[tuple[str, int, dict]]) -> None:
    """Replace all shards by one of (file, size, facts). A living writer's next shard holds what it had in its last."""
    old = shards(folder)
    rows = [row for file, size, facts in entries for row in rows_of(file, size, facts)]
    write(folder / f"merged-{secrets.token_hex(4)}{SUFFIX}", rows)
    for shard in old:
        shard.unlink(missing_ok=True)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def _writer() -> str:
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', platform.node()) or 'host'}-{os.getpid()}"


def _schema(pyarrow):
    text, number = pyarrow.string(), pyarrow.float64()
    return pyarrow.schema(
        {
            "file": text,
            "bytes": pyarrow.int64(),
            "part": text,
            "group": text,
            "take": pyarrow.int32(),
            "seed": text,  # up to 2**64 - 1
            "total": number,
            "rewards": pyarrow.map_(text, number),
            "spread": number,
            "policy": text,
            "text_encoder": text,
            "prompt": text,
            "subjects": pyarrow.list_(text),
            "licences": text,
            "created": text,
            "label": text,
            "facts": text,
        }
    )
