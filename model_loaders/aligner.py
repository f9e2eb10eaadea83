"""The file of an aligner, or BindWeave's projector as released -> an `Aligner`: a VLM's states to a video model's text.

A file of this pack has its AlignerConfig as JSON in the safetensors metadata, under "idcrafter_aligner". BindWeave's
projector is four tensors among those of its 14B video model, under three names:

    condition_embedder.text_projector.linear_1.weight   the release (ByteDance/BindWeave, diffusers' names, in shards)
    text_projector.linear_1.weight                      the names of its training code (convert_ckpt.py maps them)
    text_projection.0.weight                            the repackage for ComfyUI (Kijai/WanVideo_comfy)
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import safetensors
import safetensors.torch
import torch

from ..idcrafter.modules import aligner as nets
from . import adapter, checkpoint, files

log = logging.getLogger(__name__)

FOLDER = adapter.FOLDER
METADATA = "idcrafter_aligner"
ATTACHMENT = "idcrafter_aligner"
BINDWEAVE_VLM = "Qwen2.5-VL-7B-Instruct"
# Layout of BindWeave's projector -> the beginnings of the names of its two linear layers.
BINDWEAVE_NAMES = {
    "release": ("condition_embedder.text_projector.linear_1", "condition_embedder.text_projector.linear_2"),
    "training code": ("text_projector.linear_1", "text_projector.linear_2"),
    "repackage": ("text_projection.0", "text_projection.2"),
}
_QUANTISED = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8)


@dataclass(frozen=True, eq=False)
class Aligner:
    """A net and how the VLM is read for it.

    patcher  of an idcrafter.modules.aligner Aligner or Projector, with the attachment of `load_aligner`
    reading  layer, instruction, pictures, and what to do with the tokens
    """

    patcher: comfy.model_patcher.ModelPatcher
    reading: nets.Reading
    in_width: int
    out_width: int

    @property
    def facts(self) -> dict:
        return self.patcher.get_attachment(ATTACHMENT)

    def tokens(self, states: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """States [B, L, in_width], keys [B, L] bool -> tokens [B, M, out_width] (float32) and their keys, on the CPU.

        Raises ValueError for states of another width.
        """
        if states.shape[-1] != self.in_width:
            raise ValueError(
                f"The aligner '{self.facts['file']}' reads hidden states of width {self.in_width}, but the VLM's are "
                f"{states.shape[-1]} wide; connect the VLM that it was trained with"
                + (f" ({self.facts['vlm']})." if "vlm" in self.facts else ".")
            )
        comfy.model_management.load_models_gpu([self.patcher])
        device = self.patcher.load_device
        with torch.inference_mode():
            tokens, kept = self.patcher.model(states.to(device), keys.to(device))
            tokens, kept = tokens.float().cpu(), kept.cpu()
        return tokens.clone(), kept.clone()

    def describe(self) -> str:
        """One line: what it makes of what, how it is used, its size and licence."""
        size = self.facts["size"]
        made = f"{self.facts['tokens']} tokens" if "tokens" in self.facts else "as many tokens"
        parts = [
            f"hidden states of width {self.in_width} to {made} of width {self.out_width}",
            f"layer {self.reading.layer}" if self.reading.layer != -1 else "last layer",
            f"use: {self.reading.use}",
            *([f"trained with {self.facts['vlm']}"] if "vlm" in self.facts else []),
            f"{size / 1e6:.3g} M parameters",
        ]
        return ", ".join([*parts, f"licence: {self.facts['licence']}"]) + "."


def load_aligner(path: Path) -> Aligner:
    """The aligner of a file, or of a folder with a released BindWeave.

    The attachment "idcrafter_aligner" has "file", "licence", "size" (parameters), "layout" ("idcrafter" or
    "bindweave"), "tokens" where their number is fixed, and "vlm", the VLM of its training, where known.
    Raises ValueError or FileNotFoundError that says what is wrong with the file, before anything is allocated.
    """
    header = checkpoint.open_checkpoint(path)
    name = Path(path).name
    if METADATA in header.metadata:
        return _load_own(header, name)
    for layers in BINDWEAVE_NAMES.values():
        if f"{layers[0]}.weight" in header.tensors:
            return _load_bindweave(header, name, layers)
    what = f"an identity adapter, which is for Load Adapter ('{adapter.METADATA}')"
    if adapter.METADATA not in header.metadata:
        what = f"neither the metadata '{METADATA}' of this pack's files nor BindWeave's text_projector"
    raise ValueError(f"'{name}' holds no aligner: it has {what}.")


def save_aligner(net: nets.Aligner, path: Path, licence: str, **facts: str) -> Path:
    """Write an aligner as this pack's file, in one step: a reader sees the whole file or none.

    facts  further entries of its metadata, as "vlm", the name of the one whose states it knows
    """
    path = Path(path)
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in net.state_dict().items()}
    metadata = {"format": "pt", METADATA: net.config.dumps(), "licence": licence, **facts}
    part = path.with_name(path.name + ".part")
    safetensors.torch.save_file(weights, part, metadata)
    os.replace(part, path)
    return path


def _load_own(header: files.Header, name: str) -> Aligner:
    try:
        config = nets.AlignerConfig.loads(header.metadata[METADATA])
    except ValueError as error:
        raise ValueError(f"'{name}': {error}.") from error
    files.check_layout(header, nets.aligner_layout(config), "", "an aligner", ())
    weights = checkpoint.read_weights(header)
    facts = {"licence": header.licence or "not stated", "layout": "idcrafter", "tokens": config.tokens}
    if header.metadata.get("vlm"):
        facts["vlm"] = header.metadata["vlm"]
    with torch.device("meta"):
        net = nets.Aligner(config, comfy.ops.manual_cast)
    return _finish(net, weights, name, facts, config.reading, (config.in_width, config.out_width))


def _load_bindweave(header: files.Header, name: str, layers: tuple[str, str]) -> Aligner:
    renamed = {f"{old}.{kind}": f"linear_{i}.{kind}" for i, old in enumerate(layers, 1) for kind in ("weight", "bias")}
    own = {new: header.tensors[old] for old, new in renamed.items() if old in header.tensors}
    if any(tensor.dtype in _QUANTISED for tensor in own.values()):
        raise ValueError(
            f"BindWeave's projector in '{name}' is quantised, and its scales are another pack's; download an fp16 or "
            "bf16 version."
        )
    first = own["linear_1.weight"].shape
    if len(first) != 2:
        raise ValueError(f"BindWeave's projector in '{name}' has a first layer of shape {list(first)}, not a matrix.")
    out_width, in_width = first
    files.check_layout(
        files.Header(Path(name), own, {}), nets.projector_layout(in_width, out_width), "", "BindWeave's projector", ()
    )
    weights = {renamed[old]: tensor for old, tensor in _read(header, list(renamed)).items()}
    with torch.device("meta"):
        net = nets.Projector(in_width, out_width, comfy.ops.manual_cast)
    facts = {
        "licence": header.licence or "Apache-2.0 (as BindWeave was published)",
        "layout": "bindweave",
        "vlm": BINDWEAVE_VLM,
    }
    return _finish(net, weights, name, facts, nets.BINDWEAVE, (in_width, out_width))


def _finish(net: torch.nn.Module, weights: dict, name: str, facts: dict, reading: nets.Reading, widths) -> Aligner:
    checkpoint.check_finite(weights, name)
    # Shapes are checked; assigning keeps the file's type, which the layers cast as they compute.
    net.load_state_dict(weights, assign=True)
    net.eval().requires_grad_(False)
    patcher = comfy.model_patcher.ModelPatcher(
        net, comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    )
    size = sum(tensor.numel() for tensor in weights.values())
    patcher.set_attachments(ATTACHMENT, {"file": name, "size": size, **facts})
    aligner = Aligner(patcher, reading, *widths)
    log.info("Loaded %s: %s", name, aligner.describe())
    return aligner


def _read(header: files.Header, names: list[str]) -> dict[str, torch.Tensor]:
    """These tensors alone: the file may hold a video model of 32 GB beside them."""
    paths = header.parts or (header.path,)
    if any(path.suffix.lower() not in files.SAFETENSORS_SUFFIXES for path in paths):
        weights = checkpoint.read_weights(header)
        return {name: weights[name] for name in names}
    found = {}
    for path in paths:
        with safetensors.safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in set(names) & set(file.keys())}
    return found
