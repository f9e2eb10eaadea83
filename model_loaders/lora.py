"""A LoRA of any naming -> core's LORA_MODEL for Wan and CogVideoX, which core cannot map from diffusers' names.

Read are PEFT adapters (base_model.model.*, with adapter_config.json; Identity-GRPO's release is one, on blocks and
vace_blocks), diffusers' pytorch_lora_weights (transformer.*), kohya's flat names and native names. What comes out has
native names and the scale of the training in it, so that core's LoRA nodes apply it as it is.

Facts: PEFT save format and scaling (alpha / r, with rslora alpha / sqrt(r)); diffusers 0.42 loaders/lora_base.py
("lora_adapter_metadata"); alibaba/identity-grpo train_wan2_1_vace.py (r = alpha = 32, 360 modules).
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import comfy.ldm.cogvideo.model
import comfy.ldm.wan.model
import comfy.sd
import comfy.utils
import torch

from . import checkpoint, files
from .layouts import cogvideox, wan

log = logging.getLogger(__name__)

FOLDER = "loras"
_PREFIX = re.compile(r"^(base_model\.model\.)?(model\.)?(transformer\.|diffusion_model\.)?")
_FLAT_PREFIX = re.compile(r"^(lora_unet_+|lora_transformer_+|lycoris_)")
_ENDINGS = {
    ".lora_A.weight": "A", ".lora_A.default.weight": "A", ".lora_down.weight": "A", ".lora.down.weight": "A",
    ".lora_B.weight": "B", ".lora_B.default.weight": "B", ".lora_up.weight": "B", ".lora.up.weight": "B",
    ".alpha": "alpha",
}  # fmt: skip


class LoRA(NamedTuple):
    """A LoRA in the names of a MODEL.

    weights   LORA_MODEL: native modules + ".lora_A.weight", ".lora_B.weight" and, but for scale 1, ".alpha"
    left_out  modules of the file that the MODEL does not have
    summary   one line about both
    """

    weights: dict[str, torch.Tensor]
    left_out: list[str]
    summary: str


def load_lora(path: Path, model) -> LoRA:
    """The LoRA of a file for this MODEL.

    path  a .safetensors file, or a .bin/.pt that torch reads as plain weights; an adapter_config.json beside an
          adapter_model file is read as well
    Raises ValueError that says what does not fit.
    """
    header = files.read_header(path)
    weights = comfy.utils.load_torch_file(str(path), safe_load=True)
    checkpoint.check_finite({name: weights[name] for name in header.tensors}, path.name)
    return convert(weights, model, path.name, _training_config(path, header.metadata))


def apply_lora(model, lora: Mapping[str, torch.Tensor], strength: float):
    """A clone of the MODEL with the LoRA on its weights, by core's own patches."""
    return comfy.sd.load_lora_for_models(model, None, dict(lora), strength, 0.0)[0]


def convert(weights: Mapping[str, torch.Tensor], model, name: str, config: Mapping | None = None) -> LoRA:
    """Rename a LoRA's tensors for this MODEL and add its scale; see `load_lora`.

    name    of the file, for messages
    config  PEFT's adapter config: lora_alpha, use_rslora, alpha_pattern
    """
    targets, find = _modules_of(model)
    found: dict[str, dict[str, torch.Tensor]] = {}
    strangers, others = {}, []
    for key, tensor in weights.items():
        ending = next((e for e in _ENDINGS if key.endswith(e)), None)
        if ending is None:
            others.append(key)
            continue
        module = key.removesuffix(ending)
        native = find(module)
        if native is None:
            strangers[module] = None
        else:
            part = found.setdefault(native, {"name": _PREFIX.sub("", module)})
            part[_ENDINGS[ending]] = tensor
    kind = type(model.model.diffusion_model).__name__
    _refuse(name, kind, found, strangers, others)
    out, ranks = {}, set()
    for native, part in found.items():
        _check_pair(name, native, part, targets[native])
        ranks.add(part["A"].shape[0])
        out[f"diffusion_model.{native}.lora_A.weight"] = part["A"]
        out[f"diffusion_model.{native}.lora_B.weight"] = part["B"]
        alpha = part.get("alpha", _alpha(config, part["name"], part["A"].shape[0]))
        if alpha is not None:
            out[f"diffusion_model.{native}.alpha"] = torch.as_tensor(float(alpha))
    summary = f"{name}: {len(found)} modules of rank {' and '.join(map(str, sorted(ranks)))}"
    if strangers:
        summary += (
            f"; {len(strangers)} modules are not in this {kind} and are left out (first: {next(iter(strangers))})"
        )
        log.warning("%s.", summary)
    return LoRA(out, list(strangers), summary)


def _modules_of(model):
    """({native module: shape of its weight}, a function from a name in a file to a native module or None)."""
    network = model.model.diffusion_model
    if isinstance(network, comfy.ldm.wan.model.WanModel):
        names = wan.NAMES
    elif isinstance(network, comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel):
        names = cogvideox.NAMES
    else:
        raise ValueError(
            f"This node reads LoRAs for Wan and CogVideoX models; the MODEL is a {type(network).__name__}. "
            "Use core's LoRA loader."
        )
    # Of a GGUF model only the parameters know their real shapes.
    targets = {
        name.removesuffix(".weight"): tuple(weight.shape)
        for name, weight in network.named_parameters()
        if name.endswith(".weight")
    }
    flat = {}
    for module in targets:
        flat[module.replace(".", "_")] = module
        theirs = names.to_diffusers(module)
        if theirs is not None:
            flat[theirs.replace(".", "_")] = module

    def find(module: str) -> str | None:
        if _FLAT_PREFIX.match(module):
            return flat.get(_FLAT_PREFIX.sub("", module))
        module = _PREFIX.sub("", module)
        if module in targets:
            return module
        native = names.to_native(module)
        return native if native in targets else None

    return targets, find


def _refuse(name: str, kind: str, found: Mapping, strangers: Mapping, others: list[str]) -> None:
    if others:
        what = "DoRA" if any("magnitude" in key or "dora" in key for key in others) else "no plain LoRA"
        raise ValueError(
            f"'{name}' is {what}: {len(others)} of its tensors are not LoRA factors (first: {others[0]}); "
            "merge it into the model, or use core's LoRA loader."
        )
    if not found:
        first = f" (its first module is {next(iter(strangers))})" if strangers else ""
        raise ValueError(f"No module of the LoRA '{name}' is in this {kind}{first}; it belongs to another model.")


def _check_pair(name: str, native: str, part: Mapping, shape: tuple[int, ...]) -> None:
    if "A" not in part or "B" not in part:
        missing = "down (A)" if "A" not in part else "up (B)"
        raise ValueError(f"The LoRA '{name}' lacks the {missing} factor of {native}; download it again.")
    down, up = part["A"].shape, part["B"].shape
    inputs = math.prod(shape[1:])
    if up[0] != shape[0] or math.prod(down[1:]) != inputs or math.prod(up[1:]) != down[0]:
        raise ValueError(
            f"The LoRA '{name}' has factors {list(up)} x {list(down)} for {native}, whose weight is {list(shape)}; "
            "it was trained on a model of another size."
        )


def _alpha(config: Mapping | None, module: str, rank: int) -> float | None:
    """What core divides by the rank; None for the scale 1 that files without any config have."""
    if not config or config.get("lora_alpha") is None:
        return None
    patterns = config.get("alpha_pattern") or {}
    alpha = next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)), None)
    alpha = config["lora_alpha"] if alpha is None else alpha
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _training_config(path: Path, metadata: Mapping[str, str]) -> dict | None:
    """adapter_config.json beside a PEFT adapter, or what diffusers writes into the metadata."""
    beside = path.parent / "adapter_config.json"
    try:
        if path.stem == "adapter_model" and beside.is_file():
            return dict(json.loads(beside.read_text(encoding="utf-8")))
        if metadata.get("lora_adapter_metadata"):
            stored = json.loads(metadata["lora_adapter_metadata"])
            return {key.removeprefix("transformer."): value for key, value in stored.items()}
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"The config of the LoRA '{path.name}' is not a JSON object ({error}).") from error
    return None
