"""Who is compared with the first contestant, on which environments, and with what verdict."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from acktr.agents.benchmark.aggregates import FEW, EnvironmentScores, Interval, difference, estimate
from acktr.agents.benchmark.records import Results

SEPARATED = "separated"
NOT_SEPARATED = "not separated"
SINGLE = "no verdict on single runs"
SINGLE_REFERENCE = "no verdict on a scale of single runs"
NO_SPREAD = "no verdict on runs without any spread"
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
        estimates: what each comes to.
        differences: the first one less each of the others.
    """

    contestants: tuple[str, ...]
    where: Mapping[str, EnvironmentScores]
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
    if not results.finishers:
        return []
    first, *others = results.finishers
    shared = {name: _shared(results, (first, name)) for name in others}
    sets = sorted(dict.fromkeys(own for own in shared.values() if own), key=len, reverse=True)
    return [_compared(results, (first, *(n for n in others if {*own} <= {*shared[n]})), own) for own in sets]


def left_out(results: Results) -> dict[str, str]:
    """Environments that the first contestant and another ran on and that no comparison of the two has, and why."""
    found: dict[str, dict[str, None]] = {}
    for name in results.finishers[1:]:
        pair = (results.finishers[0], name)
        for env in results.environments:
            if all(results.of(env, own) for own in pair) and env not in _shared(results, pair):
                found.setdefault(env, {})[_obstacle(results, env, pair)] = None
    return {env: ", ".join(reasons) for env, reasons in found.items()}


def _compared(results: Results, contestants: Sequence[str], environments: Sequence[str]) -> Comparison:
    first, *others = contestants
    where = {env: results.on(env) for env in environments}
    scores = list(where.values())
    found = {name: difference(scores, first, name) for name in others}
    return Comparison(
        contestants=tuple(contestants),
        where=where,
        estimates={name: estimate(scores, name) for name in contestants},
        differences={
            name: Difference(own, _verdict(results, where, (first, name), own)) for name, own in found.items()
        },
    )


def _verdict(results: Results, where: Mapping[str, EnvironmentScores], names: Sequence[str], found: Interval) -> str:
    """Runs that were begun and did not reach their end may be those that went wrong: the others prove nothing.

    Nor do they set a scale, which decides how much each environment counts. Of one environment there is none.
    """
    what, how = results.gap
    if any(results.unfinished.get((env, name)) for env in where for name in names):
        return f"no verdict while {what} {how}"
    setters = {env: results.scale_setters(env) if len(where) > 1 else () for env in where}
    if any(results.unfinished.get((env, name)) for env, own in setters.items() for name in own):
        return f"no verdict while {what} of the scale {how}"
    if found.excludes_zero is None:
        if any(len(own.runs[name]) == 1 for own in where.values() for name in names):
            return SINGLE
        references = [own.runs[own.reference] for own in where.values() if isinstance(own.reference, str)]
        return SINGLE_REFERENCE if any(len(own) == 1 for own in references) else UNBOUNDED
    if found.low == found.high != 0:
        return NO_SPREAD
    return SEPARATED if found.excludes_zero else NOT_SEPARATED


def _shared(results: Results, contestants: Sequence[str]) -> tuple[str, ...]:
    """Environments on which all of these have runs that ended games, with a scale if there are several."""
    both = [env for env in results.environments if all(_ended(results.scores(env, name)) for name in contestants)]
    return tuple(both if len(both) == 1 else [env for env in both if results.reference(env) is not None])


def _ended(scores: NDArray[np.float64]) -> bool:
    return len(scores) > 0 and bool(np.isfinite(scores).all())


def _obstacle(results: Results, env: str, contestants: Sequence[str]) -> str:
    for name in contestants:
        if not _ended(results.scores(env, name)):
            return f"a run of {name} ended no game"
    return "no reference above random play" if env in results.chance else "random play was not measured"
