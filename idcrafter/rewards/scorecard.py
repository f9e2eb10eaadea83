"""The scorecard: every take of a shot, or a clip from anywhere, scored against the cast, as one JSON report.

Report, schema "idcrafter.report" version 2 (numbers are finite, what does not exist is null, frames count from 0):

    subjects   per subject: name, kind, scored, photos, photos_used, photos_agree (lowest cosine of its own photos: the
               most that a score can be expected to reach)
    takes      per take: index, seed, seconds, resumed, latent_sha256 (null for a clip from elsewhere), and what
               `record.clip_record` says of it; with a reward also its number (null where it could not be measured) and
               terms, the raw value of each by name
    best       index of the take with the highest reward, or score where there is no reward; the first of equals
    warnings, scoring, sampling, model, analyzer, software; where there was one: monitor, reward, search

Version 1 had no events, fps, monitor, reward and search.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..subjects.faces import CastFaces, SubjectFaces, similarities
from ..subjects.subject import Cast
from . import assignment, events, identity, tracking
from .combine import combine
from .evidence import STILL_CHANGE, scored_subjects
from .record import number
from .table import report_csv

if TYPE_CHECKING:
    from .terms import RewardSpec

SCHEMA = "idcrafter.report"
VERSION = 2


@dataclass(frozen=True, eq=False)
class Scorecard:
    """A validated report; see the module for its fields."""

    report: dict


def scored_faces(cast: Cast) -> tuple[CastFaces, list[tuple[str, SubjectFaces]]]:
    """The cast's faces, and name and faces of the subjects that can be scored.

    Raises ValueError as `evidence.scored_subjects`.
    """
    scored = scored_subjects(cast)
    return cast.faces, [(cast.subjects[i].name, cast.faces.subjects[i]) for i in scored]


def spread_frames(total: int, wanted: int) -> list[int]:
    """Indices of `wanted` frames spread evenly over a clip, ends included; 0 means all."""
    if wanted <= 0 or wanted >= total:
        return list(range(total))
    return np.linspace(0, total - 1, wanted).round().astype(int).tolist()


def build_scorecard(
    cast: Cast,
    takes: Sequence[dict],
    *,
    sampling: dict,
    model: dict,
    software: dict,
    monitor: dict | None = None,
    reward: RewardSpec | None = None,
    search: dict | None = None,
) -> Scorecard:
    """Join the records of all takes, in order, with what is known about their making.

    takes    the dicts of `record.clip_record` or `record.failed_record`, each with seed, seconds, resumed and
             latent_sha256 added, and with a reward its "terms" (None where a take has failed)
    monitor  what the second analyzer says of itself
    reward   what `combine.combine` makes one number of; it then says which take is best
    search   the record of the take search
    Raises ValueError on anything that is not JSON.
    """
    faces, _ = scored_faces(cast)
    takes = [{"index": i, **take} for i, take in enumerate(takes)]
    if reward is not None:
        _combine(takes, reward)
    report = {
        "schema": SCHEMA,
        "version": VERSION,
        "best": max(range(len(takes)), key=lambda i: _rank(takes[i])),
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
        "warnings": [*faces.warnings, *_sparse(takes)],
        "scoring": {
            "formula": "0.5 mean + 0.5 min of the subjects' similarities, less extra_penalty and swap_penalty",
            "match_cosine": assignment.MATCH_COSINE,
            "link_distance": assignment.LINK_DISTANCE,
            "extra_weight": identity.EXTRA_WEIGHT,
            "swap_weight": identity.SWAP_WEIGHT,
            "change_cost": tracking.CHANGE_COST,
            "event_frames": events.EVENT_FRAMES,
            "still_change": number(STILL_CHANGE),
        },
        "sampling": sampling,
        "model": model,
        "analyzer": faces.analyzer.describe(),
        "software": software,
    }
    parts = {"monitor": monitor, "reward": reward and reward.describe(), "search": search}
    report.update({name: part for name, part in parts.items() if part is not None})
    validate_report(report)
    return Scorecard(report)


def _sparse(takes: Sequence[dict]) -> list[str]:
    """A warning where the scored frames are too far apart to follow a face from one to the next."""
    for take in takes:
        numbers = [frame["frame"] for frame in take["frames"]]
        gap = max((b - a for a, b in zip(numbers, numbers[1:], strict=False)), default=0)
        if take["fps"] and gap / take["fps"] > tracking.MAX_GAP_SECONDS:
            return [
                f"the scored frames are {gap / take['fps']:.1f} s apart, too far to follow people: exchanged "
                f"identities are not found. Score more frames, at least one in {tracking.MAX_GAP_SECONDS:g} s."
            ]
    return []


def _combine(takes: list[dict], reward: RewardSpec) -> None:
    """Give every take that was measured its reward; the others have none."""
    measured = [take for take in takes if take["terms"] is not None]
    values = {name: np.array([take["terms"][name] for take in measured]) for name in reward.names}
    numbers = iter(combine(values, reward)) if measured else iter(())
    for take in takes:
        take["reward"] = None if take["terms"] is None else number(next(numbers))


def _rank(take: dict) -> float:
    if "reward" in take:
        return float("-inf") if take["reward"] is None else take["reward"]
    return take["score"]


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
    """Write a report as UTF-8 JSON, and its frames as CSV beside it under the same stem. Raises OSError."""
    path = Path(path)
    _write(path, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False), "utf-8")
    # With the byte order mark, without which spreadsheets take UTF-8 for something else.
    _write(path.with_suffix(".csv"), report_csv(report), "utf-8-sig")


def _write(path: Path, text: str, encoding: str) -> None:
    """In one step: a reader sees the whole file or none."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding=encoding, newline="") as file:
            file.write(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def latent_digest(samples: torch.Tensor) -> str:
    """SHA-256 of a latent's shape and float32 values: which take a record speaks of."""
    values = samples.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(str(tuple(values.shape)).encode())
    digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _agreement(own: SubjectFaces | None) -> float | None:
    used = [face.embedding for face in own.faces if face is not None] if own else []
    if len(used) < 2:
        return None
    cosines = similarities(np.stack(used), np.stack(used))
    return number(cosines[np.triu_indices(len(used), 1)].min())
