"""Loaded rollouts -> what a step of reinforcement learning sees. What is drawn depends on the seed and the step alone.

A step has several micro-batches, each of takes of one group, because these share conditioning and size. Groups come in
an order that is shuffled anew each time all have been seen. Noise levels are stratified: the N takes of a step get one
level from each N-th of the range, so that no step is all early or all late.

A reward may count at some noise levels only: who somebody is shows at low ones, where people are at high ones (the
weights over time of Customized-GRPO, arXiv 2510.18263, as a window). Then a take's advantage depends on its level.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..rollouts.advantages import CLAMP, METHODS, OF_TERMS, extremes
from ..rollouts.dataset import Group, Rollouts
from ..sampling.sde.steps import Transition, transition
from .objectives.identity_grpo import trained_steps

log = logging.getLogger("idcrafter.training")
PAIRS = "pairs"
TAKES = "takes"
STEPS = "steps"
FRESH = "fresh"
# (group, index of the take) -> [1, T, h, w], or None for all the same
WeightsOf = Callable[[Group, int], torch.Tensor | None]


@dataclass(frozen=True)
class Share:
    """A reward of its own weight that counts where the share of noise is between `low` and `high`, 0..1."""

    reward: str
    weight: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(
                f"The reward '{self.reward}' is to count from noise {self.low:g} to {self.high:g}, no range in 0..1."
            )


@dataclass(frozen=True)
class Plan:
    """What is drawn.

    groups, takes  a step and process: so many micro-batches of so many takes (of pairs: `takes` must be even)
    advantage      one of rollouts.advantages.METHODS, of the takes' totals; weights: for the methods of OF_TERMS
    shares         rewards with their noise levels, each normalised within its group; then `advantage` is not used
    best, worst    of each group only so many (DanceGRPO's best of n); 0 and 0 for all
    low, high      noise levels that are trained on, as shares of noise in 0..1
    permute        advantages of a group change places: a control that must not learn anything
    first_steps_only  of the random steps those that Identity-GRPO trains on, and all places alike, as it does
    """

    groups: int = 1
    takes: int = 8
    advantage: str = "grpo"
    weights: dict[str, float] | None = None
    shares: tuple[Share, ...] = ()
    best: int = 0
    worst: int = 0
    low: float = 0.0
    high: float = 1.0
    permute: bool = False
    first_steps_only: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.advantage not in METHODS:
            raise ValueError(f"The advantage is one of {', '.join(METHODS)}; got '{self.advantage}'.")
        if self.groups < 1 or self.takes < 1:
            raise ValueError(
                f"{self.groups} groups of {self.takes} takes a step train nothing; use at least 1 of each."
            )
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"Noise from {self.low:g} to {self.high:g} is no range in 0..1.")


@dataclass(frozen=True, eq=False)
class CleanBatch:
    """B takes of a group, to be noised.

    x0          [B, C, T, h, w] float32 in the VAE's space
    noise       like x0
    place       [B] where in the range of noise levels, 0..1
    totals      [B] advantages; `terms`: [B] each with its Share, where rewards have noise levels of their own
    weights     [B, 1, T, h, w], how much each place counts; None for all the same
    """

    group: Group
    x0: torch.Tensor
    noise: torch.Tensor
    place: torch.Tensor
    totals: torch.Tensor
    terms: tuple[tuple[Share, torch.Tensor], ...] = ()
    weights: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.x0)

    def advantages(self, share_of_noise: torch.Tensor) -> torch.Tensor:
        """[B] at these shares of noise [B]."""
        if not self.terms:
            return self.totals
        found = torch.zeros_like(self.totals)
        for share, column in self.terms:
            here = (share_of_noise >= share.low) & (share_of_noise <= share.high)
            found = found + share.weight * column * here.to(column)
        return found.clamp(-CLAMP, CLAMP)


@dataclass(frozen=True, eq=False)
class StepBatch:
    """One recorded random step of B takes of a group.

    x, x_next   [B, C, T, h, w] float32, in the model's space
    kind, sigma, dt, step  of the step, which all takes have in common; dt < 0
    log_probs   [B] float64, as the sampler recorded them
    totals      [B] advantages;  weights  as in CleanBatch
    """

    group: Group
    x: torch.Tensor
    x_next: torch.Tensor
    kind: str
    sigma: float
    dt: float
    step: Transition
    log_probs: torch.Tensor
    totals: torch.Tensor
    weights: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, eq=False)
class FreshBatch:
    """B takes of a group that are still to be sampled: their noise [B, C, T, h, w]."""

    group: Group
    noise: torch.Tensor

    def __len__(self) -> int:
        return len(self.noise)


class RolloutBatches:
    """See the module.

    weights_of  how much each place of a take counts; where it gives None, leading references count nothing
    Raises ValueError when nothing is left to train on, or takes of several policies are.
    """

    def __init__(self, rollouts: Rollouts, plan: Plan, weights_of: WeightsOf | None = None):
        self.rollouts, self.plan, self.weights_of = rollouts, plan, weights_of
        require_one_policy(rollouts)
        columns = _advantages(rollouts, plan)
        self.groups, self._totals, self._terms, self._taken = [], [], [], []
        for i, group in enumerate(rollouts.groups):
            own = [column[i] for column in columns]
            if plan.permute:
                order = _rng(plan.seed, "permute", group.name).permutation(len(group.takes))
                own = [column[order] for column in own]
            total = sum(s.weight * c for s, c in zip(plan.shares, own, strict=True)) if plan.shares else own[0]
            # Takes of no advantage only take time: upstream (Flow-GRPO, Identity-GRPO) drops them too.
            taken = np.flatnonzero(np.any([column != 0 for column in own], axis=0))
            if plan.best or plan.worst:
                taken = np.intersect1d(taken, extremes(total, np.zeros(len(total)), plan.best, plan.worst))
            if len(taken) < 2:
                log.warning("Group %s is left out: its takes have no advantage over each other.", group.name[:12])
                continue
            self.groups.append(group)
            self._totals.append(total)
            self._terms.append(own if plan.shares else [])
            self._taken.append(taken)
        if not self.groups:
            raise ValueError("No group of the rollouts has takes that differ in their rewards; collect others.")

    def draw(self, n: int, kind: str = TAKES, part: tuple[int, int] = (0, 1)) -> list[CleanBatch] | list[StepBatch]:
        """The micro-batches of step n.

        kind  TAKES; PAIRS: winners, then their losers, which share noise and level; or STEPS: recorded random steps
        part  (i, p): those of process i of p, which draw different groups
        """
        plan, (rank, count) = self.plan, part
        chosen = _order(plan.seed, n, plan.groups * count, len(self.groups))
        rng = _rng(plan.seed, "step", n)
        rows = [self._rows(i, kind, rng) for i in chosen]
        if kind == STEPS:
            picked = [int(rng.integers(1 << 30)) for _ in chosen]
            own = range(rank * plan.groups, (rank + 1) * plan.groups)
            return [self._steps(chosen[j], rows[j], picked[j]) for j in own]
        each = [len(r) // 2 if kind == PAIRS else len(r) for r in rows]
        total = sum(each)
        places = (rng.permutation(total) + rng.random(total)) / total
        starts = np.concatenate([[0], np.cumsum(each)])
        found = []
        for j in range(rank * plan.groups, (rank + 1) * plan.groups):
            place = torch.from_numpy(places[starts[j] : starts[j + 1]]).float()
            found.append(self._clean(chosen[j], rows[j], place, torch.Generator().manual_seed(_seed(plan.seed, n, j))))
        return found

    def _rows(self, i: int, kind: str, rng: np.random.Generator) -> np.ndarray:
        """Takes of group i."""
        taken, plan = self._taken[i], self.plan
        if kind != PAIRS:
            return rng.permutation(taken)[: plan.takes]
        # The best with the worst, the second best with the second worst, as far as they differ.
        order = taken[np.argsort(-self._totals[i][taken], kind="stable")]
        count = max(1, min(plan.takes // 2, len(order) // 2))
        winners, losers = order[:count], order[::-1][:count]
        differ = self._totals[i][winners] > self._totals[i][losers]
        if not differ.any():
            raise ValueError(f"The takes of group {self.groups[i].name[:12]} do not differ in all rewards together.")
        return np.concatenate([winners[differ], losers[differ]])

    def _clean(self, i: int, rows: np.ndarray, place: torch.Tensor, generator: torch.Generator) -> CleanBatch:
        group = self.groups[i]
        x0 = torch.stack([group.load(int(row))["x0"].float() for row in rows])
        noise = torch.randn((len(place), *x0.shape[1:]), generator=generator)
        repeat = len(rows) // len(place)
        terms = tuple(
            (share, _floats(column[rows])) for share, column in zip(self.plan.shares, self._terms[i], strict=False)
        )
        return CleanBatch(
            group,
            x0,
            noise.repeat(repeat, *[1] * (x0.ndim - 1)),
            place.repeat(repeat),
            _floats(self._totals[i][rows]),
            terms,
            self._weights(group, rows, x0.shape[2:]),
        )

    def _steps(self, i: int, rows: np.ndarray, picked: int) -> StepBatch:
        group = self.groups[i]
        facts = [group.takes[row].sde for row in rows]
        if any(fact is None for fact in facts):
            raise ValueError(
                f"Group {group.name[:12]} has takes without recorded random steps; this method needs takes that the "
                "SDE Sampler made with record on. Use NFT for others."
            )
        if any(fact != facts[0] for fact in facts):
            raise ValueError(f"The takes of group {group.name[:12]} have their random steps at different places.")
        kind, eta, steps = facts[0]["kind"], facts[0]["eta"], facts[0]["steps"]
        schedule = group.sigmas().tolist()
        if self.plan.first_steps_only:
            steps = [step for step in steps if step < trained_steps(len(schedule) - 1)]
            if not steps:
                raise ValueError(f"Group {group.name[:12]} has only random steps that this method does not train on.")
        index = picked % len(steps)
        place = steps[index]
        sigma, sigma_next = schedule[place], schedule[place + 1]
        loaded = [group.load(int(row), ("x_t", "x_next", "log_prob")) for row in rows]
        x, x_next = (torch.stack([each[name][index].float() for each in loaded]) for name in ("x_t", "x_next"))
        return StepBatch(
            group,
            x,
            x_next,
            kind,
            sigma,
            sigma_next - sigma,
            transition(kind, sigma, sigma_next, eta, schedule),
            torch.stack([each["log_prob"][index] for each in loaded]),
            _floats(self._totals[i][rows]),
            None if self.plan.first_steps_only else self._weights(group, rows, x.shape[2:]),
        )

    def _weights(self, group: Group, rows: Sequence[int], size: Sequence[int]) -> torch.Tensor | None:
        leading = group.facts["shot"].get("leading", 0)
        found = [self.weights_of(group, int(row)) if self.weights_of else None for row in rows]
        if not leading and all(each is None for each in found):
            return None
        plain = torch.ones(1, *size)
        plain[:, :leading] = 0
        return torch.stack([plain if each is None else each.float().expand(1, *size) for each in found])


class FreshTakes:
    """Noise for takes that are sampled while it trains, of the casts and prompts of rollouts, whatever their rewards.

    Raises ValueError where there are no groups, or groups of several policies.
    """

    def __init__(self, rollouts: Rollouts, plan: Plan):
        require_one_policy(rollouts)
        self.plan, self.groups = plan, list(rollouts.groups)

    def draw(self, n: int, kind: str = FRESH, part: tuple[int, int] = (0, 1)) -> list[FreshBatch]:
        """As of RolloutBatches; `kind` is FRESH."""
        plan, (rank, count) = self.plan, part
        chosen = _order(plan.seed, n, plan.groups * count, len(self.groups))
        found = []
        for j in range(rank * plan.groups, (rank + 1) * plan.groups):
            group = self.groups[chosen[j]]
            generator = torch.Generator().manual_seed(_seed(plan.seed, n, j))
            noise = torch.randn((plan.takes, *group.facts["shot"]["shape"]), generator=generator)
            found.append(FreshBatch(group, noise))
        return found


def _order(seed: int, n: int, count: int, total: int) -> list[int]:
    """Which of `total` groups step n has: the n-th stretch of a sequence of shuffled rounds."""
    found = []
    for position in range(n * count, (n + 1) * count):
        order = _rng(seed, "round", position // total).permutation(total)
        found.append(int(order[position % total]))
    return found


def require_one_policy(rollouts: Rollouts, policy: str | None = None) -> None:
    """ValueError unless there are groups, all of one policy: that of the MODEL, where its hash is given."""
    if not rollouts.groups:
        reasons = "; ".join(f"{each.what}: {each.reason}" for each in rollouts.skipped[:3])
        raise ValueError(f"There is no group to train on{f' ({reasons})' if reasons else ''}.")
    found = rollouts.policies
    if len(found) > 1:
        raise ValueError(
            f"The rollouts are of {len(found)} policies ({', '.join(each[:12] for each in found)}); choose one of them "
            "by its hash in Load Rollouts."
        )
    if policy is not None and found != (policy,):
        raise ValueError(
            f"The rollouts were made by the policy {found[0][:12]}, the MODEL is {policy[:12]}; connect the MODEL that "
            "made them, with the same patches."
        )


def token_weights(cover: torch.Tensor, background: float = 0.2, leading: int = 0) -> torch.Tensor:
    """[1, leading + T, h, w] float32 with mean 1 over the T frames: a subject's places count 1, others `background`.

    cover    [S, T, h, w] the share of each latent cell that each subject covers (`dataset.regions.subject_cover`, or
             masks averaged over cells)
    leading  latent frames of references before the video; they count nothing
    As ViPO (arXiv 2511.18719) allots an advantage over places, with masks for its features.
    """
    if not 0 <= background <= 1:
        raise ValueError(f"Places without a subject count between 0 and 1, not {background:g}.")
    weights = background + (1 - background) * cover.float().amax(0).clamp(0, 1)
    total = weights.mean()
    if not total > 0:
        raise ValueError("No subject is anywhere in the take, and its background counts nothing.")
    weights = weights / total
    return torch.cat([weights.new_zeros(leading, *weights.shape[1:]), weights])[None]


def _advantages(rollouts: Rollouts, plan: Plan) -> list[list[np.ndarray]]:
    """Columns of advantages a group: one of the totals, or one a share."""
    if plan.shares:
        return [rollouts.advantages("weighted", {share.reward: 1.0}) for share in plan.shares]
    return [rollouts.advantages(plan.advantage, plan.weights if plan.advantage in OF_TERMS else None)]


def _floats(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence([part % 2**32 for part in parts]).generate_state(1, np.uint64)[0] >> 1)


def _rng(seed: int, what: str, which: int | str) -> np.random.Generator:
    """Streams that have nothing to do with each other."""
    numbers = [seed % 2**32, *what.encode(), *(which.encode() if isinstance(which, str) else (1 << 20, which))]
    return np.random.default_rng(np.random.SeedSequence(numbers))
