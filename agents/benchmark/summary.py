"""What a benchmark leaves: `runs.csv`, `curves.csv`, `aggregate.csv`, `settings.yaml`, `table.md` and two pictures."""

import csv
import io
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from acktr.agents.benchmark.aggregates import Interval, difference, estimate
from acktr.agents.benchmark.pictures import draw_curves, draw_scores
from acktr.agents.benchmark.records import Results, steps_per_second
from acktr.agents.benchmark.suites import HUMAN
from acktr.agents.files import write_text_atomically

RUNS_FILE = "runs.csv"
CURVES_FILE = "curves.csv"
SETTINGS_FILE = "settings.yaml"
AGGREGATE_FILE = "aggregate.csv"
TABLE_FILE = "table.md"
CURVES_PICTURE = "curves.png"
SCORES_PICTURE = "scores.png"

POINTS = 100
"""Of each run in curves.csv, at most."""


def write(results: Results, out: Path, *, title: str) -> str:
    """Write all files.

    Args:
        results: the finished runs, one at least.
        out: the benchmark's folder.
        title: of the table.

    Returns:
        The table, as Markdown.
    """
    write_text_atomically(out / RUNS_FILE, _csv(_runs(results)))
    write_text_atomically(out / CURVES_FILE, _csv(_curves(results)))
    write_text_atomically(out / AGGREGATE_FILE, _csv(_aggregate(results)))
    write_text_atomically(out / SETTINGS_FILE, yaml.safe_dump(_settings(results), sort_keys=False))
    table = _table(results, title)
    write_text_atomically(out / TABLE_FILE, table)
    draw_curves(results, out / CURVES_PICTURE)
    draw_scores(results, groups(results), out / SCORES_PICTURE)
    return table


def groups(results: Results) -> list[tuple[list[str], list[str]]]:
    """Contestants and the environments that they are compared on: all together, and those who ran on more of them."""
    found: list[tuple[list[str], list[str]]] = []
    names = results.contestants
    for env_count in sorted({len(results.comparable([name])) for name in names}, reverse=True):
        chosen = [name for name in names if len(results.comparable([name])) >= env_count]
        environments = results.comparable(chosen)
        if environments and len(chosen) > 1:
            found.append((chosen, environments))
    return found


def _runs(results: Results) -> Iterable[Sequence[object]]:
    yield (
        "environment",
        "contestant",
        "seed",
        "timesteps",
        "return",
        "return_std",
        "episodes",
        "seconds",
        "steps_per_second",
    )
    for record in results.records:
        row = record.last_row
        whole = [row[name] for name in ("timesteps", "return_mean", "return_std", "episodes", "wall_time")]
        yield record.env, record.contestant, record.seed, *map(_number, whole), _number(steps_per_second(record))


def _settings(results: Results) -> dict[str, dict[str, Any]]:
    """By environment and contestant, those of its first seed."""
    found: dict[str, dict[str, Any]] = {}
    for record in results.records:
        own = {name: value for name, value in record.settings.items() if name not in ("env", "seed")}
        found.setdefault(record.env, {}).setdefault(record.contestant, own)
    return found


def _curves(results: Results) -> Iterable[Sequence[object]]:
    yield "environment", "contestant", "seed", "timesteps", "return"
    for record in results.records:
        count = len(record.curve)
        for place in np.unique(np.linspace(0, count - 1, min(POINTS, count)).round().astype(int)):
            steps, value = record.curve[place]
            yield record.env, record.contestant, record.seed, int(steps), _number(value)


def _aggregate(results: Results) -> Iterable[Sequence[object]]:
    yield "what", "environments", "contestant", "runs", "statistic", "value", "low", "high"
    for env, name in itertools.product(results.environments, results.contestants):
        scores = results.scores(env, name)
        if len(scores) and np.isfinite(scores).all():
            found = estimate([scores])
            yield "return", env, name, len(scores), "mean", *map(_number, found)
    for env in results.environments:
        if env in results.chance:
            yield "return", env, "random", 1, "mean", _number(results.chance[env].mean), "", ""
    for names, environments in groups(results):
        where, statistic = " ".join(environments), _statistic(environments)
        every = {name: results.normalised(name, environments) for name in names}
        for name, own in every.items():
            yield "normalised", where, name, sum(map(len, own)), statistic, *map(_number, estimate(own))
        for other in names[1:]:
            found = difference(every[names[0]], every[other])
            yield "difference", where, f"{names[0]} - {other}", "", statistic, *map(_number, found)


def _table(results: Results, title: str) -> str:
    names = results.contestants
    lines = [
        f"# {title}",
        "",
        "Mean raw return of a run's last hundred games: mean over the runs, in brackets its 95 % interval by Student's "
        "t, then the number of runs.",
        "",
        "| environment | random | " + " | ".join(names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for env in results.environments:
        cells = [_score(results, env, name) for name in names]
        chance = f"{results.chance[env].mean:.4g}" if env in results.chance else ""
        lines.append(f"| {env} | {chance} | " + " | ".join(cells) + " |")
    for compared, environments in groups(results):
        scales = dict.fromkeys(found[0] for env in environments if (found := results.reference(env)))
        number = f"{len(environments)} environments" if len(environments) > 1 else "One environment"
        lines += [
            "",
            f"{number} ({', '.join(environments)}), scores normalised: 0 is random play, 1 the "
            f"mean of {' or '.join(scales)}.".replace(f"mean of {HUMAN}", "human tester's score"),
            "",
            f"| | {_statistic(environments)} | difference to the first |",
            "|---|---|---|",
        ]
        for name in compared:
            scores = results.normalised(name, environments)
            apart = "" if name == compared[0] else _difference(results, environments, (compared[0], name))
            lines.append(f"| {name} | {_bracketed(estimate(scores), '.2f')} | {apart} |")
    return "\n".join(lines) + "\n"


def _statistic(environments: Sequence[str]) -> str:
    return "mean" if len(environments) == 1 else "interquartile mean"


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


def _number(value: float | None) -> str:
    """In six digits; whole numbers whole; empty where there is none."""
    if value is None or value != value:
        return ""
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
