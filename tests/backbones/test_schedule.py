"""When a change of a MODEL is on."""

import math

import pytest

from idcrafter.backbones.schedule import SigmaRange, check_percents


def to_sigma(share):
    return 1.0 - share


def test_a_part_of_the_schedule():
    part = SigmaRange.of(to_sigma, 0.25, 0.75)
    assert [sigma in part for sigma in (1.0, 0.8, 0.75, 0.5, 0.25, 0.1, 0.0)] == [
        False, False, True, True, False, False, False,
    ]  # fmt: skip


def test_from_the_top_means_also_above_the_nominal_one():
    whole = SigmaRange.of(to_sigma, 0.0, 1.0)
    assert 1.5 in whole and math.nextafter(0, 1) in whole and 0.0 not in whole
    assert 1.5 not in SigmaRange.of(to_sigma, 0.01, 1.0)


def test_an_empty_part_is_refused():
    check_percents(0.2, 0.3, "binding")
    with pytest.raises(ValueError, match=r"\(0.5\) must be less than end_percent \(0.5\); .* turn binding off"):
        check_percents(0.5, 0.5, "binding")
