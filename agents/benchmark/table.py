"""A benchmark's table, as Markdown: scores, steps to the others' scores, and who is separated from whom."""

from collections.abc import Iterable, Sequence

import numpy as np

from acktr.agents.benchmark.aggregates import Interval, difference, estimate
from acktr.agents.benchmark.records import Results
from acktr.agents.benchmark.suites import HUMAN


def table_of(results: Results, title: str) -> str:
    """All of it.

    Args:
        results: the finished runs, one at least.
        title: the heading.
    """
    lines = [f"# {title}", "", *_scores(results), *_steps(results)]
    for names, environments in results.groups():
        lines += ["", *_comparison(results, names, environments)]
    return "\n".join(lines) + "\n"


def statistic(environments: Sequence[str]) -> str:
    """What sums up normalised scores."""
    return "mean" if len(environments) == 1 else "interquartile mean"


def _scores(results: Results) -> Iterable[str]:
    yield (
        "Mean raw return of a run's last hundred games: mean over the runs, in brackets its 95 % interval by Student's "
        "t, then the number of runs."
    )
    yield ""
    cells = [
        [f"{results.chance[env].mean:.4g}" if env in results.chance else "", *_row(results, env)]
        for env in results.environments
    ]
    yield from _grid(results.environments, ["random", *results.contestants], cells)


def _row(results: Results, env: str) -> list[str]:
    return [_score(results, env, name) for name in results.contestants]


def _steps(results: Results) -> Iterable[str]:
    first, *others = results.contestants
    cells = [
        [_reached(results.steps_to_the_end_of(env, first, other)) for other in others] for env in results.environments
    ]
    if not any(map(any, cells)):
        return
    yield ""
    yield (
        f"Timesteps after which {first} had the mean score at which each of the others ended: median of its runs, in "
        "brackets the least and the most, then how many of them had it."
    )
    yield ""
    yield from _grid(results.environments, others, cells)


def _reached(steps: np.ndarray) -> str:
    if not len(steps):
        return ""
    count = int(np.isfinite(steps).sum())
    middle, least, most = (_thousands(value) for value in (float(np.median(steps)), steps.min(), steps.max()))
    return f"{middle}{f' [{least}, {most}]' if len(steps) > 1 else ''}, {count} of {len(steps)}"


def _thousands(steps: float) -> str:
    return f"{steps / 1000:.0f}k" if np.isfinite(steps) else "never"


def _grid(environments: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Iterable[str]:
    """A row for each environment; of one environment alone a row for each column, as there may be many."""
    corner, rows = "environment", environments
    if len(environments) == 1:
        corner, rows, columns, cells = "", columns, environments, [[cell] for cell in cells[0]]
    yield f"| {corner} | " + " | ".join(columns) + " |"
    yield "|" + "---|" * (1 + len(columns))
    for name, row in zip(rows, cells, strict=True):
        yield f"| {name} | " + " | ".join(row) + " |"


def _comparison(results: Results, names: Sequence[str], environments: Sequence[str]) -> Iterable[str]:
    scales = dict.fromkeys(found[0] for env in environments if (found := results.reference(env)))
    number = f"{len(environments)} environments" if len(environments) > 1 else "One environment"
    yield (
        f"{number} ({', '.join(environments)}), scores normalised: 0 is random play, 1 the "
        f"mean of {' or '.join(scales)}.".replace(f"mean of {HUMAN}", "human tester's score")
    )
    yield ""
    yield f"| | {statistic(environments)} | difference to the first |"
    yield "|---|---|---|"
    for name in names:
        apart = "" if name == names[0] else _difference(results, environments, (names[0], name))
        yield f"| {name} | {_bracketed(estimate(results.normalised(name, environments)), '.2f')} | {apart} |"


def _score(results: Results, env: str, name: str) -> str:
    scores = results.scores(env, name)
    missing = results.unfinished.get((env, name), 0)
    rest = f" ({missing} unfinished)" if missing else ""
    if not len(scores):
        return rest.strip()
    if not np.isfinite(scores).all():
        return f"no game ended{rest}"
    form = ".0f" if abs(scores.mean()) >= 1000 else ".1f"
    return f"{_bracketed(estimate([scores]), form)}, {len(scores)}{rest}"


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
