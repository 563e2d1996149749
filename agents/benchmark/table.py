"""A benchmark's table, as Markdown: scores, steps to the others' scores, and who is separated from whom."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from acktr.agents.benchmark.aggregates import Interval, difference, estimate
from acktr.agents.benchmark.evaluations import EPISODES
from acktr.agents.benchmark.records import MOST, Results
from acktr.agents.benchmark.suites import HUMAN, RANDOM


def table_of(results: Results, title: str) -> str:
    """All of it.

    Args:
        results: the finished runs, one at least.
        title: the heading.
    """
    lines = [f"# {title}", ""]
    lines += _of_one(results) if len(results.environments) == 1 else _of_several(results)
    for names, environments in results.groups():
        lines += [*_comparison(results, names, environments, "scores"), ""]
    played = results.of_evaluations()
    for names, environments in played.groups():
        lines += [*_comparison(played, names, environments, "returns of the final policies' own games"), ""]
    return "\n".join(lines).rstrip() + "\n"


def statistic(environments: Sequence[str]) -> str:
    """What sums up normalised scores."""
    return "mean" if len(environments) == 1 else "interquartile mean"


class _Measure(NamedTuple):
    """A figure of every contestant on every environment."""

    name: str
    meaning: str
    names: Sequence[str]
    cell: Callable[[str, str], str]


def _measures(results: Results) -> tuple[_Measure, ...]:
    first, *others = results.contestants
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
            lambda env, name: _steps(results.steps_to_most_of_the_first(env, name)),
        ),
        _Measure(
            f"{first}'s steps",
            f"Timesteps after which runs of {first} had the return at which those of another one ended, likewise.",
            others,
            lambda env, name: _steps(results.steps_to_the_end_of(env, name)),
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
    scores = results.scores(env, name)
    missing = results.unfinished.get((env, name), 0)
    rest = f" ({missing} unfinished)" if missing else ""
    if not len(scores):
        return rest.strip()
    if not np.isfinite(scores).all():
        return f"no game ended{rest}"
    return _mean(scores) + rest


def _games(played: Results, env: str, name: str) -> str:
    scores = played.scores(env, name)
    missing = played.unfinished.get((env, name), 0)
    return f"{_mean(scores)}{f' ({missing} without)' if missing and len(scores) else ''}"


def _mean(scores: NDArray[np.float64]) -> str:
    if not len(scores):
        return ""
    form = ".0f" if abs(scores.mean()) >= 1000 else ".1f"
    return f"{_bracketed(estimate([scores]), form)}, {len(scores)}"


def _steps(steps: NDArray[np.float64]) -> str:
    if not len(steps):
        return ""
    count = int(np.isfinite(steps).sum())
    if not count:
        return f"never, 0 of {len(steps)}"
    middle, least, most = (_thousands(value) for value in (float(np.median(steps)), steps.min(), steps.max()))
    return f"{middle}{f' [{least}, {most}]' if len(steps) > 1 else ''}, {count} of {len(steps)}"


def _thousands(steps: float) -> str:
    return f"{steps / 1000:.0f}k" if np.isfinite(steps) else "never"


def _comparison(results: Results, names: Sequence[str], environments: Sequence[str], what: str) -> Iterable[str]:
    scales = dict.fromkeys(found[0] for env in environments if (found := results.reference(env)))
    number = f"{len(environments)} environments" if len(environments) > 1 else "One environment"
    yield (
        f"{number} ({', '.join(environments)}), {what} normalised: 0 is random play, 1 the "
        f"mean of {' or '.join(scales)}.".replace(f"mean of {HUMAN}", "human tester's score")
    )
    yield ""
    yield f"| | {statistic(environments)} | difference to the first |"
    yield "|---|---|---|"
    for name in names:
        apart = "" if name == names[0] else _difference(results, environments, (names[0], name))
        yield f"| {name} | {_bracketed(estimate(results.normalised(name, environments)), '.2f')} | {apart} |"


def _difference(results: Results, environments: Sequence[str], names: tuple[str, str]) -> str:
    """The first one's score less the other's, and whether they are separated.

    Runs that were begun and did not reach their end may be those that went wrong, so that the others prove nothing.
    """
    found = difference(*(results.normalised(name, environments) for name in names))
    if any(results.unfinished.get((env, name)) for env in environments for name in names):
        verdict = "no verdict while runs are unfinished"
    elif found.excludes_zero is None:
        verdict = "no verdict on single runs"
    else:
        verdict = "separated" if found.excludes_zero else "not separated"
    return f"{_bracketed(found, '+.2f')}, {verdict}"


def _bracketed(found: Interval, form: str) -> str:
    text = f"{found.value:{form}}"
    return text if found.low is None else f"{text} [{found.low:{form}}, {found.high:{form}}]"
