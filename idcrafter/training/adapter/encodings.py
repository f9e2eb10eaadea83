"""Encoded clips as batches: all clips of one have the same shape, and which they are depends on the step alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn.functional import pad

from .batch import AdapterBatch
from .encode import EMPTY


@dataclass(frozen=True)
class Entry:
    """One clip's file, by its header; clips of the same `bucket` may stand in one batch."""

    path: Path
    bucket: tuple
    subjects: tuple[str, ...]
    line: int
    trim: int
    placed: bool


class Encodings:
    """The files that `encode.encode_dataset` has made.

    photos_kept  how likely each photo of a subject is shown in a step; one always is
    """

    def __init__(self, paths: Sequence[Path], seed: int, photos_kept: float = 0.5):
        self.entries = [_entry(path) for path in paths]
        self.seed, self.photos_kept = seed, photos_kept
        buckets: dict[tuple, list[int]] = {}
        for i, entry in enumerate(self.entries):
            buckets.setdefault(entry.bucket, []).append(i)
        self.buckets = list(buckets.values())
        self.empty = _context(paths[0].with_name(f"{EMPTY}.safetensors"))

    @property
    def widths(self) -> tuple[int, int, int]:
        """(of a face's embedding, of the VAE's map of it, of the prompt's tokens)."""
        tensors, _ = _read(self.entries[0].path)
        return tensors["faces"].shape[-1], tensors["maps"].shape[-1], self.empty.shape[-1]

    def draw(
        self,
        n: int,
        size: int,
        part: tuple[int, int] = (0, 1),
        drop_text: float = 0.0,
        drop_people: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> AdapterBatch:
        """The batch of step n: clips of one bucket with repetition, buckets as often as they have clips.

        part                    (i, n): the i-th of n equal parts of a batch of size * n clips
        drop_text, drop_people  how often a clip loses its text and its people, for guidance to have such branches
        """
        rng = np.random.default_rng((self.seed, n))
        counts = np.array([len(bucket) for bucket in self.buckets])
        bucket = self.buckets[rng.choice(len(counts), p=counts / counts.sum())]
        i, parts = part
        clips = rng.choice(bucket, size * parts)
        # Drawn for the whole batch, so that each part is what it would be in one process.
        lost = torch.from_numpy(rng.random((2, size * parts)) < [[drop_text], [drop_people]])
        kept = rng.random((size * parts, 64))
        own = slice(i * size, (i + 1) * size)
        batch = self.batch([int(clip) for clip in clips[own]], kept[own])
        return move(batch.without(*lost[:, own], self.empty), device)

    def batch(self, indices: Sequence[int], kept: np.ndarray | None = None) -> AdapterBatch:
        """These clips, all of one bucket; `kept` [B, >= S * P] draws the photos, None keeps all."""
        found = [_read(self.entries[i].path) for i in indices]
        rows = [tensors for tensors, _ in found]
        facts = found[0][1]
        photos = [row["photos"] for row in rows]
        if kept is not None:
            photos = [self._some(each, draws) for each, draws in zip(photos, kept, strict=True)]
        most = max(each.shape[1] for each in photos)
        # A prompt may be shorter than the empty one, where that is padded to a least length.
        length = max(int(facts["length"]), len(self.empty))

        def padded(tensors: list[torch.Tensor]) -> torch.Tensor:
            return torch.stack([_pad_photos(each, most) for each in tensors])

        return AdapterBatch(
            clean=torch.stack([row["clean"] for row in rows]).float(),
            context=torch.stack([_padded(row["context"], length) for row in rows]).float(),
            faces=padded([row["faces"] for row in rows]),
            maps=(padded([row["maps"] for row in rows]),),
            photos=padded(photos),
            owners=torch.stack([row["owners"].flatten() for row in rows]).long(),
            conds=_conds(rows, "cond.", json.loads(facts["constants"])),
            absent=_conds([_with_zeros(row) for row in rows], "absent.", {}),
            references=tuple(json.loads(facts["references"])),
        )

    def _some(self, photos: torch.Tensor, draws: np.ndarray) -> torch.Tensor:
        """Photos [S, P] of which each subject keeps some, the one with the lowest draw always."""
        drawn = torch.from_numpy(np.resize(draws, tuple(photos.shape)))
        best = (drawn + 2 * (photos == 0)).argmin(dim=1, keepdim=True)
        keep = (drawn < self.photos_kept).scatter(1, best, True)
        return photos * keep


def move(batch: AdapterBatch, device: torch.device | str) -> AdapterBatch:
    """The batch on another device."""

    def to(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(to(each) for each in value)
        if isinstance(value, dict):
            return {name: to(each) for name, each in value.items()}
        return value.to(device) if torch.is_tensor(value) else value

    return AdapterBatch(**{name: to(value) for name, value in vars(batch).items()})


def _entry(path: Path) -> Entry:
    with safe_open(path, "pt") as file:
        facts = file.metadata()
        shapes = tuple(
            (name, *file.get_slice(name).get_shape())
            for name in sorted(file.keys())
            if name.startswith(("clean", "cond."))
        )
        placed = bool((file.get_tensor("owners") >= 0).any())
    subjects = tuple(json.loads(facts["subjects"]))
    same = (len(subjects), facts["references"], facts["constants"], facts["length"])
    return Entry(path, (shapes, *same), subjects, int(facts["line"]), int(facts["trim"]), placed)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    return load_file(path), facts


def _context(path: Path) -> torch.Tensor:
    tensors, facts = _read(path)
    return _padded(tensors["context"], int(facts["length"])).float()


def _padded(context: torch.Tensor, length: int) -> torch.Tensor:
    return pad(context, (0, 0, 0, length - len(context)))


def _pad_photos(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """[S, P, ...] -> [S, count, ...] with zeros."""
    return pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, count - tensor.shape[1]))


def _with_zeros(row: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A row in which what is zero without the people is written out."""
    zeros = {
        f"absent.{name.removeprefix('cond.')}": torch.zeros_like(tensor)
        for name, tensor in row.items()
        if name.startswith("cond.")
    }
    return {**zeros, **{name: tensor for name, tensor in row.items() if name.startswith("absent.")}}


def _conds(rows: list[dict[str, torch.Tensor]], prefix: str, constants: dict[str, Any]) -> dict[str, Any]:
    conds: dict[str, Any] = dict(constants)
    for name in sorted(rows[0]):
        if not name.startswith(prefix):
            continue
        joined = torch.cat([row[name] for row in rows])
        stem, _, number = name.removeprefix(prefix).partition(".")
        if number:
            conds.setdefault(stem, []).append(joined)
        else:
            conds[stem] = joined
    return conds
