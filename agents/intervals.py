"""Intervals of means of few values, by Student's t; pure functions.

A bootstrap of n values takes their variance for (n - 1)/n of what it is and knows no tails beyond them: of five games
its 95 % interval holds the truth in 83 % of all cases, of three in 74 %. Student's is exact for normal values and
holds it more often than the bootstrap for skewed ones.
"""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95

_PANELS = 512
"""Of Simpson's rule, whose error is far below 1e-6 here."""

_NORMAL = 1e6
"""Degrees of freedom from which on Student's t is the normal distribution to six digits."""


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """95 % interval of the mean.

    Args:
        values: (n,).

    Returns:
        Its ends; None for a single value.
    """
    if values.size < 2:
        return None
    half = student_quantile(values.size - 1) * float(values.std(ddof=1)) / math.sqrt(values.size)
    mean = float(values.mean())
    return mean - half, mean + half


def difference_interval(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float] | None:
    """95 % interval of the difference of two means whose deviations may differ (Welch 1947).

    Args:
        first: (n,).
        second: (m,).

    Returns:
        Its ends, of the first mean less the second; None where one of them is of a single value.
    """
    if min(first.size, second.size) < 2:
        return None
    one, other = (float(values.var(ddof=1)) / values.size for values in (first, second))
    apart = float(first.mean() - second.mean())
    if one + other == 0:
        return apart, apart
    freedom = (one + other) ** 2 / (one**2 / (first.size - 1) + other**2 / (second.size - 1))
    half = student_quantile(freedom) * math.sqrt(one + other)
    return apart - half, apart + half


def student_quantile(freedom: float) -> float:
    """How many standard errors to each side hold 95 % of Student's t, by bisection.

    Args:
        freedom: degrees of freedom, at least 1; 12.706 for 1, 1.960 for infinitely many.
    """
    if freedom >= _NORMAL:
        return NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    low, high = 0.0, 13.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _share_within(middle, freedom) < CONFIDENCE else (low, middle)
    return high


def _share_within(bound: float, freedom: float) -> float:
    """P(|T| < bound), Simpson's rule on the density."""
    points = np.linspace(0.0, bound, _PANELS + 1)
    scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    density = np.exp(scale - (freedom + 1) / 2 * np.log1p(points**2 / freedom))
    weights = np.full(_PANELS + 1, 2.0)
    weights[1::2] = 4.0
    weights[[0, -1]] = 1.0
    return float(2 * (weights @ density) * bound / _PANELS / 3)
