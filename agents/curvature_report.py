"""The curvature of a saved policy on states that it visits: errors, tables and pictures, for `acktr curvature`."""

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from acktr.agents.curvature_assumptions import Assumptions, assumptions_of
from acktr.agents.curvature_capture import Captured
from acktr.agents.curvature_dense import Dense, choose_parts, dense_fisher, inverses, relative_error, scaled
from acktr.agents.curvature_pictures import (
    NAMES,
    autocorrelation_picture,
    errors_picture,
    fisher_picture,
    inverse_picture,
)
from acktr.agents.curvature_states import (
    MOST_ENVS,
    FisherKind,
    Network,
    layers_of,
    networks_of,
    value_sigma,
    visited_states,
)
from acktr.agents.evaluation import customary, playing_settings
from acktr.agents.files import write_text_atomically
from acktr.agents.play import check_spaces, policy_file
from acktr.agents.policy import ActorCritic
from acktr.agents.policy_files import load_policy
from acktr.agents.runs import make_environment
from acktr.agents.threads import set_threads
from acktr.errors import UserError
from acktr.kfac.errors import APPROXIMATIONS, BlockError, weight_errors

FORMAT = 1
"""Version of the object that `curvature_file` returns."""

FOLDER = "curvature"
"""In a run folder; beside a file, with the file's name before it."""

STATES, STATES_OF_FRAMES = 512, 128
"""States unless told: of a network without convolutions, and of one with them."""

LARGEST_FACTOR = 4096
"""Longest side of a Kronecker factor: its eigenvectors take 134 MB in float64, and a quarter of a minute."""

_FIGURES = {"iad": "IAD (0)", "sh_activations": "SH a (0)", "sh_derivatives": "SH g (0)", "sud": "SUD (1)"}
"""Of the assumptions, with what each is where it holds."""

_OF: Mapping[FisherKind, str] = {
    "exact": "the exact Fisher",
    "sampled": "the Fisher of one drawn outcome for each state",
}
_LEGEND = {
    "iad": "IAD: are activations a and derivatives g independent? Correlation of |a|\u00b2 and |g|\u00b2.",
    "sh_activations": "SH a: is a the same everywhere? Spread over positions of the mean |a|\u00b2, over their mean.",
    "sh_derivatives": "SH g: likewise of g.",
    "sud": "SUD: is g uncorrelated between positions? Mean of |\u03a3 g|\u00b2 over that of \u03a3 |g|\u00b2.",
}
"""What each asks and how it is measured."""

Row = dict[str, Any]


def curvature_file(
    played: Path,
    *,
    out: Path | None,
    states: int | None,
    units: int | None,
    damping: float | None,
    deterministic: bool | None,
    seed: int,
) -> dict[str, Any]:
    """Compare the curvatures of a policy with the exact Fisher, and write tables and pictures.

    Errors are those of the Fisher of these states: exact over outcomes, which are actions and values, or, where there
    are convolutions, of one drawn outcome for each state, as in training. The matrices of the pictures and the
    assumptions are exact over outcomes in either case.

    Args:
        played: a run folder, a checkpoint or an exported policy.
        out: the folder to write to; None takes `curvature` in the run folder, or one beside the file.
        states: how many; None takes 512, and 128 where there are convolutions.
        units: of each layer in the matrices; None takes 20, or as many as fit.
        damping: of the inverses; None takes the run's.
        deterministic: greedy or sampled actions; None takes what is customary for the environment.
        seed: of the games, of sampled actions and of the draws.

    Returns:
        Plain values, ready for JSON: format, env, checkpoint, timesteps, states, policy, seed, fisher, networks, files.

    Raises:
        UserError: the file does not load, its environment cannot be made, the folder cannot be written, or the network
            is too large.
    """
    file = policy_file(played)
    loaded = load_policy(file, torch.device("cpu"))
    check_size(loaded.policy, file, units)
    convolutional = any(isinstance(module, nn.Conv2d) for module in loaded.policy.modules())
    count = states or (STATES_OF_FRAMES if convolutional else STATES)
    kind: FisherKind = "sampled" if convolutional else "exact"
    settings = playing_settings(loaded.settings, min(MOST_ENVS, count), "cpu")
    environment = make_environment(settings)
    try:
        check_spaces(loaded, environment, file)
        folder = out or (played / FOLDER if played.is_dir() else played.with_name(f"{played.stem}-{FOLDER}"))
        _make(folder)
        set_threads(settings.num_threads, small=not convolutional)
        greedy = customary(environment) if deterministic is None else deterministic
        observed = visited_states(loaded.policy, environment, states=count, deterministic=greedy, seed=seed)
    finally:
        environment.close()
    set_threads(settings.num_threads)
    networks = networks_of(
        loaded.policy, observed, settings, sigma=value_sigma(file, settings), damping=damping, seed=seed
    )
    scene = f"{settings.env}, {_counted(count)}"
    with _writing_to(folder):
        found = [_Looked(network, kind, units) for network in networks]
        files = [name for looked in found for name in looked.draw(folder, scene, alone=len(found) == 1)]
        errors = {looked.network.name: looked.errors for looked in found}
        errors_picture(errors, _OF[kind], scene, folder / "errors.png")
        for name, rows in _tables(found).items():
            _write_csv(folder / name, rows)
            files.append(name)
        result = {
            "format": FORMAT,
            "env": settings.env,
            "checkpoint": str(file),
            "timesteps": loaded.timesteps,
            "states": count,
            "policy": "deterministic" if greedy else "stochastic",
            "seed": seed,
            "fisher": kind,
            "networks": [looked.summary() for looked in found],
            "files": [str(folder / name) for name in ("errors.png", *files, "report.json")],
        }
        write_text_atomically(folder / "report.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def check_size(policy: ActorCritic, file: Path, units: int | None) -> None:
    """Refuse a network that is too large to look at, before anything is played.

    Args:
        policy: the network.
        file: its file, for the message.
        units: of each layer in the matrices, as asked for.

    Raises:
        UserError: a layer is too wide to factor, or the matrices would be too large.
    """
    for layers in layers_of(policy).values():
        for name, module in layers.items():
            side = max(module.weight.shape[0], module.weight[0].numel() + 1)
            if side > LARGEST_FACTOR:
                raise UserError(
                    f"{file}: layer {name} has a curvature factor of {side} x {side}, above the {LARGEST_FACTOR} x "
                    f"{LARGEST_FACTOR} that this command decomposes; train with a narrower layer, or with convolutions "
                    "before it"
                )
        choose_parts(layers, units)


class _Looked:
    """What was found of one network.

    Args:
        network: which.
        kind: of the metric that errors are of.
        units: of each layer in the matrices.
    """

    def __init__(self, network: Network, kind: FisherKind, units: int | None) -> None:
        self.network = network
        exact = Captured(network, "exact")
        self.dense: Dense = dense_fisher(exact, choose_parts(network.layers, units))
        self.inverses = inverses(self.dense, network.damping, network.chain)
        self.assumptions: dict[str, Assumptions] = assumptions_of(network, exact)
        captured = exact if kind == "exact" else Captured(network, kind)
        self.errors: dict[str, list[BlockError]] = {
            name: weight_errors(batch, ("expand", "reduce")) for name, batch in captured.batches(network.layers)
        }

    def draw(self, folder: Path, scene: str, *, alone: bool) -> list[str]:
        """Write the pictures, and name them."""
        suffix = "" if alone else f"-{self.network.name}"
        title = scene if alone else f"{scene}, {self.network.name}"
        names = [f"fisher{suffix}.png", f"inverse{suffix}.png"]
        fisher_picture(self.dense, title, folder / names[0])
        inverse_picture(self.dense, self.inverses, self.network.damping, title, folder / names[1])
        convolutions = {name: found for name, found in self.assumptions.items() if found.derivatives is not None}
        if convolutions:
            names.append(f"autocorrelation{suffix}.png")
            autocorrelation_picture(convolutions, f"Autocorrelation, exact over outcomes: {title}", folder / names[-1])
        return names

    def summary(self) -> Row:
        """The figures, ready for JSON; those of matrices are of the scaled ones that the pictures show."""
        sizes = self.dense.sizes
        exact, factored = (
            scaled(matrix, self.dense.exact, sizes) for matrix in (self.dense.exact, self.dense.factored())
        )
        inverted = {name: scaled(matrix, self.inverses["factored"], sizes) for name, matrix in self.inverses.items()}
        return {
            "name": self.network.name,
            "parameters": sum(_parameters(layer) for layer in self.network.layers.values()),
            "damping": self.network.damping,
            "value_sigma": self.network.sigma,
            "layers": [
                {
                    "layer": name,
                    "rows": module.weight.shape[0],
                    "columns": _parameters(module) // module.weight.shape[0],
                    **_assumed(self.assumptions[name]),
                    "errors": [_error(error) for error in self.errors[name]],
                }
                for name, module in self.network.layers.items()
                if name in self.errors
            ],
            "matrices": {
                "parameters": {part.layer: part.size for part in self.dense.parts},
                "error_of_factored": relative_error(factored, exact),
                "inverses": {
                    name: {
                        "from_inverse_of_exact": relative_error(matrix, inverted["exact"]),
                        "from_inverse_of_factored": relative_error(matrix, inverted["factored"]),
                    }
                    for name, matrix in inverted.items()
                },
            },
        }


def report(result: Mapping[str, Any], width: int) -> str:
    """A result as tables to read.

    Args:
        result: what `curvature_file` returns.
        width: of the terminal.
    """
    console = Console(width=width, file=io.StringIO(), record=True, color_system=None, highlight=False)
    others = "" if result["fisher"] == "exact" else "; matrices and assumptions are exact over outcomes"
    # paths stay whole, for who copies them
    console.print(f"{result['checkpoint']}: {result['env']}", soft_wrap=True, markup=False)
    console.print(
        f"{result['timesteps']:,} timesteps, {_counted(result['states'])} of a {result['policy']} policy, seed "
        f"{result['seed']}; errors are from {_OF[result['fisher']]}{others}"
    )
    for network in result["networks"]:
        errors = Table(
            title=f"{network['name']}: |F\u0302 - F| / |F| by layer", box=None, pad_edge=False, title_justify="left"
        )
        errors.add_column("layer", no_wrap=True)
        for curvature in APPROXIMATIONS:
            errors.add_column(NAMES[curvature], justify="right")
        for layer in network["layers"]:
            for kind in dict.fromkeys(error["conv_factors"] for error in layer["errors"]):
                name = f"{layer['layer']}, {kind}" if layer["positions"] > 1 else layer["layer"]
                found = {
                    error["curvature"]: error["relative"] for error in layer["errors"] if error["conv_factors"] == kind
                }
                errors.add_row(name, *[_shown(found.get(curvature)) for curvature in APPROXIMATIONS])
        assumed = Table(
            title=f"{network['name']}: assumptions (value if true)",
            box=None,
            pad_edge=False,
            title_justify="left",
        )
        figures = [name for name in _FIGURES if any(layer[name] is not None for layer in network["layers"])]
        for title in ("layer", "matrix", "positions", *(_FIGURES[name] for name in figures)):
            assumed.add_column(title, justify="left" if title == "layer" else "right", no_wrap=True)
        for layer in network["layers"]:
            matrix = f"{layer['rows']} x {layer['columns']}"
            values = [_shown(layer[name]) for name in figures]
            assumed.add_row(layer["layer"], matrix, str(layer["positions"]), *values)
        console.print("", errors, "", assumed)
    console.print("\nErrors: 0 is exact, 1 as far as the matrix 0 is.")
    several = any(layer["positions"] > 1 for network in result["networks"] for layer in network["layers"])
    if several:
        console.print("expand, reduce: the setting conv_factors; diagonal is the same under both.")
    for name, meaning in _LEGEND.items():
        if any(layer[name] is not None for network in result["networks"] for layer in network["layers"]):
            console.print(meaning)
    console.print("-: not defined, where there is one position or what is compared is 0 or never varies.")
    files = [Path(name) for name in result["files"]]
    names = ", ".join(file.name for file in files)
    console.print(f"\nwritten to {files[0].parent}:", soft_wrap=True, markup=False)
    console.print(names)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def _tables(found: Sequence[_Looked]) -> dict[str, list[Row]]:
    """Rows of the files of figures, by name."""
    errors: list[Row] = []
    assumed: list[Row] = []
    correlations: list[Row] = []
    for looked in found:
        for layer in looked.summary()["layers"]:
            place = {"network": looked.network.name, "layer": layer["layer"]}
            sizes = {name: layer[name] for name in ("rows", "columns", "positions")}
            errors += [{**place, **sizes, **error} for error in layer["errors"]]
            assumed.append({**place, **_assumed(looked.assumptions[layer["layer"]])})
            correlations += [{**place, **row} for row in _correlations(looked.assumptions[layer["layer"]])]
    tables = {"errors.csv": errors, "assumptions.csv": assumed}
    return {**tables, "autocorrelation.csv": correlations} if correlations else tables


def _correlations(found: Assumptions) -> Iterator[Row]:
    for name in ("activations", "derivatives"):
        correlations = getattr(found, name)
        if correlations is None or not correlations.channels:
            continue
        rows, columns = (size // 2 for size in correlations.mean.shape)
        for (row, column), mean in zip(
            torch.cartesian_prod(torch.arange(-rows, rows + 1), torch.arange(-columns, columns + 1)).tolist(),
            correlations.mean.flatten().tolist(),
            strict=True,
        ):
            absolute = float(correlations.mean_absolute[row + rows, column + columns])
            yield {"of": name, "down": row, "across": column, "mean": mean, "mean_absolute": absolute}


def _assumed(found: Assumptions) -> Row:
    return {name: getattr(found, name) for name in ("positions", *_FIGURES)}


def _error(error: BlockError) -> Row:
    values = dataclasses.asdict(error)
    del values["layer"]
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _counted(states: int) -> str:
    return f"{states:,} state{'s' if states > 1 else ''}"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
    write_text_atomically(path, text.getvalue())


def _make(folder: Path) -> None:
    with _writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "no permission", str(folder))


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; name another folder with --out") from error
