"""Student's intervals, against printed tables and by how often they hold the truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acktr.agents.intervals import difference_interval, mean_interval, student_quantile


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (29, 2.04523), (99, 1.98422)],
)
def test_quantiles_are_those_of_the_tables(freedom: int, expected: float) -> None:
    assert student_quantile(freedom) == pytest.approx(expected, abs=1e-4)


def test_with_many_values_the_quantile_is_the_normal_one() -> None:
    assert student_quantile(1e7) == pytest.approx(1.959964, abs=1e-5)
    assert 2.7764 < student_quantile(3.5) < 3.1825  # Welch's are no whole numbers


def test_the_interval_of_a_mean_by_hand() -> None:
    """Three values 1 apart: deviation 1, standard error 1 / sqrt(3)."""
    low, high = mean_interval(np.array([1.0, 2.0, 3.0]))  # type: ignore[misc]
    assert (low, high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)
    assert mean_interval(np.array([5.0, 5.0])) == (5.0, 5.0)
    assert mean_interval(np.array([5.0])) is None


def test_a_difference_of_equal_sizes_and_deviations_has_both_their_freedom() -> None:
    first, second = np.array([1.0, 2.0, 3.0]), np.array([11.0, 12.0, 13.0])
    low, high = difference_interval(first, second)  # type: ignore[misc]
    half = student_quantile(4) * (2 / 3) ** 0.5
    assert (low, high) == pytest.approx((-10 - half, -10 + half))
    assert difference_interval(first, np.array([1.0])) is None
    assert difference_interval(np.array([4.0, 4.0]), np.array([1.0, 1.0])) == (3.0, 3.0)


@pytest.mark.parametrize("number", [2, 3, 5])
def test_the_intervals_hold_the_truth_as_often_as_they_should_even_of_few_values(number: int) -> None:
    generator = np.random.default_rng(0)
    draws = generator.normal(1.0, 2.0, (2000, number))
    held = [low <= 1.0 <= high for low, high in map(mean_interval, draws)]  # type: ignore[misc]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30), st.floats(-1e3, 1e3), st.floats(0.1, 10.0))
def test_an_interval_moves_and_grows_with_its_values(values: list[float], shift: float, scale: float) -> None:
    given_values = np.array(values)
    low, high = mean_interval(given_values)  # type: ignore[misc]
    moved = mean_interval(given_values * scale + shift)
    assert moved == pytest.approx((low * scale + shift, high * scale + shift), abs=1e-6 * (1 + scale * 1e3))
