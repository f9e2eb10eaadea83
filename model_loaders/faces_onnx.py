"""Detectors (SCRFD) and recognisers (ArcFace) as ONNX files, run by insightface's own classes on onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import files
from .faces_parts import PROVIDERS, Detection, PartFacts
from .onnx_module import OnnxModule

log = logging.getLogger(__name__)

EMBEDDING_SIZE = 512

# What people put into model folders by mistake, by the file's first bytes.
_IMPOSTORS = {
    b"\x80": "a Python pickle",
    b"PK\x03\x04": "a zip archive or PyTorch checkpoint",
    b"<": "a web page",
    b"version https://git-lfs": "a Git LFS pointer",
}


@dataclass(frozen=True, eq=False)
class ScrfdDetector:
    """insightface's SCRFD at a fixed size; see `faces_parts.FaceDetector`."""

    facts: PartFacts
    det_size: int | None
    _model: Any = field(repr=False)

    def detect(self, bgr: np.ndarray) -> list[Detection]:
        smallest = min(min(size) for size in self._model.input_sizes)
        if min(bgr.shape[:2]) * smallest < max(bgr.shape[:2]):
            return []  # a strip that is less than one pixel wide at the detector's size
        boxes, landmarks = self._model.detect(bgr)
        return [Detection(row[:4], row[4], marks) for row, marks in zip(boxes, landmarks, strict=True)]


@dataclass(frozen=True, eq=False)
class ArcFaceRecogniser:
    """insightface's ArcFace; see `faces_parts.FaceRecogniser`."""

    facts: PartFacts
    crop_size: int
    _model: Any = field(repr=False)

    def embed(self, crops: list[np.ndarray]) -> np.ndarray:
        # insightface's get_feat, without cv2.dnn.blobFromImages, which takes several times as long for the same.
        model = self._model
        pixels = np.empty((len(crops), 3, self.crop_size, self.crop_size), np.float32)
        for planes, crop in zip(pixels, crops, strict=True):
            planes[0], planes[1], planes[2] = crop[..., 2], crop[..., 1], crop[..., 0]
        pixels -= model.input_mean
        pixels *= 1.0 / model.input_std
        # Some exports fix the number of crops that they take, nearly always to one.
        step = 1 if model.input_shape[0] == 1 else len(crops)
        batches = [pixels[i : i + step] for i in range(0, len(crops), step)]
        return np.concatenate(
            [model.session.run(model.output_names, {model.input_name: batch})[0] for batch in batches]
        )

    def with_gradient(self) -> Callable[[torch.Tensor], torch.Tensor]:
        device = torch.device("cuda" if self.facts.provider == "cuda" else "cpu")
        model, module = self._model, OnnxModule(Path(self._model.model_file)).to(device)
        return lambda crops: module((crops * 255 - model.input_mean) / model.input_std)


def load_pack(
    folder: Path, det_size: int | None, provider: str, licence: str, name: str = "", recognition: bool = True
) -> tuple[ScrfdDetector, ArcFaceRecogniser | None]:
    """The detector and, unless `recognition` is off, the recogniser of an insightface pack.

    Arguments and errors as `faces.load_face_analyzer`.
    """
    if provider not in PROVIDERS:
        raise ValueError(f"The face provider is one of {', '.join(PROVIDERS)}, got '{provider}'.")
    folder = _pack_folder(folder)
    name = name or folder.name
    insightface, onnxruntime = _packages()
    providers = _providers(provider, onnxruntime.get_available_providers())
    modules = ["detection", "recognition"] if recognition else ["detection"]
    try:
        # Some releases print each file that they find.
        with contextlib.redirect_stdout(io.StringIO()):
            app = insightface.app.FaceAnalysis(
                name=str(folder), allowed_modules=modules, providers=providers, sess_options=_options(onnxruntime)
            )
            app.prepare(ctx_id=0, det_size=None if det_size is None else (det_size, det_size))
    except Exception as error:  # onnxruntime, protobuf and insightface each raise their own unrelated types
        raise _diagnose(folder, error) from error
    _check_pack(folder, app, recognition)
    detector = ScrfdDetector(_facts(app.det_model, name, provider, licence), det_size, app.det_model)
    if not recognition:
        return detector, None
    model = app.models["recognition"]
    return detector, ArcFaceRecogniser(_facts(model, name, provider, licence), model.input_size[0], model)


def load_recogniser(path: Path, provider: str, licence: str, name: str) -> ArcFaceRecogniser:
    """A single ArcFace file, AuraFace's glintr100.onnx for one; errors as `faces.load_face_analyzer`."""
    insightface, onnxruntime = _packages()
    providers = _providers(provider, onnxruntime.get_available_providers())
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            model = insightface.model_zoo.get_model(str(path), providers=providers, sess_options=_options(onnxruntime))
    except Exception as error:  # as above
        raise _fault(path) or ValueError(f"insightface could not load '{path}' ({_short(error)}).") from error
    if getattr(model, "taskname", "") != "recognition":
        raise ValueError(f"'{path}' is not a face recogniser of ArcFace's kind (112x112 crops in, one embedding out).")
    _check_recogniser(model)
    return ArcFaceRecogniser(_facts(model, name, provider, licence), model.input_size[0], model)


def _packages() -> tuple[Any, Any]:
    try:
        import insightface.app
        import insightface.model_zoo
        import onnxruntime
    except ImportError as error:
        raise RuntimeError(
            f"Face analysis needs the Python package '{error.name}': install the pack's requirements.txt into "
            "ComfyUI's environment."
        ) from error
    return insightface, onnxruntime


def _options(onnxruntime: Any) -> Any:
    # By itself onnxruntime starts a thread per core of the machine, also where the process may use only some of them;
    # torch knows how many there are, and what the user has set. Nor may they wait by spinning, which keeps torch, other
    # models and other programs from the cores between any two calls.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _facts(model: Any, name: str, provider: str, licence: str) -> PartFacts:
    """What has been loaded; RuntimeError when CUDA was asked for and onnxruntime went to the CPU by itself."""
    import insightface
    import onnxruntime

    used = "cuda" if model.session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"
    if used == "cpu" and provider == "cuda":
        raise RuntimeError(
            f"onnxruntime could not start '{name}' on CUDA (its CUDA or cuDNN libraries do not load). Install an "
            "onnxruntime-gpu that fits your CUDA version, or set the provider to cpu."
        )
    path = Path(model.model_file)
    return PartFacts(
        name,
        licence,
        used,
        f"insightface {insightface.__version__}, onnxruntime {onnxruntime.__version__}",
        {path.name: files.sha256_of(path)},
        fell_back=used == "cpu" and provider == "auto" and torch.cuda.is_available(),
    )


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


def impostor(path: Path) -> ValueError | None:
    """The error of a file that is something else than its name says, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return ValueError(f"The face model '{path}' is empty. Download it again.")
    for magic, what in _IMPOSTORS.items():
        if head.startswith(magic):
            return ValueError(f"The face model '{path}' is not an ONNX file but {what}. Download it again.")
    return None


def _fault(path: Path) -> ValueError | None:
    """What is wrong with an ONNX file that did not load; None when onnxruntime takes it."""
    import onnxruntime

    wrong = impostor(path)
    if wrong:
        return wrong
    try:
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as fault:  # noqa: BLE001 - whatever onnxruntime raises, this file is at fault
        return ValueError(f"The face model '{path}' is damaged or truncated ({_short(fault)}). Download it again.")
    return None


def _diagnose(folder: Path, error: Exception) -> Exception:
    """The error of a pack that did not load, naming the file at fault where one can be found."""
    for path in sorted(folder.glob("*.onnx")):
        fault = _fault(path)
        if fault:
            return fault
    if isinstance(error, AssertionError):  # insightface asserts that it found a detector
        return FileNotFoundError(
            f"The face pack folder '{folder}' holds no face detector (SCRFD .onnx); found: {_names(folder)}."
        )
    return ValueError(f"insightface could not load the face pack in '{folder}' ({_short(error)}).")


def _check_pack(folder: Path, app: Any, recognition: bool) -> None:
    """Refuse packs whose models load but are not what identity work needs."""
    if recognition and "recognition" not in app.models:
        raise FileNotFoundError(
            f"The face pack folder '{folder}' holds no face recogniser (ArcFace .onnx); found: {_names(folder)}."
        )
    if not app.det_model.use_kps:
        raise ValueError(
            f"The face detector '{app.det_model.model_file}' finds boxes but no landmarks, so faces cannot be aligned. "
            "Use an SCRFD model with key points (_kps, or the one in buffalo_l)."
        )
    if recognition:
        _check_recogniser(app.models["recognition"])


def _check_recogniser(model: Any) -> None:
    if model.output_shape[-1] != EMBEDDING_SIZE:
        raise ValueError(
            f"The face recogniser '{model.model_file}' gives {model.output_shape[-1]} numbers a face, "
            f"expected {EMBEDDING_SIZE}. Use an ArcFace-style model."
        )


def _names(folder: Path) -> str:
    return ", ".join(path.name for path in sorted(folder.glob("*.onnx")))


def _short(error: Exception) -> str:
    """The first line of a message, without the paths and traces that runtimes append."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
