"""Pictures of a benchmark: learning curves by environment; normalised scores and their profile."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from acktr.agents.benchmark.aggregates import performance_profile
from acktr.agents.benchmark.comparisons import Comparison
from acktr.agents.benchmark.records import Record, Results
from acktr.agents.benchmark.suites import RANDOM
from acktr.errors import UserError

COLUMNS = 4
_POINTS = 200
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which colour-blind people tell apart."""


def draw_curves(results: Results, path: Path) -> None:
    """One panel per environment: means over the runs, their lowest and highest as a band."""
    environments = results.environments
    columns = min(COLUMNS, len(environments))
    rows = -(-len(environments) // columns)
    figure, panels = _panels(rows, columns)
    for panel, env in zip(panels, environments, strict=False):
        for name, colour in _palette(results.contestants).items():
            records = [record for record in results.of(env, name) if len(record.curve)]
            if not records:
                continue
            steps, values = _together(records)
            panel.plot(steps, values.mean(axis=0), color=colour, label=name, linewidth=1.5)
            panel.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
        if env in results.chance:
            panel.axhline(results.chance[env].mean, color="0.6", linewidth=0.8, linestyle=":", label=RANDOM)
        panel.set_title(env, fontsize=10)
        _in_units(panel)
        panel.grid(alpha=0.3)
    for panel in panels[len(environments) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(environments) - columns) : len(environments)]:  # the lowest of each column
        panel.set_xlabel("timesteps", fontsize=9)
    figure.supylabel("raw return, last 100 games", fontsize=9)
    handles = {text: line for panel in panels for line, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    _save(figure, path)


def draw_scores(comparisons: Sequence[Comparison], names: Sequence[str], path: Path) -> None:
    """For each comparison the means with their intervals and, of few contestants, the performance profile.

    On one environment each run is a dot. Colours are those of the curves, by all contestants' names.
    """
    if not comparisons:
        path.unlink(missing_ok=True)  # an earlier one would belong to other runs
        return
    figure, panels = _panels(len(comparisons), 2, width=5.2, height=max(2.6, 0.22 * len(names)))
    colours = _palette(names)
    for comparison, left, right in zip(comparisons, panels[::2], panels[1::2], strict=True):
        _draw_means(comparison, left, colours)
        if len(comparison.contestants) <= len(_COLOURS):
            _draw_profiles(comparison, right, colours)
        else:  # more profiles than can be told apart
            left.set_subplotspec(left.get_gridspec()[left.get_subplotspec().rowspan.start, :])
            right.remove()
    _save(figure, path)


def _draw_means(comparison: Comparison, panel: Any, colours: Mapping[str, Any]) -> None:
    names = list(reversed(comparison.contestants))
    for place, name in enumerate(names):
        value, low, high = comparison.estimates[name]
        if low is not None and high is not None:
            panel.barh(place, high - low, left=low, height=0.6, color=colours[name], alpha=0.5)
        panel.plot([value] * 2, [place - 0.3, place + 0.3], color=colours[name], linewidth=2)
        if not comparison.is_normalised:
            (own,) = (scores.runs[name] for scores in comparison.where.values())
            panel.plot(own, [place] * len(own), ".", color="black", markersize=4)
    panel.use_sticky_edges = False  # bars end at a distance from the frame
    panel.set_yticks(range(len(names)), names)
    where = f"{len(comparison.where)} environments" if comparison.is_normalised else comparison.environments[0]
    panel.set_title(f"{comparison.statistic}, {where}", fontsize=10)
    panel.set_xlabel(_axis(comparison))
    panel.grid(alpha=0.3, axis="x")


def _draw_profiles(comparison: Comparison, panel: Any, colours: Mapping[str, Any]) -> None:
    where = comparison.where.values()
    normalised = comparison.is_normalised
    scores = {
        name: [own.normalised(name) if normalised else own.runs[name] for own in where]
        for name in comparison.contestants
    }
    pooled = np.concatenate([own for parts in scores.values() for own in parts])
    start = min(0.0, float(pooled.min())) if normalised else float(pooled.min())
    thresholds = np.linspace(start, float(np.quantile(pooled, 0.98)), _POINTS)
    for name, own in scores.items():
        panel.plot(thresholds, performance_profile(own, thresholds), color=colours[name], label=name, linewidth=1.5)
    panel.set_title("performance profile", fontsize=10)
    panel.set_xlabel(_axis(comparison))
    panel.set_ylabel("share of runs above")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, fontsize=8)


def _axis(comparison: Comparison) -> str:
    return "normalised score: 0 random play, 1 the reference" if comparison.is_normalised else "return"


def _palette(names: Sequence[str]) -> dict[str, Any]:
    if len(names) <= len(_COLOURS):
        return dict(zip(names, _COLOURS, strict=False))
    from matplotlib import colormaps

    return {name: colormaps["turbo"](place / (len(names) - 1)) for place, name in enumerate(names)}


def _together(records: Sequence[Record]) -> tuple[Any, Any]:
    """Runs on the timesteps that all of them have; of those without any in common, each on its own."""
    start, end = max(r.curve[0, 0] for r in records), min(r.curve[-1, 0] for r in records)
    if start >= end:
        start, end = min(r.curve[0, 0] for r in records), max(r.curve[-1, 0] for r in records)
    steps = np.linspace(start, end, _POINTS)
    values = [np.interp(steps, record.curve[:, 0], record.curve[:, 1], left=np.nan, right=np.nan) for record in records]
    return steps, np.ma.masked_invalid(np.stack(values))


def _panels(rows: int, columns: int, *, width: float = 3.2, height: float = 2.6) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no state shared with pyplot
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns + 0.4, height * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _in_units(panel: Any) -> None:
    from matplotlib.ticker import EngFormatter

    panel.xaxis.set_major_formatter(EngFormatter(sep=""))


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; give another --out") from error
