"""The faces of a cast as a file, so that another machine or another day judges by the very same embeddings.

A safetensors file. Its metadata have, as JSON in "idcrafter-faces", the version and where everything came from: the
analyzer as it describes itself (name, licence, the sha256 of its model files), the warnings, and per subject its name,
its kind, the sha256 of each photo and which of them are used. The same faces make the same file, byte for byte: it says
nothing of when and where, and has one entry because safetensors writes several in any order. For subject i with N used
photos:

    {i}.embeddings [N, D]   {i}.mean [D]   {i}.boxes [N, 4]   {i}.landmarks [N, 5, 2]   {i}.scores [N]
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .faces import CastFaces, DetectedFace, FaceAnalyzer, SubjectFaces, to_uint8
from .subject import Cast

FORMAT = "idcrafter-faces"
VERSION = 1


def save_faces(cast: Cast, path: Path | str) -> dict:
    """Write the faces of a cast in one step: a reader sees the whole file or none. Returns the provenance.

    Raises ValueError for a cast without faces, OSError when the file cannot be written.
    """
    if cast.faces is None:
        raise ValueError("The cast has no faces yet; run it through IDCrafterExtractFaces before saving them.")
    if not any(cast.faces.subjects):
        raise ValueError("No subject of the cast has a usable face, so there is nothing to save; use other photos.")
    analyzer = cast.faces.analyzer.describe()
    passing = analyzer.get("warnings", ())
    tensors: dict[str, torch.Tensor] = {}
    subjects = []
    for i, (subject, own) in enumerate(zip(cast.subjects, cast.faces.subjects, strict=True)):
        used = [k for k, face in enumerate(own.faces) if face is not None] if own else []
        photos = [photo_sha256(*each) for each in zip(subject.photos, subject.masks, strict=True)]
        subjects.append({"name": subject.name, "kind": subject.kind, "photos": photos, "used": used})
        if own is None:
            continue
        faces = [own.faces[k] for k in used]
        arrays = {
            "embeddings": np.stack([face.embedding for face in faces]),
            "mean": own.mean,
            "boxes": np.stack([face.box for face in faces]),
            "landmarks": np.stack([face.landmarks for face in faces]),
            "scores": np.array([face.score for face in faces]),
        }
        tensors |= {f"{i}.{name}": torch.tensor(array, dtype=torch.float32) for name, array in arrays.items()}
    facts = {
        "version": VERSION,
        "analyzer": analyzer,
        "subjects": subjects,
        "warnings": [warning for warning in cast.faces.warnings if warning not in passing],  # of that machine
    }
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    text = json.dumps(facts, ensure_ascii=False, allow_nan=False, sort_keys=True)
    try:
        save_file(tensors, temporary, metadata={FORMAT: text})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return facts


def restore_faces(cast: Cast, path: Path | str, analyzer: FaceAnalyzer) -> Cast:
    """The cast with the faces of a file, instead of looking for them again.

    analyzer  will embed the faces that are compared with these, so its recogniser must be the one that made the file
    Raises ValueError that says what is wrong with the file, or which subject, photo or recogniser is another one.
    """
    path = Path(path)
    facts, tensors = _read(path)
    _check_recogniser(path, facts["analyzer"], analyzer.describe())
    names = [subject.name for subject in cast.subjects]
    stored = [subject["name"] for subject in facts["subjects"]]
    if names != stored:
        raise ValueError(
            f"'{path.name}' holds the faces of {', '.join(stored)}, but the cast is {', '.join(names)}; connect the "
            "cast that was saved, in its order."
        )
    subjects = []
    for i, (subject, entry) in enumerate(zip(cast.subjects, facts["subjects"], strict=True)):
        photos = [photo_sha256(*each) for each in zip(subject.photos, subject.masks, strict=True)]
        wrong = next((k for k, (a, b) in enumerate(zip(photos, entry["photos"], strict=False)) if a != b), None)
        if wrong is not None or len(photos) != len(entry["photos"]):
            which = f"photo {wrong + 1}" if wrong is not None else f"the number of photos ({len(photos)})"
            raise ValueError(
                f"Subject '{subject.name}': {which} is not what '{path.name}' was made from; connect the same photos "
                "and masks, or run IDCrafterExtractFaces."
            )
        subjects.append(_subject_faces(path, i, entry, tensors))
    warnings = (*analyzer.describe().get("warnings", ()), *facts["warnings"])
    return cast.with_faces(CastFaces(analyzer, tuple(subjects), warnings))


def photo_sha256(photo: torch.Tensor, mask: torch.Tensor | None) -> str:
    """Digest of what face extraction sees of a photo [H, W, 3]: its 8-bit pixels, and where its mask says "subject"."""
    digest = hashlib.sha256(repr(tuple(photo.shape)).encode())
    digest.update(to_uint8(photo).tobytes())
    if mask is not None:
        digest.update((mask >= 0.5).numpy().tobytes())
    return digest.hexdigest()


def cast_photos(cast: Cast) -> list[list[str]]:
    """`photo_sha256` of every photo of each subject."""
    return [[photo_sha256(*each) for each in zip(s.photos, s.masks, strict=True)] for s in cast.subjects]


def _read(path: Path) -> tuple[dict, Mapping[str, np.ndarray]]:
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{path.name}' cannot be read as safetensors ({error}); save the faces again.") from error
    if FORMAT not in metadata:
        raise ValueError(f"'{path.name}' holds no faces of a cast; choose a file that Save Faces has written.")
    try:
        facts = json.loads(metadata[FORMAT])
        version = facts["version"]
        if version == VERSION:
            _check_facts(facts)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The metadata of '{path.name}' are damaged ({error}); save the faces again.") from error
    if version != VERSION:
        raise ValueError(
            f"'{path.name}' is of version {version}, this pack reads {VERSION}; update the pack or save the faces "
            "again."
        )
    return facts, tensors


def _check_facts(facts: dict) -> None:
    """KeyError, TypeError or ValueError unless everything is there that is read."""
    if not isinstance(facts["analyzer"], dict) or not isinstance(facts["warnings"], list):
        raise TypeError("analyzer")
    for entry in facts["subjects"]:
        if not isinstance(entry["name"], str) or not all(0 <= k < len(entry["photos"]) for k in entry["used"]):
            raise ValueError("subjects")


def _subject_faces(path: Path, index: int, entry: dict, tensors: Mapping[str, np.ndarray]) -> SubjectFaces | None:
    """The faces of one subject; ValueError for tensors that are missing, of another shape, or not finite."""
    used = entry["used"]
    if not used:
        return None
    wanted = {"embeddings": (len(used), -1), "mean": (-1,), "boxes": (len(used), 4)}
    wanted |= {"landmarks": (len(used), 5, 2), "scores": (len(used),)}
    parts = {name: tensors.get(f"{index}.{name}") for name in wanted}
    fits = all(
        part is not None
        and part.ndim == len(wanted[name])
        and all(want in (-1, size) for want, size in zip(wanted[name], part.shape, strict=True))
        and np.isfinite(part).all()
        for name, part in parts.items()
    )
    fits = fits and parts["mean"].shape == parts["embeddings"].shape[1:]
    lengths = fits and np.linalg.norm(np.vstack([parts["embeddings"], parts["mean"][None]]), axis=1)
    if not fits or not np.allclose(lengths, 1, atol=1e-3):
        raise ValueError(f"The faces of '{entry['name']}' in '{path.name}' are damaged; save the faces again.")
    faces: list[DetectedFace | None] = [None] * len(entry["photos"])
    for k, photo in enumerate(used):
        faces[photo] = DetectedFace(
            parts["boxes"][k], float(parts["scores"][k]), parts["landmarks"][k], parts["embeddings"][k]
        )
    return SubjectFaces(tuple(faces), parts["mean"])


def _check_recogniser(path: Path, stored: dict, connected: dict) -> None:
    # By the digests of the model files; an analyzer that has none is known by its name.
    before, now = (facts.get("recogniser", facts) for facts in (stored, connected))
    if before.get("files", before.get("name")) != now.get("files", now.get("name")):
        raise ValueError(
            f"'{path.name}' was made by the face recogniser '{before.get('name')}', the connected analyzer uses "
            f"'{now.get('name')}' or another version of it; their embeddings do not compare. Load the same one."
        )
