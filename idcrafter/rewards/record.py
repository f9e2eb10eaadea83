"""What the report says of one clip.

A record (numbers are finite, what does not exist is null, frames count from 0):

    score, similarity_mean, similarity_min, extra_penalty, swap_penalty   the identity score and its parts (`identity`)
    missing (frames times subjects), extra (sum over frames), swapped (swaps)
    change, note   how much moves at all, and why a score is 0
    fps            null where nobody has said it
    subjects       by name: similarity (missing frames count 0), similarity_seen (frames with a face only), coverage
                   (share of frames with a face), face_px (mean side), missing_frames; with a monitor also monitor_seen,
                   what the second embedder says of the same faces as similarity_seen
    events         per event: kind, subjects (names), first, last (frames, both included); see `events`
    frames         per scored frame: frame, extra, swapped (names), and by name similarity and box, or null; with a
                   monitor also its similarity as monitor
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..subjects.subject import Cast
from .evidence import ClipEvidence, NotFiniteError, TensorFrames, gather_evidence, scored_subjects

BAD_PIXELS = "the decoded frames hold NaN or infinite pixels"


def score_clip(
    frames: torch.Tensor, indices: Sequence[int], cast: Cast, on_frame: Callable[[], None] | None = None
) -> dict:
    """The record of a clip [T, H, W, 3] in memory by its frames `indices`.

    Pixels that are not finite make a failed record (score 0 and a note) instead of an error.
    """
    try:
        return clip_record(gather_evidence(TensorFrames(frames), indices, cast, on_frame=on_frame))
    except NotFiniteError:
        return failed_record(cast, BAD_PIXELS)


def clip_record(evidence: ClipEvidence) -> dict:
    """The record of a clip."""
    result, names, indices = evidence.identity, evidence.names, evidence.indices
    swapped: dict[int, list[str]] = {}
    for swap in result.swaps:
        swapped.setdefault(swap.first, []).extend(names[i] for i in swap.subjects)
    return {
        "score": number(evidence.score),
        "similarity_mean": number(result.quality.mean()),
        "similarity_min": number(result.quality.min()),
        "extra_penalty": number(result.extra_penalty),
        "swap_penalty": number(result.swap_penalty),
        "missing": int(result.missing.sum()),
        "extra": int(result.extra.sum()),
        "swapped": len(result.swaps),
        "change": number(evidence.change),
        "note": "nothing moves: a still picture scores 0" if evidence.still else None,
        "fps": None if evidence.source.fps is None else number(evidence.source.fps),
        "subjects": {name: _subject(evidence, i) for i, name in enumerate(names)},
        "events": [
            {
                "kind": event.kind,
                "subjects": [names[i] for i in event.subjects],
                "first": indices[event.first],
                "last": indices[event.last],
            }
            for event in result.events
        ],
        "frames": [
            {
                "frame": index,
                "extra": int(result.extra[t]),
                "swapped": swapped.get(t, []),
                "subjects": {name: _seen(evidence, t, i) for i, name in enumerate(names)},
            }
            for t, index in enumerate(indices)
        ],
    }


def failed_record(cast: Cast, note: str) -> dict:
    """The record of a clip that cannot be scored: score 0, no frames, and why."""
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
        "fps": None,
        "subjects": {cast.subjects[i].name: dict(nobody) for i in scored_subjects(cast)},
        "events": [],
        "frames": [],
    }


def number(value: float, digits: int = 6) -> float | None:
    """A float for JSON: rounded, None for NaN."""
    value = float(value)
    return None if np.isnan(value) else round(value, digits)


def _subject(evidence: ClipEvidence, i: int) -> dict:
    result = evidence.identity
    record = {
        "similarity": number(result.quality[i]),
        "similarity_seen": number(result.similarity_seen[i]),
        "coverage": number(result.coverage[i]),
        "face_px": number(result.face_size[i], 1),
        "missing_frames": int(result.missing[:, i].sum()),
    }
    if evidence.monitor is not None:
        seen = evidence.monitor[~result.missing[:, i], i]
        record["monitor_seen"] = number(seen.mean()) if len(seen) else None
    return record


def _seen(evidence: ClipEvidence, t: int, i: int) -> dict | None:
    result = evidence.identity
    if result.missing[t, i]:
        return None
    record = {"similarity": number(result.similarity[t, i]), "box": [number(v, 1) for v in result.boxes[t, i]]}
    if evidence.monitor is not None:
        record["monitor"] = number(evidence.monitor[t, i])
    return record
