"""Early stop by a number that no reward has seen: what rises with it is real, what falls while the reward rises is not.

The history is in <folder>/<name>.monitor.jsonl, a row an evaluation; the best weights so far in
<folder>/<name>.best.safetensors. Both follow the trainer's state, so that a resumed training stops where an
uninterrupted one does.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..rollouts.dataset import Rollouts
from .loop import Trainer

log = logging.getLogger("idcrafter.training")
_IDENTITY = ("score", "similarity_mean", "similarity_min")


@dataclass(frozen=True)
class Monitor:
    """What is measured, of the averaged weights.

    name      of the number; it must not be part of the reward
    measure   (policy, step) -> the number, higher is better; the same for the same weights and step
    every     steps between evaluations
    patience  evaluations without a new best that end the training; 0: it never ends early
    """

    name: str
    measure: Callable[[Any, int], float]
    every: int = 50
    patience: int = 3


class Stopped(Exception):
    """The monitor has not risen for too long."""


class Watch:
    """A monitor at work beside a trainer."""

    def __init__(self, monitor: Monitor, trainer: Trainer):
        if monitor.every < 1:
            raise ValueError(f"The monitor is measured every {monitor.every} steps; use at least 1.")
        self.monitor, self.trainer = monitor, trainer
        stem = trainer.path.name.removesuffix(".state.safetensors")
        self.path = trainer.path.with_name(f"{stem}.monitor.jsonl")
        self.best_path = trainer.path.with_name(f"{stem}.best.safetensors")
        self.rows: list[dict] = []
        if trainer.n and self.path.exists():
            rows = [json.loads(row) for row in self.path.read_text("utf-8").splitlines()]
            self.rows = [row for row in rows if row["step"] <= trainer.n]
        if trainer.writes:
            self._write()

    @property
    def best(self) -> dict | None:
        """The row of the best evaluation, of equal ones the first."""
        return max(self.rows, key=lambda row: row["value"], default=None)

    def look(self) -> None:
        """Evaluate where it is time to; raises Stopped when it has been without a new best for too long."""
        n, monitor = self.trainer.n, self.monitor
        measured = bool(self.rows) and self.rows[-1]["step"] == n
        if n and n % monitor.every == 0 and not measured:
            with self.trainer.averaged(), torch.no_grad():
                value = float(monitor.measure(self.trainer.model, n))
            if not math.isfinite(value):
                raise ValueError(f"The monitor '{monitor.name}' is {value} at step {n}; its measurement is damaged.")
            log.info("monitor %s at step %d: %.5f", monitor.name, n, value)
            self.trainer.save()  # the history must never be ahead of the state
            if self.trainer.writes and (self.best is None or value > self.best["value"]):
                self._save_best()
            self.rows.append({"step": n, "value": value})
            if self.trainer.writes:
                self._write()
        if monitor.patience and self.rows and self._waited() >= monitor.patience:
            raise Stopped

    def restore_best(self) -> None:
        """Give the model the averaged weights of the best evaluation."""
        if self.best is None or not self.best_path.exists():
            return
        with safe_open(self.best_path, "pt") as file, torch.no_grad():
            for name, parameter in self.trainer.parameters.items():
                parameter.copy_(file.get_tensor(name).view(parameter.shape))

    def _waited(self) -> int:
        return len(self.rows) - 1 - self.rows.index(self.best)

    def _save_best(self) -> None:
        part = self.best_path.with_suffix(".part")
        save_file({k: m.detach().cpu().contiguous() for k, m in self.trainer.ema.items()}, part)
        os.replace(part, self.best_path)

    def _write(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in self.rows), "utf-8")
        os.replace(part, self.path)


def require_unused(name: str, rollouts: Rollouts) -> None:
    """ValueError when the rewards of the rollouts contain the monitor: it would only tell what is being optimised."""
    for group in rollouts.groups:
        reward = group.facts.get("reward")
        terms = (reward or {}).get("terms") or {}
        used = {term for term, facts in terms.items() if not isinstance(facts, dict) or facts.get("weight", 1.0)}
        if name in (used or _IDENTITY):
            raise ValueError(
                f"The monitor '{name}' is part of the reward that is trained on; choose a number that is not."
            )
