"""Rollouts for other trainers.

preference pairs   JSONL, one best-and-worst pair a group that points into the group files: for trainers of latents
Flow-Factory       its offline records, schema_version 2 (X-GenGroup/Flow-Factory, guidance/datasets.md and
                   data_utils/schema.py): train.jsonl with `preference` or `demonstration` supervision, the videos
                   as mp4 and the reference photos as png beside it
FastVideo          Parquet of pyarrow_schema_t2v (hao-ai-lab/FastVideo, fastvideo/dataset/dataloader/schema.py):
                   latents [C, T, h, w] and text embeddings [L, D] as float32 bytes, as its loader reads them.
                   Its trainer normalises latents itself (normalize_dit_input), as ours are stored: not normalised
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from . import files, index
from .dataset import Group, Rollouts
from .digests import tensor_bytes
from .store import RolloutStore

# Of the Wan 2.1 VAE: pixels a latent, frames a latent frame.
SPATIAL, TEMPORAL = 8, 4
ROWS_A_FILE = 64
Decode = Callable[[torch.Tensor], torch.Tensor]


def preference_pairs(rollouts: Rollouts) -> list[dict]:
    """The best and the worst take of every group; files relative to the folder of the rollouts."""
    return [
        {
            "group": group.name,
            "prompt": group.prompt,
            "policy": group.facts["hashes"]["policy"],
            "margin": float(group.totals[group.best] - group.totals[group.worst]),
            "chosen": _pointer(rollouts, group, group.best),
            "rejected": _pointer(rollouts, group, group.worst),
            "licences": _licences(group),
        }
        for group in rollouts.groups
    ]


def export_preference_pairs(rollouts: Rollouts, path: Path) -> int:
    """Write `preference_pairs` as JSONL; returns their number."""
    pairs = preference_pairs(_require(rollouts))
    _write_lines(path, pairs)
    return len(pairs)


def export_flow_factory(
    rollouts: Rollouts, folder: Path, decode: Decode, fps: float, supervision: str = "preference"
) -> int:
    """Write train.jsonl, videos/ and, of photos that were kept, images/; returns the number of records.

    decode       latent [1, C, T, h, w] without leading references -> frames [T', H, W, 3] in 0..1
    fps          frames a second of the videos
    supervision  "preference": best and worst; "demonstration": the best only
    """
    if supervision not in ("preference", "demonstration"):
        raise ValueError(f"The supervision is preference or demonstration, got '{supervision}'.")
    records = []
    for group in _require(rollouts).groups:
        chosen = _video(group, group.best, folder, decode, fps)
        output = {"type": "demonstration", "target": chosen}
        if supervision == "preference":
            rejected = _video(group, group.worst, folder, decode, fps)
            output = {"type": "preference", "chosen": chosen, "rejected": rejected}
        metadata = {
            "group": group.name,
            "policy": group.facts["hashes"]["policy"],
            "seeds": [group.takes[group.best].seed, group.takes[group.worst].seed],
            "rewards": [group.takes[group.best].rewards, group.takes[group.worst].rewards],
            "licences": _licences(group),
        }
        media = list(_photos(rollouts, group, folder))
        records.append(
            {
                "schema_version": 2,
                "input": {"prompt": group.prompt, "media": media},
                "supervision": output,
                "metadata": metadata,
            }
        )
    _write_lines(folder / "train.jsonl", records)
    return len(records)


def export_fastvideo(rollouts: Rollouts, folder: Path, fps: float, best: int = 1) -> int:
    """Write the `best` takes of every group as Parquet files; returns their number.

    Raises RuntimeError without pyarrow, ValueError for a group that was stored without its conditioning.
    """
    pyarrow, parquet = index.require()
    schema = _fastvideo_schema(pyarrow)
    rows, count, made = [], 0, 0

    def flush():
        nonlocal rows, made
        if rows:
            path = folder / f"rollouts_{made:05}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(files.SUFFIX)
            parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), temporary, compression="zstd")
            os.replace(temporary, path)
            rows, made = [], made + 1

    for group in _require(rollouts).groups:
        text = _text_embedding(rollouts, group)
        for take in (-group.totals).argsort(kind="stable")[:best]:
            rows.append(_fastvideo_row(group, int(take), text, fps))
            count += 1
            if len(rows) == ROWS_A_FILE:
                flush()
    flush()
    return count


def write_video(frames: torch.Tensor, path: Path, fps: float) -> None:
    """[T, H, W, 3] in 0..1 -> H.264 in mp4, odd sizes lose a row or column. RuntimeError without av."""
    try:
        import av
    except ImportError as error:
        raise RuntimeError("Writing videos needs PyAV; run: python -m pip install av (in ComfyUI's python).") from error
    from fractions import Fraction

    height, width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2
    pixels = (frames[:, :height, :width].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, "yuv420p", {"crf": "12"}
        for image in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def _require(rollouts: Rollouts) -> Rollouts:
    if not rollouts.groups:
        raise ValueError("There is no group to export; the report of Load Rollouts says why each was left out.")
    return rollouts


def _pointer(rollouts: Rollouts, group: Group, take: int) -> dict:
    stored = group.takes[take]
    return {
        "file": stored.path.relative_to(rollouts.folder).as_posix(),
        "tensor": f"{stored.index}.x0",
        "seed": stored.seed,
        "total": stored.total,
        "rewards": stored.rewards,
    }


def _licences(group: Group) -> list[str]:
    return [entry["licence"] or "not stated" for entry in group.facts["licences"] if entry.get("made_pixels", True)]


def _latent(group: Group, take: int) -> torch.Tensor:
    """[C, T, h, w] float32 without the references before the video."""
    return group.load(take)["x0"][:, group.facts["shot"].get("leading", 0) :].to(torch.float32)


def _video(group: Group, take: int, folder: Path, decode: Decode, fps: float) -> dict:
    name = f"videos/{group.name}_{group.takes[take].seed}.mp4"
    write_video(decode(_latent(group, take).unsqueeze(0)), folder / name, fps)
    return {"media": [{"type": "video", "path": name, "fps": float(fps)}]}


def _photos(rollouts: Rollouts, group: Group, folder: Path) -> Iterator[dict]:
    store = RolloutStore(rollouts.folder)
    for subject in group.facts["shot"].get("subjects", ()):
        for name in subject["photos"]:
            source, target = store.photo(name), folder / "images" / f"{name}.png"
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                yield {"type": "image", "path": f"images/{target.name}"}


def _text_embedding(rollouts: Rollouts, group: Group) -> torch.Tensor:
    """[L, D] float32 of the prompt, without padding."""
    positive = rollouts.conditioning(group).get("positive") or [[None]]
    embedding = positive[0][0]
    if not isinstance(embedding, torch.Tensor) or embedding.ndim != 3:
        raise ValueError(f"Group {group.name[:12]} has no text embedding [1, tokens, width]; FastVideo needs one.")
    used = embedding[0].ne(0).any(-1).nonzero()
    return embedding[0, : int(used[-1]) + 1 if len(used) else 1].to(torch.float32)


def _fastvideo_row(group: Group, take: int, text: torch.Tensor, fps: float) -> dict:
    latent = _latent(group, take)
    _, length, height, width = latent.shape
    name = f"{group.name}_{group.takes[take].seed}"
    return {
        "id": name,
        "vae_latent_bytes": bytes(tensor_bytes(latent)),
        "vae_latent_shape": list(latent.shape),
        "vae_latent_dtype": "float32",
        "text_embedding_bytes": bytes(tensor_bytes(text)),
        "text_embedding_shape": list(text.shape),
        "text_embedding_dtype": "float32",
        "file_name": name,
        "caption": group.prompt,
        "media_type": "video",
        "width": width * SPATIAL,
        "height": height * SPATIAL,
        "num_frames": length,  # latent frames, as FastVideo's own record creator writes it
        "duration_sec": ((length - 1) * TEMPORAL + 1) / fps,
        "fps": float(fps),
    }


def _fastvideo_schema(pyarrow):
    text, integer, real = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    fields = {"id": text}
    for name in ("vae_latent", "text_embedding"):
        fields |= {f"{name}_bytes": pyarrow.binary(), f"{name}_shape": pyarrow.list_(integer), f"{name}_dtype": text}
    fields |= dict.fromkeys(("file_name", "caption", "media_type"), text)
    fields |= dict.fromkeys(("width", "height", "num_frames"), integer)
    return pyarrow.schema(fields | dict.fromkeys(("duration_sec", "fps"), real))


def _write_lines(path: Path, records: list[dict]) -> None:
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records]
    files.replace(path, "".join(lines).encode())
