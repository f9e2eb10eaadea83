"""A model file, or a folder with its shards: looked at as one, and read as one.

A folder may be a diffusers pipeline (the weights are in its `transformer`), a transformer folder (config.json,
diffusion_pytorch_model.safetensors or its shards and their index), or just shards with an index.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import comfy.utils
import torch

from . import files

log = logging.getLogger(__name__)

# diffusers and transformers; a precision's own is <stem>.safetensors.index.fp16.json.
_INDEX = re.compile(r"\.index(\.\w+)?\.json$")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.(safetensors|sft|bin|pt|pth)$")
# NaN is looked for in all of a small tensor, and in the beginning, middle and end of a large one.
_WINDOW = 1 << 20


def open_checkpoint(path: Path) -> files.Header:
    """The header of a file or folder; for shards, of all of them together. Nothing is read but headers.

    Raises ValueError or FileNotFoundError that names the file that is missing, cut short or not what it should be.
    """
    path = Path(path)
    if path.is_dir():
        path = _weights_of_folder(path)
    config = _config_beside(path)
    if _INDEX.search(path.name):
        return _open_shards(path, config)
    if _SHARD.search(path.name):
        # The index that names this part: another precision has one of its own.
        indexes = (p for p in _indexes(path.parent) if f'"{path.name}"' in p.read_text("utf-8", errors="replace"))
        index = next(indexes, None)
        if index is None:
            raise FileNotFoundError(
                f"'{path.name}' is one part of a model; its index (a file named ...safetensors.index.json) is missing "
                "beside it, download the whole folder."
            )
        return _open_shards(index, config)
    return replace(files.read_header(path), config=config)


def read_weights(header: files.Header) -> dict[str, torch.Tensor]:
    """All tensors of an opened checkpoint on the CPU (mapped, where ComfyUI maps files). Pickles stay closed."""
    weights: dict[str, torch.Tensor] = {}
    for part in header.parts or (header.path,):
        weights.update(comfy.utils.load_torch_file(str(part), safe_load=True))
    return {name: weights[name] for name in header.tensors}


def check_finite(weights: dict[str, torch.Tensor], name: str) -> None:
    """ValueError that names the first tensor with a NaN or an infinity, before anything is built from it."""
    for key, tensor in weights.items():
        if not all(_finite(part) for part in _windows(tensor)):
            raise ValueError(
                f"'{name}' holds NaN or infinite weights (first: {key}); the file is damaged or was converted wrongly, "
                "download it again."
            )


def list_names(names: list[str]) -> list[str]:
    """What the list of a model folder shows: the shards of one model become its folder's name."""
    shown = {}
    for name in names:
        parent, _, base = name.replace("\\", "/").rpartition("/")
        shown[parent if parent and _SHARD.search(base) else name] = None
    return list(shown)


def _windows(tensor: torch.Tensor) -> list[torch.Tensor]:
    flat = tensor.reshape(-1)
    size = flat.shape[0]
    if size <= 4 * _WINDOW:
        return [flat]
    middle = size // 2
    return [flat[:_WINDOW], flat[middle : middle + _WINDOW], flat[-_WINDOW:]]


def _finite(part: torch.Tensor) -> bool:
    if part.dtype == torch.float8_e4m3fn:
        return not bool(((part.view(torch.uint8) & 0x7F) == 0x7F).any())
    if part.dtype == torch.float8_e5m2:
        return not bool(((part.view(torch.uint8) & 0x7F) >= 0x7C).any())
    return not part.is_floating_point() or bool(torch.isfinite(part).all())


def _weights_of_folder(folder: Path) -> Path:
    """The file, or the index of the shards, that a folder is named for."""
    if not _indexes(folder) and (folder / "transformer").is_dir():
        folder = folder / "transformer"
    found = _indexes(folder)
    if not found:
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in files.SAFETENSORS_SUFFIXES)
        shard = next((p for p in found if _SHARD.search(p.name)), None)
        if shard is not None:
            return shard  # its caller says which index is missing
    # diffusers puts other precisions beside the plain file, as <stem>.fp16.safetensors: the shortest name is the plain.
    if len({p.name.split(".")[0] for p in found}) == 1:
        found = [min(found, key=lambda p: len(p.name))]
    if len(found) != 1:
        listed = ", ".join(p.name for p in found) or "none"
        raise ValueError(
            f"The folder '{folder.name}' should hold one model in safetensors files; found: {listed}. "
            "Choose the file itself."
        )
    return found[0]


def _indexes(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if _INDEX.search(p.name))


def _config_beside(path: Path) -> dict | None:
    """config.json of the same folder when it describes a diffusers network; a damaged one is an error."""
    config = path.parent / "config.json"
    if not config.is_file():
        return None
    try:
        data = json.loads(config.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"'{path.parent.name}/config.json' is not valid JSON ({error}).") from error
    if not isinstance(data, dict) or not str(data.get("_class_name", "")).endswith("Transformer3DModel"):
        return None
    return data


def _open_shards(index: Path, config: dict | None) -> files.Header:
    try:
        data = json.loads(index.read_text(encoding="utf-8"))
        placed = dict(data["weight_map"])
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The index '{index.name}' has no readable 'weight_map' ({error}); download it again."
        ) from error
    names = sorted(set(placed.values()))
    for name in names:
        if len(files.check_name(str(name)).parts) != 1:
            raise ValueError(f"The index '{index.name}' names the file '{name}' outside of its folder.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(names)} parts that '{index.name}' names are missing (first: {missing[0]}); "
            "download the rest of the folder."
        )
    headers = [files.read_header(index.parent / name) for name in names]
    tensors, metadata = {}, {}
    for name, header in zip(names, headers, strict=True):
        lost = [key for key, home in placed.items() if home == name and key not in header.tensors]
        if lost:
            raise ValueError(
                f"'{name}' lacks {len(lost)} tensors that '{index.name}' places there (first: {lost[0]}); "
                "the parts belong to different downloads, download the folder again."
            )
        twice = next((key for key in header.tensors if key in tensors), None)
        if twice is not None:
            raise ValueError(f"'{twice}' is in two parts of '{index.name}'; download the folder again.")
        tensors.update(header.tensors)
        metadata.update(header.metadata)
    parts = tuple(index.parent / name for name in names)
    return files.Header(index, tensors, metadata, config=config, parts=parts)
