"""The scorecard: every take of a shot scored against the cast, as one JSON report.

Report, schema "idcrafter.report" version 1 (numbers are finite, what does not exist is null, frames count from 0):

    subjects   per subject: name, kind, scored, photos, photos_used, photos_agree (lowest cosine of its own photos: the
               most that a score can be expected to reach)
    takes      per take: index, seed, seconds, resumed, latent_sha256, score, similarity_mean, similarity_min,
               extra_penalty, swap_penalty, missing (frames times subjects), extra (sum over frames), swapped (events),
               change, note, and
                 subjects  by name: similarity (missing frames count 0), similarity_seen (frames with a face only),
                           coverage (share of frames with a face), face_px (mean side), missing_frames
                 frames    per scored frame: frame, extra, swapped (names), and by name similarity and box, or null
    best       index of the take with the highest score, the first of equals
    warnings, scoring, sampling, model, analyzer, software
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..subjects.faces import CastFaces, SubjectFaces, similarities
from ..subjects.subject import Cast
from . import assignment, identity

SCHEMA = "idcrafter.report"
VERSION = 1

# Block means of a decoded still picture differ by a level or two of 255; a blink or a moving lip changes some block
# by tens. A clip below this is a picture, and a picture of the references would get the best likeness of all.
STILL_CHANGE = 4 / 255
_BLOCK = 8


@dataclass(frozen=True, eq=False)
class Scorecard:
    """A validated report; see the module for its fields."""

    report: dict


def scored_faces(cast: Cast) -> tuple[CastFaces, list[tuple[str, SubjectFaces]]]:
    """The cast's faces, and name and faces of the subjects that can be scored.

    Raises ValueError when the cast has not been through face extraction or no subject has a face.
    """
    if cast.faces is None:
        raise ValueError("The cast has no faces yet; wire IDCrafterExtractFaces before IDCrafterScoreTakes.")
    known = [(s.name, faces) for s, faces in zip(cast.subjects, cast.faces.subjects, strict=True) if faces is not None]
    if not known:
        raise ValueError(
            "No subject of the cast has a usable face, so there is nothing to score; give at least one person a photo "
            "that shows the face."
        )
    return cast.faces, known


def spread_frames(total: int, wanted: int) -> list[int]:
    """Indices of `wanted` frames spread evenly over a clip, ends included; 0 means all."""
    if wanted <= 0 or wanted >= total:
        return list(range(total))
    return np.linspace(0, total - 1, wanted).round().astype(int).tolist()


def score_clip(
    frames: torch.Tensor, indices: Sequence[int], cast: Cast, on_frame: Callable[[], None] | None = None
) -> dict:
    """The identity part of one take's record.

    frames    [T, H, W, 3] in 0..1, the decoded clip
    indices   the frames of it that are scored
    on_frame  called after each scored frame, for progress and interruption
    Pixels that are not finite make a failed record (score 0 and a note) instead of an error.
    """
    faces, known = scored_faces(cast)
    names = [name for name, _ in known]
    frames = frames[list(indices)].to("cpu", torch.float32)
    if not torch.isfinite(frames).all():
        return failed_record(cast, "the decoded frames hold NaN or infinite pixels")
    found = []
    for frame in frames:
        found.append(identity.FrameFaces.of(faces.analyzer.analyze(frame)))
        if on_frame:
            on_frame()
    result = identity.score_identity(found, np.stack([own.mean for _, own in known]))
    change = largest_change(frames)
    still = len(frames) > 1 and change < STILL_CHANGE
    swapped: dict[int, list[str]] = {}
    for swap in result.swaps:
        swapped.setdefault(swap.frame, []).extend(names[i] for i in swap.subjects)
    return {
        "score": 0.0 if still else _number(result.score),
        "similarity_mean": _number(result.quality.mean()),
        "similarity_min": _number(result.quality.min()),
        "extra_penalty": _number(result.extra_penalty),
        "swap_penalty": _number(result.swap_penalty),
        "missing": int(result.missing.sum()),
        "extra": int(result.extra.sum()),
        "swapped": len(result.swaps),
        "change": _number(change),
        "note": "nothing moves: a still picture scores 0" if still else None,
        "subjects": {
            name: {
                "similarity": _number(result.quality[i]),
                "similarity_seen": _number(result.similarity_seen[i]),
                "coverage": _number(result.coverage[i]),
                "face_px": _number(result.face_size[i], 1),
                "missing_frames": int(result.missing[:, i].sum()),
            }
            for i, name in enumerate(names)
        },
        "frames": [
            {
                "frame": int(index),
                "extra": int(result.extra[t]),
                "swapped": swapped.get(t, []),
                "subjects": {
                    name: None
                    if result.missing[t, i]
                    else {
                        "similarity": _number(result.similarity[t, i]),
                        "box": [_number(v, 1) for v in result.boxes[t, i]],
                    }
                    for i, name in enumerate(names)
                },
            }
            for t, index in enumerate(indices)
        ],
    }


def failed_record(cast: Cast, note: str) -> dict:
    """The record of a take that cannot be scored: score 0, no frames, and why."""
    _, known = scored_faces(cast)
    nobody = {"similarity": 0.0, "similarity_seen": None, "coverage": 0.0, "face_px": None, "missing_frames": 0}
    return {
        "score": 0.0,
        "similarity_mean": 0.0,
        "similarity_min": 0.0,
        "extra_penalty": 0.0,
        "swap_penalty": 0.0,
        "missing": 0,
        "extra": 0,
        "swapped": 0,
        "change": None,
        "note": note,
        "subjects": {name: dict(nobody) for name, _ in known},
        "frames": [],
    }


def build_scorecard(cast: Cast, takes: Sequence[dict], *, sampling: dict, model: dict, software: dict) -> Scorecard:
    """Join the records of all takes, in order, with what is known about their making.

    takes  the dicts of `score_clip` or `failed_record`, each with seed, seconds, resumed and latent_sha256 added
    Raises ValueError on anything that is not JSON.
    """
    faces, _ = scored_faces(cast)
    takes = [{"index": i, **take} for i, take in enumerate(takes)]
    report = {
        "schema": SCHEMA,
        "version": VERSION,
        "best": max(range(len(takes)), key=lambda i: takes[i]["score"]),
        "subjects": [
            {
                "name": subject.name,
                "kind": subject.kind,
                "scored": own is not None,
                "photos": len(subject.photos),
                "photos_used": sum(face is not None for face in own.faces) if own else 0,
                "photos_agree": _agreement(own),
            }
            for subject, own in zip(cast.subjects, faces.subjects, strict=True)
        ],
        "takes": takes,
        "warnings": list(faces.warnings),
        "scoring": {
            "formula": "0.5 mean + 0.5 min of the subjects' similarities, less extra_penalty and swap_penalty",
            "match_cosine": assignment.MATCH_COSINE,
            "link_distance": assignment.LINK_DISTANCE,
            "extra_weight": identity.EXTRA_WEIGHT,
            "swap_weight": identity.SWAP_WEIGHT,
            "still_change": _number(STILL_CHANGE),
        },
        "sampling": sampling,
        "model": model,
        "analyzer": faces.analyzer.describe(),
        "software": software,
    }
    validate_report(report)
    return Scorecard(report)


def validate_report(report: dict) -> None:
    """Raise ValueError unless `report` is a report of this version that can be written as JSON."""
    if report.get("schema") != SCHEMA or report.get("version") != VERSION:
        raise ValueError(
            f"This is not an {SCHEMA} of version {VERSION} but '{report.get('schema')}' version "
            f"{report.get('version')}; score the takes again with this version of the pack."
        )
    try:
        json.dumps(report, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The report holds something that JSON cannot: {error}.") from error
    takes = report["takes"]
    if not takes:
        raise ValueError("The report has no takes; sample at least one.")
    names = [subject["name"] for subject in report["subjects"] if subject["scored"]]
    for i, take in enumerate(takes):
        if take["index"] != i or not 0.0 <= take["score"] <= 1.0 or list(take["subjects"]) != names:
            raise ValueError(f"Take {i} of the report is inconsistent; score the takes again.")
    if not 0 <= report["best"] < len(takes):
        raise ValueError(f"The report's best take is {report['best']}, but there are {len(takes)} takes.")


def write_report(report: dict, path: Path | str) -> None:
    """Write a report as UTF-8 JSON in one step: a reader sees the whole file or none. Raises OSError."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def latent_digest(samples: torch.Tensor) -> str:
    """SHA-256 of a latent's shape and float32 values: which take a record speaks of."""
    values = samples.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(str(tuple(values.shape)).encode())
    digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def largest_change(frames: torch.Tensor) -> float:
    """Greatest change of any 8x8 block's mean between the first frame and any other one; [T, H, W, C] in 0..1."""
    block = min(_BLOCK, frames.shape[1], frames.shape[2])
    first = _blocks(frames[0], block)
    return max((float((_blocks(frame, block) - first).abs().max()) for frame in frames[1:]), default=0.0)


def _blocks(frame: torch.Tensor, size: int) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(frame.movedim(-1, 0), size)


def _agreement(own: SubjectFaces | None) -> float | None:
    used = [face.embedding for face in own.faces if face is not None] if own else []
    if len(used) < 2:
        return None
    cosines = similarities(np.stack(used), np.stack(used))
    return _number(cosines[np.triu_indices(len(used), 1)].min())


def _number(value: float, digits: int = 6) -> float | None:
    """A float for JSON: rounded, None for NaN."""
    value = float(value)
    return None if np.isnan(value) else round(value, digits)
