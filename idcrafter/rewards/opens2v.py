"""OpenS2V-Eval's FaceSim and totals (PKU-YuanGroup/OpenS2V-Nexus, eval/get_facesim.py and eval/merge_result.py).

FaceSim, as it is computed there: the first photo of the first person is the reference; of each frame the largest face
is compared with it, whoever it is; frames without a face, and frames whose cosine is 0 or less, are left out; the mean
of the rest is the score. So nobody but the first person is looked at, hiding costs nothing, and one frame is enough. It
is here to compare with published numbers (theirs use CurricularFace on 32 frames) and to show what it misses.

Totals are weighted sums of normalised metrics. Version 1.1 (eval/merge_result.py) weighs smoothness and amplitude of
motion apart; version 1.0 had one number for motion, with weights that were found by least squares from its published
tables (leaderboard/file_v1.0), which they reproduce. Totals of different versions do not compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..subjects.faces import DetectedFace, similarities
from .assignment import face_sides

if TYPE_CHECKING:
    from .evidence import ClipEvidence

_SUBJECTS_1_0 = {
    "aesthetics": 0.12, "motion": 0.12, "face": 0.20, "gme": 0.12, "nexus": 0.20, "natural": 0.24,
}  # fmt: skip
_SUBJECTS_1_1 = {
    "aesthetics": 0.16, "smoothness": 0.06, "amplitude": 0.02,
    "face": 0.20, "gme": 0.12, "nexus": 0.20, "natural": 0.24,
}  # fmt: skip

# (version, domain) -> metric -> weight
WEIGHTS: Mapping[tuple[str, str], Mapping[str, float]] = MappingProxyType(
    {
        ("1.0", "open"): _SUBJECTS_1_0,
        ("1.0", "single"): _SUBJECTS_1_0,
        ("1.0", "human"): {"aesthetics": 0.15, "motion": 0.15, "face": 0.25, "gme": 0.15, "natural": 0.30},
        ("1.1", "open"): _SUBJECTS_1_1,
        ("1.1", "single"): _SUBJECTS_1_1,
        ("1.1", "human"): {
            "aesthetics": 0.18, "smoothness": 0.09, "amplitude": 0.03, "face": 0.25, "gme": 0.15, "natural": 0.30,
        },
    }
)  # fmt: skip

# Raw metric -> (lowest, highest), brought to 0..1 and cut there; amplitude and smoothness by their magnitude.
RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "aesthetics": (4.0, 7.0),
        "smoothness": (0.0, 1.0),
        "amplitude": (0.0, 1.0),
        "face": (0.0, 1.0),
        "gme": (0.0, 1.0),
        "nexus": (0.0, 0.05),
        "natural": (1.0, 5.0),
    }
)
_NOT_CUT_BELOW = ("face", "gme", "nexus")  # as there: only their upper end is cut


def face_sim(frames: Sequence[Sequence[DetectedFace]], reference: np.ndarray) -> float:
    """FaceSim of a clip, 0..1: the faces of each frame and one unit embedding [D]. 0 where no frame counts."""
    if not np.isfinite(reference).all():
        raise ValueError("The reference embedding of FaceSim holds NaN or infinite values.")
    scores = []
    for faces in frames:
        if faces:
            largest = max(faces, key=lambda face: float(face_sides(np.asarray(face.box, np.float64))))
            cosine = float(similarities(reference[None], largest.embedding[None])[0, 0])
            if cosine > 0.0:
                scores.append(cosine)
    return float(np.mean(scores)) if scores else 0.0


def normalise(metric: str, values: Sequence[float]) -> float:
    """One metric over a benchmark's videos: raw values -> the leaderboard's 0..1.

    Videos whose nexus score is exactly 0 (nothing was detected) are left out, as there. 0 for no values.
    """
    if metric not in RANGES:
        raise ValueError(f"OpenS2V normalises {', '.join(RANGES)}; got '{metric}'.")
    column = np.asarray(values, np.float64)
    if not np.isfinite(column).all():
        raise ValueError(f"The {metric} scores hold NaN or infinite values.")
    if metric == "nexus":
        column = column[column != 0.0]
    if metric in ("amplitude", "smoothness"):
        column = np.abs(column)
    if not len(column):
        return 0.0
    low, high = RANGES[metric]
    cut = np.minimum(column, high) if metric in _NOT_CUT_BELOW else np.clip(column, low, high)
    return float((cut.mean() - low) / (high - low))


def total(metrics: Mapping[str, float], domain: str = "open", version: str = "1.1") -> float:
    """TotalScore of normalised metrics (0..1 or percent, alike). Raises ValueError for what is missing or too much."""
    if (version, domain) not in WEIGHTS:
        raise ValueError(f"OpenS2V has the versions 1.0, 1.1 and domains open, single, human; got {version}, {domain}.")
    weights = WEIGHTS[version, domain]
    if set(metrics) != set(weights):
        raise ValueError(f"The total {version} of the {domain} domain needs exactly {', '.join(weights)}.")
    wrong = [name for name, value in metrics.items() if not np.isfinite(value)]
    if wrong:
        raise ValueError(f"The metric '{wrong[0]}' is {metrics[wrong[0]]}; a total needs finite numbers.")
    return float(sum(weight * metrics[name] for name, weight in weights.items()))


def measure_facesim(evidence: ClipEvidence, options: Mapping[str, Any], model: None) -> float:
    """FaceSim of a clip, with this graph's analyzer and frames."""
    first = evidence.cast.faces.subjects[evidence.scored[0]]
    reference = next(face.embedding for face in first.faces if face is not None)
    return face_sim(evidence.faces, reference)
