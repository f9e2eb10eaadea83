"""EVA02-CLIP-L/14 at 336 px: the file as released -> an image encoder of faces for identity adapters.

The release (QuanSun/EVA-CLIP, MIT) is the whole CLIP as one .pt file; its image tower is below `visual.`. It goes
through torch's weights_only reader. A safetensors copy of the same tensors works too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import folder_paths
import numpy as np
import torch

from ..idcrafter.modules.eva02 import EvaTower, config_of
from ..idcrafter.subjects.face_features import clip_pixels
from . import checkpoint, files

log = logging.getLogger(__name__)

FOLDER = "clip_vision"
STEM = "EVA02_CLIP_L_336_psz14_s6B"
LICENCE = "MIT (as EVA-CLIP was published)"
# Rotary angles, saved with every block; they follow from the sizes.
_IGNORED = ("rope.freqs_cos", "rope.freqs_sin")
# The facial extractor takes one map of each.
_MAPS = 5


@dataclass(frozen=True, eq=False)
class EvaEncoder:
    """The image tower, on the GPU only while it looks."""

    name: str
    _patcher: comfy.model_patcher.ModelPatcher

    def __call__(self, crops: Sequence[np.ndarray]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Crops [N, H, W, 3] uint8 RGB -> (embeddings [N, D] of unit length, the hidden maps [N, M, C] each)."""
        comfy.model_management.load_models_gpu([self._patcher])
        tower, device = self._patcher.model, self._patcher.load_device
        rows = []
        with torch.inference_mode():
            for crop in crops:
                comfy.model_management.throw_exception_if_processing_interrupted()
                embedding, maps = tower(clip_pixels([crop], tower.config.image).to(device))
                rows.append([torch.nn.functional.normalize(embedding, dim=-1).cpu(), *(each.cpu() for each in maps)])
        embeddings, *maps = (torch.cat(parts) for parts in zip(*rows, strict=True))
        return embeddings, maps


def load_eva(path: Path) -> EvaEncoder:
    """Raises ValueError for a file that is another model, or whose tensors are damaged or missing."""
    header = files.read_header(path)
    prefix = "visual." if any(name.startswith("visual.") for name in header.tensors) else ""
    shapes = {name.removeprefix(prefix): t.shape for name, t in header.tensors.items() if name.startswith(prefix)}
    try:
        config = config_of(shapes)
    except ValueError as error:
        raise ValueError(
            f"'{path.name}' is no EVA02-CLIP of the adapter's kind ({error}); it needs {STEM}.pt of QuanSun/EVA-CLIP."
        ) from error
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in EvaTower(config, torch.nn).state_dict().items()}
        tower = EvaTower(config, comfy.ops.manual_cast)
    files.check_layout(header, expected, prefix, "EVA02-CLIP's image tower", _IGNORED)
    if sum(block < config.depth for block in config.maps) != _MAPS:
        raise ValueError(f"'{path.name}' has {config.depth} blocks, too few for {_MAPS} hidden maps; get {STEM}.pt.")
    weights = checkpoint.read_weights(header)
    weights = {name: weights[prefix + name] for name in expected}
    checkpoint.check_finite(weights, path.name)
    tower.load_state_dict(weights, assign=True)
    tower.eval().requires_grad_(False)
    patcher = comfy.model_patcher.ModelPatcher(
        tower, comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    )
    log.info("Loaded the image encoder %s, licence: %s.", path.name, header.licence or LICENCE)
    return EvaEncoder(path.name, patcher)


def require(beside: Path) -> Path:
    """The released file: in the folder of Ingredients' download that `beside` is in, or in models/clip_vision.

    Raises FileNotFoundError with the command that downloads it.
    """
    for folder in (beside.parent, beside.parent.parent):
        path = folder / "face_encoder" / f"{STEM}.pt"
        if path.is_file():
            return path
    for suffix in (".safetensors", ".pt"):
        path = files.find(FOLDER, STEM + suffix)
        if path is not None:
            return path
    target = folder_paths.get_folder_paths(FOLDER)[0]
    return files.require(FOLDER, f"{STEM}.pt", f'hf download QuanSun/EVA-CLIP {STEM}.pt --local-dir "{target}"')
