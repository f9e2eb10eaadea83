"""Answers of a VLM that were usable, by what they depend on: in memory, and on disk for batches without a browser."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..subjects.embeddings import photo_sha256
from ..subjects.subject import Subject
from .graph import VERSION
from .request import REVISION

log = logging.getLogger(__name__)
IN_MEMORY = 128
_memory: OrderedDict[str, dict] = OrderedDict()


def answer_key(subjects: Sequence[Subject], action: str, vlm: str, settings: Sequence[Any]) -> str:
    """32 hex digits; two requests share them exactly when the same VLM is asked the same.

    vlm  its digest
    """
    cast = [
        [s.name, s.kind, s.description, [photo_sha256(*each) for each in zip(s.photos, s.masks, strict=True)]]
        for s in subjects
    ]
    asked = json.dumps([REVISION, VERSION, vlm, action, list(settings), cast])
    return hashlib.sha256(asked.encode()).hexdigest()[:32]


class AnswerStore:
    """`<root>/<key>.json`, one file an answer; without a root only memory."""

    def __init__(self, root: Path | str | None = None):
        self.root = None if root is None else Path(root)

    def load(self, key: str) -> dict | None:
        """What was saved, or None when there is nothing that can be read."""
        if key in _memory:
            _memory.move_to_end(key)
            return _memory[key]
        path = None if self.root is None else self.root / f"{key}.json"
        if path is None or not path.is_file():
            return None
        try:
            entry = json.loads(path.read_text("utf-8"))
            if not isinstance(entry, dict) or entry.get("key") != key:
                raise ValueError("it is not of this request")
        except (OSError, ValueError, RecursionError) as error:
            log.warning("The kept answer '%s' cannot be used (%s); the VLM is asked again.", path, error)
            return None
        self._remember(key, entry)
        return entry

    def save(self, key: str, entry: dict) -> None:
        """Keep JSON-able data. A disk that cannot be written to costs only the keeping."""
        entry = {"key": key, **entry}
        self._remember(key, entry)
        if self.root is None:
            return
        path = self.root / f"{key}.json"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(entry, ensure_ascii=False, indent=1), "utf-8")
            temporary.replace(path)
        except OSError as error:
            log.warning("The answer could not be kept as '%s' (%s).", path, error)

    def _remember(self, key: str, entry: dict) -> None:
        _memory[key] = entry
        _memory.move_to_end(key)
        while len(_memory) > IN_MEMORY:
            _memory.popitem(last=False)


def forget() -> None:
    """Empty the memory; files stay."""
    _memory.clear()
