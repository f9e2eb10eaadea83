"""Digests of plain data and tensors, the same on every machine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping

import torch


def canonical(value) -> str:
    """JSON with one form for one value. Raises ValueError for what is not JSON, NaN included."""
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except TypeError as error:
        raise ValueError(f"Rollouts hold plain JSON data, but {error}.") from error


def digest(value) -> str:
    """32 hex digits of JSON data."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:32]


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Of the bytes as they lie in a file (row-major); shape and type are stated beside it."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    tensor = tensor.detach().to("cpu").contiguous()
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def named_tensors_sha256(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Of names, types, shapes and values, whatever their order."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        total.update(tensor_bytes(tensor))
    return total.hexdigest()


def digest_of_anything(value) -> str:
    """64 hex digits of nested containers of tensors and plain values, as the patches of a model are.

    An object counts by its class and by its fields, its `weights` (core's weight adapters) or its `cond` (core's
    conditions), a function by its name.
    """
    total = hashlib.sha256()
    _update(total, value)
    return total.hexdigest()


def _update(total, value) -> None:
    # Every value begins with its type and size, so that no two nestings collide.
    total.update(f"<{type(value).__name__}>".encode())
    if isinstance(value, torch.Tensor):
        total.update(f"{value.dtype}{tuple(value.shape)}".encode())
        total.update(tensor_bytes(value))
    elif isinstance(value, Mapping):
        total.update(str(len(value)).encode())
        for key in sorted(value, key=repr):
            total.update(repr(key).encode())
            _update(total, value[key])
    elif isinstance(value, (list, tuple)):
        total.update(str(len(value)).encode())
        for item in value:
            _update(total, item)
    elif value is None or isinstance(value, (bool, int, float, str, bytes)):
        total.update(repr(value).encode())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _update(total, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif hasattr(value, "weights") or hasattr(value, "cond"):
        _update(total, value.weights if hasattr(value, "weights") else value.cond)
    else:
        total.update(getattr(value, "__qualname__", "").encode())
