"""What a benchmark leaves: `runs.csv`, `curves.csv`, `aggregate.csv`, `settings.yaml`, `table.md` and two pictures."""

import csv
import io
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from acktr.agents.benchmark.aggregates import mean
from acktr.agents.benchmark.comparisons import comparisons
from acktr.agents.benchmark.pictures import draw_curves, draw_scores
from acktr.agents.benchmark.records import MOST, Results, steps_per_second
from acktr.agents.benchmark.suites import RANDOM
from acktr.agents.benchmark.table import table_of
from acktr.agents.files import write_text_atomically

RUNS_FILE = "runs.csv"
CURVES_FILE = "curves.csv"
SETTINGS_FILE = "settings.yaml"
AGGREGATE_FILE = "aggregate.csv"
TABLE_FILE = "table.md"
CURVES_PICTURE = "curves.png"
SCORES_PICTURE = "scores.png"
FILES = (RUNS_FILE, CURVES_FILE, AGGREGATE_FILE, SETTINGS_FILE, TABLE_FILE, CURVES_PICTURE, SCORES_PICTURE)
"""All of them; there is no picture of scores where none can be compared."""

POINTS = 100
"""Of each run in curves.csv, at most."""

_NORMAL = 1.96
"""Standard errors to each side of the mean of many games."""


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
    table = table_of(results, title)
    write_text_atomically(out / TABLE_FILE, table)
    draw_curves(results, out / CURVES_PICTURE)
    draw_scores(comparisons(results), results.contestants, out / SCORES_PICTURE)
    return table


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
        "final_policy",
    )
    for record in results.records:
        row = record.last_row
        whole = [row[name] for name in ("timesteps", "return_mean", "return_std", "episodes", "wall_time")]
        rest = _number(steps_per_second(record)), _number(record.evaluation)
        yield record.env, record.contestant, record.seed, *map(_number, whole), *rest


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
    yield "what", "environments", "contestant", "runs", "statistic", "value", "low", "high", "verdict"
    played = results.of_evaluations()
    yield from _means(results, "return")
    yield from _means(played, "final policy")
    for env in results.environments:
        if env in results.chance:
            value, error = results.chance[env]
            ends = value - _NORMAL * error, value + _NORMAL * error
            yield "return", env, RANDOM, "", "mean", *map(_number, (value, *ends)), ""
    for env, name in itertools.product(results.environments, results.contestants):
        pace = results.steps_to_most_of_the_first(env, name), f"to {MOST:g} of the first's end"
        behind = results.steps_to_the_end_of(env, name), "the first, to its end"
        for steps, what in (pace, behind) if name != results.finishers[0] else (pace,):
            if len(steps):
                key = f"steps: {what}", env, name, len(steps)
                yield *key, "reached", int(np.isfinite(steps).sum()), "", "", ""
                for kind, value in (("median", np.median(steps)), ("least", steps.min()), ("most", steps.max())):
                    yield *key, kind, _number(float(value)), "", "", ""
    yield from _comparisons(results, "")
    yield from _comparisons(played, "final policy: ")


def _means(results: Results, what: str) -> Iterable[Sequence[object]]:
    for env, name in itertools.product(results.environments, results.contestants):
        scores = results.scores(env, name)
        if len(scores) and np.isfinite(scores).all():
            yield what, env, name, len(scores), "mean", *map(_number, mean(scores)), ""


def _comparisons(results: Results, of: str) -> Iterable[Sequence[object]]:
    for comparison in comparisons(results):
        where, first = " ".join(comparison.environments), comparison.contestants[0]
        scale = "normalised " if comparison.is_normalised else ""
        for name, found in comparison.estimates.items():
            runs = sum(len(own.runs[name]) for own in comparison.where.values())
            yield f"{of}{scale}score", where, name, runs, comparison.statistic, *map(_number, found), ""
        for name, (found, verdict) in comparison.differences.items():
            what = f"{of}{scale}difference", where, f"{first} - {name}", ""
            yield *what, comparison.statistic, *map(_number, found), verdict


def _number(value: float | None) -> str:
    """In six digits; whole numbers whole; `inf` for what never came; empty where there is none."""
    if value is None or math.isnan(value):
        return ""
    if math.isinf(value):
        return str(value)
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
