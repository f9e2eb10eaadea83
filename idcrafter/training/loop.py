"""The training loop that all recipes share: bf16 weights with float32 masters, Muon and AdamW, EMA, a schedule,
seeded steps, resuming.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

log = logging.getLogger("idcrafter.training")
EMA_EVERY = 4
OPTIMIZERS = ("muon", "adamw")
# What an optimiser may keep of a parameter.
_STATES = ("exp_avg", "exp_avg_sq", "step", "momentum_buffer")


class Trainer:
    """Runs ``losses = step(model, n)`` for n = 0.. ``steps`` - 1, minimises ``losses["loss"]`` and keeps all that is
    needed to go on after a stop.

    Matrices and convolutions are trained by Muon (``torch.optim.Muon``, convolutions as [out, in * kernel] matrices),
    which needs a fraction of AdamW's steps on these small nets; vectors, and parameters whose name contains one of
    ``adam``, by AdamW. The model computes in ``dtype`` (parameters named in ``keep_float32`` excepted), the
    optimisers work on float32 masters. ``view`` picks the part of a parameter that is trained, for instance one
    temporal tap of a convolution. A parameter without a gradient in a step is left as it is, so ``step`` may freeze
    parts by ``requires_grad``.

    The state of a run is one safetensors file, ``<folder>/<name>.state.safetensors``, written every ``save_every``
    seconds by an atomic rename. ``step`` must draw all its randomness from ``n``, so a resumed run sees the data that
    it would have seen.

    optimizer  "muon", or "adamw" for everything, as torch older than 2.9 needs it
    facts      what the run depends on besides; a state with others is refused
    average    of a gradient, in place, over the processes that train together; None for one process
    writes     whether this process writes the files
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
        optimizer: str = OPTIMIZERS[0],
        facts: Mapping[str, str] | None = None,
        average: Callable[[torch.Tensor], None] | None = None,
        writes: bool = True,
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
        self.facts, self.average, self.writes = dict(facts or {}), average, writes
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
        self.optimizers = self._optimizers(optimizer, matrix, weight_decay)
        for k, p in self.parameters.items():
            p.data = p.data.to(torch.float32 if any(s in k for s in keep_float32) else dtype)
        self.n = 0
        if self.path.exists():
            self._resume()
        elif writes:
            self.curve.unlink(missing_ok=True)

    def _optimizers(self, kind: str, matrix: set[str], weight_decay: float) -> list[torch.optim.Optimizer]:
        if kind not in OPTIMIZERS:
            raise ValueError(f"The optimizer '{kind}' is unknown; choose one of {', '.join(OPTIMIZERS)}.")
        if kind == "muon" and matrix and not hasattr(torch.optim, "Muon"):
            raise RuntimeError(
                f"The optimizer muon needs torch 2.9 or newer; this is torch {torch.__version__}. Update torch, or "
                "choose adamw."
            )
        by_muon = matrix if kind == "muon" else set()
        others = {"params": [m for k, m in self.masters.items() if k not in matrix], "weight_decay": 0.0}
        decayed = {"params": [self.masters[k] for k in sorted(matrix - by_muon)], "weight_decay": weight_decay}
        groups = [group for group in (others, decayed) if group["params"]]
        found = [torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.98))] if groups else []
        if by_muon:
            masters = [self.masters[k] for k in sorted(by_muon)]
            found.append(
                torch.optim.Muon(masters, lr=self.lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        return found

    def _publish(self, weights: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for k, p in self.parameters.items():
                part = self.view(p.data)
                part.copy_(weights[k].view(part.shape))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its EMA weights, while the block lasts."""
        self._publish(self.ema)
        try:
            yield
        finally:
            self._publish(self.masters)

    def _states(self) -> dict[str, dict[str, torch.Tensor]]:
        """What the optimisers keep of each parameter; nothing of one that never had a gradient."""
        return {k: next((o.state[m] for o in self.optimizers if m in o.state), {}) for k, m in self.masters.items()}

    def _resume(self) -> None:
        with safe_open(self.path, "pt") as file:
            metadata = file.metadata()
            self._require_same(json.loads(metadata.get("facts", "{}")))
            self.n = int(metadata["step"])
            stored = {name: file.get_tensor(name) for name in file.keys()}
        for k, m in self.masters.items():
            m.copy_(stored[f"master.{k}"])
            self.ema[k].copy_(stored[f"ema.{k}"])
            optimizer = next(
                o for o in self.optimizers if any(m is p for group in o.param_groups for p in group["params"])
            )
            # Not made where there is nothing: an optimiser takes an empty one for a full one.
            found = {s: stored[f"{s}.{k}"] for s in _STATES if f"{s}.{k}" in stored}
            if found:
                optimizer.state[m] = {s: v if s == "step" else v.to(m.device) for s, v in found.items()}
        self._publish(self.masters)
        if self.writes and self.curve.exists():
            # What came after the last save is trained, and written, once more.
            rows = self.curve.read_text("utf-8").splitlines()
            kept = [row for row in rows if json.loads(row)["step"] <= self.n]
            self.curve.write_text("".join(row + "\n" for row in kept), "utf-8")
        log.info("%s: resumed at step %d of %d", self.name, self.n, self.steps)

    def _require_same(self, found: dict[str, str]) -> None:
        other = sorted(k for k in found.keys() | self.facts.keys() if found.get(k) != self.facts.get(k))
        if other:
            what = ", ".join(f"{k} ({found.get(k, 'none')} then, {self.facts.get(k, 'none')} now)" for k in other)
            raise ValueError(
                f"'{self.path}' is the state of another training: {what}. Use the same settings to go on, or another "
                "folder or no resuming to begin anew."
            )

    def save(self) -> None:
        if not self.writes:
            return
        state = {f"master.{k}": m for k, m in self.masters.items()} | {f"ema.{k}": m for k, m in self.ema.items()}
        for k, values in self._states().items():
            state |= {f"{s}.{k}": v for s, v in values.items() if torch.is_tensor(v)}
        part = self.path.with_suffix(".part")
        metadata = {"step": str(self.n), "facts": json.dumps(self.facts)}
        save_file({k: v.detach().contiguous().cpu() for k, v in state.items()}, part, metadata)
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
            if self.average is not None and p.requires_grad:
                # Each process must ask for the same ones.
                m.grad = torch.zeros_like(m) if m.grad is None else m.grad.contiguous()
                self.average(m.grad)
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

    def run(self, step: Callable, log_every: int = 50, on_step: Callable[[Trainer], None] | None = None) -> None:
        """Trains to the end; afterwards the model holds the EMA weights.

        on_step  called after each step, for progress, validation and interruption: what it raises ends the run, after
                 its state has been saved
        """
        started = saved = time.time()
        sums: dict[str, list[float]] = {}
        while self.n < self.steps:
            losses = step(self.model, self.n)
            losses["loss"].backward()
            self._update()
            self.n += 1
            for k, v in losses.items():
                sums.setdefault(k, []).append(float(v.detach()))
            if self.n % log_every == 0 or self.n == self.steps:
                row = {
                    "step": self.n,
                    **{k: round(sum(v) / len(v), 5) for k, v in sums.items()},
                    "seconds": round(time.time() - started, 1),
                }
                log.info("%s %s", self.name, json.dumps(row))
                if self.writes:
                    with self.curve.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                sums = {}
            if time.time() - saved > self.save_every or self.n == self.steps:
                self.save()
                saved = time.time()
            if on_step is not None:
                try:
                    on_step(self)
                except BaseException:
                    self.save()
                    raise
        self._publish(self.ema)
