"""What a benchmark leaves: `runs.csv`, `curves.csv`, `aggregate.csv`, `settings.yaml`, `table.md` and two pictures."""

import csv
import io
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from acktr.agents.benchmark.aggregates import Interval, difference, interval
from acktr.agents.benchmark.pictures import draw_curves, draw_scores
from acktr.agents.benchmark.records import Results, steps_per_second
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
    yield "what", "environments", "contestant", "runs", "mean", "interquartile_mean", "low", "high"
    for env, name in itertools.product(results.environments, results.contestants):
        scores = results.scores(env, name)
        if len(scores) and np.isfinite(scores).all():
            yield "return", env, name, len(scores), _number(scores.mean()), *map(_number, interval([scores]))
    for env in results.environments:
        if env in results.chance:
            yield "return", env, "random", 1, _number(results.chance[env]), "", "", ""
    for names, environments in groups(results):
        where = " ".join(environments)
        for name in names:
            every = results.normalised(name, environments)
            pooled = np.concatenate(every)
            yield "normalised", where, name, len(pooled), _number(pooled.mean()), *map(_number, interval(every))
        for other in names[1:]:
            first, second = (results.normalised(name, environments) for name in (names[0], other))
            pair = f"{names[0]} - {other}"
            yield "difference", where, pair, "", "", *map(_number, difference(first, second))


def _table(results: Results, title: str) -> str:
    names = results.contestants
    lines = [
        f"# {title}",
        "",
        "Mean raw return of a run's last hundred games: interquartile mean over the runs, in brackets its 95 % "
        "bootstrap interval, then the number of runs.",
        "",
        "| environment | random | " + " | ".join(names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for env in results.environments:
        cells = [_score(results, env, name) for name in names]
        chance = f"{results.chance[env]:.4g}" if env in results.chance else ""
        lines.append(f"| {env} | {chance} | " + " | ".join(cells) + " |")
    for names, environments in groups(results):
        scales = dict.fromkeys(results.reference(env) for env in environments)
        lines += [
            "",
            f"{len(environments)} environments ({', '.join(environments)}), scores normalised: 0 is random play, 1 the "
            f"mean of {' or '.join(str(name) for name in scales)}.",
            "",
            "| | interquartile mean | difference to the first |",
            "|---|---|---|",
        ]
        first = results.normalised(names[0], environments)
        for name in names:
            scores = results.normalised(name, environments)
            apart = "" if name == names[0] else _difference(difference(first, scores))
            lines.append(f"| {name} | {_bracketed(interval(scores), '.2f')} | {apart} |")
    return "\n".join(lines) + "\n"


def _score(results: Results, env: str, name: str) -> str:
    scores = results.scores(env, name)
    if not len(scores):
        return ""
    if not np.isfinite(scores).all():
        return "no game ended"
    form = ".0f" if abs(scores.mean()) >= 1000 else ".1f"
    if len(scores) == 1:
        return f"{scores[0]:{form}}, 1"
    return f"{_bracketed(interval([scores]), form)}, {len(scores)}"


def _difference(found: Interval) -> str:
    verdict = "separated" if found.low > 0 or found.high < 0 else "not separated"
    return f"{_bracketed(found, '+.2f')}, {verdict}"


def _bracketed(found: Interval, form: str) -> str:
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"


def _number(value: float | None) -> str:
    """In six digits; whole numbers whole; empty where there is none."""
    if value is None or value != value:
        return ""
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
