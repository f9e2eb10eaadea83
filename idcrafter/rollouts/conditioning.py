"""What a take was conditioned on, by the digests of its tensors: each is stored once, however many groups it serves.

`pack` turns CONDITIONING lists into a plan, plain JSON in which every tensor is {"tensor": name, "shape", "dtype"}, and
the tensors by name; `unpack` puts it together again, bit for bit. The rows of zeros that text encoders pad with are
left out and added again: a prompt of 60 tokens of UMT5-XXL takes 1 MiB instead of 8.

Tensors of a video above MAX_BYTES are stored frame by frame, as {"frames": names, "shape", "dtype"}: VACE's control
latents and masks of a shot have 50 MiB, of which only the frames of its references are its own; those of the video that
is to be made are the same for every shot of the size.

Not stored, only hashed: what is larger even so, and what is no tensor at all (hooks). `unpack` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from .digests import digest_of_anything, tensor_sha256

MAX_BYTES = 16 * 1024 * 1024
# Of a video's dimensions [B, C, T, h, w].
_TIME = 2
# Core gives every condition a new random one; it says nothing about the content.
_WITHOUT_MEANING = frozenset({"uuid"})


def pack(conditioning: Mapping[str, Sequence]) -> tuple[dict, dict[str, torch.Tensor]]:
    """(plan, tensors by name) of conditionings by name (positive, negative_text, ...), each a CONDITIONING list."""
    tensors: dict[str, torch.Tensor] = {}
    return {name: _pack(list(value), tensors) for name, value in conditioning.items()}, tensors


def unpack(plan: Mapping, load: Callable[[str], torch.Tensor]) -> dict[str, list]:
    """The conditionings of a plan.

    load  name -> tensor
    Raises ValueError for what was only hashed, and whatever `load` raises.
    """
    return {name: _unpack(value, load) for name, value in plan.items()}


def names_of(plan) -> set[str]:
    """The tensors that a plan needs."""
    if isinstance(plan, list):
        return set().union(*map(names_of, plan))
    if not isinstance(plan, Mapping):
        return set()
    own = {plan["tensor"]} if "tensor" in plan else set(plan.get("frames", ()))
    return own.union(*(names_of(value) for value in plan.get("dict", plan).values()))


def object_name(tensor: torch.Tensor) -> str:
    """What a stored tensor is called: the sha256 of its values, and its type and shape."""
    shape = "x".join(map(str, tensor.shape))
    return f"{tensor_sha256(tensor)}-{str(tensor.dtype).removeprefix('torch.')}-{shape}"


def _pack(value, tensors: dict[str, torch.Tensor]):
    if isinstance(value, torch.Tensor):
        return _pack_tensor(value, tensors)
    if isinstance(value, (list, tuple)):
        return [_pack(item, tensors) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        kept = {key: item for key, item in value.items() if key not in _WITHOUT_MEANING}
        return {"dict": {key: _pack(item, tensors) for key, item in kept.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return {"only_hashed": type(value).__name__, "sha256": digest_of_anything(value)}


def _pack_tensor(tensor: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict:
    tensor = tensor.detach().to("cpu")
    shape, dtype = list(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    stored = _without_padding(tensor).contiguous()
    if _bytes(stored) <= MAX_BYTES:
        name = object_name(stored)
        tensors[name] = stored
        return {"tensor": name, "shape": shape, "dtype": dtype}
    frames = [frame.contiguous() for frame in tensor.split(1, _TIME)] if tensor.ndim == _TIME + 3 else []
    if not frames or _bytes(frames[0]) > MAX_BYTES:
        return {"only_hashed": f"a tensor of {shape}", "sha256": object_name(stored)}
    names = [object_name(frame) for frame in frames]
    tensors.update(zip(names, frames, strict=True))
    return {"frames": names, "shape": shape, "dtype": dtype}


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _without_padding(tensor: torch.Tensor) -> torch.Tensor:
    """[1, L, D] without its last rows of zeros; anything else as it is."""
    if tensor.ndim != 3 or tensor.shape[0] != 1 or not tensor.numel():
        return tensor
    used = tensor[0].ne(0).any(-1).nonzero()
    return tensor[:, : int(used[-1]) + 1] if len(used) else tensor[:, :1]


def _unpack(value, load: Callable[[str], torch.Tensor]):
    if isinstance(value, list):
        return [_unpack(item, load) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "dict" in value:
        return {key: _unpack(item, load) for key, item in value["dict"].items()}
    if "frames" in value:
        kept = {name: load(name) for name in dict.fromkeys(value["frames"])}
        return torch.cat([kept[name] for name in value["frames"]], _TIME)
    if "tensor" not in value:
        raise ValueError(
            f"The conditioning of this group holds {value.get('only_hashed', 'something')} of which only the hash was "
            "stored; make it again with Cast to Video from the same photos."
        )
    tensor = load(value["tensor"])
    if list(tensor.shape) == value["shape"]:
        return tensor
    full = tensor.new_zeros(value["shape"])
    full[:, : tensor.shape[1]] = tensor
    return full
