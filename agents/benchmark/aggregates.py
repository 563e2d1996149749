"""What many runs come to: means and interquartile means with their intervals, performance profiles; pure functions.

Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice": with few seeds a mean over
environments hangs on outliers and a median on one run; the mean of the middle half does not. Its interval comes from
resampling runs within each environment (a stratified bootstrap, section 4.1), so that no environment's share changes.
The runs whose mean sets an environment's scale are drawn anew with them: a scale from three runs is itself uncertain.

Of one environment alone the raw scores are summed up, by their mean with Student's interval: that needs no scale, from
three to five runs there is no middle half to speak of, and a bootstrap would be too sure.

Environments may differ in their numbers of runs and count alike nevertheless: a run weighs one over the number of runs
of its contestant there.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from acktr.agents.intervals import CONFIDENCE, difference_interval, mean_interval, student_quantile

RESAMPLES = 10_000
"""Bootstrap samples: their own noise moves an end of an interval by about a hundredth of its width."""

FEW = 4
"""Environments below which the mean stands in for the interquartile mean, whose middle half would be one of them."""

_ROUNDING = 1e-9
"""Of normalised scores, where 1 is the way from random play to the reference."""


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvironmentScores:
    """What the runs of all contestants earned on one environment, and the scale there.

    Attributes:
        runs: raw scores, (runs,) by contestant.
        random: of random play, 0 on the scale.
        reference: 1 on the scale: a contestant, of whose runs it is the mean, or a score that is known; None where
            there is no scale.
    """

    runs: Mapping[str, NDArray[np.float64]]
    random: float = 0.0
    reference: str | float | None = None

    @property
    def best(self) -> float:
        """The score that counts as 1.

        Raises:
            ValueError: there is none, or it is no better than random play.
        """
        if self.reference is None:
            raise ValueError("no reference, and so no scale")
        best = float(self.runs[self.reference].mean()) if isinstance(self.reference, str) else self.reference
        if not best > self.random:
            raise ValueError(f"the reference's {best:g} is not above chance, {self.random:g}")
        return best

    def normalised(self, contestant: str) -> NDArray[np.float64]:
        """(score - random) / (reference - random) of a contestant's runs, (runs,).

        Raises:
            ValueError: there is no scale.
        """
        return (self.runs[contestant] - self.random) / (self.best - self.random)


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


def mean(scores: NDArray[np.float64]) -> Interval:
    """The mean of scores, (runs,), with Student's interval."""
    return Interval(float(scores.mean()), *(mean_interval(scores) or ()))


def estimate(where: Sequence[EnvironmentScores], contestant: str) -> Interval:
    """What the runs of one contestant come to, with its interval.

    Args:
        where: one environment, for the mean of the raw scores with Student's interval, or several, for the
            interquartile mean of the normalised ones, of fewer than four environments their mean, with that of the
            bootstrap.
        contestant: whose.

    Raises:
        ValueError: there are no scores, or no scale.
    """
    _check(where, contestant)
    if len(where) == 1:
        return mean(where[0].runs[contestant])
    return _bootstrapped(where, {contestant: 1.0})


def difference(where: Sequence[EnvironmentScores], first: str, second: str) -> Interval:
    """What one contestant comes to less what another does, whose runs are independent.

    The two are separated where the interval does not hold 0. Of one environment it is Welch's, of several that of the
    bootstrap.

    Args:
        where: as in `estimate`.
        first: a contestant.
        second: the other.

    Raises:
        ValueError: there are no scores, or no scale.
    """
    _check(where, first, second)
    if len(where) == 1:
        one, other = where[0].runs[first], where[0].runs[second]
        return Interval(float(one.mean() - other.mean()), *(difference_interval(one, other) or ()))
    return _bootstrapped(where, {first: 1.0, second: -1.0})


def performance_profile(scores: Sequence[NDArray[np.float64]], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of runs above each threshold, means over environments (Agarwal et al., section 4.2).

    It has no band: a share of five runs cannot say how sure it is, least of all where it is 0 or 1.

    Args:
        scores: of one contestant, (runs,) for each environment.
        thresholds: (k,).

    Returns:
        (k,).
    """
    return np.asarray(np.mean([(own[:, None] > thresholds).mean(axis=0) for own in scores], axis=0))


def _check(where: Sequence[EnvironmentScores], *contestants: str) -> None:
    if not where or any(not len(env.runs.get(name, ())) for env in where for name in contestants):
        raise ValueError("an environment without a run has no distribution to draw from")


def _summed_up(scores: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(interquartile) mean of (..., runs) for each environment."""
    weights = np.concatenate([np.full(own.shape[-1], 1 / own.shape[-1]) for own in scores])
    together = np.concatenate(scores, axis=-1)
    if len(scores) < FEW:
        return np.asarray(together @ weights / len(scores))
    return interquartile_mean(together, weights)


def _bootstrapped(where: Sequence[EnvironmentScores], signs: Mapping[str, float]) -> Interval:
    """The signed sum of what contestants come to, and its interval.

    The quantiles of the samples are those of a normal distribution whose width is known. Two to five runs do not tell
    it: the ends are moved out as Student's are beyond the normal's, by as many degrees of freedom as Satterthwaite's
    formula gives the runs, each contestant's on each environment with the part of the variance that they cause. Without
    that contestants that are alike would be called separated in a fifth of all cases of two runs on two environments.
    """
    value = float(sum(sign * _summed_up([env.normalised(name) for env in where]) for name, sign in signs.items()))
    drawn = _Samples(where, tuple(signs))
    if not drawn.are_enough:
        return Interval(value)
    samples = np.asarray(sum(sign * _summed_up(drawn.scores[name]) for name, sign in signs.items()))
    low, high = map(float, np.quantile(samples, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)))
    beyond = student_quantile(drawn.degrees_of_freedom(samples)) / student_quantile(float("inf"))
    return Interval(value, value + beyond * (low - value), value + beyond * (high - value))


class _Samples:
    """Runs drawn anew, with replacement, within each environment, those that set the scale among them.

    Draws from n runs vary by (n - 1)/n of what new runs would; they are stretched around their mean by the root of the
    inverse, which a single run does not allow. Samples in which a reference is no better than random play have no scale
    and are left out.
    """

    scores: dict[str, list[NDArray[np.float64]]]
    """By contestant and environment, normalised, (samples, runs)."""

    def __init__(self, where: Sequence[EnvironmentScores], contestants: Sequence[str]) -> None:
        generator = np.random.default_rng(0)
        self.scores = {name: [] for name in contestants}
        self._means: list[NDArray[np.float64]] = []
        self._runs: list[int] = []
        held = np.ones(RESAMPLES, dtype=bool)
        for env in where:
            reference = (env.reference,) if isinstance(env.reference, str) else ()
            drawn = {name: _drawn(env.runs[name], generator) for name in dict.fromkeys((*contestants, *reference))}
            best = drawn[reference[0]].mean(axis=1, keepdims=True) if reference else env.best
            width = np.broadcast_to(best - env.random, (RESAMPLES, 1))
            held &= width[:, 0] > 0
            for name in contestants:
                self.scores[name].append((drawn[name] - env.random) / width)
            self._means += [own.mean(axis=1) for own in drawn.values()]
            self._runs += [own.shape[1] for own in drawn.values()]
        self.scores = {name: [own[held] for own in scores] for name, scores in self.scores.items()}
        self._means = [mean[held] for mean in self._means]
        self.are_enough = min(self._runs) > 1 and float(held.mean()) > (1 + CONFIDENCE) / 2
        """Not where anybody has a single run, nor where so many samples lack a scale that an end would be unbounded."""

    def degrees_of_freedom(self, samples: NDArray[np.float64]) -> float:
        """Satterthwaite 1946: (sum v)^2 / sum(v^2 / (n - 1)) over groups of n runs, v what their mean explains of it.

        Args:
            samples: (samples,) of what is estimated.
        """
        explained = np.array([_explained(mean, samples) for mean in self._means])
        shares = explained / max(float(explained.sum()), np.finfo(float).tiny)
        lost = float((shares**2 / (np.array(self._runs) - 1)).sum())
        return 1 / lost if lost > 0 else float("inf")


def _drawn(runs: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    number = len(runs)
    stretched = runs.mean() + (runs - runs.mean()) * np.sqrt(number / max(1, number - 1))
    return np.asarray(stretched[generator.integers(number, size=(RESAMPLES, number))])


def _explained(mean: NDArray[np.float64], samples: NDArray[np.float64]) -> float:
    """The part of the samples' variance that goes with a mean."""
    centred = mean - mean.mean()
    variance = float(centred @ centred)
    return float(centred @ (samples - samples.mean())) ** 2 / variance if variance > 0 else 0.0
