"""What a MODEL or CLIP is made of, as hashes: the policy that sampled, the encoder that read the prompt.

Looks at core's ModelPatcher from outside (`cached_patcher_init`, `patches`, `additional_models`, ...) and imports
nothing of it. Two patchers have the same policy hash exactly when their weights, LoRAs with strengths, adapters and the
names of everything else that patches them are the same; where a file has the weights, its sha256 stands for them.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from .digests import digest, digest_of_anything, named_tensors_sha256

# Digests of weights that no file has, by the model that holds them, and of patches, by core's id of their last change.
_WEIGHTS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_PATCHES: dict[object, str] = {}


def patcher_hashes(patcher, sha256_of: Callable[[Path], str]) -> dict[str, str]:
    """{"weights", "patches", "policy"}: hex digests.

    sha256_of  hex digest of a file; worth remembering its answers
    """
    weights = _weights(patcher, sha256_of)
    patches = digest([_weight_patches(patcher), _other_patches(patcher, sha256_of)])
    return {"weights": weights, "patches": patches, "policy": digest([weights, patches, _precision(patcher)])}


def _weights(patcher, sha256_of) -> str:
    paths = list(_files(getattr(patcher, "cached_patcher_init", None)))
    if paths:
        found = [sha256_of(path) for path in paths]
        return found[0] if len(found) == 1 else digest(found)
    model = patcher.model
    if model not in _WEIGHTS:
        _WEIGHTS[model] = named_tensors_sha256(model.state_dict().items())
    return _WEIGHTS[model]


def _files(init) -> Iterator[Path]:
    """The weight files of a patcher that can be loaded again: the first argument of its loader, here as in core."""
    first = init[1][0] if init and init[1] else ()
    for item in first if isinstance(first, (list, tuple)) else (first,):
        if not isinstance(item, (str, os.PathLike)):
            continue
        path = Path(item)
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json", ".bin"))


def _weight_patches(patcher) -> str:
    if not patcher.patches:
        return ""
    key = getattr(patcher, "patches_uuid", None)
    if key is None or key not in _PATCHES:
        found = digest_of_anything(patcher.patches)
        if key is None:
            return found
        while len(_PATCHES) >= 16:
            _PATCHES.pop(next(iter(_PATCHES)))
        _PATCHES[key] = found
    return _PATCHES[key]


def _other_patches(patcher, sha256_of) -> list:
    """Adapters by their weights; wrappers, replaced objects and patches of blocks by their names."""
    adapters = {
        key: [_weights(model, sha256_of) for model in models]
        for key, models in getattr(patcher, "additional_models", {}).items()
    }
    wrappers = {
        str(kind): sorted(str(key) for key, functions in by_key.items() if functions)
        for kind, by_key in getattr(patcher, "wrappers", {}).items()
    }
    options = getattr(patcher, "model_options", {})
    blocks = options.get("transformer_options", {})
    replaced = {kind: sorted(map(str, each)) for kind, each in blocks.get("patches_replace", {}).items()}
    patched = {kind: [type(each).__name__ for each in found] for kind, found in blocks.get("patches", {}).items()}
    return [
        adapters,
        {kind: keys for kind, keys in wrappers.items() if keys},
        sorted(getattr(patcher, "object_patches", {})),
        replaced,
        patched,
        sorted(str(key) for key, value in options.items() if callable(value)),
    ]


def _precision(patcher) -> str:
    """The type of the weights: fp8 makes other takes than bf16 of the same file."""
    dtype = getattr(patcher, "model_dtype", None)
    return str(dtype()) if callable(dtype) else ""
