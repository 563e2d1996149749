"""Interquartile means, their intervals and profiles, against what can be computed by hand or known beforehand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acktr.agents.benchmark.aggregates import (
    difference,
    estimate,
    interquartile_mean,
    normalised,
    performance_profile,
)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3.0], 3.0),
        ([1.0, 5.0, 3.0], 3.0),
        ([0.0, 3.0, 9.0], (0.25 * 0 + 3.0 + 0.25 * 9) / 1.5),  # three quarters of a score are left out at each end
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
        estimate([np.array([1.0]), np.array([])])
    with pytest.raises(ValueError, match="without a run"):
        difference([np.array([1.0])], [])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_no_outlier_moves_the_mean_beyond_the_middle_half(scores: list[float]) -> None:
    found = float(interquartile_mean(np.array(scores)))
    ordered = sorted(scores)
    cut = len(scores) // 4
    assert ordered[cut] - 1e-6 <= found <= ordered[-1 - cut] + 1e-6


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12), st.integers(2, 4))
def test_an_environment_counts_alike_however_often_each_of_its_runs_is_there(scores: list[float], times: int) -> None:
    """Else a contestant that lost runs on its best environments would lose twice."""
    half = len(scores) // 2
    one, other = np.array(scores[:half]), np.array(scores[half:])
    weights = np.concatenate([np.full(len(own), 1 / len(own)) for own in (one, other)])
    repeated = np.concatenate([np.tile(one, times), other])
    weights_repeated = np.concatenate([np.full(times * half, 1 / (times * half)), np.full(len(other), 1 / len(other))])
    alone = interquartile_mean(np.array(scores), weights)
    assert interquartile_mean(repeated, weights_repeated) == pytest.approx(alone, abs=1e-6)


def test_environments_far_apart_from_each_other_widen_no_interval() -> None:
    """Each keeps its share of every sample."""
    found = estimate([np.array([1.0, 1.0, 1.0, 1.0]), np.array([100.0, 100.0, 100.0, 100.0])])
    assert found.low == found.value == found.high == pytest.approx(50.5)


def test_an_interval_holds_the_truth_as_often_as_it_should() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(100):
        _, low, high = estimate([generator.normal(3.0, 1.0, 5) for _ in range(8)])
        assert low is not None
        assert high is not None
        held += low <= 3.0 <= high
    assert 90 <= held <= 99


@pytest.mark.parametrize(("environments", "runs"), [(8, (5, 5)), (4, (5, 3)), (2, (2, 2)), (1, (3, 3)), (1, (5, 3))])
def test_contestants_that_are_alike_are_seldom_called_separated(environments: int, runs: tuple[int, int]) -> None:
    """One time in twenty; draws from so few runs without a correction say it up to one time in five."""
    generator = np.random.default_rng(3)
    separated = 0
    for _ in range(200):
        first, second = ([generator.normal(1.0, 0.3, number) for _ in range(environments)] for number in runs)
        separated += bool(difference(first, second).excludes_zero)
    assert separated <= 22


def test_a_difference_that_is_large_is_found() -> None:
    generator = np.random.default_rng(2)
    good, bad = ([generator.normal(mean, 0.1, 5) for _ in range(4)] for mean in (1.0, 0.5))
    apart, alike = difference(good, bad), difference(good, [own + 0.0 for own in good])
    assert apart.low is not None
    assert apart.low > 0.3
    assert apart.value == pytest.approx(0.5, abs=0.15)
    assert apart.excludes_zero is True
    assert (alike.value, alike.excludes_zero) == (0, False)
    assert difference(bad, good).value == pytest.approx(-apart.value)


def test_single_runs_have_no_interval() -> None:
    """A bootstrap of one value is sure of it."""
    single, more = [np.array([450.3])], [np.array([450.2, 450.3])]
    for first, second in [(single, single), (single, more), (more * 2, [more[0], single[0]])]:
        assert difference(first, second).excludes_zero is None
    assert estimate(single) == (450.3, None, None)
    assert estimate([*single, *more]).low is None


def test_runs_of_one_environment_have_students_interval_of_their_mean() -> None:
    value, low, high = estimate([np.array([1.0, 2.0, 3.0])])
    assert (value, low, high) == pytest.approx((2.0, 2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)


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


def test_equal_scores_are_not_separated_by_their_rounding() -> None:
    """Five runs and three of the same score have means that differ in the last digit."""
    alone, both = 0, 0
    for value in np.linspace(0.1, 2.0, 60):
        five, three = np.full(5, value), np.full(3, value)
        alone += difference([five], [three]).excludes_zero or False
        both += difference([five, five + 0.1], [three, three + 0.1]).excludes_zero or False
    assert (alone, both) == (0, 0)
