"""Faces: what an analyzer returns, which face of each photo belongs to its subject, and what looks wrong with a cast.

`FaceAnalyzer` is the seam to any detector and recogniser; this module only needs its answers. Similarities are
cosines of unit embeddings. The two thresholds below only make warnings, they change no result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from .subject import Cast, Subject

NO_FACE_POLICIES = ("error", "skip")
SEVERAL_FACES_POLICIES = ("error", "largest", "skip")

# ArcFace cosines on LFW: 0.28 is the threshold at a false accept rate of 0.1 % (ronny3050/AdvFaces), DeepFace's
# tuned verification threshold is 0.32 (a distance of 0.68). Above it a verification system takes two faces for one
# person, so a cast whose subjects reach it cannot be told apart reliably, and photos of one subject that stay below
# it show different people, or one person too differently to be recognised.
ALIKE_COSINE = 0.32
DISAGREE_COSINE = 0.28

# The five landmarks (left eye, right eye, nose, mouth corners; left as seen in the picture) in the 112x112 crop on
# which every ArcFace-style recogniser is trained.
ARCFACE_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
)


@dataclass(frozen=True, eq=False)
class DetectedFace:
    """One face in one image.

    box        [4] float32, x1 y1 x2 y2 in pixels; may reach over the image's edge
    score      the detector's confidence, 0..1
    landmarks  [5, 2] float32 x y in pixels: eyes, nose, mouth corners, left as seen in the image first
    embedding  [D] float32 of unit length; D is the recogniser's, 512 for ArcFace and 128 for SFace
    """

    box: np.ndarray
    score: float
    landmarks: np.ndarray
    embedding: np.ndarray


class FaceAnalyzer(Protocol):
    """Finds and embeds faces. `name` and `licence` are shown to people and written into reports."""

    name: str
    licence: str

    def analyze(self, image: torch.Tensor) -> list[DetectedFace]:
        """All faces of one image [H, W, 3] (0..1), sorted left to right. Raises ValueError on NaN pixels."""

    def analyze_frames(
        self, frames: torch.Tensor, on_frame: Callable[[], None] | None = None
    ) -> list[list[DetectedFace]]:
        """What `analyze` gives for each frame of [T, H, W, 3], embedded in batches.

        on_frame  called after each frame's detection, for progress and interruption
        Raises ValueError on NaN pixels, naming the frame (counted from 1).
        """

    def embed(self, frames: torch.Tensor, faces: Sequence[Sequence[DetectedFace]]) -> list[list[DetectedFace]]:
        """The given faces of the T frames [T, H, W, 3] with this analyzer's embeddings in place of their own.

        Boxes, scores, landmarks and order stay; only the landmarks are looked at. This is how a second embedder (a
        monitor) judges the very faces that the first one scored. Raises ValueError when the lengths differ.
        """

    def describe(self) -> dict:
        """JSON-able facts for the report, with at least "name" and "licence".

        "warnings" is a list of what people should know about how it runs, "recogniser" says by "name" and "files"
        ({file name: sha256}) whose embeddings these are. Both may be missing.
        """


@dataclass(frozen=True, eq=False)
class SubjectFaces:
    """The faces of one subject: one per photo (None = the photo was skipped), and their mean of unit length [D]."""

    faces: tuple[DetectedFace | None, ...]
    mean: np.ndarray


@dataclass(frozen=True, eq=False)
class CastFaces:
    """The faces of a cast, in its order; None for an object, or a subject of whom no photo shows a usable face."""

    analyzer: FaceAnalyzer
    subjects: tuple[SubjectFaces | None, ...]
    warnings: tuple[str, ...]


def extract_faces(
    cast: Cast, analyzer: FaceAnalyzer, no_face: str, several: str, on_photo: Callable[[], None] | None = None
) -> CastFaces:
    """Find the face of every person and animal of the cast in each of their photos.

    no_face   what a person's photo without a face does: "error" or "skip" (the photo is left out). Face detectors
              are made for people, so a photo of an animal without a face is always left out.
    several   what a photo with several faces does: "error", "largest" (by area) or "skip". Where a photo has a mask,
              only faces inside it count.
    on_photo  called after each photo, for progress and interruption
    Raises ValueError that names the photo and the subject.
    """
    if no_face not in NO_FACE_POLICIES or several not in SEVERAL_FACES_POLICIES:
        raise ValueError(
            f"no_face is one of {', '.join(NO_FACE_POLICIES)} and several_faces one of "
            f"{', '.join(SEVERAL_FACES_POLICIES)}; got '{no_face}' and '{several}'."
        )
    subjects: list[SubjectFaces | None] = []
    warnings: list[str] = list(analyzer.describe().get("warnings", ()))
    for subject in cast.subjects:
        if subject.kind == "object":
            subjects.append(None)
            continue
        policy = no_face if subject.kind == "person" else "skip"
        faces = []
        for i in range(len(subject.photos)):
            face, note = _pick_face(subject, i, analyzer, policy, several)
            faces.append(face)
            if note and (face is not None or subject.kind == "person"):
                warnings.append(note)
            if on_photo:
                on_photo()
        found = [face.embedding for face in faces if face is not None]
        if found:
            subjects.append(SubjectFaces(tuple(faces), _unit_mean(found)))
        else:
            subjects.append(None)
            warnings.append(
                f"{subject.kind} '{subject.name}' has no usable face and is not scored. Use a photo that shows one."
            )
    warnings += _disagreements(cast, subjects)
    warnings += _lookalikes(cast, subjects)
    return CastFaces(analyzer, tuple(subjects), tuple(warnings))


def similarities(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines [A, B] of unit embeddings [A, D] and [B, D]."""
    return np.clip(a @ b.T, -1.0, 1.0)


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, uniform scale and shift [2, 3] that brings points [N, 2] closest to others (Umeyama 1991)."""
    source, target = source.astype(np.float64), target.astype(np.float64)
    source_mean, target_mean = source.mean(0), target.mean(0)
    a, b = source - source_mean, target - target_mean
    spread = (a**2).sum()
    # In the plane the least-squares solution is one complex division: (cos, sin) scaled.
    cos = (a * b).sum() / spread
    sin = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / spread
    rotation = np.array([[cos, -sin], [sin, cos]])
    return np.concatenate([rotation, (target_mean - rotation @ source_mean)[:, None]], 1)


def aligned_crop(image: torch.Tensor, landmarks: np.ndarray, size: int = 112) -> np.ndarray:
    """The face of an image [H, W, 3], upright in the recogniser's frame: [size, size, 3] uint8, black outside."""
    # PIL puts the middle of the first pixel at 0.5, landmarks and template put it at 0.
    source, target = landmarks + 0.5, ARCFACE_TEMPLATE * (size / 112) + 0.5
    # Bilinear sampling skips pixels when it shrinks by more than two, so large photos are averaged down first.
    reduce = max(1, int(1.0 / math.hypot(*similarity_transform(source, target)[:, 0])))
    forward = similarity_transform(source / reduce, target)
    inverse = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))[:2]
    photo = Image.fromarray(to_uint8(image)).reduce(reduce)
    return np.asarray(
        photo.transform((size, size), Image.Transform.AFFINE, inverse.ravel().tolist(), Image.Resampling.BILINEAR)
    )


def to_uint8(image: torch.Tensor) -> np.ndarray:
    """[..., 3] in 0..1 -> uint8, rounded. What NaN becomes is not said; see `is_finite`."""
    # numpy, because torch's threads and those of a face model that runs in turns with them get into each other's way.
    values = np.clip(_values(image), 0.0, 1.0)
    values *= 255.0
    np.rint(values, out=values)
    with np.errstate(invalid="ignore"):
        return values.astype(np.uint8)


def is_finite(image: torch.Tensor) -> bool:
    """Whether no pixel is NaN or infinite."""
    values = _values(image)
    # A sum is finite only when every summand is, and needs no second picture; but it may overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum()) or np.isfinite(values).all())


def _values(image: torch.Tensor) -> np.ndarray:
    return image.detach().to("cpu", torch.float32).numpy()


def _pick_face(
    subject: Subject, index: int, analyzer: FaceAnalyzer, no_face: str, several: str
) -> tuple[DetectedFace | None, str]:
    """The subject's face in one photo, or None and a note that says why the photo was left out."""
    where = f"photo {index + 1} of subject '{subject.name}'"
    faces = analyzer.analyze(subject.photos[index])
    mask = subject.masks[index]
    inside = "" if mask is None else " inside its mask"
    if mask is not None:
        faces = [face for face in faces if _is_inside(face, mask)]
    if not faces:
        if no_face == "error":
            raise ValueError(
                f"{where}: no face found{inside}. Use a photo where the face is visible, or set no_face to skip."
            )
        return None, f"{where}: no face found{inside}, photo left out."
    if len(faces) == 1:
        return faces[0], ""
    if several == "error":
        raise ValueError(
            f"{where}: {len(faces)} faces found{inside}. Crop the photo to one person, connect a mask, or set "
            "several_faces to largest or skip."
        )
    if several == "skip":
        return None, f"{where}: {len(faces)} faces found{inside}, photo left out."
    return max(faces, key=_area), f"{where}: {len(faces)} faces found{inside}, the largest one is used."


def _is_inside(face: DetectedFace, mask: torch.Tensor) -> bool:
    """Whether the middle of the landmarks lies on the mask's subject."""
    x, y = face.landmarks.mean(0)
    row = min(max(int(y), 0), mask.shape[0] - 1)
    column = min(max(int(x), 0), mask.shape[1] - 1)
    return bool(mask[row, column] >= 0.5)


def _area(face: DetectedFace) -> float:
    x1, y1, x2, y2 = face.box
    return float((x2 - x1) * (y2 - y1))


def _unit_mean(embeddings: list[np.ndarray]) -> np.ndarray:
    mean = np.mean(embeddings, 0, dtype=np.float64)
    return (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)


def _disagreements(cast: Cast, subjects: list[SubjectFaces | None]) -> list[str]:
    """A warning for each photo that resembles none of the subject's other photos."""
    notes = []
    for subject, own in zip(cast.subjects, subjects, strict=True):
        if own is None:
            continue
        used = [(i, face.embedding) for i, face in enumerate(own.faces) if face is not None]
        if len(used) < 2:
            continue
        embeddings = np.stack([embedding for _, embedding in used])
        cosines = similarities(embeddings, embeddings)
        np.fill_diagonal(cosines, -1.0)
        odd = [(i, best) for (i, _), best in zip(used, cosines.max(1), strict=True) if best < DISAGREE_COSINE]
        if len(odd) == len(used):
            notes.append(
                f"the photos of subject '{subject.name}' do not resemble each other (best similarity "
                f"{max(best for _, best in odd):.2f}, below {DISAGREE_COSINE}). Check that they show one person."
            )
            continue
        notes += [
            f"photo {i + 1} of subject '{subject.name}' does not resemble the other photos (similarity {best:.2f}, "
            f"below {DISAGREE_COSINE}). Check that it shows the same person."
            for i, best in odd
        ]
    return notes


def _lookalikes(cast: Cast, subjects: list[SubjectFaces | None]) -> list[str]:
    """A warning for each pair of subjects that a verification system would take for one person."""
    known = [(subject.name, own.mean) for subject, own in zip(cast.subjects, subjects, strict=True) if own is not None]
    notes = []
    for (name, mean), (other, other_mean) in combinations(known, 2):
        cosine = float(mean @ other_mean)
        if cosine >= ALIKE_COSINE:
            notes.append(
                f"subjects '{name}' and '{other}' look alike (similarity {cosine:.2f}, at least {ALIKE_COSINE}). "
                "Scores may not tell them apart; use photos that show how they differ."
            )
    return notes
