"""What many runs come to: means and interquartile means with their intervals, performance profiles; pure functions.

Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice": with few seeds a mean over
environments hangs on outliers and a median on one run; the mean of the middle half does not. Its interval comes from
resampling runs within each environment (a stratified bootstrap, section 4.1), so that no environment's share changes.
Runs of one environment alone are summed up by their mean with Student's interval: from three to five of them there is
no middle half to speak of, and a bootstrap would be too sure.

Scores are one array (runs,) for each environment. Environments may differ in their numbers of runs and count alike
nevertheless: a run weighs one over the number of runs in its environment.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from acktr.agents.intervals import CONFIDENCE, difference_interval, mean_interval

Scores = Sequence[NDArray[np.float64]]
"""One array (runs,) per environment."""

RESAMPLES = 10_000
"""Bootstrap samples: their own noise moves an end of an interval by about a hundredth of its width."""

_ROUNDING = 1e-9
"""Of normalised scores, where 1 is the way from random play to the reference."""

_BLOCK = 500
"""Samples held at once."""


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval, which are None where an environment has a single run."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool | None:
        """Whether 0 lies outside, by more than sums of equal scores differ in rounding; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return self.low > _ROUNDING or self.high < -_ROUNDING


def interquartile_mean(scores: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Mean of the middle half of the weight.

    Args:
        scores: (..., n).
        weights: (n,), above 0; None for equal ones, of which the largest and the smallest quarter are left out, a part
            of a score where n is no multiple of four.

    Returns:
        (...).

    Raises:
        ValueError: n is 0.
    """
    number = scores.shape[-1]
    if number == 0:
        raise ValueError("no scores to take a mean of")
    shares = np.full(number, 1 / number) if weights is None else weights / weights.sum()
    order = np.argsort(scores, axis=-1)
    ends = np.cumsum(shares[order], axis=-1)
    within = (np.minimum(ends, 0.75) - np.maximum(ends - shares[order], 0.25)).clip(min=0)
    return np.asarray((within * np.take_along_axis(scores, order, axis=-1)).sum(axis=-1) / within.sum(axis=-1))


def estimate(scores: Scores) -> Interval:
    """What the runs of one contestant come to, with its interval.

    Args:
        scores: of one environment, for the mean with Student's interval, or of several, for the interquartile mean
            with that of the bootstrap.

    Raises:
        ValueError: there are no scores.
    """
    _check(scores)
    if len(scores) == 1:
        return Interval(float(scores[0].mean()), *(mean_interval(scores[0]) or ()))
    return _bootstrapped(_pooled(scores), _resampled(scores, np.random.default_rng(0)))


def difference(first: Scores, second: Scores) -> Interval:
    """What one contestant comes to less what another does, whose runs are independent.

    The two are separated where the interval does not hold 0. Of one environment it is Welch's, of several that of the
    bootstrap.

    Args:
        first: of one contestant.
        second: of the other, on the same environments.

    Raises:
        ValueError: there are no scores.
    """
    _check(first)
    _check(second)
    if len(first) == 1:
        ends = difference_interval(first[0], second[0])
        return Interval(float(first[0].mean() - second[0].mean()), *(ends or ()))
    generator = np.random.default_rng(0)
    one, other = _resampled(first, generator), _resampled(second, generator)
    return _bootstrapped(_pooled(first) - _pooled(second), None if one is None or other is None else one - other)


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


def _check(scores: Scores) -> None:
    if not scores or any(len(own) == 0 for own in scores):
        raise ValueError("an environment without a run has no distribution to draw from")


def _weights(scores: Scores) -> NDArray[np.float64]:
    return np.concatenate([np.full(len(own), 1 / len(own)) for own in scores])


def _pooled(scores: Scores) -> float:
    return float(interquartile_mean(np.concatenate(scores), _weights(scores)))


def _resampled(scores: Scores, generator: np.random.Generator) -> NDArray[np.float64] | None:
    """The interquartile mean of samples in which each environment's runs were drawn anew, with replacement.

    Draws from n runs vary by (n - 1)/n of what new runs would. They are stretched around the mean of their environment
    by the root of the inverse, which a single run does not allow. Without that two contestants that are alike would be
    called separated in 15 % of all cases where two environments have two runs each; with it in 7 %.
    """
    if min(map(len, scores)) < 2:
        return None
    stretched = [own.mean() + (own - own.mean()) * np.sqrt(len(own) / (len(own) - 1)) for own in scores]
    weights = _weights(scores)
    blocks = (
        np.concatenate([own[generator.integers(len(own), size=(_BLOCK, len(own)))] for own in stretched], axis=1)
        for _ in range(RESAMPLES // _BLOCK)
    )
    return np.concatenate([interquartile_mean(block, weights) for block in blocks])


def _bootstrapped(value: float, drawn: NDArray[np.float64] | None) -> Interval:
    if drawn is None:
        return Interval(value)
    low, high = np.quantile(drawn, _ends())
    return Interval(value, float(low), float(high))


def _ends() -> tuple[float, float]:
    return (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
