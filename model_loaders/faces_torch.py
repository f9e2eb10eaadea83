"""CurricularFace's released file -> a recogniser on torch, in ComfyUI's memory management."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import numpy as np
import torch
from torch.nn import functional

from ..idcrafter.modules.curricularface import CROP, CurricularFace, layout
from ..idcrafter.training.kernels import freeze
from . import files
from .faces_parts import PartFacts


@dataclass(frozen=True, eq=False)
class CurricularFaceRecogniser:
    """See `faces_parts.FaceRecogniser`. Crops are taken at 224 pixels and halved, as OpenS2V's FaceSim does."""

    facts: PartFacts
    crop_size: int
    _patcher: Any = field(repr=False)

    def embed(self, crops: list[np.ndarray]) -> np.ndarray:
        import cv2

        comfy.model_management.load_models_gpu([self._patcher])
        small = np.stack([cv2.resize(crop, (CROP, CROP)) for crop in crops])
        pixels = torch.from_numpy(small).flip(-1).movedim(-1, 1).to(self._patcher.load_device, torch.float32)
        with torch.inference_mode():
            return self._patcher.model(pixels / 127.5 - 1).float().cpu().numpy()

    def with_gradient(self) -> Callable[[torch.Tensor], torch.Tensor]:
        comfy.model_management.load_models_gpu([self._patcher])
        freeze(self._patcher.model)

        def embed(crops: torch.Tensor) -> torch.Tensor:
            # By halves OpenCV's resize is the mean of four pixels too.
            small = functional.avg_pool2d(crops, 2)
            return self._patcher.model(small * 2 - 1).float()

        return embed


def load_curricularface(path: Path, provider: str, licence: str) -> CurricularFaceRecogniser:
    """Load glint360k_curricular_face_r101_backbone.bin, or a safetensors file with the same names.

    provider  as for `faces.load_face_analyzer`; torch is asked here, not onnxruntime
    Raises ValueError that names the first difference when the file has another layout, RuntimeError without a GPU
    that was asked for.
    """
    cpu = torch.device("cpu")
    device = cpu if provider == "cpu" else comfy.model_management.get_torch_device()
    if provider == "cuda" and device.type != "cuda":
        raise RuntimeError(
            f"The face provider is set to cuda, but ComfyUI runs on '{device.type}'; set it to auto or cpu."
        )
    header = files.read_header(path)
    expected = layout()
    files.check_layout(header, expected, "", "CurricularFace's IR-101")
    more = [name for name in header.tensors if name not in expected and not name.endswith("num_batches_tracked")]
    if more:
        raise ValueError(f"'{path.name}' holds {len(more)} tensors that IR-101 does not have (first: {more[0]}).")
    weights = comfy.utils.load_torch_file(str(path), safe_load=True)
    net = CurricularFace(comfy.ops.disable_weight_init)
    # Counters that a file lacks are only used in training.
    net.load_state_dict({name: weights[name].float() for name in expected}, strict=False)
    net.eval()
    patcher = comfy.model_patcher.ModelPatcher(net, load_device=device, offload_device=cpu)
    facts = PartFacts(
        "curricularface", licence, device.type, f"torch {torch.__version__}", {path.name: files.sha256_of(path)}
    )
    return CurricularFaceRecogniser(facts, 2 * CROP, patcher)
