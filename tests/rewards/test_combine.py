"""Advantages against figures printed by the public code, and what combining must never do."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idcrafter.rewards.combine import COMBINATIONS, combine, gate_factor, gdpo_advantages, group_advantages
from idcrafter.rewards.terms import RewardSpec, RewardTerm

GOLDEN = json.loads((Path(__file__).parent / "data" / "advantages.json").read_text("utf-8"))

values = st.floats(-10, 10, allow_nan=False).map(lambda v: round(v, 3))


def by_name(case):
    return case["name"]


@pytest.mark.parametrize("spread", ["group", "batch", "max_group"])
@pytest.mark.parametrize("case", GOLDEN["advantages"], ids=by_name)
def test_group_advantages_are_those_of_the_public_code(case, spread):
    got = group_advantages(case["rewards"], case["groups"], spread)
    np.testing.assert_allclose(got, case[spread], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", GOLDEN["gdpo"], ids=by_name)
def test_gdpo_is_that_of_the_public_code(case):
    got = gdpo_advantages(case["values"], case["weights"], case["groups"])
    np.testing.assert_allclose(got, case["advantages"], rtol=1e-9, atol=1e-12)


def spec(combination="sum", **weights):
    return RewardSpec(tuple(RewardTerm(kind, weight) for kind, weight in weights.items()), combination)


def test_weighted_sum():
    got = combine({"identity": [0.5, 0.8], "copy_paste": [0.0, 1.0]}, spec(identity=1.0, copy_paste=-0.3))
    np.testing.assert_allclose(got, [0.5, 0.5])


def test_gdpo_of_a_graph_is_gdpo_of_the_public_code():
    case = GOLDEN["gdpo"][1]
    terms = spec("gdpo", **case["weights"])
    np.testing.assert_allclose(combine(case["values"], terms, case["groups"]), case["advantages"], rtol=1e-9)


def test_max_group_std_of_a_graph_weighs_the_advantages_of_each_term():
    case = GOLDEN["advantages"][1]
    terms = spec("max_group_std", identity=2.0)
    got = combine({"identity": case["rewards"]}, terms, case["groups"])
    np.testing.assert_allclose(got, 2.0 * np.array(case["max_group"]), rtol=1e-9)


def test_a_group_that_hardly_differs_is_not_blown_up_by_max_group_std():
    rewards, groups = [0.5, 0.5001, 0.5002, 0.1, 0.5, 0.9], [0, 0, 0, 1, 1, 1]
    plain, damped = (np.abs(group_advantages(rewards, groups, spread)[:3]).max() for spread in ("group", "max_group"))
    assert plain > 0.5 and damped < 0.001


def test_gdpo_does_not_depend_on_the_unit_of_a_term_and_sum_does():
    identity, motion = [0.2, 0.9, 0.4, 0.5], [3.0, 2.0, 2.5, 2.7]
    for combination, same in (("gdpo", True), ("sum", False)):
        terms = spec(combination, identity=1.0, motion=0.2)
        small = combine({"identity": identity, "motion": motion}, terms)
        large = combine({"identity": identity, "motion": [100 * v for v in motion]}, terms)
        assert np.allclose(small, large) == same


@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-8])
def test_identical_takes_have_no_winner(combination, noise):
    """Zero spread: no advantage is made out of nothing, and none out of rounding."""
    column = 0.37 + noise * np.arange(6)
    got = combine({"identity": column, "motion": column}, spec(combination, identity=1.0, motion=0.5))
    assert np.ptp(got) < 1e-6
    if combination != "sum":
        assert np.abs(got).max() < 1e-6


def test_the_published_rule_makes_winners_out_of_rounding():
    """What `combine` guards against: equal takes but for 1e-12, and GDPO as published gives them advantages of 1."""
    column = 0.37 + 1e-12 * np.arange(6)
    got = gdpo_advantages({"a": column, "b": column}, {"a": 1.0, "b": 0.5}, [0] * 6)
    assert got.max() > 1.0


def test_a_gate_scales_what_speaks_for_a_clip_only():
    terms = RewardSpec((RewardTerm("identity"), RewardTerm("copy_paste", -1.0), RewardTerm("motion", 0.0, floor=0.5)))
    got = combine({"identity": [0.8] * 4, "copy_paste": [0.5] * 4, "motion": [0.0, 0.25, 0.5, 9.0]}, terms)
    np.testing.assert_allclose(got, [0.0 - 0.5, 0.4 - 0.5, 0.8 - 0.5, 0.8 - 0.5])


def test_a_gate_holds_a_judge_back_whatever_its_sign():
    """A logit has no zero point: below it the take that fails the gate must not come out first either."""
    model = SimpleNamespace()
    terms = RewardSpec((RewardTerm("judge", model=model), RewardTerm("motion", 0.0, floor=0.5)))
    for shift in (-4.0, 0.0, 3.0):
        judged = np.array([-0.4, -0.5, -0.9]) + shift
        got = combine({"judge": judged, "motion": [0.0, 9.0, 9.0]}, terms)
        np.testing.assert_allclose(got, [0.0, 0.4, 0.0], atol=1e-9)
    without = RewardSpec((RewardTerm("judge", model=model),))
    np.testing.assert_allclose(combine({"judge": judged}, without), judged)


def test_gates_multiply():
    columns = {"a": np.array([0.5, 2.0]), "b": np.array([1.0, -1.0])}
    np.testing.assert_allclose(gate_factor(columns, [("a", 1.0), ("b", 2.0)]), [0.25, 0.0])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_order_of_clips_terms_and_groups_never_matters(data):
    count = data.draw(st.integers(1, 8))
    groups = data.draw(st.lists(st.sampled_from("abc"), min_size=count, max_size=count))
    columns = {k: data.draw(st.lists(values, min_size=count, max_size=count)) for k in ("identity", "motion")}
    order = data.draw(st.permutations(range(count)))
    for combination in COMBINATIONS:
        terms = RewardSpec((RewardTerm("identity", 0.7), RewardTerm("motion", -0.2, floor=1.0)), combination)
        turned = RewardSpec(terms.terms[::-1], combination)
        got = combine({k: np.array(v) for k, v in columns.items()}, terms, groups)
        other = combine({k: np.array(v)[order] for k, v in columns.items()}, turned, [groups[i] for i in order])
        np.testing.assert_allclose(other, got[order], atol=1e-9)
        assert np.isfinite(got).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(values, min_size=2, max_size=8), st.lists(st.floats(0, 2), min_size=8, max_size=8), st.integers(0, 7))
def test_a_better_gate_value_never_makes_a_clip_worse(column, gate, which):
    gate, which = gate[: len(column)], which % len(column)
    terms = RewardSpec((RewardTerm("identity"), RewardTerm("motion", 0.0, floor=1.0)))
    before = combine({"identity": column, "motion": gate}, terms)
    gate[which] += 0.5
    assert combine({"identity": column, "motion": gate}, terms)[which] >= before[which]


@given(st.sampled_from([np.nan, np.inf, -np.inf]), st.integers(0, 4), st.sampled_from(["identity", "motion"]))
def test_values_that_are_not_finite_name_term_and_take(bad, take, name):
    columns = {"identity": [0.1] * 5, "motion": [1.0] * 5}
    columns[name][take] = bad
    for combination in COMBINATIONS:
        with pytest.raises(ValueError, match=f"'{name}' is {bad} for take {take} "):
            combine(columns, spec(combination, identity=1.0, motion=1.0))


def test_what_cannot_be_combined_says_why():
    with pytest.raises(ValueError, match="'motion' was not measured; measured: identity"):
        combine({"identity": [0.1]}, spec(identity=1.0, motion=1.0))
    with pytest.raises(ValueError, match="one value a clip"):
        combine({"identity": [0.1], "motion": [0.1, 0.2]}, spec(identity=1.0, motion=1.0))
    with pytest.raises(ValueError, match="weight 0"):
        combine({"identity": [0.1]}, spec(identity=0.0))
    with pytest.raises(ValueError, match="2 rewards but 1 group"):
        combine({"identity": [0.1, 0.2]}, spec(identity=1.0), ["a"])
    with pytest.raises(ValueError, match="spread is one of"):
        group_advantages([0.1], ["a"], "none")
