"""What many runs come to: interquartile means, their bootstrap intervals, performance profiles; pure functions.

Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice": with few seeds a mean over
environments hangs on outliers and a median on one run; the mean of the middle half does not. Intervals come from
resampling runs within each environment (a stratified bootstrap, section 4.1), so that no environment's share changes.

Scores are one array (runs,) for each environment; environments may differ in their numbers of runs.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Scores = Sequence[NDArray[np.float64]]
"""One array (runs,) per environment."""

RESAMPLES = 10_000
"""Bootstrap samples: their own noise moves an end of an interval by about a hundredth of its width."""

CONFIDENCE = 0.95

_BLOCK = 500
"""Samples held at once."""


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def interquartile_mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the middle half.

    Args:
        scores: (..., n); of n values the largest and the smallest n // 4 are left out.

    Returns:
        (...).

    Raises:
        ValueError: n is 0.
    """
    number = scores.shape[-1]
    if number == 0:
        raise ValueError("no scores to take a mean of")
    cut = number // 4
    return np.asarray(np.sort(scores, axis=-1)[..., cut : number - cut].mean(axis=-1))


def interval(
    scores: Scores, statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]] = interquartile_mean
) -> Interval:
    """A statistic of all runs together, with its interval.

    Args:
        scores: of one contestant.
        statistic: takes (..., n) to (...).

    Raises:
        ValueError: there are no scores.
    """
    drawn = np.concatenate([statistic(block) for block in _resampled(scores, np.random.default_rng(0))])
    return _interval(float(statistic(np.concatenate(scores))), drawn)


def difference(first: Scores, second: Scores) -> Interval:
    """Interquartile mean of one contestant less that of another, runs of both resampled independently.

    The two are separated where the interval does not hold 0.
    """
    generator = np.random.default_rng(0)
    drawn = [
        interquartile_mean(one) - interquartile_mean(other)
        for one, other in zip(_resampled(first, generator), _resampled(second, generator), strict=True)
    ]
    value = interquartile_mean(np.concatenate(first)) - interquartile_mean(np.concatenate(second))
    return _interval(float(value), np.concatenate(drawn))


def performance_profile(
    scores: Scores, thresholds: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The share of runs above each threshold, means over environments, with its interval (Agarwal et al., section 4.2).

    Args:
        scores: of one contestant.
        thresholds: (k,).

    Returns:
        The share and the ends of its interval; (k,) each.
    """
    generator = np.random.default_rng(0)
    drawn = np.empty((RESAMPLES, len(thresholds)))
    for start in range(0, RESAMPLES, _BLOCK):
        shares = [
            (own[generator.integers(len(own), size=(_BLOCK, len(own)))][..., None] > thresholds).mean(axis=1)
            for own in scores
        ]
        drawn[start : start + _BLOCK] = np.mean(shares, axis=0)
    share = np.mean([(own[:, None] > thresholds).mean(axis=0) for own in scores], axis=0)
    low, high = np.quantile(drawn, _ends(), axis=0)
    return share, low, high


def normalised(scores: NDArray[np.float64], *, random: float, reference: float) -> NDArray[np.float64]:
    """(score - random) / (reference - random): 0 is chance, 1 the reference.

    Raises:
        ValueError: the reference is no better than chance, so that there is no scale.
    """
    if not reference > random:
        raise ValueError(f"the reference's {reference:g} is not above chance, {random:g}")
    return (scores - random) / (reference - random)


def _resampled(scores: Scores, generator: np.random.Generator) -> Sequence[NDArray[np.float64]]:
    """Blocks (samples, all runs) in which each environment's runs were drawn anew, with replacement."""
    if not scores or any(len(own) == 0 for own in scores):
        raise ValueError("an environment without a run has no distribution to draw from")
    return [
        np.concatenate([own[generator.integers(len(own), size=(_BLOCK, len(own)))] for own in scores], axis=1)
        for _ in range(RESAMPLES // _BLOCK)
    ]


def _interval(value: float, drawn: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(drawn, _ends())
    return Interval(value, float(low), float(high))


def _ends() -> tuple[float, float]:
    return (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
