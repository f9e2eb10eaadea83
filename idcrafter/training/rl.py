"""Reinforcement learning on rollouts: the step that a Trainer runs for each method, and the training around it.

A policy (`policy.LoraPolicy`, or anything that has its methods) predicts velocities as it is trained, as it was when it
made the takes (old), and without its LoRA (reference). Methods on noised takes look at one pass of the prompt, without
guidance; methods on recorded random steps at the guided velocity, as it was sampled. These compute the old
log-probability by the same code as the new one, so that the ratio is exactly 1 before the first update, whatever
sampled the takes; how far it is from the recorded one is watched ("mismatch").
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..rollouts.dataset import Group, Rollouts
from ..rollouts.digests import digest
from .curves import draw_curves, read_curve
from .loop import Trainer
from .monitor import Monitor, Stopped, Watch, require_unused
from .objectives import grpo, identity_grpo, ipro
from .objectives.crd import crd_loss
from .objectives.dpo import dpo_loss
from .objectives.nft import nft_loss
from .objectives.rwr import rwr_loss
from .objectives.weighting import velocity_gap
from .processes import ALONE, Processes
from .rl_settings import Settings
from .rollout_batches import (
    FRESH,
    STEPS,
    CleanBatch,
    FreshBatch,
    FreshTakes,
    RolloutBatches,
    StepBatch,
    WeightsOf,
    require_one_policy,
)

log = logging.getLogger("idcrafter.training")
NAME = "rl"
_ROWS = 400
# policy, clips [B, C, T, h, w] in the model's space, their group -> [B] with a gradient
Reward = Callable[[Any, torch.Tensor, Group], torch.Tensor]
# How often the curve is drawn.
_PICTURES = 20
_GRID = 1025


@dataclass(frozen=True)
class Result:
    """How a training ended.

    steps    that were made;  stopped: whether the monitor ended it
    best     {"step", "value"} of the monitor whose weights the policy now has; None without one: the last average
    curve    rows of the curve
    """

    steps: int
    stopped: bool
    best: dict | None
    curve: list[dict]


class RLStep:
    """Draws, predicts and compares: `step(policy, n)` for a Trainer.

    Micro-batches are computed one after the other; all but the last have gone backward when it returns, so that memory
    is needed for one. All numbers are means over the takes (pairs) of the step.
    """

    def __init__(
        self,
        batches: RolloutBatches | FreshTakes,
        settings: Settings,
        noising,
        part: tuple[int, int] = (0, 1),
        reward: Reward | None = None,
    ):
        self.batches, self.settings, self.part, self.reward = batches, settings, part, reward
        self.noising, self.range = noising, _range(noising, settings)

    def __call__(self, policy, n: int) -> dict[str, torch.Tensor]:
        settings = self.settings
        drawn = self.batches.draw(n, settings.spec.draws, self.part)
        shares = _step_weights(drawn, settings)
        totals: dict[str, torch.Tensor] = {}
        rows = 0
        for i, (batch, share) in enumerate(zip(drawn, shares, strict=True)):
            found = self.losses(policy, batch)
            # Every group counts alike, however many takes of it there are.
            loss = found.pop("loss").mean() * (share / len(drawn))
            if i + 1 < len(drawn):
                loss.backward()
                loss = loss.detach()
            count = len(next(iter(found.values())))
            for name, values in found.items():
                totals[name] = totals.get(name, 0.0) + values.detach().float().sum()
            totals["loss"] = totals.get("loss", 0.0) + loss
            rows += count
        return {name: value if name == "loss" else value / rows for name, value in totals.items()}

    def losses(self, policy, batch: CleanBatch | StepBatch | FreshBatch) -> dict[str, torch.Tensor]:
        """[B] (pairs: [B / 2]) each: "loss", and what the method watches."""
        kinds = {STEPS: self._of_steps, FRESH: self._of_fresh}
        return kinds.get(self.settings.spec.draws, self._of_takes)(policy, batch)

    def _of_takes(self, policy, batch: CleanBatch) -> dict[str, torch.Tensor]:
        settings, noising, device = self.settings, self.noising, policy.device
        beta, kl = settings.number("beta"), settings.number("kl")
        clean, noise = policy.to_model(batch.x0.to(device)), batch.noise.to(device)
        low, high = self.range
        sigma = noising.levels(low + batch.place * (high - low), noising.shift)
        share = noising.coefficients(sigma)[1]
        advantages = batch.advantages(share).to(device)
        sigma, share = sigma.to(device), share.to(device)
        noisy, target = noising.noised(clean, noise, sigma), noising.target(clean, noise, sigma)
        weights = None if batch.weights is None else batch.weights.to(device)
        velocity = policy.velocity(noisy, sigma, batch.group)
        method = settings.method
        old = None if method == "rwr" else policy.old_velocity(noisy, sigma, batch.group)
        if method == "nft":
            found = nft_loss(velocity, old, target, share, advantages, beta=beta, weights=weights)
        elif method == "crd":
            found = crd_loss(velocity, old, target, advantages, beta=beta, weights=weights)
        elif method == "dpo":
            found = dpo_loss(velocity, old, target, beta=beta, weights=weights)
        else:
            found = rwr_loss(velocity, target, advantages, temperature=beta, weights=weights)
        if kl:
            known = old if old is not None and policy.old_is_reference else None
            reference = policy.reference_velocity(noisy, sigma, batch.group) if known is None else known
            gap = velocity_gap(velocity, reference, weights)
            # A pair's two distances count as one pair.
            gap = gap.view(-1, len(found["loss"])).mean(0)
            found = {**found, "loss": found["loss"] + kl * gap, "kl": gap.detach()}
        return found

    def _of_steps(self, policy, batch: StepBatch) -> dict[str, torch.Tensor]:
        settings, device, step = self.settings, policy.device, batch.step
        clip, kl = settings.number("clip"), settings.number("kl")
        x, x_next = batch.x.to(device), batch.x_next.to(device)
        advantages = batch.totals.to(device)
        weights = None if batch.weights is None else batch.weights.to(device)
        sigma = torch.full((len(x),), batch.sigma, device=device, dtype=torch.float32)

        def centre(velocity: torch.Tensor) -> torch.Tensor:
            return step.mean(x.double(), velocity.double())

        def log_prob(mean: torch.Tensor) -> torch.Tensor:
            return grpo.step_log_prob(batch.kind, x_next, mean, step.std, weights)

        old_mean = centre(policy.old_velocity(x, sigma, batch.group, guided=True))
        mean = centre(policy.velocity(x, sigma, batch.group, guided=True))
        log_probs, old_log_probs = log_prob(mean), log_prob(old_mean)
        reference = None
        if kl:
            reference = old_mean
            if not policy.old_is_reference:
                reference = centre(policy.reference_velocity(x, sigma, batch.group, guided=True))
        method = settings.method
        if method == "identity_grpo":
            found = identity_grpo.identity_grpo_loss(
                log_probs, old_log_probs, mean, old_mean if reference is None else reference, step.std, advantages,
                clip=clip, kl=kl,
            )  # fmt: skip
        elif method == "grpo_guard":
            found = grpo.guard_loss(
                batch.kind, log_probs, old_log_probs, mean, old_mean, step.std, batch.dt, advantages,
                clip=clip, weights=weights,
            )  # fmt: skip
        else:
            found = grpo.grpo_loss(log_probs, old_log_probs, advantages, clip=clip)
        if reference is not None and method != "identity_grpo":
            gap = grpo.mean_gap(mean, reference, step.std, weights)
            found = {**found, "loss": found["loss"] + kl * gap, "kl": gap.detach()}
        recorded = grpo.step_log_prob(batch.kind, x_next, old_mean, step.std) - batch.log_probs.to(device)
        return {**found, "mismatch": recorded.abs()}

    def _of_fresh(self, policy, batch: FreshBatch) -> dict[str, torch.Tensor]:
        group, noising, device = batch.group, self.noising, policy.device
        sigmas = group.sigmas().to(device)
        noise = batch.noise.to(device)

        def step(x: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
            return noising.stepped(x, noising.clip(x, velocity.to(x), sigma[None]), sigma, lower)

        return ipro.ipro_loss(
            lambda x, sigma: policy.velocity(x, sigma, group, guided=True),
            lambda x, sigma: policy.reference_velocity(x, sigma, group, guided=True),
            noising.noised(torch.zeros_like(noise), noise, sigmas[:1]),
            sigmas,
            lambda clips: self.reward(policy, clips, group),
            last=min(ipro.LAST, len(sigmas) - 1),
            kl=self.settings.number("kl"),
            step=step,
        )


def train_rl(
    policy,
    rollouts: Rollouts,
    work: Path,
    settings: Settings,
    *,
    weights_of: WeightsOf | None = None,
    reward: Reward | None = None,
    monitor: Monitor | None = None,
    made_by: str | None = None,
    facts: Mapping[str, str] | None = None,
    look: tuple[int, Callable[[Any, int], None]] | None = None,
    resume: bool = True,
    processes: Processes = ALONE,
    on_progress: Callable[[int, str], None] | None = None,
) -> Result:
    """Train the policy's parameters; `work` gets state, curve and monitor.

    weights_of   how much each place of a take counts, see `rollout_batches`
    reward       of new takes, for IPRO
    monitor      measured while it trains; ends it, and says which weights are kept
    made_by      hash of the MODEL's policy, which must be that of the rollouts
    facts        what the training depends on besides, such as the LoRA's rank
    look         (steps between them, what is then done with the averaged policy and the step), such as making videos
    resume       go on where a training with the same settings and rollouts stopped
    on_progress  called with (steps done, what is going on) after every step; what it raises ends the training, after
                 its state is saved
    Everything that is drawn depends on the seed and the step. Raises ValueError for rollouts or settings that do not
    fit, and whatever the policy raises.
    """
    # Nodes run in inference mode, in which nothing has a gradient.
    with torch.inference_mode(False), torch.enable_grad():
        require_one_policy(rollouts, made_by)
        if monitor is not None:
            require_unused(monitor.name, rollouts)
        if settings.method == "identity_grpo":
            _tell_departures(rollouts)
        if settings.spec.draws == FRESH:
            batches = FreshTakes(rollouts, settings.plan())
        else:
            batches = RolloutBatches(rollouts, settings.plan(), weights_of)
        step = RLStep(batches, settings, policy.noising, processes.part, reward)
        if not resume and processes.rank == 0:
            (work / f"{NAME}.state.safetensors").unlink(missing_ok=True)
        processes.wait()
        trainer = Trainer(
            policy,
            work,
            NAME,
            settings.steps,
            settings.number("rate"),
            warmup=max(1, min(20, settings.steps // 10)),
            final=1.0,
            weight_decay=settings.weight_decay,
            clip=settings.clip_norm,
            ema=settings.ema,
            dtype=torch.float32,
            optimizer="adamw",
            facts={
                **settings.facts(),
                **(facts or {}),
                "data": data_digest(batches),
                "processes": str(processes.count),
            },
            average=processes.average_ if processes.count > 1 else None,
            writes=processes.rank == 0,
        )
        watch = None if monitor is None else Watch(monitor, trainer)
        every, drawn = (max(1, -(-settings.steps // count)) for count in (_ROWS, _PICTURES))

        def run_step(policy, n: int) -> dict[str, torch.Tensor]:
            if settings.old == "average":
                policy.follow(trainer.ema)
            return step(policy, n)

        def after(trainer: Trainer) -> None:
            if on_progress is not None:
                on_progress(trainer.n, f"step {trainer.n} of {settings.steps} ({settings.spec.title})")
            if trainer.writes and (trainer.n % drawn == 0 or trainer.n == settings.steps):
                draw_curves(read_curve(trainer.curve), settings.steps).save(trainer.curve.with_suffix(".png"))
            if look is not None and (trainer.n % look[0] == 0 or trainer.n == settings.steps):
                with trainer.averaged(), torch.no_grad():
                    look[1](policy, trainer.n)
            if watch is not None:
                watch.look()

        stopped = False
        try:
            if watch is not None:
                watch.look()
            trainer.run(run_step, every, after)
        except Stopped:
            stopped = True
            log.info("%s has not risen for %d evaluations; stopped.", monitor.name, monitor.patience)
        best = None if watch is None else watch.best
        if best is not None:
            watch.restore_best()
        return Result(trainer.n, stopped, best, read_curve(trainer.curve) if trainer.curve.exists() else [])


def data_digest(batches: RolloutBatches | FreshTakes) -> str:
    """Of which takes, with which rewards, are trained on."""
    return digest([[g.name, [[t.seed, t.total, t.rewards] for t in g.takes]] for g in batches.groups])


def licences(rollouts: Rollouts) -> str:
    """Of all that made the pixels, for the trained file's metadata."""
    found = {
        entry["licence"]
        for group in rollouts.groups
        for entry in group.facts["licences"]
        if entry.get("made_pixels", True) and entry.get("licence")
    }
    return "; ".join(sorted(found))


def _tell_departures(rollouts: Rollouts) -> None:
    found = dict.fromkeys(
        each for group in rollouts.groups for each in identity_grpo.departures(group.facts, len(group.takes))
    )
    if found:
        log.info("The rollouts were not collected as Identity-GRPO collects them: %s.", "; ".join(found))


def _step_weights(drawn: Sequence[CleanBatch | StepBatch], settings: Settings) -> list[float]:
    """How much each micro-batch counts; they average to 1."""
    if settings.method != "flash_grpo":
        return [1.0] * len(drawn)
    found = [grpo.flash_weight(batch.step) for batch in drawn]
    return [each / (sum(found) / len(found)) for each in found]


def _range(noising, settings: Settings) -> tuple[float, float]:
    """Which part of 0..1 has the noise that is trained on; all of it where nothing limits it."""
    low, high = settings.low, settings.high
    if settings.shares:
        low = max(low, min(share.low for share in settings.shares))
        high = min(high, max(share.high for share in settings.shares))
    if (low, high) == (0.0, 1.0):
        return 0.0, 1.0
    u = torch.linspace(0, 1, _GRID)
    share = noising.coefficients(noising.levels(u, noising.shift))[1]
    inside = u[(share >= low) & (share <= high)]
    if len(inside) < 2:
        raise ValueError(f"The model has no noise levels between {low:g} and {high:g} of noise; widen the range.")
    return float(inside[0]), float(inside[-1])
