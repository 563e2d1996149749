"""A benchmark's table, as Markdown: scores, steps to the others' scores, and who is separated from whom."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from acktr.agents.benchmark.aggregates import Interval, mean
from acktr.agents.benchmark.comparisons import Comparison, comparisons, left_out
from acktr.agents.benchmark.evaluations import EPISODES
from acktr.agents.benchmark.records import MOST, Results
from acktr.agents.benchmark.suites import HUMAN, RANDOM

_MOST_DECIMALS = 4
_NOTHING = 1e-9
"""Rounding of sums, which is printed as 0."""


def table_of(results: Results, title: str) -> str:
    """All of it.

    Args:
        results: the finished runs, one at least.
        title: the heading.
    """
    lines = [f"# {title}", ""]
    lines += _of_one(results) if len(results.environments) == 1 else _of_several(results)
    for what, own in (("scores", results), ("returns of the final policies' own games", results.of_evaluations())):
        for comparison in comparisons(own):
            lines += [*_comparison(own, comparison, what), ""]
        if rest := left_out(own):
            reasons = ", ".join(f"{env} ({why})" for env, why in rest.items())
            lines += [f"Left out of the comparison of {what}: {reasons}.", ""]
    return "\n".join(lines).rstrip() + "\n"


class _Measure(NamedTuple):
    """A figure of every contestant on every environment."""

    name: str
    meaning: str
    names: Sequence[str]
    cell: Callable[[str, str], str]


def _measures(results: Results) -> tuple[_Measure, ...]:
    first, *_ = results.finishers
    others = [name for name in results.contestants if name != first]
    played = results.of_evaluations()
    return (
        _Measure(
            "return",
            "Mean raw return of a run's last hundred games: mean over the runs, in brackets its 95 % interval by "
            "Student's t, then the number of runs.",
            (RANDOM, *results.contestants),
            lambda env, name: _score(results, env, name),
        ),
        _Measure(
            "final policy",
            f"Mean raw return of {EPISODES} games that the final policy plays afterwards, taking its most likely "
            "actions (on Atari sampled ones), likewise.",
            results.contestants,
            lambda env, name: _games(played, env, name),
        ),
        _Measure(
            "steps",
            f"Timesteps after which a run had come {100 * MOST:g} % of the way from random play to {first}'s return: "
            "median of the runs, in brackets the least and the most, then how many of them had.",
            results.contestants,
            lambda env, name: _steps(results, env, name, results.steps_to_most_of_the_first(env, name)),
        ),
        _Measure(
            f"{first}'s steps",
            f"Timesteps after which runs of {first} had the return at which those of another one ended, likewise.",
            others,
            lambda env, name: _steps(results, env, first, results.steps_to_the_end_of(env, name)),
        ),
    )


def _of_several(results: Results) -> Iterable[str]:
    """A grid for each measure: a row for each environment, a column for each contestant."""
    for measure in _measures(results):
        cells = [[measure.cell(env, name) for name in measure.names] for env in results.environments]
        if any(map(any, cells)):
            yield from (measure.meaning, "")
            yield from _grid("environment", results.environments, measure.names, cells)
            yield ""


def _of_one(results: Results) -> Iterable[str]:
    """A grid for all measures: a row for each contestant, of whom there may be many."""
    (env,), names = results.environments, [RANDOM, *results.contestants]
    measures = [m for m in _measures(results) if any(m.cell(env, name) for name in m.names)]
    rows = [[m.cell(env, name) if name in m.names else "" for m in measures] for name in names]
    for measure in measures:
        yield f"- {measure.name}: {measure.meaning}"
    yield ""
    yield from _grid(env, names, [measure.name for measure in measures], rows)
    yield ""


def _grid(corner: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Iterable[str]:
    yield f"| {corner} | " + " | ".join(columns) + " |"
    yield "|" + "---|" * (1 + len(columns))
    for name, row in zip(rows, cells, strict=True):
        yield f"| {name} | " + " | ".join(row) + " |"


def _score(results: Results, env: str, name: str) -> str:
    if name == RANDOM:
        return f"{results.chance[env].mean:.4g}" if env in results.chance else ""
    scores, rest = results.scores(env, name), _unfinished(results, env, name)
    if not len(scores):
        return rest.strip()
    ended = np.isfinite(scores)
    if not ended.any():
        return f"no game ended{rest}"
    return f"{_mean(scores[ended])}{'' if ended.all() else f' (no game ended in {(~ended).sum()} more)'}{rest}"


def _unfinished(results: Results, env: str, name: str) -> str:
    number = results.unfinished.get((env, name), 0)
    return f" ({number} unfinished)" if number else ""


def _games(played: Results, env: str, name: str) -> str:
    scores = played.scores(env, name)
    missing = played.unfinished.get((env, name), 0)
    return f"{_mean(scores)}{f' ({missing} without)' if missing and len(scores) else ''}"


def _mean(scores: NDArray[np.float64]) -> str:
    return f"{_bracketed(mean(scores))}, {len(scores)}" if len(scores) else ""


def _steps(results: Results, env: str, name: str, steps: NDArray[np.float64]) -> str:
    if not len(steps):
        return ""
    count, rest = int(np.isfinite(steps).sum()), _unfinished(results, env, name)
    if not count:
        return f"never, 0 of {len(steps)}{rest}"
    middle, least, most = (_thousands(value) for value in (float(np.median(steps)), steps.min(), steps.max()))
    return f"{middle}{f' [{least}, {most}]' if len(steps) > 1 else ''}, {count} of {len(steps)}{rest}"


def _thousands(steps: float) -> str:
    return f"{steps / 1000:.0f}k" if np.isfinite(steps) else "never"


def _comparison(results: Results, comparison: Comparison, what: str) -> Iterable[str]:
    environments = comparison.environments
    if comparison.is_normalised:
        yield (
            f"The {len(environments)} environments of {_listed(comparison.contestants)} ({', '.join(environments)}), "
            f"{what} normalised: 0 is random play, 1 {_scale(results, environments)}."
        )
    else:
        yield f"{environments[0]}, raw {what}."
    yield ""
    yield f"| | {comparison.statistic} | difference to the first |"
    yield "|---|---|---|"
    decimals = 2 if comparison.is_normalised else None
    for name, found in comparison.estimates.items():
        apart = ""
        if name in comparison.differences:
            interval, verdict = comparison.differences[name]
            apart = f"{_bracketed(interval, decimals, sign='+')}, {verdict}"
        yield f"| {name} | {_bracketed(found, decimals)} | {apart} |"


def _scale(results: Results, environments: Sequence[str]) -> str:
    """Whose mean counts as 1, and where."""
    setters: dict[str, list[str]] = {}
    for env in environments:
        if (found := results.reference(env)) is not None:
            setters.setdefault(found[0], []).append(env)
    named = {name: "the human tester's score" if name == HUMAN else f"the mean of {name}" for name in setters}
    if len(setters) == 1:
        return next(iter(named.values()))
    return ", ".join(f"{named[name]} on {_listed(where)}" for name, where in setters.items())


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _bracketed(found: Interval, decimals: int | None = None, *, sign: str = "") -> str:
    """The value and its ends, in as many decimals as three digits of the value or of the interval's width need.

    An end that is not 0 is not printed as 0.
    """
    ends = [end for end in (found.low, found.high) if end is not None]
    if decimals is None:
        size = max(abs(found.value), ends[1] - ends[0] if ends else 0.0)
        decimals = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 else 3
    while decimals < _MOST_DECIMALS and any(abs(end) > _NOTHING and not round(end, decimals) for end in ends):
        decimals += 1
    form = f"{sign}.{decimals}f"
    text = f"{found.value:{form}}"
    return f"{text} [{', '.join(f'{end:{form}}' for end in ends)}]" if ends else text
