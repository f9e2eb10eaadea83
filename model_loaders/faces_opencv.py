"""YuNet and SFace, run by OpenCV's own classes on the CPU: OpenCV's Python packages come without CUDA.

Layouts as in opencv/opencv, modules/objdetect/src/face_detect.cpp and face_recognize.cpp: YuNet (2023mar) takes
"input" [1, 3, 640, 640] BGR 0..255 and gives cls, obj, bbox and kps for the strides 8, 16 and 32; SFace takes
"data" [1, 3, 112, 112] RGB 0..255 and gives [1, 128].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import files
from .faces_onnx import impostor
from .faces_parts import Detection, PartFacts

# The square for which the file is exported. Other sizes work in some releases of OpenCV and not in others, and scores
# of different sizes do not compare.
YUNET_SIZE = 640
# opencv_zoo's own thresholds (yunet.py).
YUNET_SCORE, YUNET_OVERLAP, YUNET_MOST = 0.6, 0.3, 5000
SFACE_CROP, SFACE_DIMENSIONS = 112, 128


@dataclass(frozen=True, eq=False)
class YuNetDetector:
    """cv2.FaceDetectorYN; see `faces_parts.FaceDetector`."""

    facts: PartFacts
    det_size: int
    _model: Any = field(repr=False)

    def detect(self, bgr: np.ndarray) -> list[Detection]:
        import cv2

        height, width = bgr.shape[:2]
        scale = self.det_size / max(height, width)
        if min(height, width) * scale < 1:
            return []  # a strip that is less than one pixel wide at the detector's size
        fitted = cv2.resize(bgr, (round(width * scale) or 1, round(height * scale) or 1))
        square = np.zeros((self.det_size, self.det_size, 3), np.uint8)
        square[: fitted.shape[0], : fitted.shape[1]] = fitted
        rows = self._model.detect(square)[1]
        # Rounding to whole pixels can stretch an image a little; each axis goes back by its own factor.
        back = np.array([width / fitted.shape[1], height / fitted.shape[0]], np.float32)
        found = []
        for row in rows if rows is not None else ():
            corner, size, landmarks = row[:2] * back, row[2:4] * back, row[4:14].reshape(5, 2) * back
            found.append(Detection(np.concatenate([corner, corner + size]), float(row[14]), landmarks))
        return found


@dataclass(frozen=True, eq=False)
class SFaceRecogniser:
    """cv2.FaceRecognizerSF, which takes one crop at a time; see `faces_parts.FaceRecogniser`."""

    facts: PartFacts
    crop_size: int
    _model: Any = field(repr=False)

    def embed(self, crops: list[np.ndarray]) -> np.ndarray:
        # OpenCV may hand out the same memory again with the next crop.
        return np.concatenate([self._model.feature(crop).copy() for crop in crops])

    def with_gradient(self) -> Callable[[torch.Tensor], torch.Tensor]:
        raise ValueError("SFace runs in OpenCV, which has no gradients; choose a recogniser of ArcFace's kind.")


def load_yunet(path: Path, licence: str) -> YuNetDetector:
    """Raises ValueError that names the file when it is not YuNet's 2023 layout."""
    cv2 = _opencv()
    size = (YUNET_SIZE, YUNET_SIZE)
    blank = np.zeros((YUNET_SIZE, YUNET_SIZE, 3), np.uint8)
    try:
        model = cv2.FaceDetectorYN.create("onnx", _bytes(path), b"", size, YUNET_SCORE, YUNET_OVERLAP, YUNET_MOST)
        model.detect(blank)
    except (cv2.error, SystemError) as error:
        raise ValueError(
            f"'{path}' is not a YuNet face detector of the 2023 layout, or it is damaged; get "
            "face_detection_yunet_2023mar.onnx from opencv_zoo."
        ) from error
    return YuNetDetector(_facts(path, "yunet", licence), YUNET_SIZE, model)


def load_sface(path: Path, licence: str) -> SFaceRecogniser:
    """Raises ValueError that names the file when it is not SFace."""
    cv2 = _opencv()
    shape = None
    try:
        model = cv2.FaceRecognizerSF.create("onnx", _bytes(path), b"")
        shape = model.feature(np.zeros((SFACE_CROP, SFACE_CROP, 3), np.uint8)).shape
    except (cv2.error, SystemError) as error:
        raise ValueError(_not_sface(path)) from error
    if shape != (1, SFACE_DIMENSIONS):
        raise ValueError(_not_sface(path))
    return SFaceRecogniser(_facts(path, "sface", licence), SFACE_CROP, model)


def _not_sface(path: Path) -> str:
    return (
        f"'{path}' is not the SFace face recogniser, or it is damaged; get face_recognition_sface_2021dec.onnx from "
        "opencv_zoo."
    )


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise RuntimeError(
            "YuNet and SFace need the Python package 'opencv-python': install the pack's requirements.txt into "
            "ComfyUI's environment."
        ) from error
    if not hasattr(cv2, "FaceDetectorYN"):
        raise RuntimeError(f"OpenCV {cv2.__version__} has no FaceDetectorYN; install opencv-python 4.8 or newer.")
    return cv2


def _bytes(path: Path) -> np.ndarray:
    """The file's content: OpenCV itself opens no path with letters outside of the system's code page on Windows."""
    wrong = impostor(path)
    if wrong:
        raise wrong
    return np.frombuffer(path.read_bytes(), np.uint8)


def _facts(path: Path, name: str, licence: str) -> PartFacts:
    import cv2

    return PartFacts(name, licence, "cpu", f"OpenCV {cv2.__version__}", {path.name: files.sha256_of(path)})
