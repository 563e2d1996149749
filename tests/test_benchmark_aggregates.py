"""Interquartile means, their intervals and profiles, against what can be computed by hand or known beforehand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acktr.agents.benchmark.aggregates import (
    difference,
    interquartile_mean,
    interval,
    normalised,
    performance_profile,
)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3.0], 3.0),
        ([1.0, 5.0, 3.0], 3.0),  # nothing is left out of three
        ([-100.0, 1.0, 2.0, 1e6], 1.5),
        ([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1000.0], 4.5),  # of 1 2 | 3 4 5 6 | 9 1000
    ],
)
def test_the_interquartile_mean_is_that_of_the_middle_half(scores: list[float], expected: float) -> None:
    assert interquartile_mean(np.array(scores)) == pytest.approx(expected)


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no scores"):
        interquartile_mean(np.array([]))
    with pytest.raises(ValueError, match="without a run"):
        interval([np.array([1.0]), np.array([])])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_no_outlier_moves_the_mean_beyond_the_middle_half(scores: list[float]) -> None:
    found = float(interquartile_mean(np.array(scores)))
    low, high = np.quantile(scores, (0.25, 0.75), method="lower")[0], np.quantile(scores, 0.75, method="higher")
    assert low - 1e-6 <= found <= high + 1e-6 or len(scores) < 4


def test_the_interval_is_that_of_the_bootstrap_within_each_environment() -> None:
    """Environments far apart from each other widen nothing: each keeps its share of every sample."""
    apart = [np.array([1.0, 1.0, 1.0, 1.0]), np.array([100.0, 100.0, 100.0, 100.0])]
    found = interval(apart)
    assert found.low == found.value == found.high == pytest.approx(50.5)


def test_the_interval_holds_the_truth_as_often_as_it_should() -> None:
    """A percentile bootstrap of 40 scores errs a little more often than one time in twenty."""
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(60):
        found = interval([generator.normal(3.0, 1.0, 5) for _ in range(8)])
        held += found.low <= 3.0 <= found.high
    assert 48 <= held <= 60


def test_a_difference_is_separated_where_the_interval_leaves_out_nought() -> None:
    generator = np.random.default_rng(2)
    good, bad = ([generator.normal(mean, 0.1, 5) for _ in range(4)] for mean in (1.0, 0.5))
    apart, alike = difference(good, bad), difference(good, [own + 0.0 for own in good])
    assert apart.low > 0.3
    assert apart.value == pytest.approx(0.5, abs=0.15)
    assert alike.low < 0 < alike.high
    assert alike.value == 0
    assert difference(bad, good).value == pytest.approx(-apart.value)


def test_the_profile_is_the_share_of_runs_above_each_threshold() -> None:
    scores = [np.array([0.0, 1.0, 2.0, 3.0]), np.array([2.0, 2.0])]
    thresholds = np.array([-1.0, 0.5, 2.0, 5.0])
    share, low, high = performance_profile(scores, thresholds)
    np.testing.assert_allclose(share, [1.0, (0.75 + 1.0) / 2, 0.25 / 2, 0.0])  # environments count alike
    assert (low <= share).all()
    assert (share <= high).all()
    assert (np.diff(high) <= 0).all()


def test_scores_are_normalised_between_chance_and_the_reference() -> None:
    np.testing.assert_allclose(normalised(np.array([-20.0, 0.0, 30.0]), random=-20.0, reference=0.0), [0.0, 1.0, 2.5])
    with pytest.raises(ValueError, match="not above chance"):
        normalised(np.array([1.0]), random=0.0, reference=0.0)
