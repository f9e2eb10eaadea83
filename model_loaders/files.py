"""Model files: where they are, whether they are what their name says, and what is in them, before anything is loaded.

Nothing here downloads, and nothing is unpickled: safetensors headers are parsed as JSON, other torch files only go
through torch's weights_only reader.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import comfy.utils
import folder_paths
import torch

log = logging.getLogger(__name__)

SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
# The scales of quantised weights, as ComfyUI and its conversions name them.
_SCALE = re.compile(r"(scaled_fp8|weight_scale|scale_weight|scale_input|input_scale|comfy_quant)")
_MAX_HEADER = 100 * 1024 * 1024
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# sha256 verdicts of files that did not change since: (path, size, mtime) -> hex digest.
_DIGESTS: dict[tuple[str, int, int], str] = {}


@dataclass(frozen=True, eq=False)
class Header:
    """What a model file holds: tensors on the meta device (shape and dtype, no memory) and its text metadata.

    config  the config.json of its folder, when that is a diffusers network's
    parts   the files of a model in shards; empty for a single file, which `path` is
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    config: dict | None = None
    parts: tuple[Path, ...] = ()

    @property
    def parameters(self) -> int:
        return sum(t.numel() for t in self.tensors.values())

    @property
    def dtype(self) -> torch.dtype:
        """The type that most of the weights have."""
        counts: dict[torch.dtype, int] = {}
        for tensor in self.tensors.values():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
        return max(counts, key=counts.get)

    @property
    def licence(self) -> str | None:
        return next(
            (self.metadata[k] for k in ("licence", "license", "modelspec.license") if self.metadata.get(k)), None
        )


def check_name(name: str) -> PurePosixPath:
    """A relative path that stays inside its model folder; ValueError otherwise."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive or "\0" in name:
        raise ValueError(
            f"The file name '{name}' leaves its model folder; use a name relative to the folder, without '..'."
        )
    return path


def search_paths(folder: str, name: str) -> list[Path]:
    """Where `name` may lie, in the order in which the folder is searched. Links inside a model folder are followed."""
    relative = check_name(name)
    if folder not in folder_paths.folder_names_and_paths:
        raise ValueError(f"ComfyUI has no model folder '{folder}' (wanted for '{name}').")
    return [Path(root) / relative for root in folder_paths.get_folder_paths(folder)]


def find(folder: str, name: str) -> Path | None:
    """The file or directory `name` of a model folder, or None."""
    return next((path for path in search_paths(folder, name) if path.exists()), None)


def require(folder: str, name: str, download: str | None = None) -> Path:
    """Like `find`, but a missing file is a FileNotFoundError that says where it was looked for and how to get it."""
    path = find(folder, name)
    if path is None:
        raise FileNotFoundError(missing_message(folder, name, download))
    return path


def missing_message(folder: str, name: str, download: str | None) -> str:
    searched = "; ".join(str(path.parent) for path in search_paths(folder, name))
    remedy = f"Get it with: {download}" if download else "Put it into one of these folders and refresh the node list."
    return f"'{name}' is missing from the model folder '{folder}' (searched: {searched}). {remedy}"


def read_header(path: str | os.PathLike) -> Header:
    """Names, shapes and types of all tensors in a file, and its metadata, without reading a weight.

    Raises ValueError for a file that is truncated, is not what its suffix says, or would need unpickling.
    """
    path = Path(path)
    if path.suffix.lower() in SAFETENSORS_SUFFIXES:
        tensors, metadata = _read_safetensors_header(path)
    else:
        tensors, metadata = _read_torch_header(path), {}
    if not tensors:
        raise ValueError(f"'{path.name}' holds no weights.")
    return Header(path, tensors, metadata)


def check_layout(
    header: Header,
    expected: Mapping[str, torch.Size],
    prefix: str,
    kind: str,
    ignored: tuple[str, ...] | None = None,
) -> None:
    """Compare a file with the layout that the loader is about to build; ValueError names the first differences.

    expected  tensor name (without prefix) -> shape
    ignored   endings of tensors that may be there as well; None lets any other tensor pass
    Quantised files carry extra scale tensors and may pack the columns of a matrix, so there only the rows count.
    """
    found = {
        name.removeprefix(prefix): tensor.shape for name, tensor in header.tensors.items() if name.startswith(prefix)
    }
    missing = [name for name in expected if name not in found]
    if missing:
        raise ValueError(
            f"'{header.path.name}' looks like {kind}, but {len(missing)} of its {len(expected)} tensors are missing "
            f"(first: {missing[0]}); the file is incomplete or another variant, download it again."
        )
    packed = any(_SCALE.search(name) for name in found)
    compare = (lambda shape: tuple(shape[:1])) if packed else tuple
    for name, shape in expected.items():
        if compare(found[name]) != compare(shape):
            raise ValueError(
                f"'{header.path.name}' looks like {kind}, but {name} has the shape {list(found[name])} instead of "
                f"{list(shape)}; its config or its weights belong to another model."
            )
    if ignored is None:
        return
    extra = [name for name in found if name not in expected and not name.endswith(ignored) and not _SCALE.search(name)]
    if extra:
        raise ValueError(
            f"'{header.path.name}' looks like {kind}, but has {len(extra)} tensors that such a model does not have "
            f"(first: {extra[0]}); it is another model, which would not work without them."
        )


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content. Each version of a file is read once a session."""
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _DIGESTS:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        _DIGESTS[key] = digest.hexdigest()
    return _DIGESTS[key]


def verify_sha256(path: Path, expected: str) -> None:
    """ValueError when the file's content is not the expected one."""
    found = sha256_of(path)
    if found != expected.lower():
        raise ValueError(
            f"'{path}' has the sha256 {found}, but {expected.lower()} is expected; "
            "the file is damaged or another version, download it again."
        )


def _read_safetensors_header(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        _refuse_other_formats(path, start)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= _MAX_HEADER or size < 8:
            raise ValueError(f"'{path.name}' is not a safetensors file; download it again or rename it to what it is.")
        if size < 8 + length:
            raise ValueError(_truncated(path, size, 8 + length))
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            tensors = {name: _meta_tensor(entry) for name, entry in header.items()}
            end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"The header of '{path.name}' is damaged ({error}); download the file again.") from error
    if size < end:
        raise ValueError(_truncated(path, size, end))
    return tensors, metadata


def _meta_tensor(entry: dict) -> torch.Tensor:
    # Types that torch does not know yet (fp4 and the like) are packed bytes to us; only their shape is looked at.
    return torch.empty(entry["shape"], dtype=_DTYPES.get(entry["dtype"], torch.uint8), device="meta")


def _refuse_other_formats(path: Path, start: bytes) -> None:
    if start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
        raise ValueError(
            f"'{path.name}' is a Python pickle (.pt, .pth, .ckpt) with a changed name, not a safetensors file. "
            "A pickle can run code when it is opened; get the safetensors version."
        )
    if start[:4] == b"GGUF":
        raise ValueError(
            f"'{path.name}' is a GGUF file; load it with a GGUF loader node, its MODEL works here as well."
        )
    if start.lstrip()[:1] == b"<" or start.startswith(b"version "):
        raise ValueError(f"'{path.name}' is a web page or a Git LFS pointer, not the weights; download the real file.")


def _truncated(path: Path, size: int, expected: int) -> str:
    return f"'{path.name}' is truncated: it has {size:,} bytes of {expected:,}; download it again."


def _read_torch_header(path: Path) -> dict[str, torch.Tensor]:
    try:
        weights = comfy.utils.load_torch_file(str(path), safe_load=True, device=torch.device("meta"))
    except Exception as error:  # torch raises a different type for every way in which a file can be wrong
        raise ValueError(
            f"'{path.name}' cannot be read as plain weights ({type(error).__name__}); "
            "it is damaged, or it needs unpickling, which can run code. Get the safetensors version."
        ) from error
    return {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}
