"""Several rewards of several clips -> one number a clip. Pure functions over arrays.

A *group* is the clips that were made from the same prompt and references: only they compare with each other.

    weighted sum   R = sum_k w_k v_k
    GRPO           A = (R - mean of its group) / (std of its group + 1e-4)
                   Flow-GRPO: yifan123/flow_grpo, flow_grpo/stat_tracking.py; its option global_std divides by the
                   std of the whole batch
    max-group-std  the same, divided by the largest std of any group, so that a group whose clips hardly differ does
                   not blow its noise up to the size of real differences (LongCat-Video, 2510.22200;
                   ModelTC/GenRL, genrl/stat_tracking.py), for each reward by itself, then weighted and summed
    GDPO           each reward normalised within its group, weighted, summed, then normalised over the batch, with
                   max(std, 1e-6) (X-GenGroup/Flow-Factory, advantage/advantage_processor.py), so that a reward does
                   not outweigh the others by the size of its numbers
    gate           f = product over gates of min(1, max(0, v_gate) / floor); what speaks for a clip is multiplied by
                   it, what speaks against it stays (this project's own; DivRL's gate is a quadratic penalty instead).
                   A judge's logit, which has no zero point, counts from the lowest of its group

All standard deviations are of the population (ddof 0), as in the sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .terms import RewardSpec

COMBINATIONS = ("sum", "gdpo", "max_group_std")
SPREADS = ("group", "batch", "max_group")
EPSILON = 1e-4
GDPO_EPSILON = 1e-6
SAME = 1e-6


def combine(values: Mapping[str, np.ndarray], spec: RewardSpec, groups: Sequence | None = None) -> np.ndarray:
    """One number a clip, by the rule that `spec` names.

    values  term name (`spec.names`) -> [G] raw values
    groups  [G] a label each; None = all clips are one group
    Returns [G] float64: rewards in their own unit for "sum", otherwise advantages around 0.
    Raises ValueError for missing terms, lengths that differ, or values that are not finite (naming term and take).
    """
    checked = {name: _checked(values, name) for name in spec.names}
    lengths = {len(column) for column in checked.values()}
    if len(lengths) != 1:
        raise ValueError(f"Every reward term needs one value a clip; got {sorted(lengths)} of them.")
    labels = _labels(groups, lengths.pop())
    weights = {name: term.weight for name, term in zip(spec.names, spec.terms, strict=True) if term.weight}
    if not weights:
        raise ValueError("Every term of the reward has weight 0, so all clips would be equal; give one a weight.")
    factor = gate_factor(checked, spec.gates)
    # A term counts in the direction of its weight's sign, so that a gate never makes a bad clip better.
    merits = {name: np.sign(weight) * checked[name] for name, weight in weights.items()}
    if spec.gates:
        # Without a zero point nothing speaks for or against a clip, only for it more or less than for the others.
        merits |= {name: merits[name] - _lowest(merits[name], labels) for name in spec.without_zero & set(merits)}
    merits = {name: np.where(merit > 0, merit * factor, merit) for name, merit in merits.items()}
    sizes = {name: abs(weight) for name, weight in weights.items()}
    if spec.combine == "sum":
        return sum(size * merits[name] for name, size in sizes.items())
    merits = {name: without_rounding(merit, labels) for name, merit in merits.items()}
    if spec.combine == "gdpo":
        return gdpo_advantages(merits, sizes, labels)
    return sum(size * group_advantages(merits[name], labels, "max_group") for name, size in sizes.items())


def gate_factor(values: Mapping[str, np.ndarray], gates: Sequence[tuple[str, float]]) -> np.ndarray:
    """[G] the module's f in 0..1 of (term name, floor) pairs; 1 where every gated value reaches its floor."""
    factor = np.ones(len(next(iter(values.values()))))
    for name, floor in gates:
        if not floor > 0:
            raise ValueError(f"The floor of reward term '{name}' is {floor}; a gate needs a floor above 0.")
        factor = factor * np.clip(values[name] / floor, 0.0, 1.0)
    return factor


def without_rounding(values: np.ndarray, groups: Sequence) -> np.ndarray:
    """[N] the same, but all equal in a group where they differ by no more than float32 can tell apart.

    GDPO divides twice by a spread, so that takes that are the same but for the last digit would get advantages of 1.
    """
    values = np.array(values, np.float64)
    labels = _labels(groups, len(values))
    for label in np.unique(labels):
        own = values[labels == label]
        if np.ptp(own) <= SAME * np.abs(own).max():
            values[labels == label] = own.min()
    return values


def group_advantages(rewards: np.ndarray, groups: Sequence, spread: str = "group") -> np.ndarray:
    """(reward - mean of its group) / (spread + 1e-4): [N] rewards and labels -> [N].

    spread  std of: "group" the clip's own group, "batch" all rewards, "max_group" the group where it is largest
    """
    if spread not in SPREADS:
        raise ValueError(f"The spread is one of {', '.join(SPREADS)}, got '{spread}'.")
    rewards = np.asarray(rewards, np.float64)
    labels = _labels(groups, len(rewards))
    centred, stds = np.empty_like(rewards), np.empty_like(rewards)
    for label in np.unique(labels):
        own = labels == label
        centred[own] = rewards[own] - rewards[own].mean()
        stds[own] = rewards[own].std()
    scale = {"group": stds, "batch": rewards.std(), "max_group": stds.max(initial=0.0)}[spread]
    return centred / (scale + EPSILON)


def gdpo_advantages(values: Mapping[str, np.ndarray], weights: Mapping[str, float], groups: Sequence) -> np.ndarray:
    """GDPO of rewards by name, each [N], with a weight each: [N] of mean 0 and std 1 over the batch, or all 0."""
    total = 0.0
    for name, column in values.items():
        column = np.asarray(column, np.float64)
        labels = _labels(groups, len(column))
        normal = np.empty_like(column)
        for label in np.unique(labels):
            own = labels == label
            normal[own] = (column[own] - column[own].mean()) / max(column[own].std(), GDPO_EPSILON)
        total = total + weights[name] * normal
    return (total - total.mean()) / max(total.std(), GDPO_EPSILON)


def _lowest(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[N] the lowest value of each one's group."""
    lowest = np.empty_like(values)
    for label in np.unique(labels):
        lowest[labels == label] = values[labels == label].min()
    return lowest


def _labels(groups: Sequence | None, count: int) -> np.ndarray:
    """[count] integers, equal where the labels are."""
    if groups is None:
        return np.zeros(count, np.int64)
    if len(groups) != count:
        raise ValueError(f"There are {count} rewards but {len(groups)} group labels; each clip needs one.")
    return np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)


def _checked(values: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in values:
        raise ValueError(f"The reward term '{name}' was not measured; measured: {', '.join(values) or 'nothing'}.")
    column = np.asarray(values[name], np.float64).reshape(-1)
    wrong = np.flatnonzero(~np.isfinite(column))
    if len(wrong):
        raise ValueError(
            f"The reward term '{name}' is {column[wrong[0]]} for take {wrong[0]} (the first is 0); the take or the "
            "model that measured it is damaged."
        )
    return column
