"""ID-Crafter's reward and its parts (arXiv 2511.00511, CVPR 2026, the online RL section).

    R_total = 0.6 R_fid + 0.4 R_qual
    R_fid   = (1 - alpha) R_face + alpha R_subject              alpha = 0.5
    R_face  = (1 - gamma) mean_k R_id^k + gamma min_k R_id^k    gamma = 0.5
    R_qual  = (1 - beta) R_aes + beta R_nat                     beta = 0.4

R_id^k is the ArcFace cosine of subject k, R_aes an aesthetics score, R_nat a VLM's naturalness score. The minimum
keeps one subject from being averaged away. How R_subject is measured and to which range R_aes and R_nat are brought
has not been published; here R_subject is `subject_crops`, R_aes `aesthetic` and R_nat `naturalness`, all in 0..1.

R_total is linear in its four parts, so in a graph it is a weighted sum of four terms with the weights of `WEIGHTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from .identity import subject_quality

if TYPE_CHECKING:
    from .evidence import ClipEvidence

FIDELITY = 0.6
ALPHA = 0.5
BETA = 0.4
GAMMA = 0.5

# What each part weighs in R_total, by kind of term.
WEIGHTS: Mapping[str, float] = MappingProxyType(
    {
        "id_crafter_face": FIDELITY * (1 - ALPHA),
        "subject_crops": FIDELITY * ALPHA,
        "aesthetics": (1 - FIDELITY) * (1 - BETA),
        "naturalness": (1 - FIDELITY) * BETA,
    }
)


def face_reward(likeness: np.ndarray, gamma: float = GAMMA) -> float:
    """R_face of R_id [S]: mean and minimum, mixed. Raises ValueError for none, or values that are not finite."""
    likeness = np.asarray(likeness, np.float64)
    if likeness.size == 0 or not np.isfinite(likeness).all():
        raise ValueError(f"The face reward needs one finite likeness a subject, got {likeness.tolist()}.")
    return float((1 - gamma) * likeness.mean() + gamma * likeness.min())


def fidelity_reward(face: float, subject: float) -> float:
    """R_fid."""
    return (1 - ALPHA) * face + ALPHA * subject


def quality_reward(aesthetics: float, naturalness: float) -> float:
    """R_qual."""
    return (1 - BETA) * aesthetics + BETA * naturalness


def total_reward(face: float, subject: float, aesthetics: float, naturalness: float) -> float:
    """R_total."""
    return FIDELITY * fidelity_reward(face, subject) + (1 - FIDELITY) * quality_reward(aesthetics, naturalness)


def measure_face(evidence: ClipEvidence, options: Mapping[str, Any], model: None) -> float:
    """R_face of a clip in 0..1: R_id^k is the mean over the scored frames, a frame without subject k counts 0."""
    return face_reward(subject_quality(evidence.identity.similarity), options["worst_share"])
