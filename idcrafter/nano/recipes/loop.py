"""The training loop that all recipes share: bf16 weights with float32 masters, Muon and AdamW, EMA, a schedule,
seeded steps, resuming.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

log = logging.getLogger("idcrafter.nano")
EMA_EVERY = 4


class Trainer:
    """Runs ``losses = step(model, n)`` for n = 0.. ``steps`` - 1, minimises ``losses["loss"]`` and keeps all that is
    needed to go on after a stop.

    Matrices and convolutions are trained by Muon (``torch.optim.Muon``, convolutions as [out, in * kernel] matrices),
    which needs a fraction of AdamW's steps on these small nets; vectors, and parameters whose name contains one of
    ``adam``, by AdamW. The model computes in ``dtype`` (parameters named in ``keep_float32`` excepted), the
    optimisers work on float32 masters. ``view`` picks the part of a parameter that is trained, for instance one
    temporal tap of a convolution.

    The state of a run is one safetensors file, ``<folder>/<name>.state.safetensors``, written every ``save_every``
    seconds by an atomic rename. ``step`` must draw all its randomness from ``n``, so a resumed run sees the data that
    it would have seen.
    """

    def __init__(
        self,
        model,
        folder: Path,
        name: str,
        steps: int,
        lr: float,
        *,
        warmup: int = 50,
        final: float = 0.05,
        decay_from: float = 0.4,
        weight_decay: float = 0.0,
        clip: float = 1.0,
        ema: float = 0.99,
        dtype=torch.bfloat16,
        keep_float32: tuple[str, ...] = (),
        adam: tuple[str, ...] = (),
        view: Callable = lambda p: p,
        save_every: float = 120.0,
    ):
        self.name, self.model, self.steps, self.lr, self.warmup, self.final, self.decay_from, self.clip = (
            name,
            model,
            steps,
            lr,
            warmup,
            final,
            decay_from,
            clip,
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.curve = folder / f"{name}.state.safetensors", folder / f"{name}.curve.jsonl"
        self.save_every, self.ema_decay, self.view = save_every, ema**EMA_EVERY, view
        self.parameters = {k: p for k, p in model.named_parameters() if p.requires_grad}
        parts = {k: view(p.detach()) for k, p in self.parameters.items()}
        matrix = {k for k, part in parts.items() if part.ndim > 1 and not any(s in k for s in adam)}
        self.masters = {
            k: (part.float().flatten(1) if k in matrix else part.float()).clone() for k, part in parts.items()
        }
        self.ema = {k: m.clone() for k, m in self.masters.items()}
        self.optimizers = [
            torch.optim.AdamW(
                [m for k, m in self.masters.items() if k not in matrix], lr=lr, betas=(0.9, 0.98), weight_decay=0.0
            )
        ]
        if matrix:
            self.optimizers.append(
                torch.optim.Muon(
                    [self.masters[k] for k in sorted(matrix)],
                    lr=lr,
                    weight_decay=weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        for k, p in self.parameters.items():
            p.data = p.data.to(torch.float32 if any(s in k for s in keep_float32) else dtype)
        self.n = 0
        if self.path.exists():
            self._resume()

    def _publish(self, weights: dict[str, torch.Tensor]) -> None:
        for k, p in self.parameters.items():
            part = self.view(p.data)
            part.copy_(weights[k].view(part.shape))

    def _states(self) -> dict[str, dict[str, torch.Tensor]]:
        return {k: next(o.state[m] for o in self.optimizers if m in o.state) for k, m in self.masters.items()}

    def _resume(self) -> None:
        with safe_open(self.path, "pt") as file:
            self.n = int(file.metadata()["step"])
            stored = {name: file.get_tensor(name) for name in file.keys()}
        for k, m in self.masters.items():
            m.copy_(stored[f"master.{k}"])
            self.ema[k].copy_(stored[f"ema.{k}"])
            optimizer = next(
                o for o in self.optimizers if any(m is p for group in o.param_groups for p in group["params"])
            )
            names = ("exp_avg", "exp_avg_sq", "step", "momentum_buffer")
            optimizer.state[m] = {
                s: stored[f"{s}.{k}"].to(m.device) if s != "step" else stored[f"{s}.{k}"]
                for s in names
                if f"{s}.{k}" in stored
            }
        self._publish(self.masters)
        log.info("%s: resumed at step %d of %d", self.name, self.n, self.steps)

    def save(self) -> None:
        state = {f"master.{k}": m for k, m in self.masters.items()} | {f"ema.{k}": m for k, m in self.ema.items()}
        for k, values in self._states().items():
            state |= {f"{s}.{k}": v for s, v in values.items() if torch.is_tensor(v)}
        part = self.path.with_suffix(".part")
        save_file({k: v.detach().contiguous().cpu() for k, v in state.items()}, part, {"step": str(self.n)})
        os.replace(part, self.path)

    def _rate(self) -> float:
        """Linear warm-up, constant, then a straight line down to ``final`` from ``decay_from`` of the run on."""
        progress = max(0.0, self.n / self.steps - self.decay_from) / (1 - self.decay_from)
        return self.lr * min((self.n + 1) / self.warmup, 1 - (1 - self.final) * progress)

    def _update(self) -> None:
        for k, p in self.parameters.items():
            m = self.masters[k]
            m.grad = None if p.grad is None else self.view(p.grad).float().reshape(m.shape)
            p.grad = None
        norm = torch.nn.utils.clip_grad_norm_(list(self.masters.values()), self.clip)
        if not math.isfinite(norm):
            log.warning("%s: the gradient of step %d is not finite; the step is skipped", self.name, self.n)
            return
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._rate()
            optimizer.step()
        if self.n % EMA_EVERY == 0:
            decay = min(self.ema_decay, (1 + self.n) / (40 + self.n))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.ema.values()), list(self.masters.values()), 1 - decay)
        self._publish(self.masters)

    def run(self, step: Callable, log_every: int = 50) -> None:
        """Trains to the end; afterwards the model holds the EMA weights."""
        started = saved = time.time()
        sums: dict[str, float] = {}
        count = 0
        while self.n < self.steps:
            losses = step(self.model, self.n)
            losses["loss"].backward()
            self._update()
            self.n += 1
            count += 1
            for k, v in losses.items():
                sums[k] = sums.get(k, 0.0) + float(v.detach())
            if self.n % log_every == 0 or self.n == self.steps:
                row = {
                    "step": self.n,
                    **{k: round(v / count, 5) for k, v in sums.items()},
                    "seconds": round(time.time() - started, 1),
                }
                log.info("%s %s", self.name, json.dumps(row))
                with self.curve.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                sums, count = {}, 0
            if time.time() - saved > self.save_every or self.n == self.steps:
                self.save()
                saved = time.time()
        self._publish(self.ema)
