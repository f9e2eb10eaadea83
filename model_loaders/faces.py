"""Face analyzers: a detector and a recogniser, from files on disk. Nothing is ever downloaded.

The two are chosen apart: a detector gives boxes and five landmarks, a recogniser embeds the upright crop that the
landmarks define, so that every recogniser judges the same faces. Where the files lie and what may be done with them
stands in `faces_catalogue`, what runs them in `faces_onnx` (insightface), `faces_opencv` and `faces_torch`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..idcrafter.subjects.faces import ARCFACE_TEMPLATE, DetectedFace, is_finite, similarity_transform, to_uint8
from . import faces_catalogue as catalogue
from .faces_parts import PROVIDERS, Detection, FaceDetector, FaceRecogniser

log = logging.getLogger(__name__)

# Crops that are embedded at once.
BATCH = 32


@dataclass(frozen=True, eq=False)
class ModelFaceAnalyzer:
    """A detector and a recogniser that work together; see `idcrafter.subjects.faces.FaceAnalyzer`.

    warnings  what the user should know about how it runs, for the node and for reports
    """

    name: str
    detector: FaceDetector
    recogniser: FaceRecogniser
    warnings: tuple[str, ...] = ()

    @property
    def licence(self) -> str:
        first, second = (f"{part.facts.name}: {part.facts.licence}" for part in (self.detector, self.recogniser))
        same = self.detector.facts.licence == self.recogniser.facts.licence
        return self.detector.facts.licence if same else f"{first}; {second}"

    @property
    def provider(self) -> str:
        """ "cuda" where both models run there, else "cpu"."""
        both = {self.detector.facts.provider, self.recogniser.facts.provider}
        return "cuda" if both == {"cuda"} else "cpu"

    def analyze(self, image: torch.Tensor) -> list[DetectedFace]:
        """All faces of one image [H, W, 3] (0..1), sorted left to right. Raises ValueError on NaN pixels."""
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"Face analysis takes one image of shape [height, width, 3], got {list(image.shape)}.")
        return self._analyze([(image, "The image")], None)[0]

    def analyze_frames(
        self, frames: torch.Tensor, on_frame: Callable[[], None] | None = None
    ) -> list[list[DetectedFace]]:
        """What `analyze` gives for each frame of [T, H, W, 3], embedded in batches."""
        _check_frames(frames)
        return self._analyze(_named(frames), on_frame)

    def embed(self, frames: torch.Tensor, faces: Sequence[Sequence[DetectedFace]]) -> list[list[DetectedFace]]:
        """The given faces of the frames [T, H, W, 3] with this recogniser's embeddings in place of their own."""
        _check_frames(frames)
        if len(frames) != len(faces):
            raise ValueError(f"There are {len(frames)} frames but faces for {len(faces)}; pass one list a frame.")
        batches = _Batches(self.recogniser, self.name)
        for (frame, name), found in zip(_named(frames), faces, strict=True):
            bgr = _to_bgr(frame, name)
            for face in found:
                batches.add(bgr, face.landmarks)
        embeddings = iter(batches.finish())
        return [[replace(face, embedding=next(embeddings)) for face in found] for found in faces]

    def describe(self) -> dict:
        parts = (self.detector.facts, self.recogniser.facts)
        facts = {
            "name": self.name,
            "licence": self.licence,
            "provider": self.provider,
            "det_size": self.detector.det_size,
            "runtime": "; ".join(dict.fromkeys(part.runtime for part in parts)),
            "detector": parts[0].as_dict(),
            "recogniser": parts[1].as_dict(),
        }
        return {**facts, "warnings": list(self.warnings)} if self.warnings else facts

    def _analyze(
        self, frames: Iterable[tuple[torch.Tensor, str]], on_frame: Callable[[], None] | None
    ) -> list[list[DetectedFace]]:
        found: list[list[Detection]] = []
        batches = _Batches(self.recogniser, self.name)
        for frame, name in frames:
            bgr = _to_bgr(frame, name)
            detections = [each for each in self.detector.detect(bgr) if _can_be_aligned(each)]
            detections.sort(key=lambda each: tuple(each.box.tolist()))
            for each in detections:
                batches.add(bgr, each.landmarks)
            found.append(detections)
            if on_frame:
                on_frame()
        embeddings = iter(batches.finish())
        return [
            [
                DetectedFace(np.asarray(box, np.float32), float(score), np.asarray(marks, np.float32), next(embeddings))
                for box, score, marks in detections
            ]
            for detections in found
        ]


class _Batches:
    """Collects crops and embeds them BATCH at a time, so that no more crops than these are ever held."""

    def __init__(self, recogniser: FaceRecogniser, name: str):
        import cv2

        self._warp = cv2.warpAffine
        self._recogniser, self._name = recogniser, name
        self._crops: list[np.ndarray] = []
        self._embeddings: list[np.ndarray] = []

    def add(self, bgr: np.ndarray, landmarks: np.ndarray) -> None:
        """The face as ArcFace-style recognisers are trained on it: insightface's and OpenCV's alignment."""
        size = self._recogniser.crop_size
        matrix = similarity_transform(landmarks, ARCFACE_TEMPLATE * (size / 112))
        self._crops.append(self._warp(bgr, matrix, (size, size)))
        if len(self._crops) == BATCH:
            self._flush()

    def finish(self) -> list[np.ndarray]:
        """All embeddings in the order of the crops, each [D] float32 of unit length."""
        if self._crops:
            self._flush()
        return self._embeddings

    def _flush(self) -> None:
        raw = np.asarray(self._recogniser.embed(self._crops), np.float64)
        norms = np.linalg.norm(raw, axis=1, keepdims=True)
        if not np.isfinite(norms).all() or not (norms > 0).all():
            raise RuntimeError(
                f"The face recogniser of '{self._name}' returned no usable embedding; its file may be damaged, or it "
                "overflows on this provider: try provider cpu."
            )
        self._embeddings += list((raw / norms).astype(np.float32))
        self._crops = []


def load_face_analyzer(
    folder: Path | str, det_size: int | None = 640, provider: str = "auto", licence: str = "unknown", name: str = ""
) -> ModelFaceAnalyzer:
    """Load the detector and recogniser of an insightface pack (buffalo_l, antelopev2, ...) from its folder.

    folder    holds the pack's *.onnx files, or one sub-folder that does (as antelopev2 unpacks)
    det_size  see FaceDetector; scores of different sizes do not compare
    provider  "cuda" fails where onnxruntime cannot use the GPU, "auto" falls back to the CPU with a warning
    Raises FileNotFoundError for missing and ValueError for unusable files, naming them; RuntimeError for a provider
    or package that is not there.
    """
    from . import faces_onnx

    detector, recogniser = faces_onnx.load_pack(Path(folder), det_size, provider, licence, name)
    return _join(detector.facts.name, detector, recogniser)


def load_named_analyzer(detector: str, recogniser: str = "auto", provider: str = "auto") -> ModelFaceAnalyzer:
    """A face analyzer from the names that the catalogue knows, or from any pack in the 'insightface' model folder.

    detector    "yunet", or the name of a pack's folder
    recogniser  one of catalogue.RECOGNISERS; "auto" is the pack's own, and AuraFace for YuNet
    Raises as `load_face_analyzer`; a missing file's message has the folder and the command that downloads it.
    """
    if provider not in PROVIDERS:
        raise ValueError(f"The face provider is one of {', '.join(PROVIDERS)}, got '{provider}'.")
    if recogniser not in catalogue.RECOGNISERS:
        raise ValueError(f"The recogniser is one of {', '.join(catalogue.RECOGNISERS)}, got '{recogniser}'.")
    if detector != "yunet" and recogniser == "auto":
        pack = catalogue.pack(detector)
        return load_face_analyzer(pack.require(), pack.det_size, provider, pack.licence, detector)
    if recogniser == "auto":
        recogniser = "auraface"
    if (detector, recogniser, provider) == ("yunet", "sface", "cuda"):
        raise RuntimeError("YuNet and SFace run in OpenCV on the CPU; set the provider to cpu or auto.")
    # Both files are looked for before either is loaded.
    first = catalogue.pack(detector).require() if detector != "yunet" else catalogue.FILES["yunet"].require()
    second = catalogue.FILES[recogniser].require()
    return _join(
        f"{detector} + {recogniser}",
        _load_detector(detector, first, provider),
        _load_recogniser(recogniser, second, provider),
    )


def summary(analyzer: ModelFaceAnalyzer) -> str:
    """What was loaded, in lines for people: warnings, then each part with its licence and where it runs."""
    size = analyzer.detector.det_size
    lines = [
        f"{role}: {facts.name} on {facts.provider}{extra}, licence: {facts.licence}"
        for role, facts, extra in (
            ("Face detection", analyzer.detector.facts, f" at {size} px" if size else ""),
            ("Face recognition", analyzer.recogniser.facts, ""),
        )
    ]
    return "\n".join([*(f"Warning: {warning}" for warning in analyzer.warnings), *lines])


def _load_detector(name: str, path: Path, provider: str) -> FaceDetector:
    if name == "yunet":
        from .faces_opencv import load_yunet

        return load_yunet(path, catalogue.FILES[name].licence)
    from . import faces_onnx

    pack = catalogue.pack(name)
    return faces_onnx.load_pack(path, pack.det_size, provider, pack.licence, name, recognition=False)[0]


def _load_recogniser(name: str, path: Path, provider: str) -> FaceRecogniser:
    licence = catalogue.FILES[name].licence
    if name == "sface":
        from .faces_opencv import load_sface

        return load_sface(path, licence)
    if name == "curricularface":
        from .faces_torch import load_curricularface

        return load_curricularface(path, provider, licence)
    from .faces_onnx import load_recogniser

    return load_recogniser(path, provider, licence, name)


def _join(name: str, detector: FaceDetector, recogniser: FaceRecogniser) -> ModelFaceAnalyzer:
    """The analyzer, its licences in the log, and a warning for what fell back to the CPU."""
    warnings = []
    for facts in (detector.facts, recogniser.facts):
        runs = f"{facts.name} on {facts.provider} ({facts.runtime})"
        log.info("Loaded the face model %s, licence: %s.", runs, facts.licence)
        if facts.fell_back:
            warnings.append(
                f"The face model '{facts.name}' runs on the CPU although there is a GPU: onnxruntime cannot use it "
                "here. Install onnxruntime-gpu in place of onnxruntime, or set the provider to cpu."
            )
    warnings = tuple(dict.fromkeys(warnings))
    for warning in warnings:
        log.warning(warning)
    return ModelFaceAnalyzer(name, detector, recogniser, warnings)


def _check_frames(frames: torch.Tensor) -> None:
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"Face analysis takes frames of shape [frames, height, width, 3], got {list(frames.shape)}.")


def _named(frames: torch.Tensor) -> Iterator[tuple[torch.Tensor, str]]:
    """The frames with the names by which people know them."""
    return ((frame, f"Frame {t}") for t, frame in enumerate(frames, 1))


def _to_bgr(frame: torch.Tensor, name: str) -> np.ndarray:
    """[H, W, 3] uint8 BGR of a frame [H, W, 3] in 0..1; ValueError for pixels that are not finite."""
    import cv2

    if not is_finite(frame):
        raise ValueError(f"{name} holds NaN or infinite pixels; look at the node that made it.")
    return cv2.cvtColor(to_uint8(frame), cv2.COLOR_RGB2BGR)


def _can_be_aligned(face: Detection) -> bool:
    """Whether box and landmarks are finite and the landmarks not all in one place."""
    finite = math.isfinite(face.box.sum()) and math.isfinite(face.landmarks.sum())
    return finite and bool((face.landmarks != face.landmarks[0]).any())
