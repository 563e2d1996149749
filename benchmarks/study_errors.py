"""How far each curvature is from the exact Fisher block, layer by layer, before, during and after training.

    python benchmarks/study_errors.py [--task digits-autoencoder ...]

The network is trained with Adam (lr 0.003, batches of the task) and looked at before the first, after a tenth of and
after all iterations. Statistics and exact blocks are of the same fixed examples: for the digits with all columns of the
output Fisher; for the frames, whose 441 columns are too many, with draws, the block of those draws then being the exact
one. `full` is that block itself and has no error. For convolutions each method is there with expanded and with reduced
factors.
"""

import argparse
import csv
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from study_figures import draw_errors
from study_tasks import TASKS, Task, make
from torch import nn

from acktr.kfac import Metric, block_errors
from acktr.kfac.metrics import FisherKind
from acktr.kfac.statistics import FactorKind

EXAMPLES: dict[str, tuple[int, FisherKind]] = {
    "digits-autoencoder": (100, "exact"),
    "digits-convolutional": (300, "exact"),
    "frames-autoencoder": (500, "sampled"),
}
"""How many, and which metric: an exact one has a column for each pixel or class, and so many gradients per example."""

ITERATIONS = {"digits-autoencoder": 2000, "digits-convolutional": 1000, "frames-autoencoder": 2000}
LEARNING_RATE = 0.003


class Row(NamedTuple):
    """One line of the table."""

    task: str
    stage: str
    layer: str
    shape: str
    method: str
    relative: float
    trace: float


def main() -> None:
    """Train, compare, write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/study"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.results.mkdir(parents=True, exist_ok=True)
    for name in args.task:
        started = time.process_time()
        rows = study(make(name))
        write_csv(args.results / f"errors-{name}.csv", rows)
        (args.results / f"errors-{name}.md").write_text(table(rows))
        stages = {
            stage: {
                method: {row.layer: row.relative for row in rows if (row.stage, row.method) == (stage, method)}
                for method in dict.fromkeys(row.method for row in rows)
            }
            for stage in dict.fromkeys(row.stage for row in rows)
        }
        draw_errors(args.results / f"errors-{name}.png", name, stages)
        print(f"{name}: {time.process_time() - started:.0f} s", flush=True)


def study(task: Task) -> list[Row]:
    """Train the network, and compare at each stage."""
    model = task.model(0)
    batches = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    total = ITERATIONS[task.name]
    rows = []
    for iteration in range(total + 1):
        if iteration in (0, total // 10, total):
            stage = "at first" if iteration == 0 else f"after {iteration} iterations"
            rows += compare(task, model, stage)
        inputs, targets = task.batch(batches)
        optimizer.zero_grad()
        task.example_losses(model(inputs), targets).mean().backward()
        optimizer.step()
    return rows


def compare(task: Task, model: nn.Module, stage: str) -> list[Row]:
    """Every method on every layer."""
    count, kind = EXAMPLES[task.name]
    inputs = task.inputs[:: len(task.inputs) // count][:count]

    def forward() -> Metric:
        return task.metric(model(inputs), kind, torch.Generator().manual_seed(0))

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    convolutions = any(isinstance(layer, nn.Conv2d) for layer in layers.values())
    factors: list[FactorKind] = ["expand", "reduce"] if convolutions else ["expand"]
    rows = []
    for error in block_errors(model, forward, conv_factors=factors):
        shape = " x ".join(str(size) for size in layers[error.layer].weight.shape)
        method = error.curvature if error.conv_factors == "expand" else f"{error.curvature} (reduce)"
        rows.append(Row(task.name, stage, error.layer, shape, method, error.relative, error.trace))
    return rows


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """All rows."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows([*row[:-2], f"{row.relative:.6g}", f"{row.trace:.6g}"] for row in rows)


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line for each layer and stage, a column for each method, the worst layer of each last."""
    methods = list(dict.fromkeys(row.method for row in rows))
    lines = ["| stage | layer | weight | " + " | ".join(methods) + " |", "|---" * (3 + len(methods)) + "|"]
    for stage in dict.fromkeys(row.stage for row in rows):
        here = [row for row in rows if row.stage == stage]
        for layer in dict.fromkeys(row.layer for row in here):
            found = {row.method: row for row in here if row.layer == layer}
            shape = next(iter(found.values())).shape
            cells = [f"{found[method].relative:.3f}" if method in found else "" for method in methods]
            lines.append(f"| {stage} | {layer} | {shape} | " + " | ".join(cells) + " |")
    worst = [max(_known(row.relative) for row in rows if row.method == method) for method in methods]
    lines.append("| all | worst | | " + " | ".join(f"{value:.3f}" for value in worst) + " |")
    return "\n".join(lines) + "\n"


def _known(value: float) -> float:
    """A layer without any gradient has no relative error."""
    return 0.0 if math.isnan(value) else value


if __name__ == "__main__":
    main()
