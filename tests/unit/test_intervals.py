"""Intervals against worked examples and their limits."""

from __future__ import annotations

import math

import pytest

from fedmezo.studies.intervals import mean_interval, share_interval


def test_mean_of_three_by_hand() -> None:
    # mean 2, standard deviation 1, t(2) = 4.303: 4.303 / sqrt(3) = 2.484
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.value == 2.0
    assert found.half_width == pytest.approx(2.484, abs=1e-3)


def test_one_value_says_nothing_of_its_spread() -> None:
    found = mean_interval([5.0])
    assert found.value == 5.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("strange", [math.nan, math.inf])
def test_losses_that_are_not_finite_have_no_interval(strange: float) -> None:
    found = mean_interval([1.0, strange])
    assert not math.isfinite(found.value)
    assert math.isnan(found.low)


def test_many_values_use_the_normal_quantile() -> None:
    values = [float(i % 2) for i in range(1000)]
    assert mean_interval(values).half_width == pytest.approx(1.960 * 0.50025 / math.sqrt(1000), rel=1e-4)


def test_wilson_stays_within_bounds_and_agrees_with_a_known_case() -> None:
    # 1 of 10 at z = 1.96: centre (0.1 + 0.19208) / 1.38416, reach 1.96 / 1.38416 sqrt(0.009 + 0.009604)
    found = share_interval(1, 10)
    assert [found.low, found.high] == pytest.approx([0.0179, 0.4042], abs=1e-4)
    assert share_interval(0, 4).low == 0.0
    assert share_interval(4, 4).high == 1.0


def test_the_papers_intervals_are_narrower() -> None:
    # t(2) = 2.920 at 90 %: 2.920 / sqrt(3) = 1.686
    assert mean_interval([1.0, 2.0, 3.0], 90).half_width == pytest.approx(1.686, abs=1e-3)
    values = [float(i % 2) for i in range(1000)]
    assert mean_interval(values, 90).half_width == pytest.approx(1.645 * 0.50025 / math.sqrt(1000), rel=1e-4)
