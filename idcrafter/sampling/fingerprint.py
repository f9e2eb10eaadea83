"""The key of a run: two runs share it exactly when a take of one is a take of the other.

It covers the conditioning, schedule, latent, sampler and model as objects, and the part of the graph that made them
as JSON, together with the size and time of every file that this part names. The graph is what catches the things that
cannot be hashed: LoRA strengths, patches, compile nodes of other packs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator

import comfy.samplers
import torch

# Raise when a change of this package changes the pixels of a take.
TAKE_REVISION = 1
# Raise when a change of this package changes the score of a preview.
SCORE_REVISION = 1


def run_key(guider, sampler, sigmas: torch.Tensor, latent: dict, graph: list, files: Iterable[tuple]) -> str:
    """32 hex digits.

    graph  from `graph_signature`
    files  (name, `file_stamp`) of the files that the graph names
    """
    digest = hashlib.sha256()
    patcher = guider.model_patcher
    model = [type(patcher.model).__name__, str(patcher.model_dtype()), patcher.load_device.type, len(patcher.patches)]
    source = getattr(patcher, "cached_patcher_init", None)
    if source is not None:
        model += [repr(source[1]), [file_stamp(part) for part in source[1] if isinstance(part, str)]]
    guidance = {k: v for k, v in vars(guider).items() if isinstance(v, (bool, int, float, str))}
    for part in (
        [TAKE_REVISION, torch.__version__],
        model,
        [type(guider).__name__, guidance, guider.original_conds],
        sampler_signature(sampler),
        sigmas,
        latent,
        json.dumps(graph, sort_keys=True, default=str),
        sorted(files, key=repr),
    ):
        _update(digest, part)
    return digest.hexdigest()[:32]


def score_key(subjects, graph: list, files: Iterable[tuple]) -> str:
    """32 hex digits for what shapes the preview scores of a search: the subjects' embeddings [S, D], and the graph and
    its files, VAE and face analyzer included (as for `run_key`)."""
    digest = hashlib.sha256()
    graph_text = json.dumps(graph, sort_keys=True, default=str)
    for part in (SCORE_REVISION, torch.as_tensor(subjects), graph_text, sorted(files, key=repr)):
        _update(digest, part)
    return digest.hexdigest()[:32]


def sampler_name(sampler) -> str:
    """ "euler" for core's euler, otherwise the class of the SAMPLER."""
    function = getattr(sampler, "sampler_function", None)
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", type(sampler).__name__)
    return name.removeprefix("sample_")


def sampler_signature(sampler) -> list:
    options = {}
    if isinstance(sampler, comfy.samplers.KSAMPLER):
        options = {**sampler.extra_options, "inpaint": sampler.inpaint_options}
    return [type(sampler).__name__, sampler_name(sampler), options]


def graph_signature(get_node: Callable[[str], dict], node_id: str, ignore: frozenset[str]) -> list:
    """The node and all its ancestors as plain data, independent of node ids.

    get_node  node id -> {"class_type", "inputs"} as in the API format; a link is [node id, output index]
    ignore    inputs of this node (not of its ancestors) that do not count, nor whatever feeds only them
    """
    order: dict[str, int] = {}
    signature: list = []

    def visit(current: str, skip: frozenset[str]) -> int:
        if current in order:
            return order[current]
        order[current] = len(order)
        node = get_node(current)
        entry = [order[current], node["class_type"], {}]
        signature.append(entry)
        for name in sorted(node["inputs"]):
            value = node["inputs"][name]
            if name in skip:
                continue
            entry[2][name] = ["link", visit(value[0], frozenset()), value[1]] if _is_link(value) else value
        return order[current]

    visit(node_id, ignore)
    return signature


def graph_strings(signature: list) -> Iterator[str]:
    """Every text constant in a `graph_signature`: file names are among them."""
    for _, _, inputs in signature:
        for value in inputs.values():
            if isinstance(value, str):
                yield value


def file_stamp(path: str) -> tuple[int, int] | None:
    """(size, mtime in ns), or None when there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _is_link(value) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], (int, float))
    )


def _update(digest, value) -> None:
    """Feed one value into the digest; containers are framed so that no two nestings collide."""
    digest.update(f"<{type(value).__name__}>".encode())
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, dict):
        # convert_cond gives every cond a new random uuid; it says nothing about the content.
        for key in sorted((k for k in value if k != "uuid"), key=repr):
            digest.update(repr(key).encode())
            _update(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(str(len(value)).encode())
        for item in value:
            _update(digest, item)
    elif value is None or isinstance(value, (bool, int, float, str, bytes)):
        digest.update(repr(value).encode())
    elif hasattr(value, "cond"):
        # comfy.conds objects.
        _update(digest, value.cond)
