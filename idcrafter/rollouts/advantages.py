"""Rewards -> advantages: how much better a take is than the others of its group. Computed at load, never stored.

    grpo            A = (R - mean of its group) / (std of its group + 1e-4)      Flow-GRPO
    identity_grpo   the same over all takes with the same prompt text, whatever their references
                    (Identity-GRPO: alibaba/identity-grpo, its PerPromptStatTracker is keyed by the prompt)
    batch_std       (R - mean of its group) / (std of all rewards + 1e-4)        Flow-GRPO's global_std, Flash-GRPO
    weighted        each reward by itself as in grpo, weighted, summed           MixGRPO's advantage_aggr
    max_group_std   the same, divided by the largest std of any group            LongCat-Video, GenRL
    gdpo            weighted, then normalised over the batch                     Flow-Factory
    win_rate        R = share of the group's other takes that it beats (ties count half), then as in grpo: only the
                    order counts, as in Pref-GRPO, where a judge compares the pairs
    centred         R - mean of its group, which blows no small spread up        Dr. GRPO

All are clamped to +-5, as Flow-GRPO, Flow-Factory and Identity-GRPO do. Standard deviations are of the population.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..rewards.combine import gdpo_advantages, group_advantages

METHODS = ("grpo", "identity_grpo", "batch_std", "weighted", "max_group_std", "gdpo", "win_rate", "centred")
# These mix rewards by themselves; the others take one number a take.
OF_TERMS = ("weighted", "max_group_std", "gdpo")
CLAMP = 5.0
_SPREAD = {"batch_std": "batch", "max_group_std": "max_group"}  # of all others: the group


def advantages(
    rewards: Mapping[str, Sequence[float]] | Sequence[float],
    groups: Sequence,
    method: str = "grpo",
    *,
    weights: Mapping[str, float] | None = None,
    prompts: Sequence | None = None,
    clamp: float | None = CLAMP,
) -> np.ndarray:
    """[N] float64, in the order given.

    rewards  one number a take [N]; for the methods of OF_TERMS, {name: [N]}
    groups   [N] a label each
    weights  for the same: name -> weight; every reward counts 1 without
    prompts  [N] for `identity_grpo`: the prompt texts
    clamp    the largest size of an advantage; None for none
    Raises ValueError for an unknown method, lengths that differ and rewards that are not finite.
    """
    if method not in METHODS:
        raise ValueError(f"The advantage is one of {', '.join(METHODS)}; got '{method}'.")
    if isinstance(rewards, Mapping) != (method in OF_TERMS):
        wanted = "rewards by name" if method in OF_TERMS else "one reward a take"
        raise ValueError(f"The advantage '{method}' is made of {wanted}.")
    if method == "identity_grpo":
        if prompts is None:
            raise ValueError("The advantage 'identity_grpo' is normalised by prompt; give the prompt of every take.")
        groups = prompts
    if method in OF_TERMS:
        terms = {name: _checked(column, groups, name) for name, column in rewards.items()}
        result = _of_terms(terms, groups, method, weights)
    else:
        values = _checked(rewards, groups, "reward")
        if method == "win_rate":
            result = group_advantages(win_rates(values, groups), groups)
        elif method == "centred":
            result = _centred(values, groups)
        else:
            result = group_advantages(values, groups, _SPREAD.get(method, "group"))
    return result if clamp is None else np.clip(result, -clamp, clamp)


def win_rates(rewards: np.ndarray, groups: Sequence) -> np.ndarray:
    """[N] share of the other takes of its group that a take beats, a tie counting half; 0.5 for a take alone."""
    rewards = np.asarray(rewards, np.float64)
    rates = np.full(len(rewards), 0.5)
    for own in _members(groups):
        if len(own) > 1:
            gap = rewards[own][:, None] - rewards[own][None]
            wins = (gap > 0).sum(1) + 0.5 * ((gap == 0).sum(1) - 1)
            rates[own] = wins / (len(own) - 1)
    return rates


def extremes(rewards: Sequence[float], groups: Sequence, best: int, worst: int) -> np.ndarray:
    """Indices of the `best` and `worst` takes of each group, ascending; DanceGRPO trains on 4 + 4 of 16.

    A group with fewer takes gives all of them. Of equal rewards the first counts as better.
    """
    rewards = np.asarray(rewards, np.float64)
    chosen: list[int] = []
    for own in _members(groups):
        order = own[np.argsort(-rewards[own], kind="stable")]
        chosen += {*order[:best].tolist(), *order[max(len(order) - worst, 0) :].tolist()}
    return np.array(sorted(chosen), np.int64)


def _of_terms(terms: Mapping[str, np.ndarray], groups: Sequence, method: str, weights) -> np.ndarray:
    weights = {name: float((weights or {}).get(name, 0.0 if weights else 1.0)) for name in terms}
    used = {name: column for name, column in terms.items() if weights[name]}
    if not used:
        raise ValueError("No reward has a weight, so all takes would be equal; give one of them a weight.")
    if method == "gdpo":
        return gdpo_advantages(used, weights, groups)
    spread = _SPREAD.get(method, "group")
    return sum(weights[name] * group_advantages(column, groups, spread) for name, column in used.items())


def _centred(values: np.ndarray, groups: Sequence) -> np.ndarray:
    result = np.empty_like(values)
    for own in _members(groups):
        result[own] = values[own] - values[own].mean()
    return result


def _members(groups: Sequence) -> list[np.ndarray]:
    labels = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _checked(column: Sequence[float], groups: Sequence, name: str) -> np.ndarray:
    values = np.asarray(column, np.float64).reshape(-1)
    if len(values) != len(groups):
        raise ValueError(f"There are {len(values)} values of '{name}' but {len(groups)} group labels.")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise ValueError(f"The value of '{name}' of take {wrong[0]} (the first is 0) is {values[wrong[0]]}.")
    return values
