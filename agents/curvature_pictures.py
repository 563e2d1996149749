"""The pictures of `acktr curvature`: matrices, their inverses, errors and autocorrelations."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no state shared with pyplot
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from acktr.agents.curvature_assumptions import Assumptions, Correlations
from acktr.agents.curvature_dense import Dense, block_averages, relative_error, scaled
from acktr.kfac.errors import APPROXIMATIONS, BlockError

NAMES = {"kfac": "K-FAC", "ekfac": "EKFAC", "kfoc": "K-FOC", "ekfoc": "EKFOC", "diagonal": "diagonal"}
"""Of the curvatures, as people write them."""

_DPI = 110
_PIXELS = 400
"""Of a matrix in each direction; the entries behind one are averaged."""
_DECADES = 3
"""What is below the largest entry by more than so many powers of ten is black; one more for averages and inverses."""
_WHERE = {"activations": "at the input", "derivatives": "at the output"}
_LIMITS = (-0.4, 1.1)
"""Of the autocorrelations' profiles, or wider."""
_TALLEST = 1.5
"""Errors beyond this are cut off; their values stand at the bars."""
_PLAIN = 1e-3
"""Block averages are written as plain decimals where none is below this, else all as powers of ten."""


def fisher_picture(dense: Dense, title: str, output: Path) -> None:
    """Draw F, F̃ and their difference on one scale, and the block averages of each (Martens & Grosse 2015, figure 2).

    Layers differ in size by orders of magnitude: all three matrices are `D F D` with a D that makes the mean of the
    exact diagonal 1 in each layer. The difference's share of F is of these matrices too.

    Args:
        dense: the matrices.
        title: of the picture.
        output: the file to write.

    Raises:
        OSError: it cannot be written.
    """
    exact = scaled(dense.exact, dense.exact, dense.sizes)
    factored = scaled(dense.factored(), dense.exact, dense.sizes)
    panels = {
        "exact Fisher F": exact,
        "Kronecker-factored F̃": factored,
        f"difference, {_apart(factored, exact)} of F": factored - exact,
    }
    title = f"Fisher matrix, exact over outcomes: {title}\n{_taken(dense)}"
    _matrices(panels, dense, _DECADES, f"{title}\neach layer scaled to a mean diagonal of 1 in F", output)


def inverse_picture(dense: Dense, inverses: Mapping[str, Tensor], damping: float, title: str, output: Path) -> None:
    """Draw damped inverses on one scale, and the block averages of each (Martens & Grosse 2015, figure 3).

    As in `fisher_picture`, with a D that makes the mean of the diagonal of F̃'s inverse 1 in each layer.

    Args:
        dense: the matrices.
        inverses: what `acktr.agents.curvature_dense.inverses` gave.
        damping: with which.
        title: of the picture.
        output: the file to write.

    Raises:
        OSError: it cannot be written.
    """
    names = {
        "exact": "inverse of the exact F",
        "factored": "inverse of F̃",
        "block-diagonal": "block-diagonal inverse",
        "block-tridiagonal": "block-tridiagonal inverse",
    }
    drawn = {name: scaled(matrix, inverses["factored"], dense.sizes) for name, matrix in inverses.items()}
    panels = {
        names[name] + ("" if name == "factored" else f"\n{_apart(matrix, drawn['factored'])} from that of F̃"): matrix
        for name, matrix in drawn.items()
    }
    damped = f"damping {damping:g}, added to F as it is and to the factors of F̃'s diagonal blocks"
    title = f"Damped inverse: {title}; {damped}\n{_taken(dense)}"
    _matrices(panels, dense, _DECADES + 1, f"{title}\neach layer scaled to a mean diagonal of 1 in F̃⁻¹", output)


def _taken(dense: Dense) -> str:
    """Which parameters the matrices are of, in words."""
    most = max(max(len(part.rows), len(part.columns)) for part in dense.parts)
    convolutions = any(isinstance(part.module, nn.Conv2d) for part in dense.parts)
    factors = ", of convolutions from mean activations and summed derivatives" if convolutions else ""
    taken = f"{len(dense.exact):,} parameters, at most {most} units and inputs of a layer"
    return f"{taken}\nF̃: K-FAC's Kronecker product for every pair of layers{factors}"


def _apart(matrix: Tensor, reference: Tensor) -> str:
    error = relative_error(matrix, reference)
    return "-" if error is None else f"{error:.1%}"


def _matrices(panels: Mapping[str, Tensor], dense: Dense, decades: int, title: str, output: Path) -> None:
    """A row of matrices above a row of their block averages; absolute values, one logarithmic scale for each row."""
    sizes = [matrix.abs() for matrix in panels.values()]
    averages = [block_averages(matrix, dense.sizes).numpy() for matrix in sizes]
    whole = [functional.adaptive_avg_pool2d(matrix[None], min(_PIXELS, len(matrix)))[0].numpy() for matrix in sizes]
    figure = Figure(figsize=(3.15 * len(panels) + 2.2, 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(2, len(panels), squeeze=False)
    layers = [part.layer for part in dense.parts]
    for row, (values, kind) in enumerate(
        ((whole, "absolute value of an entry"), (averages, "mean absolute value of a block"))
    ):
        largest = max(float(matrix.max()) for matrix in values) or 1.0
        low = largest * 10.0 ** -max(decades, _DECADES + row)
        norm = LogNorm(vmin=low, vmax=largest)
        plain = all(value >= _PLAIN or value < low / 1000 for matrix in averages for value in matrix.flat)
        for column, (axis, matrix, name) in enumerate(zip(axes[row], values, panels, strict=True)):
            edge = len(dense.exact) if row == 0 else len(layers)
            extent = (0, edge, edge, 0)
            picture = axis.imshow(np.maximum(matrix, low), norm=norm, cmap="inferno", extent=extent)
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(name, fontsize=10)
                _mark_layers(axis, dense.sizes, layers if column == 0 else [])
            else:
                _mark_blocks(axis, matrix, low, norm, layers, names_rows=column == 0, plain=plain)
        bar = figure.colorbar(picture, ax=list(axes[row]), shrink=0.9, pad=0.01, extend="min")
        bar.minorticks_off()
        bar.set_label(kind, fontsize=8)
        bar.ax.tick_params(labelsize=8)
    # the layout gives both too little room: the title stands outside of it, and the picture grows to hold all
    figure.suptitle(title, fontsize=10, y=1.01, verticalalignment="bottom")
    figure.savefig(output, dpi=_DPI, bbox_inches="tight", pad_inches=0.15)


def _mark_layers(axis: Any, sizes: Sequence[int], layers: Sequence[str]) -> None:
    ends = np.cumsum(sizes)
    for end in ends[:-1]:
        axis.axhline(end, color="white", linewidth=0.6, linestyle=(0, (4, 3)))
        axis.axvline(end, color="white", linewidth=0.6, linestyle=(0, (4, 3)))
    if layers:
        places = ends - np.asarray(sizes) / 2
        for number in range(len(places) - 2, -1, -1):  # the names of small layers would overlap
            places[number] = min(places[number], places[number + 1] - 0.045 * ends[-1])
        axis.set_yticks(places, layers, fontsize=8)
        axis.tick_params(length=0)


def _mark_blocks(
    axis: Any,
    averages: NDArray[np.float64],
    low: float,
    norm: LogNorm,
    layers: Sequence[str],
    *,
    names_rows: bool,
    plain: bool,
) -> None:
    middles = np.arange(len(layers)) + 0.5
    axis.set_xticks(middles, layers, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    if names_rows:
        axis.set_yticks(middles, layers, fontsize=8)
    axis.tick_params(length=0)
    for (row, column), value in np.ndenumerate(averages):
        bright = float(norm(max(value, low))) > 0.6
        text = "0" if value < low / 1000 else f"{value:.2g}" if plain else f"{value:.1e}".replace("e-0", "e-")
        axis.text(
            column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color="black" if bright else "white"
        )


def errors_picture(
    errors: Mapping[str, Mapping[str, Sequence[BlockError]]], fisher: str, title: str, output: Path
) -> None:
    """Draw the relative errors of all curvatures as bars, layer by layer, a panel for each network.

    Args:
        errors: by network and layer.
        fisher: whose blocks they are from, in words.
        title: of the picture.
        output: the file to write.

    Raises:
        OSError: it cannot be written.
    """
    groups = {network: _groups(layers) for network, layers in errors.items()}
    most = max(len(found) for found in groups.values())
    figure = Figure(figsize=(max(6.5, 1.35 * most + 1.5), 3.4 * len(groups) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    width = 0.8 / len(APPROXIMATIONS)
    for axis, (network, found) in zip(axes, groups.items(), strict=True):
        for number, curvature in enumerate(APPROXIMATIONS):
            at = np.arange(len(found)) + (number - (len(APPROXIMATIONS) - 1) / 2) * width
            values = np.array([group.get(curvature, math.nan) for group in found.values()])
            axis.bar(at, np.minimum(np.nan_to_num(values), _TALLEST), width * 0.92, label=NAMES[curvature])
            for x, value in zip(at, values, strict=True):
                if not math.isnan(value):
                    height = min(value, _TALLEST) + 0.02
                    axis.text(x, height, f"{value:.2f}", ha="center", va="bottom", fontsize=6.5, rotation=90)
        axis.axhline(1, color="grey", linewidth=0.8, linestyle="--")
        beside = axis.get_yaxis_transform()
        axis.text(1.005, 1, "as far\nas 0 is", va="center", fontsize=7, color="grey", transform=beside)
        axis.set_xticks(range(len(found)), list(found), fontsize=8)
        axis.set_ylim(0, min(_TALLEST, max(1.0, *(v for g in found.values() for v in g.values()))) * 1.18)
        axis.set_ylabel("relative error in Frobenius norm", fontsize=8)
        axis.set_title(f"network: {network}", fontsize=9, loc="left")
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    figure.suptitle(f"Distance of each curvature from the blocks of {fisher}\n{title}", fontsize=10)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(APPROXIMATIONS), fontsize=8
    )
    figure.savefig(output, dpi=_DPI)


def _groups(layers: Mapping[str, Sequence[BlockError]]) -> dict[str, dict[str, float]]:
    """Errors by curvature, for each layer and each way to factor it; those that are not numbers are left out."""
    groups: dict[str, dict[str, float]] = {}
    for layer, found in layers.items():
        several = len({error.conv_factors for error in found}) > 1
        for error in found:
            group = groups.setdefault(f"{layer}\n({error.conv_factors})" if several else layer, {})
            if not math.isnan(error.relative):
                group[error.curvature] = error.relative
    return groups


def autocorrelation_picture(layers: Mapping[str, Assumptions], title: str, output: Path) -> None:
    """Draw how activations and derivatives of convolutions correlate over offsets (Grosse & Martens 2016, section 3).

    Args:
        layers: the convolutions, by name, at least one.
        title: of the picture.
        output: the file to write.

    Raises:
        OSError: it cannot be written.
    """
    figure = Figure(figsize=(11, 3.2 * len(layers) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(len(layers), 3, squeeze=False, width_ratios=(1, 1, 1.25))
    for row, (layer, found) in zip(axes, layers.items(), strict=True):
        assert found.activations is not None
        assert found.derivatives is not None
        panels = (("activations", found.activations), ("derivatives", found.derivatives))
        for axis, (name, correlations) in zip(row, panels, strict=False):
            picture = _offsets(axis, correlations)
            axis.set_title(f"{layer}: {name} {_WHERE[name]}, {correlations.channels} channels", fontsize=9)
        bar = figure.colorbar(picture, ax=list(row[:2]), shrink=0.85, pad=0.01)
        bar.set_label("autocorrelation, mean over channels", fontsize=8)
        bar.ax.tick_params(labelsize=8)
        for (name, correlations), colour in zip(panels, ("tab:blue", "tab:orange"), strict=True):
            _profiles(row[2], correlations, name, colour)
        row[2].axhline(0, color="grey", linewidth=0.8)
        low, high = row[2].get_ylim()
        row[2].set_ylim(min(low, _LIMITS[0]), max(high, _LIMITS[1]))
        row[2].set_xlabel("offset, positions", fontsize=8)
        row[2].grid(alpha=0.3)
        row[2].set_title(f"{layer}: along the two axes", fontsize=9)
        for axis in row:
            axis.tick_params(labelsize=8)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in row[:2]:
            axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    how = "activations less their mean in each channel; positions of the map at the layer's input or output"
    figure.suptitle(f"{title}\n{how}", fontsize=10)
    figure.legend(*axes[0][2].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(output, dpi=_DPI)


def _offsets(axis: Any, correlations: Correlations) -> Any:
    rows, columns = ((size - 1) / 2 for size in correlations.mean.shape)
    extent = (-columns - 0.5, columns + 0.5, rows + 0.5, -rows - 0.5)
    picture = axis.imshow(correlations.mean.numpy(), vmin=-1, vmax=1, cmap="RdBu_r", extent=extent)
    axis.set_xlabel("offset across, positions", fontsize=8)
    axis.set_ylabel("offset down, positions", fontsize=8)
    return picture


def _profiles(axis: Any, correlations: Correlations, name: str, colour: str) -> None:
    values = correlations.mean.numpy()
    down, across = (size // 2 for size in values.shape)
    axis.plot(range(across + 1), values[down, across:], color=colour, marker=".", label=f"{name}, across")
    axis.plot(range(down + 1), values[down:, across], color=colour, marker=".", linestyle="--", label=f"{name}, down")
