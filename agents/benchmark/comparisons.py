"""Who is compared with the first contestant, on which environments, and with what verdict."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from acktr.agents.benchmark.aggregates import FEW, EnvironmentScores, Interval, difference, estimate
from acktr.agents.benchmark.records import Results

SEPARATED = "separated"
NOT_SEPARATED = "not separated"
UNFINISHED = "no verdict while runs are unfinished"
SINGLE = "no verdict on single runs"
SINGLE_REFERENCE = "no verdict on a scale of single runs"
UNBOUNDED = "no verdict, the reference being hardly above random play"


class Difference(NamedTuple):
    """What the first contestant comes to less another one, and whether that is more than chance."""

    interval: Interval
    verdict: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Contestants on the environments that all of them ran on.

    Attributes:
        contestants: the first one of all before the others.
        where: their scores, by environment; only of several environments they are normalised.
        left_out: environments that all of them ran on, and why nothing is said of them.
        estimates: what each comes to.
        differences: the first one less each of the others.
    """

    contestants: tuple[str, ...]
    where: Mapping[str, EnvironmentScores]
    left_out: Mapping[str, str]
    estimates: Mapping[str, Interval]
    differences: Mapping[str, Difference]

    @property
    def environments(self) -> list[str]:
        """Those that are compared, in the order of the suite."""
        return list(self.where)

    @property
    def is_normalised(self) -> bool:
        """Whether scores are on the scale from random play to the reference; of one environment they are raw."""
        return len(self.where) > 1

    @property
    def statistic(self) -> str:
        """What sums up the scores."""
        return "mean return" if not self.is_normalised else "mean" if len(self.where) < FEW else "interquartile mean"


def comparisons(results: Results) -> list[Comparison]:
    """One for each set of environments that the first contestant shares with another; of many environments first.

    All who ran on the whole of a set are in it. Nobody who shares an environment with the first is left out.
    """
    if not results.contestants:
        return []
    first, *others = results.contestants
    shared = {name: tuple(_comparable(results, (first, name))) for name in others}
    sets = sorted(dict.fromkeys(own for own in shared.values() if own), key=len, reverse=True)
    return [_compared(results, (first, *(n for n in others if {*own} <= {*shared[n]})), own) for own in sets]


def _compared(results: Results, contestants: Sequence[str], environments: Sequence[str]) -> Comparison:
    first, *others = contestants
    where = {env: results.on(env) for env in environments}
    scores = list(where.values())
    left_out = {
        env: reason
        for env in results.environments
        if env not in where
        and all(results.of(env, name) for name in contestants)
        and (reason := _obstacle(results, env, contestants))
    }
    found = {name: difference(scores, first, name) for name in others}
    return Comparison(
        contestants=tuple(contestants),
        where=where,
        left_out=left_out,
        estimates={name: estimate(scores, name) for name in contestants},
        differences={
            name: Difference(own, _verdict(results, where, (first, name), own)) for name, own in found.items()
        },
    )


def _verdict(results: Results, where: Mapping[str, EnvironmentScores], names: Sequence[str], found: Interval) -> str:
    """Runs that were begun and did not reach their end may be those that went wrong: the others prove nothing.

    Nor do they set a scale. Of one environment there is none.
    """
    scales = {env: own.reference for env, own in where.items() if len(where) > 1 and isinstance(own.reference, str)}
    if any(results.unfinished.get((env, name)) for env in where for name in (*names, scales.get(env, names[0]))):
        return UNFINISHED
    if found.excludes_zero is not None:
        return SEPARATED if found.excludes_zero else NOT_SEPARATED
    if any(len(own.runs[name]) == 1 for own in where.values() for name in names):
        return SINGLE
    return SINGLE_REFERENCE if any(len(where[env].runs[name]) == 1 for env, name in scales.items()) else UNBOUNDED


def _comparable(results: Results, contestants: Sequence[str]) -> list[str]:
    return [
        env
        for env in results.environments
        if all(results.of(env, name) for name in contestants) and not _obstacle(results, env, contestants)
    ]


def _obstacle(results: Results, env: str, contestants: Sequence[str]) -> str:
    """Why contestants that ran on an environment are not compared there; empty where they are."""
    for name in contestants:
        if not np.isfinite(results.scores(env, name)).all():
            return f"a run of {name} ended no game"
    if len(results.environments) > 1 and results.reference(env) is None:  # raw scores of one need no scale
        return "no reference above random play"
    return ""
