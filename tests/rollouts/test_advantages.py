"""Advantages against numbers worked out by hand."""

import numpy as np
import pytest

from idcrafter.rollouts.advantages import METHODS, OF_TERMS, advantages, extremes, win_rates

# Two groups: mean 2 and std sqrt(2/3); mean 15 and std 5.
REWARDS = [1.0, 2.0, 3.0, 10.0, 20.0]
GROUPS = [0, 0, 0, 1, 1]
ROOT = np.sqrt(2 / 3)


def test_grpo():
    third = 1 / (ROOT + 1e-4)
    assert np.allclose(advantages(REWARDS, GROUPS), [-third, 0, third, -5 / 5.0001, 5 / 5.0001], atol=1e-12)


def test_identity_grpo_pools_by_prompt_text():
    # All five takes have one prompt: mean 7.2, variance (6.2^2 + 5.2^2 + 4.2^2 + 2.8^2 + 12.8^2) / 5.
    std = np.sqrt((38.44 + 27.04 + 17.64 + 7.84 + 163.84) / 5)
    found = advantages(REWARDS, GROUPS, "identity_grpo", prompts=["Ada waves."] * 5)
    assert np.allclose(found, np.array([-6.2, -5.2, -4.2, 2.8, 12.8]) / (std + 1e-4), atol=1e-12)
    apart = advantages(REWARDS, GROUPS, "identity_grpo", prompts=["Ada waves."] * 3 + ["Bo waves."] * 2)
    assert np.array_equal(apart, advantages(REWARDS, GROUPS))
    with pytest.raises(ValueError, match="give the prompt of every take"):
        advantages(REWARDS, GROUPS, "identity_grpo")


def test_batch_std_and_centred():
    std = np.std(REWARDS)
    assert np.allclose(advantages(REWARDS, GROUPS, "batch_std"), np.array([-1, 0, 1, -5, 5]) / (std + 1e-4), atol=1e-12)
    assert np.allclose(advantages(REWARDS, GROUPS, "centred"), [-1, 0, 1, -5, 5], atol=1e-12)


def test_max_group_std_damps_groups_that_hardly_differ():
    found = advantages({"r": REWARDS}, GROUPS, "max_group_std")
    assert np.allclose(found, np.array([-1, 0, 1, -5, 5]) / 5.0001, atol=1e-12)


def test_weighted_and_gdpo():
    other = [0.0, 0.0, 3.0, 7.0, 7.0]  # group 1: all equal
    first, second = advantages(REWARDS, GROUPS), np.array([-1, -1, 2, 0, 0]) / (np.sqrt(2) + 1e-4)
    found = advantages({"a": REWARDS, "b": other}, GROUPS, "weighted", weights={"a": 1.0, "b": -0.5})
    assert np.allclose(found, first - 0.5 * second, atol=1e-12)
    # gdpo: a = (+-sqrt(1.5), 0 | +-1), b = (-1, -1, 2) / sqrt 2 | 0; a + b, less its mean 0, by its std
    total = np.array([-np.sqrt(1.5), 0, np.sqrt(1.5), -1, 1]) + np.array([-1, -1, 2, 0, 0]) / np.sqrt(2)
    found = advantages({"a": REWARDS, "b": other}, GROUPS, "gdpo")
    assert np.allclose(found, total / total.std(), atol=1e-9)
    assert abs(found.mean()) < 1e-12 and abs(found.std() - 1) < 1e-12
    # Without weights each counts 1; a reward that is not named counts nothing.
    only = advantages({"a": REWARDS, "b": other}, GROUPS, "weighted", weights={"a": 2.0})
    assert np.allclose(only, 2 * first, atol=1e-12)


def test_win_rate_looks_at_the_order_only():
    assert np.allclose(win_rates(np.array([1.0, 2.0, 3.0, 4.0, 4.0]), GROUPS), [0, 0.5, 1, 0.5, 0.5])
    found = advantages(REWARDS, GROUPS, "win_rate")
    assert np.array_equal(found, advantages([1.0, 1.0001, 900.0, -7.0, -6.999], GROUPS, "win_rate"))
    assert np.allclose(found[:3], np.array([-0.5, 0, 0.5]) / (np.sqrt(1 / 6) + 1e-4), atol=1e-12)
    assert win_rates(np.array([3.0]), [0]) == [0.5]


def test_outliers_are_clamped():
    rewards = [0.0] * 63 + [1.0]
    assert advantages(rewards, [0] * 64)[-1] == 5.0
    assert advantages(rewards, [0] * 64, clamp=None)[-1] == pytest.approx(7.93, abs=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_0_in_the_mean_and_blind_to_order(method):
    rng = np.random.default_rng(3)
    rewards, groups = rng.normal(size=24), np.repeat([4, 7, 9], 8)
    order = rng.permutation(24)

    def run(rewards, groups):
        values = {"r": rewards} if method in OF_TERMS else rewards
        return advantages(values, groups, method, prompts=[str(g) for g in groups], clamp=None)

    found = run(rewards, groups)
    assert all(abs(found[groups == label].mean()) < 1e-9 for label in (4, 7, 9))
    assert np.allclose(run(rewards[order], groups[order]), found[order], atol=1e-12)
    assert np.isfinite(run(np.zeros(24), groups)).all() and not run(np.zeros(24), groups).any()


def test_extremes():
    assert extremes([5.0, 1.0, 4.0, 2.0, 3.0, 9.0], [0] * 5 + [1], 2, 1).tolist() == [0, 1, 2, 5]
    assert extremes(REWARDS, GROUPS, 1, 1).tolist() == [0, 2, 3, 4]
    assert extremes(REWARDS, GROUPS, 1, 0).tolist() == [2, 4]


def test_what_is_refused():
    with pytest.raises(ValueError, match="one of grpo, identity_grpo"):
        advantages(REWARDS, GROUPS, "ppo")
    with pytest.raises(ValueError, match="'gdpo' is made of rewards by name"):
        advantages(REWARDS, GROUPS, "gdpo")
    with pytest.raises(ValueError, match="'grpo' is made of one reward a take"):
        advantages({"r": REWARDS}, GROUPS)
    with pytest.raises(ValueError, match="5 values of 'reward' but 4 group labels"):
        advantages(REWARDS, GROUPS[1:])
    with pytest.raises(ValueError, match="of take 1 .* is nan"):
        advantages([1.0, float("nan")], [0, 0])
    with pytest.raises(ValueError, match="No reward has a weight"):
        advantages({"r": REWARDS}, GROUPS, "weighted", weights={"r": 0.0})
