"""Pictures of a report, as SVG: the learning curve, what else was measured, and the returns of an evaluation.

They have no ground of their own and are drawn in black, so that a page may show them on its ground and invert them on a
dark one.
"""

import contextlib
import dataclasses
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from acktr.agents.plots import experiment, plot
from acktr.agents.report_runs import RunFiles

_LOWEST_EXPLAINED = -1.0
"""Young critics can be a thousand times worse than a constant, beside which nothing else would be seen."""

_GOLDEN = 0.618034


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """A small picture of one or two columns of the metrics.

    Attributes:
        title: above the picture.
        meaning: below it.
        columns: the second one, if any, is dashed.
        log: whether its scale is logarithmic.
        floor: what lies lower is cut off.
    """

    title: str
    meaning: str
    columns: tuple[str, ...]
    log: bool = False
    floor: float | None = None


PANELS = (
    Panel(
        title="KL of an update",
        meaning="nats; solid as measured after the step, dashed as the curvature predicted it",
        columns=("kl_measured", "kl_predicted"),
        log=True,
    ),
    Panel(
        title="Trust region",
        meaning="share of the full step that the trust region let pass: 1 is all of it",
        columns=("trust_region_scale",),
    ),
    Panel(title="Entropy", meaning="of the policy, in nats; of a Gaussian it may be negative", columns=("entropy",)),
    Panel(
        title="Explained variance",
        meaning="of the returns by the critic: 1 is perfect, 0 no better than a constant; below -1 is cut off",
        columns=("explained_variance",),
        floor=_LOWEST_EXPLAINED,
    ),
    Panel(title="Policy loss", meaning="before the step, without the entropy bonus", columns=("policy_loss",)),
    Panel(
        title="Value loss",
        meaning="mean squared error of the critic, halved, in the rewards that are learnt from",
        columns=("value_loss",),
        log=True,
    ),
    Panel(title="Learning rate", meaning="with its schedule and its adaptation", columns=("learning_rate",)),
    Panel(title="Damping", meaning="of the policy, as damping_control set it", columns=("damping",), log=True),
    Panel(title="KL to the prior", meaning="of the posterior over weights, in nats", columns=("kl_to_prior",)),
    Panel(title="Length of games", meaning="decisions, mean of the last 100 games", columns=("length_mean",)),
    Panel(title="Speed", meaning="timesteps per second since the row before", columns=("steps_per_second",)),
)


def learning_curve(runs: Sequence[RunFiles]) -> bytes:
    """The picture of `acktr plot`."""
    with tempfile.TemporaryDirectory() as folder, _style():
        file = Path(folder) / "curve.svg"
        plot([run.path for run in runs], file)
        return file.read_bytes()


def colours(runs: Sequence[RunFiles]) -> list[str]:
    """A colour for each run, as #rrggbb: the learning curve's where that has several curves, else one each."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    drawn_first = sorted(runs, key=lambda run: not run.series("return_mean")[0])  # the order of its curves
    experiments = list(dict.fromkeys(experiment(run.settings) for run in drawn_first))
    if len(experiments) == 1:
        places = list(range(len(runs)))
    else:
        places = [experiments.index(experiment(run.settings)) for run in runs]
    return [to_hex(colormaps["tab10"](place % 10)) for place in places]


def panel_picture(panel: Panel, runs: Sequence[RunFiles], palette: Sequence[str]) -> bytes | None:
    """One of `PANELS` with a line for each run; None where no run has anything to show."""
    figure, axes = _axes(3.6, 2.1)
    shown = False
    for run, colour in zip(runs, palette, strict=True):
        for column, style in zip(panel.columns, ("-", "--"), strict=False):
            steps, values = run.series(column)
            if panel.log:  # a step of length 0 has a KL of 0
                values = [value if value > 0 else np.nan for value in values]
            if np.isfinite(values).any():
                shown = True
                single = "o" if len(steps) == 1 else None
                axes.plot(steps, values, style, color=colour, linewidth=1.2, alpha=0.9, marker=single, markersize=3)
    if not shown:
        return None
    if panel.log:
        axes.set_yscale("log")
    if panel.floor is not None and axes.get_ylim()[0] < panel.floor:
        axes.set_ylim(bottom=panel.floor)
    _in_units(axes.xaxis)
    if panel.columns == ("steps_per_second",):
        axes.set_ylim(bottom=0)
        _in_units(axes.yaxis)
    axes.grid(alpha=0.3)
    return _saved(figure)


def returns_picture(returns: Sequence[float], interval: Sequence[float] | None, colour: str) -> bytes:
    """Each game's return as a dot on a line, with their mean and its interval."""
    scores = np.asarray(returns, dtype=np.float64)
    figure, axes = _axes(6.4, 1.15)
    if interval is not None:
        axes.axvspan(interval[0], interval[1], color=colour, alpha=0.18, linewidth=0)
    axes.axvline(scores.mean(), color=colour, linewidth=1.6)
    heights = np.arange(len(scores)) * _GOLDEN % 1  # spread evenly, so that equal returns are told apart
    axes.plot(scores, heights, "o", color=colour, markersize=5, alpha=0.7, markeredgewidth=0)
    axes.set_ylim(-0.2, 1.2)
    axes.set_yticks([])
    if np.ptp(scores) == 0:
        room = max(1.0, abs(scores[0]) * 0.1)
        axes.set_xlim(scores[0] - room, scores[0] + room)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("raw return of a game")
    return _saved(figure)


@contextlib.contextmanager
def _style() -> Iterator[None]:
    from matplotlib import rc_context

    with rc_context({"savefig.transparent": True, "font.size": 9}):
        yield


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no state shared with pyplot
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots()


def _in_units(axis: Any) -> None:
    from matplotlib.ticker import EngFormatter

    axis.set_major_formatter(EngFormatter(sep=""))


def _saved(figure: Any) -> bytes:
    file = io.BytesIO()
    with _style():
        figure.savefig(file, format="svg")
    return file.getvalue()
