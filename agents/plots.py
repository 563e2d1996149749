"""Learning curves as a picture."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acktr.agents.idle_settings import idle
from acktr.agents.metrics_file import read_metrics
from acktr.agents.run_folder import METRICS_FILE, RunFolder
from acktr.agents.settings import FIELDS, Settings
from acktr.errors import UserError

_POINTS = 400
_MOST_DIFFERENCES = 3

_NO_MATTER = ("seed", "device", "num_threads", "vectorization", "log_interval", "checkpoint_interval", "exact_resume")
"""What runs may differ in and still be one experiment, repeated."""


def plot(runs: Sequence[Path], output: Path) -> None:
    """Draw `return_mean` over timesteps.

    Runs that differ in their seed alone (and in what decides no result, such as the device, or ACKTR's settings where
    the algorithm is A2C) make one curve: their
    mean, and their lowest and highest as a band, over the timesteps that all of them have (that any has, where they
    have none in common). Curves are named by algorithm and by the settings in which they differ. A
    single run's band is one standard deviation of its episodes, and it has none beside curves of several runs: a band
    means one thing in one picture, which says what. A run in which no episode has ended yet adds nothing;
    if that is all of them, the picture says so.

    Args:
        runs: run folders.
        output: the picture, .png, .svg or .pdf.

    Raises:
        UserError: no run folder, or `output` cannot be written.
    """
    environments: set[str] = set()
    groups: dict[Settings, list[tuple[Path, NDArray[np.float64]]]] = {}
    for run in {path.resolve(): path for path in runs}.values():  # each folder once, called what the caller calls it
        settings = RunFolder.open(run).settings
        environments.add(settings.env)
        curve = read_curve(run / METRICS_FILE)
        if curve.size:
            groups.setdefault(experiment(settings), []).append((run, curve))
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no state shared with pyplot
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    for settings, curves in groups.items():
        steps, middle, low, high = _band([curve for _, curve in curves])
        label = _label(settings, list(groups), runs=[run for run, _ in curves])
        (line,) = axes.plot(steps, middle, label=label, linewidth=1.8, marker="o" if len(steps) == 1 else None)
        if len(curves) == _fullest(groups.values()) or len(curves) > 1:
            axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    names = ", ".join(sorted(environments))
    # names may have dollar signs in them, which are no formulas
    axes.set_title(names if len(environments) < 3 else f"{len(environments)} environments", parse_math=False)
    axes.set_xlabel("timesteps")
    axes.set_ylabel("raw return, last 100 episodes")
    if groups:
        axes.text(1, 1.01, _band_in_words(groups.values()), transform=axes.transAxes, ha="right", fontsize=8)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    if groups:
        for text in axes.legend(loc="best", frameon=False).get_texts():
            text.set_parse_math(False)
    else:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no episode has ended yet", transform=axes.transAxes, ha="center", va="center")
    try:
        figure.savefig(output, dpi=120)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}; give another path") from error
    except ValueError as error:
        raise UserError(f"{output} cannot be written: {error}; give a path that ends in .png, .svg or .pdf") from error


def read_curve(file: Path) -> NDArray[np.float64]:
    """Rows (timesteps, return_mean, return_std) of a metrics.csv, without those before the first episode's end; (n, 3).

    Raises:
        UserError: the file is missing or not a metrics file.
    """
    names = ("timesteps", "return_mean", "return_std")
    rows = [[row[name] for name in names] for row in read_metrics(file) if row["return_mean"] is not None]
    return np.asarray(rows, dtype=np.float64).reshape(-1, len(names))


def experiment(settings: Settings) -> Settings:
    """The settings with those that decide no result at their defaults."""
    without_say = {*_NO_MATTER, *set[str]().union(*idle(settings, FIELDS).values())}
    defaults: dict[str, Any] = {name: FIELDS[name].default for name in without_say}
    return dataclasses.replace(settings, **defaults)


def _label(settings: Settings, others: Sequence[Settings], *, runs: Sequence[Path]) -> str:
    """Name of a curve among others: algorithm, where it stands apart, and how many runs it is of."""
    values = settings.to_dict()
    alike = [other.to_dict() for other in others if other.algorithm == settings.algorithm and other.env == settings.env]
    apart = [name for name in values if any(other[name] != values[name] for other in alike)]
    parts = [settings.algorithm.upper()]
    if len({other.env for other in others}) > 1:
        parts.append(settings.env)
    if len(apart) <= _MOST_DIFFERENCES:
        parts.extend(f"{name} {values[name]}" for name in apart)
    else:
        parts.append(runs[0].resolve().name)
    return ", ".join(parts) + (f" ({len(runs)} runs)" if len(runs) > 1 else "")


def _fullest(groups: Collection[Sequence[object]]) -> int:
    return max(map(len, groups))


def _band_in_words(groups: Collection[Sequence[object]]) -> str:
    return "band: lowest and highest run" if _fullest(groups) > 1 else "band: one standard deviation of the episodes"


def _band(curves: list[NDArray[np.float64]]) -> tuple[NDArray[np.float64], ...]:
    if len(curves) == 1:
        steps, mean, deviation = curves[0].T
        return steps, mean, mean - deviation, mean + deviation
    start, end = max(curve[0, 0] for curve in curves), min(curve[-1, 0] for curve in curves)
    if start >= end:
        start, end = min(curve[0, 0] for curve in curves), max(curve[-1, 0] for curve in curves)
    steps = np.linspace(start, end, _POINTS)
    means = np.stack([np.interp(steps, curve[:, 0], curve[:, 1], left=np.nan, right=np.nan) for curve in curves])
    covered = ~np.isnan(means).all(axis=0)
    steps, means = steps[covered], means[:, covered]
    return steps, np.nanmean(means, axis=0), np.nanmin(means, axis=0), np.nanmax(means, axis=0)
