"""Interquartile means, their intervals and profiles, against what can be computed by hand or known beforehand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acktr.agents.benchmark import aggregates
from acktr.agents.benchmark.aggregates import (
    EnvironmentScores,
    difference,
    estimate,
    interquartile_mean,
    performance_profile,
)


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for how often intervals hold the truth, in a tenth of the time."""
    monkeypatch.setattr(aggregates, "RESAMPLES", 1000)


def scored(*environments: dict[str, list[float]], reference: str | float = 1.0) -> list[EnvironmentScores]:
    return [
        EnvironmentScores(runs={name: np.array(own) for name, own in runs.items()}, reference=reference)
        for runs in environments
    ]


def of_one(*runs: list[float]) -> list[EnvironmentScores]:
    return scored(*({"own": own} for own in runs))


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
        estimate(of_one([1.0], []), "own")
    with pytest.raises(ValueError, match="without a run"):
        difference(of_one([1.0]), "own", "another")
    with pytest.raises(ValueError, match="without a run"):
        estimate([], "own")


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
    found = estimate(of_one([1.0] * 4, [100.0] * 4), "own")
    assert found.low == found.value == found.high == pytest.approx(50.5)


def test_environments_count_alike_whatever_the_numbers_of_runs() -> None:
    assert estimate(of_one([0.0, 2.0], [4.0] * 5, [8.0] * 3), "own").value == pytest.approx(13 / 3)
    assert estimate(of_one([1.0] * 2, [2.0] * 5, [3.0] * 3, [4.0] * 9), "own").value == pytest.approx(2.5)


def test_the_reference_itself_is_one_for_certain() -> None:
    """The runs that are drawn for it and those that set the scale are the same ones."""
    runs = {"own": [1.0, 3.0], "other": [5.0, 9.0]}
    for number in (2, 3):
        found = estimate(scored(*[runs] * number, reference="own"), "own")
        np.testing.assert_allclose(found, [1.0, 1.0, 1.0])
    with_other = estimate(scored(*[runs] * 2, reference="own"), "other")
    assert with_other.low is not None
    assert with_other.high is not None
    assert with_other.low < with_other.value < with_other.high


def test_below_four_environments_no_environment_is_left_out() -> None:
    """The middle half of three environments' runs would be those of one of them."""
    assert estimate(of_one([0.0, 1.0], [10.0, 11.0], [100.0, 101.0]), "own").value == pytest.approx(37.1666667)
    assert estimate(of_one([0.0] * 2, [10.0] * 2, [20.0] * 2, [1000.0] * 2), "own").value == pytest.approx(15.0)


@pytest.mark.usefixtures("few_samples")
def test_an_interval_holds_the_truth_as_often_as_it_should() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(100):
        _, low, high = estimate(of_one(*(list(generator.normal(3.0, 1.0, 5)) for _ in range(8))), "own")
        assert low is not None
        assert high is not None
        held += low <= 3.0 <= high
    assert 90 <= held <= 99


@pytest.mark.usefixtures("few_samples")
@pytest.mark.parametrize(
    ("environments", "runs", "reference"),
    [(8, (5, 5), "other"), (4, (5, 3), "other"), (4, (3, 3), "third"), (1, (3, 3), 1.0), (1, (5, 3), 1.0)],
)
def test_an_interval_holds_the_truth_also_where_runs_set_the_scale(
    environments: int, runs: tuple[int, int], reference: str | float
) -> None:
    """Their mean is not known exactly: taken for known, half of the intervals would miss."""
    generator = np.random.default_rng(3)
    truth = 1.0 if environments > 1 else 0.5
    held, separated = 0, 0
    for _ in range(100):
        where = scored(
            *(
                {
                    name: list(mean + generator.normal(0.0, 0.08, number))
                    for name, mean, number in (("own", 1.0, runs[0]), ("other", 0.5, runs[1]), ("third", 0.5, 3))
                }
                for _ in range(environments)
            ),
            reference=reference,
        )
        found = difference(where, "own", "other")
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
        separated += bool(found.excludes_zero)
    assert held >= 90
    assert separated >= 80


@pytest.mark.usefixtures("few_samples")
@pytest.mark.parametrize("spread", [1.0, 4.0])
@pytest.mark.parametrize(("environments", "runs"), [(8, (5, 5)), (4, (5, 3)), (2, (2, 2)), (1, (3, 3)), (1, (5, 3))])
def test_contestants_that_are_alike_are_seldom_called_separated(
    environments: int, runs: tuple[int, int], spread: float
) -> None:
    """One time in twenty; draws from so few runs without a correction say it up to one time in five."""
    generator = np.random.default_rng(3)
    deviations = 0.3 * np.geomspace(1 / spread, spread, environments)
    separated = 0
    for _ in range(200):
        where = scored(
            *(
                {
                    "own": list(generator.normal(1.0, deviation, runs[0])),
                    "other": list(generator.normal(1.0, deviation, runs[1])),
                }
                for deviation in deviations
            )
        )
        separated += bool(difference(where, "own", "other").excludes_zero)
    assert separated <= 18


def test_a_difference_that_is_large_is_found() -> None:
    generator = np.random.default_rng(2)
    where = scored(
        *(
            {
                "good": list(good := generator.normal(1.0, 0.1, 5)),
                "alike": list(good),
                "bad": list(generator.normal(0.5, 0.1, 5)),
            }
            for _ in range(4)
        )
    )
    apart, alike = difference(where, "good", "bad"), difference(where, "good", "alike")
    assert apart.low is not None
    assert apart.low > 0.3
    assert apart.value == pytest.approx(0.5, abs=0.15)
    assert apart.excludes_zero is True
    assert (alike.value, alike.excludes_zero) == (0, False)
    assert difference(where, "bad", "good").value == pytest.approx(-apart.value)


def test_single_runs_have_no_interval() -> None:
    """A bootstrap of one value is sure of it."""
    runs: dict[str, list[float]] = {"single": [450.3], "more": [450.2, 450.3], "others": [450.0, 450.4]}
    for number in (1, 2):
        where = scored(*[runs] * number)
        assert difference(where, "single", "more").excludes_zero is None
        assert estimate(where, "single").low is None
        assert estimate(where, "more").low is not None
        assert difference(where, "more", "others").excludes_zero is False
    assert estimate(scored(runs), "single") == (450.3, None, None)
    assert estimate(scored(runs, {**runs, "more": [450.2]}), "more").low is None
    assert estimate(scored(runs, runs, reference="single"), "more").low is None  # a scale of one run


def test_a_reference_that_may_be_no_better_than_chance_gives_no_interval() -> None:
    """Divided by what may be nothing, a score may be anything."""
    sure: dict[str, list[float]] = {"own": [3.0, 4.0], "reference": [1.0, 1.1, 0.9]}
    unsure: dict[str, list[float]] = {"own": [3.0, 4.0], "reference": [0.1, -0.6, 0.7]}
    assert estimate(scored(sure, sure, reference="reference"), "own").low is not None
    assert estimate(scored(sure, unsure, reference="reference"), "own").low is None


def test_runs_of_one_environment_have_students_interval_of_their_mean() -> None:
    value, low, high = estimate(of_one([1.0, 2.0, 3.0]), "own")
    assert (value, low, high) == pytest.approx((2.0, 2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)


def test_the_profile_is_the_share_of_runs_above_each_threshold() -> None:
    scores = [np.array([0.0, 1.0, 2.0, 3.0]), np.array([2.0, 2.0])]
    thresholds = np.array([-1.0, 0.5, 2.0, 5.0])
    share = performance_profile(scores, thresholds)
    np.testing.assert_allclose(share, [1.0, (0.75 + 1.0) / 2, 0.25 / 2, 0.0])  # environments count alike


def test_scores_are_normalised_between_chance_and_the_reference() -> None:
    runs = {"own": np.array([-20.0, 0.0, 30.0]), "reference": np.array([-1.0, 1.0])}
    where = EnvironmentScores(runs=runs, random=-20.0, reference="reference")
    np.testing.assert_allclose(where.normalised("own"), [0.0, 1.0, 2.5])
    known = EnvironmentScores(runs=runs, random=-20.0, reference=20.0)
    np.testing.assert_allclose(known.normalised("own"), [0.0, 0.5, 1.25])
    for reference, said in ((-20.0, "not above chance"), (None, "no scale")):
        with pytest.raises(ValueError, match=said):
            EnvironmentScores(runs=runs, random=-20.0, reference=reference).normalised("own")


def test_equal_scores_are_not_separated_by_their_rounding() -> None:
    """Five runs and three of the same score have means that differ in the last digit."""
    separated = 0
    for value in np.linspace(0.1, 2.0, 60):
        for number in (1, 2, 4):
            where = scored(*[{"five": [value] * 5, "three": [value] * 3}] * number)
            separated += difference(where, "five", "three").excludes_zero or False
    assert separated == 0
