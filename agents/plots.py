"""Learning curves as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acktr.agents.metrics_file import read_metrics
from acktr.agents.run_folder import METRICS_FILE, RunFolder
from acktr.errors import UserError

_POINTS = 400


def plot(runs: Sequence[Path], output: Path) -> None:
    """Draw `return_mean` over timesteps.

    Runs of one environment and algorithm that differ in their seed make one curve: their mean, and their lowest and
    highest as a band. A single run's band is one standard deviation of its episodes.

    Args:
        runs: run folders.
        output: the picture, .png, .svg or .pdf.

    Raises:
        UserError: no run folder, no episode in any run, or `output` cannot be written.
    """
    groups: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
    for run in runs:
        settings = RunFolder.open(run).settings
        curve = read_curve(run / METRICS_FILE)
        if curve.size:
            groups.setdefault((settings.env, settings.algorithm), []).append(curve)
    if not groups:
        raise UserError(f"{', '.join(map(str, runs))}: no episode has ended yet, so there is nothing to plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no state shared with pyplot
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    environments = {env for env, _ in groups}
    for (env, algorithm), curves in sorted(groups.items()):
        label = algorithm.upper() if len(environments) == 1 else f"{algorithm.upper()}, {env}"
        steps, middle, low, high = _band(curves)
        seeds = f" ({len(curves)} seeds)" if len(curves) > 1 else ""
        (line,) = axes.plot(steps, middle, label=label + seeds, linewidth=1.8)
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_title(", ".join(sorted(environments)))
    axes.set_xlabel("timesteps")
    axes.set_ylabel("raw return, last 100 episodes")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)
    try:
        figure.savefig(output, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"{output} cannot be written: {error}; give a path that ends in .png, .svg or .pdf") from error


def read_curve(file: Path) -> NDArray[np.float64]:
    """Rows (timesteps, return_mean, return_std) of a metrics.csv, without those before the first episode's end; (n, 3).

    Raises:
        UserError: the file is missing or not a metrics file.
    """
    names = ("timesteps", "return_mean", "return_std")
    rows = [[row[name] for name in names] for row in read_metrics(file) if row["return_mean"] is not None]
    return np.asarray(rows, dtype=np.float64).reshape(-1, len(names))


def _band(curves: list[NDArray[np.float64]]) -> tuple[NDArray[np.float64], ...]:
    if len(curves) == 1:
        steps, mean, deviation = curves[0].T
        return steps, mean, mean - deviation, mean + deviation
    start = max(curve[0, 0] for curve in curves)
    end = min(curve[-1, 0] for curve in curves)
    steps = np.linspace(start, end, _POINTS)
    means = np.stack([np.interp(steps, curve[:, 0], curve[:, 1]) for curve in curves])
    return steps, means.mean(0), means.min(0), means.max(0)
