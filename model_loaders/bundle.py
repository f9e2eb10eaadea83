"""A bundle: one JSON manifest that names the files of a set that works together, and their live objects.

    {"format": "idcrafter-bundle", "version": 1, "name": ..., "description": ..., "licence": ...,
     "sampling": {"shift": 3.0},
     "model":        {"folder": "diffusion_models", "file": ..., "sha256": ..., "licence": ..., "download": ...},
     "text_encoder": {"folder": "text_encoders", "file": ..., "type": "wan", ...},
     "vae":          {"folder": "vae", "file": ..., ...},
     "faces":        {"folder": "insightface", "file": "models/<pack>", "det_size": 640, ...}}

Only "format", "version", "name" and each entry's "folder" and "file" are needed. "sha256" is a hex digest; for "faces",
whose file is a folder, an object {file name: digest}. "download" is the command that gets the file: it is only shown.
The model's "family" tells models with the same tensors apart, one of families.CHOICES.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from . import families, files
from .faces import load_face_analyzer
from .text_encoder import load_text_encoder
from .vae import load_vae
from .video_dit import load_video_dit, set_shift

log = logging.getLogger(__name__)

FOLDER = "idcrafter_bundles"
FORMAT = "idcrafter-bundle"
VERSION = 1
ROLES = ("model", "text_encoder", "vae", "faces")
_TOP_FIELDS = {"format", "version", "name", "description", "licence", "sampling", *ROLES}
_ENTRY_FIELDS = {"folder", "file", "sha256", "licence", "download"}
_EXTRA_FIELDS = {"model": {"family"}, "text_encoder": {"type"}, "faces": {"det_size", "provider"}}


@dataclass(frozen=True)
class Entry:
    """One file (for faces: one folder) of a bundle. `sha256` maps a path below `file` to its digest; "" is the file."""

    role: str
    folder: str
    file: str
    sha256: dict[str, str]
    licence: str | None
    download: str | None
    options: dict[str, Any]


@dataclass(frozen=True)
class Bundle:
    """A validated manifest. `shift` is the flow shift that the model was made for, None = core's default."""

    name: str
    description: str
    licence: str | None
    shift: float | None
    entries: dict[str, Entry]


class Loaded(NamedTuple):
    """The live objects of a bundle: MODEL, CLIP, VAE and a face analyzer."""

    model: Any
    clip: Any
    vae: Any
    face_analyzer: Any


def load_bundle(path: Path) -> Loaded:
    """Load everything that a manifest names, after all of it was found and, where it has digests, verified.

    Raises FileNotFoundError that lists every missing file at once, ValueError for a bad manifest or a wrong file.
    """
    bundle = read_bundle(path)
    paths = find_files(bundle)
    for entry in bundle.entries.values():
        for part, digest in entry.sha256.items():
            files.verify_sha256(paths[entry.role] / part, digest)
        log.info(
            "Bundle '%s', %s: %s, licence: %s.",
            bundle.name,
            entry.role,
            entry.file,
            entry.licence or bundle.licence or "not stated",
        )
    entries = bundle.entries
    model = load_video_dit(
        paths["model"], licence=entries["model"].licence or bundle.licence, **entries["model"].options
    )
    if bundle.shift is not None:
        model = set_shift(model, bundle.shift)
    return Loaded(
        model=model,
        clip=load_text_encoder(paths["text_encoder"], licence=entries["text_encoder"].licence or bundle.licence),
        vae=load_vae(paths["vae"], licence=entries["vae"].licence or bundle.licence),
        face_analyzer=load_face_analyzer(
            paths["faces"],
            licence=entries["faces"].licence or bundle.licence or "unknown",
            **entries["faces"].options,
        ),
    )


def fingerprint(path: Path) -> str:
    """Changes when the manifest or a file of the bundle does, so that the graph loads it again."""
    digest = hashlib.sha256(path.read_bytes())
    for entry in read_bundle(path).entries.values():
        found = files.find(entry.folder, entry.file)
        parts = sorted(p for p in found.rglob("*") if p.is_file()) if found and found.is_dir() else [found]
        for part in parts:
            status = part.stat() if part else None
            digest.update(repr(part and (str(part), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def read_bundle(path: Path) -> Bundle:
    try:
        return parse_bundle(json.loads(path.read_text(encoding="utf-8")), path.name)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"The bundle '{path.name}' is not valid JSON ({error}).") from error


def parse_bundle(data: Any, source: str) -> Bundle:
    """Validate a manifest; ValueError names the file and the field. Unknown fields are ignored with a warning."""
    manifest = _Fields(source, "", data)
    manifest.warn_unknown(_TOP_FIELDS)
    if manifest.text("format") != FORMAT:
        manifest.fail("format", f"must be '{FORMAT}'")
    version = manifest.get("version")
    if version != VERSION or isinstance(version, bool):
        manifest.fail("version", f"is {version!r}; this version of the pack reads {VERSION}, update the pack")
    sampling = manifest.object("sampling", optional=True)
    sampling.warn_unknown({"shift"})
    return Bundle(
        name=manifest.text("name"),
        description=manifest.text("description", optional=True) or "",
        licence=manifest.text("licence", optional=True),
        shift=sampling.number("shift", optional=True),
        entries={role: _parse_entry(manifest, role) for role in ROLES},
    )


def find_files(bundle: Bundle) -> dict[str, Path]:
    """role -> path; FileNotFoundError that lists everything that is missing, with its folder and its command."""
    paths, missing = {}, []
    for entry in bundle.entries.values():
        path = files.find(entry.folder, entry.file)
        wanted = (
            [entry.file] if path is None else [f"{entry.file}/{p}" for p in entry.sha256 if not (path / p).exists()]
        )
        missing += [files.missing_message(entry.folder, name, entry.download) for name in wanted]
        paths[entry.role] = path
    if missing:
        lines = "\n".join(f"  - {line}" for line in missing)
        raise FileNotFoundError(f"The bundle '{bundle.name}' is not complete, {len(missing)} missing:\n{lines}")
    return paths


def _parse_entry(manifest: _Fields, role: str) -> Entry:
    fields = manifest.object(role)
    fields.warn_unknown(_ENTRY_FIELDS | _EXTRA_FIELDS.get(role, set()))
    folder, file = fields.text("folder"), fields.text("file")
    try:
        files.search_paths(folder, file)
    except ValueError as error:
        fields.fail("file", f"is refused: {error}")
    options: dict[str, Any] = {}
    if role == "model" and fields.get("family", optional=True) is not None:
        options["family"] = fields.text("family")
        if options["family"] not in families.CHOICES:
            fields.fail("family", f"must be one of {', '.join(families.CHOICES)}")
    if role == "text_encoder" and fields.text("type", optional=True) not in (None, "wan"):
        fields.fail("type", "must be 'wan'")
    if role == "faces":
        size = fields.number("det_size", optional=True)
        if size is not None:
            if size != int(size) or size % 32 or size <= 0:
                fields.fail("det_size", "must be a positive multiple of 32 (pixels)")
            options["det_size"] = int(size)
        provider = fields.text("provider", optional=True)
        if provider is not None:
            options["provider"] = provider
    return Entry(
        role=role,
        folder=folder,
        file=file,
        sha256=_parse_digests(fields),
        licence=fields.text("licence", optional=True),
        download=fields.text("download", optional=True),
        options=options,
    )


def _parse_digests(fields: _Fields) -> dict[str, str]:
    value = fields.get("sha256", optional=True)
    if value is None:
        return {}
    digests = value if isinstance(value, dict) else {"": value}
    for name, digest in digests.items():
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            fields.fail("sha256", "must be 64 hex digits, or an object of file names and such digests")
        if name:
            try:
                files.check_name(name)
            except ValueError as error:
                fields.fail("sha256", f"is refused: {error}")
    return digests


class _Fields:
    """One JSON object of a manifest; every complaint says which manifest and which field."""

    def __init__(self, source: str, path: str, data: Any):
        self.source, self.path, self.data = source, path, data
        if not isinstance(data, dict):
            raise ValueError(f"The bundle '{source}': {path or 'the file'} must be a JSON object.")

    def fail(self, name: str, problem: str):
        raise ValueError(f"The bundle '{self.source}': the field '{self._name(name)}' {problem}.")

    def warn_unknown(self, known: set[str]) -> None:
        for name in sorted(set(self.data) - known):
            log.warning("The bundle '%s': the unknown field '%s' is ignored.", self.source, self._name(name))

    def get(self, name: str, optional: bool = False) -> Any:
        if name not in self.data and not optional:
            self.fail(name, "is missing")
        return self.data.get(name)

    def text(self, name: str, optional: bool = False) -> str | None:
        value = self.get(name, optional)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            self.fail(name, "must be a text that is not empty")
        if value is None and not optional:
            self.fail(name, "is missing")
        return value

    def number(self, name: str, optional: bool = False) -> float | None:
        value = self.get(name, optional)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0):
            self.fail(name, "must be a number above 0")
        return value

    def object(self, name: str, optional: bool = False) -> _Fields:
        value = self.get(name, optional)
        return _Fields(self.source, self._name(name), {} if value is None and optional else value)

    def _name(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name
