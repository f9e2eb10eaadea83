"""What one file of rollouts holds: takes of one cast, prompt and settings by one model, with every reward.

A safetensors file. Its metadata have one entry, FORMAT, because safetensors writes several in any order: JSON "facts".

    version    of this layout
    part       32 hex: what the file is named by; group, seeds and reward make it, so it is known before sampling
    group      32 hex: shot and policy. Files of one group are read as one group
    checksum   32 hex of all other facts, the digests of the tensors among them
    hashes     hex digests, null where nobody has said: shot, policy (the weights, patches and adapters that sampled),
               weights, patches, graph (less its seeds), references, text, conditioning, text_encoder
    shot       prompt, subjects ({name, kind, photos: sha256 of each}), sampler, sde (kind and noise level of its random
               steps), steps, guidance, shape [C, T, h, w], leading (latent frames before the video that are
               references); and what the conditioning is rebuilt from (`conditioning.pack`)
    takes      each {index, seed, policy, seconds, total, rewards: raw values by name, sde}
    left_out   takes that are not here: {seed, why}
    reward     terms, weights and models of the rewards; total is what they make of a take
    licences   each {what, name, licence, made_pixels}
    software   versions
    created    UTC, ISO 8601;  writer: host and process;  label: the caller's own
    tensors    name -> {sha256, shape, dtype}

Tensors: `sigmas` [steps + 1] float32, the whole schedule; `{i}.x0` [C, T, h, w] bfloat16 of take i, in the VAE's space,
its leading references included; and what its random steps left, if anything, as `{i}.<name>` (`{i}.x_t`, `{i}.x_next`
[n, C, T, h, w] bfloat16 in the model's space; `{i}.log_prob` [n] float64 and so on). Advantages are not stored.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

from ..rewards.combine import SAME
from .digests import canonical, digest, tensor_sha256

FORMAT = "idcrafter-rollouts"
VERSION = 1
HASHES = ("policy", "weights", "patches", "graph", "references", "text", "conditioning", "text_encoder")
X0_DTYPE = torch.bfloat16
_FACTS = ("group", "hashes", "shot", "takes", "licences", "software", "created", "tensors")


@dataclass(frozen=True, eq=False)
class Sample:
    """One take to be stored.

    x0       [C, T, h, w] latent in the VAE's space
    rewards  raw values by name;  total: the one number that is made of them
    policy   hex digest of what sampled it
    tensors  more of it, by name (x_t, x_next, ...); sde: JSON facts about them
    """

    seed: int
    x0: torch.Tensor
    rewards: Mapping[str, float]
    total: float
    policy: str
    seconds: float = 0.0
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    sde: dict | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """One file's worth; see the module."""

    facts: dict
    tensors: dict[str, torch.Tensor]

    @property
    def name(self) -> str:
        return self.facts["part"]

    def to_bytes(self) -> bytes:
        return safetensors.torch.save(self.tensors, {FORMAT: canonical(self.facts)})


def group_key(shot: Mapping, hashes: Mapping, sigmas: torch.Tensor) -> tuple[str, str]:
    """(hash of the shot, name of its group): what must be equal for takes to be compared with each other.

    The graph is not in it: it also holds how takes are scored, which does not change a take.
    """
    rest = {name: hashes.get(name) for name in ("references", "text", "conditioning", "text_encoder")}
    settings = {name: shot.get(name) for name in ("sampler", "sde", "guidance", "shape", "leading")}
    key = digest([rest, settings, tensor_sha256(sigmas.to(torch.float32))])
    return key, digest([key, hashes.get("policy")])


def part_key(group: str, seeds: Sequence[int], reward: dict | None) -> str:
    """The name of the file for these takes, which can be told before any of them is made."""
    return digest([group, sorted(seeds), reward])


def build_part(
    samples: Sequence[Sample],
    *,
    hashes: Mapping[str, str | None],
    shot: Mapping,
    sigmas: torch.Tensor,
    reward: dict | None = None,
    licences: Sequence[dict] = (),
    software: Mapping | None = None,
    left_out: Sequence[dict] = (),
    label: str = "",
) -> Part:
    """Put takes of one shot together.

    hashes  by the names of HASHES; "policy" is needed, what is missing counts as unknown
    shot    as in the module; "shape" is filled in
    Raises ValueError when there is no take, seeds repeat, takes were made by different policies, shapes differ, or a
    value is not finite; takes are counted from 0, as in the table of scores.
    """
    if not samples:
        raise ValueError("A group of rollouts needs at least one take that was scored.")
    policy = hashes.get("policy")
    if not policy:
        raise ValueError("Rollouts need the hash of the policy that sampled them; connect its MODEL.")
    seeds = [sample.seed for sample in samples]
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"Two takes of the group have the same seed ({seeds}); each take needs its own.")
    shape = list(samples[0].x0.shape)
    sigmas = sigmas.detach().to("cpu", torch.float32).clone()
    tensors: dict[str, torch.Tensor] = {"sigmas": sigmas}
    memory: set[int] = set()
    takes = []
    for i, sample in enumerate(samples):
        _check_sample(i, sample, samples[0], policy)
        tensors[f"{i}.x0"] = _own(sample.x0.to(X0_DTYPE), memory)
        for name, tensor in sample.tensors.items():
            tensors[f"{i}.{name}"] = _own(tensor, memory)
        takes.append(
            {
                "index": i,
                "seed": int(sample.seed),
                "policy": sample.policy,
                "seconds": round(float(sample.seconds), 3),
                "total": float(sample.total),
                "rewards": {name: float(value) for name, value in sample.rewards.items()},
                "sde": sample.sde,
            }
        )
    damaged = [name for name, tensor in tensors.items() if not torch.isfinite(tensor.to(torch.float32)).all()]
    if damaged:
        raise ValueError(f"The tensor '{damaged[0]}' of the group holds NaN or infinite values; leave that take out.")
    known = {name: hashes.get(name) for name in HASHES}
    shot = {**shot, "shape": shape, "steps": len(sigmas) - 1}
    known["shot"], group = group_key(shot, known, sigmas)
    facts = {
        "version": VERSION,
        "part": part_key(group, seeds, reward),
        "group": group,
        "hashes": known,
        "shot": shot,
        "takes": takes,
        "left_out": list(left_out),
        "reward": reward,
        "licences": list(licences),
        "software": {"python": platform.python_version(), "torch": str(torch.__version__), **(software or {})},
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "writer": f"{platform.node()}:{os.getpid()}",
        "label": label,
        "tensors": {
            name: {
                "sha256": tensor_sha256(tensor),
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
            }
            for name, tensor in sorted(tensors.items())
        },
    }
    facts["checksum"] = digest(facts)
    return Part(facts, tensors)


def read_facts(path: Path | str) -> dict:
    """The facts of a file, its tensors unread. ValueError says what is wrong with it."""
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"'{path.name}' is damaged or cut off ({error}).") from error
    if FORMAT not in metadata:
        raise ValueError(f"'{path.name}' holds no rollouts.")
    return check_facts(metadata[FORMAT], path.name)


def check_facts(text: str, name: str) -> dict:
    """Parse facts and compare them with their checksum and the file's name; ValueError otherwise."""
    try:
        facts = json.loads(text)
        if facts["version"] != VERSION:
            raise ValueError(
                f"'{name}' is of version {facts['version']}, this pack reads {VERSION}; update the pack or collect "
                "again."
            )
        missing = [key for key in _FACTS if key not in facts]
        stated = facts.pop("checksum")
        facts_digest = digest(facts)
        facts["checksum"] = stated
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"The facts of '{name}' are damaged ({error!r}).") from error
    if missing or stated != facts_digest:
        raise ValueError(f"The facts of '{name}' are damaged: their checksum is another one.")
    if Path(name).stem != facts["part"]:
        raise ValueError(f"'{name}' was renamed: it is the part {facts['part']}.")
    return facts


def read_tensors(path: Path | str, names: Sequence[str], facts: dict | None = None) -> dict[str, torch.Tensor]:
    """Tensors of a file by name. With `facts` each is compared with its digest.

    Raises ValueError for one that is missing, of another shape or type, not finite, or changed since it was written.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"'{path.name}' cannot be read ({error}).") from error
    for name, tensor in tensors.items() if facts is not None else ():
        stated = facts["tensors"].get(name, {})
        if [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] != [stated.get("shape"), stated.get("dtype")]:
            raise ValueError(f"'{path.name}': {name} has another shape or type than its facts say.")
        if tensor_sha256(tensor) != stated.get("sha256"):
            raise ValueError(f"'{path.name}': {name} changed since it was written (its sha256 is another one).")
        if not torch.isfinite(tensor.to(torch.float32)).all():
            raise ValueError(f"'{path.name}': {name} holds NaN or infinite values.")
    return tensors


def spread(facts: dict) -> float:
    """Standard deviation (of the population) of the totals of a file's takes."""
    totals = np.array([take["total"] for take in facts["takes"]], np.float64)
    return float(totals.std())


def is_flat(takes: Sequence[Mapping]) -> bool:
    """Whether all takes have the same total, but for rounding: then nothing can be learnt from them."""
    totals = np.array([take["total"] for take in takes], np.float64)
    return bool(np.ptp(totals) <= SAME * np.abs(totals).max())


def _own(tensor: torch.Tensor, memory: set[int]) -> torch.Tensor:
    """On the CPU, contiguous, and with memory of its own: safetensors refuses tensors that share theirs."""
    tensor = tensor.detach().to("cpu").contiguous()
    if tensor.untyped_storage().data_ptr() in memory:
        tensor = tensor.clone()
    memory.add(tensor.untyped_storage().data_ptr())
    return tensor


def _check_sample(i: int, sample: Sample, first: Sample, policy: str) -> None:
    if sample.policy != policy:
        raise ValueError(
            f"Take {i} was sampled by the policy {sample.policy[:12]}, the group is of {policy[:12]}; takes of "
            "different weights cannot be compared. Store them as groups of their own."
        )
    if sample.x0.shape != first.x0.shape or sample.x0.ndim != 4:
        raise ValueError(
            f"Take {i} has the shape {list(sample.x0.shape)}, take 0 {list(first.x0.shape)}; a group holds latents "
            "[channels, frames, height, width] of one size."
        )
    if set(sample.rewards) != set(first.rewards):
        raise ValueError(f"Take {i} has the rewards {sorted(sample.rewards)}, take 0 {sorted(first.rewards)}.")
    wrong = [name for name, value in {"total": sample.total, **sample.rewards}.items() if not np.isfinite(value)]
    if wrong:
        raise ValueError(f"The reward '{wrong[0]}' of take {i} is not a finite number; leave the take out.")
