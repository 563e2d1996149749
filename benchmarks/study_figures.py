"""Figures of the study of curvatures on real data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

COLOURS = {
    "sgd": "#8c8c8c",
    "adam": "#000000",
    "kfac": "#0072b2",
    "kfac-tridiagonal": "#56b4e9",
    "kfac-lm": "#00008b",
    "ekfac": "#d55e00",
    "kfoc": "#009e73",
    "ekfoc": "#e6a000",
    "diagonal": "#cc79a7",
    "full": "#7f3fbf",
}
"""Of methods, the same in every figure."""

DASHED = ("sgd", "adam", "diagonal")

SMALLEST = 1e-4
"""Losses below it are not drawn: the digits are learnt by heart there."""


def draw_training(path: Path, title: str, curves: Mapping[str, Sequence[Sequence[tuple[int, float, float]]]]) -> None:
    """Loss by iteration and by second: the median over seeds as a line, lowest and highest as a band.

    Args:
        path: of the picture.
        title: above it.
        curves: of each method, one for each seed; points are iteration, seconds and loss.
    """
    figure, (left, right) = _figure(title, columns=2, size=(11.0, 4.8))
    lowest, highest = np.inf, 0.0
    for method, found in curves.items():
        shared = min(len(curve) for curve in found)
        iterations = np.array([point[0] for point in found[0][:shared]])
        seconds = np.median([[point[1] for point in curve[:shared]] for curve in found], axis=0)
        losses = np.array([[point[2] for point in curve[:shared]] for curve in found])
        middle = np.median(losses, axis=0)
        lowest, highest = min(lowest, middle.min()), max(highest, middle[0])
        style: dict[str, Any] = {"color": COLOURS[method], "linewidth": 1.6, "label": method}
        style["linestyle"] = "--" if method in DASHED else "-"
        for axes, along in ((left, iterations), (right, seconds)):
            axes.plot(along, middle, **style)
            axes.fill_between(along, losses.min(0), losses.max(0), color=COLOURS[method], alpha=0.12, linewidth=0)
    if "adam" in curves:
        goal = float(np.median([curve[-1][2] for curve in curves["adam"]]))
        for axes in (left, right):
            axes.axhline(goal, color="black", linewidth=0.8, linestyle=":")
        if goal > SMALLEST:
            left.annotate(
                "Adam's last loss", (0.99, goal), xycoords=("axes fraction", "data"), ha="right", va="top", fontsize=8
            )
    for axes, label in ((left, "iterations"), (right, "seconds of one core")):
        axes.set_xlabel(label)
        axes.set_yscale("log")
        axes.set_ylim(max(lowest * 0.85, SMALLEST), highest * 1.1)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
        if highest < 100 * lowest:
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
        else:
            axes.yaxis.set_minor_formatter(NullFormatter())
    left.set_ylabel("training loss above the lowest possible, nats")
    right.legend(loc="upper right", frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def draw_errors(path: Path, title: str, stages: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Relative error of each method, layer by layer; one panel for each stage of training.

    Args:
        path: of the picture.
        title: above it.
        stages: errors by stage, then by method, then by layer.
    """
    figure, panels = _figure(title, columns=len(stages), size=(1.5 + 3.6 * len(stages), 4.6), share=True)
    for axes, (stage, methods) in zip(panels, stages.items(), strict=True):
        for method, errors in methods.items():
            name = method.split(" ")[0]
            axes.plot(
                range(len(errors)),
                list(errors.values()),
                color=COLOURS[name],
                linestyle=":" if "reduce" in method else "--" if name in DASHED else "-",
                marker="o",
                markersize=3.5,
                linewidth=1.4,
                label=method,
            )
        layers = list(next(iter(methods.values())))
        axes.set_xticks(range(len(layers)), layers, fontsize=8, rotation=60 if len(layers) > 5 else 0)
        axes.set_title(stage, fontsize=10)
        axes.grid(alpha=0.3, linewidth=0.5)
    panels[0].set_ylabel("relative error in Frobenius norm")
    panels[0].set_ylim(bottom=0)
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def _figure(title: str, *, columns: int, size: tuple[float, float], share: bool = False) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    return figure, figure.subplots(1, columns, sharey=share, squeeze=False)[0]
