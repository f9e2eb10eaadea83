"""From a MODEL and the rollouts that it made to a trained LoRA and its file; nodes and commands differ in where their
inputs come from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..rollouts import conditioning
from ..rollouts.dataset import Group, Rollouts
from ..rollouts.digests import digest
from ..subjects.faces import FaceAnalyzer
from ..subjects.subject import Cast
from .adapter.train import computing_safely
from .lora import LoRA
from .monitor import Monitor
from .policy import Conditioning, LoraPolicy
from .processes import ALONE, Processes
from .reward_gradient import reward_of_faces
from .rl import Result, licences, train_rl
from .rl_settings import Settings
from .rl_validation import NAME, Videos, choose_shots
from .rollout_batches import FRESH

RANK = 32


@dataclass(frozen=True)
class Looks:
    """What is looked at while it trains.

    every     steps between videos; 0 for none
    shots     how many
    patience  evaluations of the monitor without a new best that end the training; 0: it never ends early
    vae, monitor, cast  the video model's VAE; a face analyzer that no reward has used, and whose photos it compares
              with, see `rl_validation`; each may be None
    """

    every: int = 0
    shots: int = 4
    patience: int = 3
    vae: Any = None
    monitor: FaceAnalyzer | None = None
    cast: Cast | None = None

    def __post_init__(self):
        if self.every and self.vae is None:
            raise ValueError("Videos while it trains need the VAE of the MODEL; connect it, or set them to 0 steps.")
        if self.monitor is not None and not self.every:
            raise ValueError("The monitor looks at videos; say after how many steps they are made, or disconnect it.")


@dataclass(frozen=True, eq=False)
class TrainedLora:
    """What a training has made.

    tensors  of the LoRA's file, with native names
    facts    for its metadata
    summary  a few lines for people
    """

    tensors: dict[str, torch.Tensor]
    facts: dict[str, str]
    result: Result
    summary: str

    def save(self, path: Path) -> Path:
        """Write the file, in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        save_file(self.tensors, part, {"format": "pt", **self.facts})
        os.replace(part, path)
        return path


def train_lora(
    model: Any,
    made_by: str,
    rollouts: Rollouts,
    work: Path,
    settings: Settings,
    rank: int = RANK,
    *,
    checkpoint: int = 2,
    looks: Looks | None = None,
    faces: FaceAnalyzer | None = None,
    given: Mapping[str, list] | None = None,
    resume: bool = True,
    processes: Processes = ALONE,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> TrainedLora:
    """Train a LoRA of the MODEL that made the rollouts; `work` gets state, curve and videos.

    model        ComfyUI's MODEL, which is left as it is;  made_by: hash of its policy (`rollouts.provenance`)
    checkpoint   depth of gradient checkpointing
    faces        for IPRO: the analyzer by which the takes' faces shall become more like the photos; needs the VAE
    given        conditionings by name, for groups of which only the hash of exactly these was stored
    on_progress  called with (steps done, of how many, what is going on) after every step, of the videos' sampler too;
                 what it raises ends the training, after its state is saved
    Raises ValueError for rollouts or settings that do not fit.
    """
    looks = looks or Looks()
    done = [0]

    def tell(n: int, what: str) -> None:
        done[0] = n
        if on_progress is not None:
            on_progress(n, settings.steps, what)

    # Nodes run in inference mode, in which nothing has a gradient.
    with torch.inference_mode(False), torch.enable_grad():
        safe = computing_safely(model)
        dit = safe.model.diffusion_model
        lora = LoRA(dit, rank, settings.seed)
        old = LoRA(dit, rank, settings.seed) if settings.old == "average" else None
        policy = LoraPolicy(safe, lora, conditioning_of(rollouts, given), checkpoint, old)
        reward = None
        if settings.spec.draws == FRESH:
            reward = reward_of_faces(looks.vae, faces, rollouts, looks.cast, lambda: tell(done[0], "looking for faces"))
        shots = choose_shots(rollouts, looks.shots if looks.every else 0, looks.monitor, looks.cast, faces)
        videos = Videos(
            looks.vae,
            shots,
            work / "videos",
            settings.seed,
            lambda: tell(done[0], "making videos"),
            processes.rank == 0,
        )
        monitor = look = None
        if looks.monitor is not None:
            monitor = Monitor(NAME, videos.measure, looks.every, looks.patience)
        elif shots and processes.rank == 0:
            look = looks.every, videos.make
        result = train_rl(
            policy,
            rollouts,
            work,
            settings,
            reward=reward,
            monitor=monitor,
            made_by=made_by,
            facts={"rank": str(rank), "made_by": made_by},
            look=look,
            resume=resume,
            processes=processes,
            on_progress=tell,
        )
    facts = {
        "made_by": "idcrafter",
        "licence": licences(rollouts),
        "method": settings.spec.title,
        "steps": str(result.best["step"] if result.best else result.steps),
        "seed": str(settings.seed),
        "rank": str(rank),
        "policy": made_by,
        "data": digest(sorted(group.name for group in rollouts.groups)),
    }
    base = model.get_attachment("idcrafter") or {}
    facts |= {f"base_{name}": str(base[name]) for name in ("file", "sha256") if base.get(name)}
    return TrainedLora(lora.export(), facts, result, _summary(rollouts, settings, result, looks))


def conditioning_of(rollouts: Rollouts, given: Mapping[str, list] | None = None) -> Conditioning:
    """A group -> its conditioning: as it was stored or, where only its hash was, the given one.

    The function raises ValueError for a group that has neither.
    """
    given = {name: value for name, value in (given or {}).items() if value is not None}
    plan, _ = conditioning.pack(given)
    own = digest(plan) if given else None

    def find(group: Group) -> Mapping[str, list]:
        if own is not None and group.facts["hashes"].get("conditioning") == own:
            return given
        try:
            return rollouts.conditioning(group)
        except (ValueError, FileNotFoundError) as error:
            if own is None:
                raise
            raise ValueError(
                f"Group {group.name[:12]} ('{group.prompt[:40]}') was not made with the connected conditioning, and "
                f"its own cannot be rebuilt. {error}"
            ) from error

    return find


def _summary(rollouts: Rollouts, settings: Settings, result: Result, looks: Looks) -> str:
    takes = sum(len(group.takes) for group in rollouts.groups)
    lines = [f"{settings.spec.title}: {result.steps} steps on {len(rollouts.groups)} groups of {takes} takes."]
    last = next((row["loss"] for row in reversed(result.curve) if row.get("loss") is not None), None)
    if last is not None:
        lines.append(f"Loss at the end {last:.4g}.")
    if result.best is not None:
        kept = f"Kept: step {result.best['step']}, where the monitor saw a similarity of {result.best['value']:.4f}"
        lines.append(f"{kept} (best of all evaluations).")
    if result.stopped:
        lines.append(f"Stopped early: the monitor has not risen for {looks.patience} evaluations.")
    if rollouts.skipped:
        first = rollouts.skipped[0]
        lines.append(f"Left out by Load Rollouts: {len(rollouts.skipped)}, such as {first.what}: {first.reason}.")
    return "\n".join(lines)
