"""A folder of insightface ONNX files -> a FaceAnalyzer. Reads local files only; nothing is ever downloaded."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..idcrafter.subjects.faces import DetectedFace, to_uint8

log = logging.getLogger(__name__)

PROVIDERS = ("auto", "cuda", "cpu")
EMBEDDING_SIZE = 512

# What people put into model folders by mistake, by the file's first bytes.
_IMPOSTORS = {
    b"\x80": "a Python pickle",
    b"PK\x03\x04": "a zip archive or PyTorch checkpoint",
    b"<": "a web page",
    b"version https://git-lfs": "a Git LFS pointer",
}


@dataclass(frozen=True, eq=False)
class InsightFaceAnalyzer:
    """A detector and a recogniser of one insightface pack, run through onnxruntime.

    det_size  side in pixels to which images are fitted for detection; None = insightface's own 128 and 640
    provider  "cuda" or "cpu", where the two models really run
    """

    name: str
    licence: str
    det_size: int | None
    provider: str
    runtime: str
    _app: Any = field(repr=False)

    def analyze(self, image: torch.Tensor) -> list[DetectedFace]:
        """All faces of one image [H, W, 3] (0..1), sorted left to right. Raises ValueError on NaN pixels."""
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"Face analysis takes one image of shape [height, width, 3], got {list(image.shape)}.")
        if not torch.isfinite(image).all():
            raise ValueError("The image holds NaN or infinite pixels; look at the node that made it.")
        height, width = image.shape[:2]
        smallest = min(min(size) for size in self._app.det_model.input_sizes)
        if min(height, width) * smallest < max(height, width):
            return []  # a strip that is less than one pixel wide at the detector's size
        bgr = np.ascontiguousarray(to_uint8(image)[..., ::-1])
        with warnings.catch_warnings():
            # insightface 2.1 calls an interface that scikit-image 0.26 deprecates, once per face.
            warnings.simplefilter("ignore", FutureWarning)
            found = self._app.get(bgr)
        faces = [self._convert(face) for face in found if _has_shape(face)]
        return sorted(faces, key=lambda face: tuple(face.box.tolist()))

    def describe(self) -> dict:
        return {
            "name": self.name,
            "licence": self.licence,
            "provider": self.provider,
            "det_size": self.det_size,
            "runtime": self.runtime,
        }

    def _convert(self, face: Any) -> DetectedFace:
        embedding = np.asarray(face["embedding"], np.float64).ravel()
        norm = float(np.linalg.norm(embedding))
        if not np.isfinite(norm) or norm == 0.0:
            raise RuntimeError(
                f"The face recogniser of '{self.name}' returned no usable embedding; its file may be damaged, or it "
                "overflows on this provider: try provider cpu."
            )
        return DetectedFace(
            box=np.asarray(face["bbox"], np.float32),
            score=float(face["det_score"]),
            landmarks=np.asarray(face["kps"], np.float32),
            embedding=(embedding / norm).astype(np.float32),
        )


def load_face_analyzer(
    folder: Path | str, det_size: int | None = 640, provider: str = "auto", licence: str = "unknown", name: str = ""
) -> InsightFaceAnalyzer:
    """Load the detector and recogniser of an insightface pack (buffalo_l, antelopev2, ...) from its folder.

    folder    holds the pack's *.onnx files, or one sub-folder that does (as antelopev2 unpacks)
    det_size  see InsightFaceAnalyzer; scores of different sizes do not compare
    provider  "cuda" fails where onnxruntime cannot use the GPU, "auto" falls back to the CPU with a warning
    Raises FileNotFoundError for missing and ValueError for unusable files, naming them; RuntimeError for a provider
    or package that is not there.
    """
    if provider not in PROVIDERS:
        raise ValueError(f"The face provider is one of {', '.join(PROVIDERS)}, got '{provider}'.")
    folder = _pack_folder(Path(folder))
    name = name or folder.name
    try:
        import insightface.app
        import onnxruntime
    except ImportError as error:
        raise RuntimeError(
            f"Face analysis needs the Python package '{error.name}': install the pack's requirements.txt into "
            "ComfyUI's environment."
        ) from error

    providers = _providers(provider, onnxruntime.get_available_providers())
    sizes = None if det_size is None else (det_size, det_size)
    try:
        # Some releases print each file that they find.
        with contextlib.redirect_stdout(io.StringIO()):
            app = insightface.app.FaceAnalysis(
                name=str(folder), allowed_modules=["detection", "recognition"], providers=providers
            )
            app.prepare(ctx_id=0, det_size=sizes)
    except Exception as error:  # onnxruntime, protobuf and insightface each raise their own unrelated types
        raise _diagnose(folder, error) from error
    _check(folder, app)
    running = {model.session.get_providers()[0] for model in app.models.values()}
    used = "cuda" if running == {"CUDAExecutionProvider"} else "cpu"
    if used == "cpu" and provider == "cuda":
        raise RuntimeError(
            f"onnxruntime could not start '{name}' on CUDA (its CUDA or cuDNN libraries do not load). Install an "
            "onnxruntime-gpu that fits your CUDA version, or set the provider to cpu."
        )
    if used == "cpu" and provider == "auto" and torch.cuda.is_available():
        log.warning("Face analysis of '%s' runs on the CPU: onnxruntime cannot use the GPU here.", name)
    runtime = f"insightface {insightface.__version__}, onnxruntime {onnxruntime.__version__}"
    log.info("Loaded the face pack %s on %s (%s), licence: %s.", name, used, runtime, licence)
    return InsightFaceAnalyzer(name, licence, det_size, used, runtime, app)


def _pack_folder(folder: Path) -> Path:
    """The folder that holds the ONNX files: the given one, or its only sub-folder with such files."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"The face pack folder '{folder}' does not exist. Unpack a face pack there (detector and recogniser .onnx)."
        )
    if any(folder.glob("*.onnx")):
        return folder
    nested = [child for child in sorted(folder.iterdir()) if child.is_dir() and any(child.glob("*.onnx"))]
    if len(nested) == 1:
        return nested[0]
    raise FileNotFoundError(
        f"The face pack folder '{folder}' holds no .onnx files. It needs a detector (SCRFD) and a recogniser (ArcFace)."
    )


def _providers(provider: str, available: list[str]) -> list[str]:
    if provider == "cpu" or (provider == "auto" and "CUDAExecutionProvider" not in available):
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in available:
        raise RuntimeError(
            "The face provider is set to cuda, but this onnxruntime has no CUDA support. Install onnxruntime-gpu, or "
            "set the provider to auto or cpu."
        )
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def _diagnose(folder: Path, error: Exception) -> Exception:
    """The error of a pack that did not load, naming the file at fault where one can be found."""
    import onnxruntime

    for path in sorted(folder.glob("*.onnx")):
        with path.open("rb") as file:
            head = file.read(64)
        if not head:
            return ValueError(f"The face model '{path}' is empty. Download it again.")
        for magic, what in _IMPOSTORS.items():
            if head.startswith(magic):
                return ValueError(f"The face model '{path}' is not an ONNX file but {what}. Download it again.")
        try:
            onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as fault:  # noqa: BLE001 - whatever onnxruntime raises, this file is at fault
            return ValueError(f"The face model '{path}' is damaged or truncated ({_short(fault)}). Download it again.")
    if isinstance(error, AssertionError):  # insightface asserts that it found a detector
        return FileNotFoundError(
            f"The face pack folder '{folder}' holds no face detector (SCRFD .onnx); found: {_names(folder)}."
        )
    return ValueError(f"insightface could not load the face pack in '{folder}' ({_short(error)}).")


def _check(folder: Path, app: Any) -> None:
    """Refuse packs whose models load but are not what identity work needs."""
    if "recognition" not in app.models:
        raise FileNotFoundError(
            f"The face pack folder '{folder}' holds no face recogniser (ArcFace .onnx); found: {_names(folder)}."
        )
    detector, recogniser = app.det_model, app.models["recognition"]
    if not detector.use_kps:
        raise ValueError(
            f"The face detector '{detector.model_file}' finds boxes but no landmarks, so faces cannot be aligned. Use "
            "an SCRFD model with key points (_kps, or the one in buffalo_l)."
        )
    if recogniser.output_shape[-1] != EMBEDDING_SIZE:
        raise ValueError(
            f"The face recogniser '{recogniser.model_file}' gives {recogniser.output_shape[-1]} numbers a face, "
            f"expected {EMBEDDING_SIZE}. Use an ArcFace-style model."
        )


def _has_shape(face: Any) -> bool:
    """Whether a detection can be aligned: landmarks that are finite and not all in one place."""
    landmarks = np.asarray(face["kps"], np.float64)
    return bool(np.isfinite(landmarks).all() and np.isfinite(face["bbox"]).all() and np.ptp(landmarks, 0).max() > 0)


def _names(folder: Path) -> str:
    return ", ".join(path.name for path in sorted(folder.glob("*.onnx")))


def _short(error: Exception) -> str:
    """The first line of a message, without the paths and traces that runtimes append."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
