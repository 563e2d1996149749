"""Training loss per iteration and per second: K-FAC and its family, SGD with momentum and Adam, each at its best.

    python benchmarks/study_training.py [--task digits-autoencoder ...] [--method kfac ...]

A grid is searched for each method with seed 0; the point with the lowest training loss at the end of its run is then
run with all seeds. Seed decides initial weights, batches and draws, and is the same for all methods. No averaging of
iterates. First-order methods run 2,000 iterations (1,000 on the convolutional classifier), the family of K-FAC 0.35
times as many, which takes it about as long.

- sgd, with Nesterov momentum: learning rate (four by task) x momentum (0.9, 0.99) x decay (none, linear to 0).
- adam: learning rate (four) x beta2 (0.99, 0.999) x decay (none, linear to 0).
- kfac: max_kl (0.01, 0.03, 0.1) x damping (0.01, 0.001) x momentum (0.5, 0.9), all constant over the run; lr 1,
  factored damping, statistics of one draw for each of a quarter of the batch at every step, stat_decay 0.95,
  inverse_interval 20.
- the rest of the family: damping (0.1, 0.01, 0.001), at the max_kl and momentum that were best for K-FAC.
- kfac-lm, K-FAC with Levenberg-Marquardt damping and momentum from the quadratic model: first damping (10, 1);
  statistics of the whole batch.

Losses are measured on a fixed part of the training data every 10 iterations, outside the time that is counted.
Seconds are those of one core that the process used. Each run is kept in a file of its own under `--runs`, and one that
is there is not made again; an interrupted study goes on where it stopped. `--results` gets the tables and the figures.
"""

import argparse
import csv
import dataclasses
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from study_figures import draw_training
from study_tasks import TASKS, Task, make
from torch import Tensor, nn

from acktr.kfac import KFAC, LevenbergMarquardt, Metric

SEEDS = (0, 1, 2)
EVERY = 10
"""Iterations between two measurements of the training loss."""

STAT_FRACTION = 0.25
"""Of the batch, whose curvature K-FAC takes."""

ITERATIONS = {"digits-autoencoder": 2000, "digits-convolutional": 1000, "frames-autoencoder": 2000}
"""Of first-order methods."""

FAMILY_SHARE = 0.35
"""Of these iterations, that the family of K-FAC takes."""

SGD_RATES = {
    "digits-autoencoder": (3e-3, 1e-2, 3e-2, 1e-1),
    "digits-convolutional": (3e-2, 1e-1, 3e-1, 1.0),
    "frames-autoencoder": (1e-5, 3e-5, 1e-4, 3e-4),
}
ADAM_RATES = (1e-3, 3e-3, 1e-2, 3e-2)

FAMILY: dict[str, dict[str, Any]] = {
    "kfac": {},
    "ekfac": {"curvature": "ekfac"},
    "kfoc": {"curvature": "kfoc"},
    "ekfoc": {"curvature": "ekfoc"},
    "diagonal": {"curvature": "diagonal"},
    "full": {"curvature": "full"},
    "kfac-tridiagonal": {"structure": "block-tridiagonal"},
}
"""What `KFAC` is given for each method, beside the point of the grid."""

METHODS = ("sgd", "adam", *FAMILY, "kfac-lm")

COMMON: dict[str, Any] = {"damping_mode": "factored", "stat_decay": 0.95, "inverse_interval": 20}
"""Settings of `KFAC` in all of its family."""

Point = dict[str, Any]


class Sample(NamedTuple):
    """One point of a curve."""

    iteration: int
    seconds: float
    loss: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training from one seed.

    Attributes:
        task: its name.
        method: among METHODS.
        point: of the method's grid.
        seed: of weights, batches and draws.
        curve: training losses over the run; it ends early where the loss stopped being finite.
    """

    task: str
    method: str
    point: Point
    seed: int
    curve: list[Sample]

    @property
    def final_loss(self) -> float:
        """At the end; infinite where the run broke off."""
        whole = self.curve[-1].iteration == iterations_of(self.task, self.method)
        return self.curve[-1].loss if whole else math.inf


def main() -> None:
    """Train what is missing, then write tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="where each run is kept")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/study"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[Run]]] = {}
    searched: list[Run] = []
    for name in args.task:
        task = make(name)
        best: dict[str, Point] = {}
        found[name] = {}
        for method in fitting(task, args.method):
            runs = [trained(task, method, point, 0, args.runs) for point in grid(name, method, best)]
            searched += runs
            chosen = min(runs, key=lambda run: run.final_loss)
            best[method] = chosen.point
            found[name][method] = [trained(task, method, chosen.point, seed, args.runs) for seed in SEEDS]
    args.results.mkdir(parents=True, exist_ok=True)
    write_grid(args.results / "training-grid.csv", searched)
    write_curves(args.results / "training-curves.csv", found)
    write_summary(args.results / "training-summary", found)
    for name, methods in found.items():
        curves = {method: [run.curve for run in runs] for method, runs in methods.items()}
        draw_training(args.results / f"training-{name}.png", name, curves)


# --- one run ---------------------------------------------------------------------------------------------------


def iterations_of(task: str, method: str) -> int:
    """How long a run is."""
    return ITERATIONS[task] if method in ("sgd", "adam") else round(FAMILY_SHARE * ITERATIONS[task])


def fitting(task: Task, methods: Sequence[str]) -> list[str]:
    """Those that can train the task, K-FAC before the rest of its family."""
    largest = max(layer.weight.numel() for layer in task.model(0).modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    chosen = {*methods, "kfac"} if set(methods) & set(FAMILY) else set(methods)
    return [method for method in METHODS if method in chosen and not (method == "full" and largest > 4000)]


def grid(task: str, method: str, best: dict[str, Point]) -> Iterator[Point]:
    """Points to try; those of K-FAC's family need K-FAC's best."""
    if method in ("sgd", "adam"):
        second = {"momentum": (0.9, 0.99)} if method == "sgd" else {"beta2": (0.99, 0.999)}
        rates = SGD_RATES[task] if method == "sgd" else ADAM_RATES
        yield from product(lr=rates, **second, decay=("none", "linear"))
    elif method == "kfac":
        yield from product(max_kl=(0.01, 0.03, 0.1), damping=(0.01, 0.001), momentum=(0.5, 0.9))
    elif method == "kfac-lm":
        yield from product(damping=(10.0, 1.0))
    else:
        kept = {key: (best["kfac"][key],) for key in ("max_kl", "momentum")}
        yield from product(**kept, damping=(0.1, 0.01, 0.001))


def product(**values: Sequence[Any]) -> Iterator[Point]:
    """All combinations."""
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


def trained(task: Task, method: str, point: Point, seed: int, folder: Path) -> Run:
    """The run as it is kept in the folder, made first where it is not there."""
    words = [f"{key}={value}" for key, value in point.items()]
    path = folder / task.name / method / ("_".join([*words, f"seed={seed}"]) + ".json")
    if not path.exists():
        curve = train(task, method, point, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(curve))
        unfinished.replace(path)
        print(f"{task.name} {method} {' '.join(words)} seed {seed}: {curve[-1].loss:.5g} ", end="")
        print(f"after {curve[-1].iteration} iterations, {curve[-1].seconds:.1f} s", flush=True)
    curve = [Sample(*sample) for sample in json.loads(path.read_text())]
    return Run(task=task.name, method=method, point=point, seed=seed, curve=curve)


def train(task: Task, method: str, point: Point, seed: int) -> list[Sample]:
    """Train from one seed; seconds are of the process and without the measurements."""
    model = task.model(seed)
    batches, draws = (torch.Generator().manual_seed(2 * seed + number) for number in range(2))
    total = iterations_of(task.name, method)
    step = stepper(task, model, method, point, draws)
    seconds = 0.0
    curve = []
    for iteration in range(total + 1):
        if iteration % EVERY == 0:
            curve.append(Sample(iteration, seconds, task.training_loss(model)))
            if not math.isfinite(curve[-1].loss):
                break
        if iteration == total:
            break
        started = time.process_time()
        step(*task.batch(batches), iteration / total)
        seconds += time.process_time() - started
    return curve


Step = Callable[[Tensor, Tensor, float], None]
"""Trains on inputs and targets, at a share of the run from 0 to 1."""


def stepper(task: Task, model: nn.Module, method: str, point: Point, draws: torch.Generator) -> Step:
    """How a method trains, at a point of its grid."""
    if method in ("sgd", "adam"):
        return first_order(task, model, method, point)
    if method == "kfac-lm":
        return levenberg_marquardt(task, model, point, draws)
    return natural(task, model, {**FAMILY[method], **point}, draws)


def first_order(task: Task, model: nn.Module, method: str, point: Point) -> Step:
    """SGD or Adam."""
    lr = point["lr"]
    if method == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), lr=lr, momentum=point["momentum"], nesterov=True
        )
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, point["beta2"]))

    def step(inputs: Tensor, targets: Tensor, progress: float) -> None:
        if point["decay"] == "linear":
            optimizer.param_groups[0]["lr"] = lr * (1 - progress)
        optimizer.zero_grad()
        task.example_losses(model(inputs), targets).mean().backward()
        optimizer.step()

    return step


def natural(task: Task, model: nn.Module, settings: dict[str, Any], draws: torch.Generator) -> Step:
    """K-FAC inside its trust region, the curvature taken from the first part of each batch."""
    optimizer = KFAC(model, lr=1.0, **COMMON, **settings)

    def step(inputs: Tensor, targets: Tensor, progress: float) -> None:
        part = int(STAT_FRACTION * len(inputs))
        with optimizer.capture():
            outputs = model(inputs[:part])
        optimizer.update_statistics(task.metric(outputs, "sampled", draws))
        outputs = torch.cat((outputs, model(inputs[part:])))
        optimizer.zero_grad()
        task.example_losses(outputs, targets).mean().backward()
        optimizer.step()

    return step


def levenberg_marquardt(task: Task, model: nn.Module, point: Point, draws: torch.Generator) -> Step:
    """K-FAC by the quadratic model of each batch."""
    steps = LevenbergMarquardt(model, KFAC(model, max_kl=None, **COMMON), damping=point["damping"])

    def step(inputs: Tensor, targets: Tensor, progress: float) -> None:
        def objective() -> tuple[Tensor, Metric]:
            outputs = model(inputs)
            return task.example_losses(outputs, targets).mean(), task.metric(outputs, "sampled", draws)

        steps.step(objective)

    return step


# --- tables ----------------------------------------------------------------------------------------------------


def write_grid(path: Path, runs: Sequence[Run]) -> None:
    """The loss at the end of each run of the search."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "method", "point", "seed", "final_loss", "seconds"])
        for run in runs:
            row = [run.task, run.method, in_words(run.point), run.seed]
            writer.writerow([*row, f"{run.final_loss:.6g}", f"{run.curve[-1].seconds:.2f}"])


def write_curves(path: Path, found: dict[str, dict[str, list[Run]]]) -> None:
    """Every curve at the chosen points."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "method", "seed", "iteration", "seconds", "loss"])
        for run in (run for methods in found.values() for runs in methods.values() for run in runs):
            for sample in run.curve:
                row = [run.task, run.method, run.seed, sample.iteration]
                writer.writerow([*row, f"{sample.seconds:.3f}", f"{sample.loss:.6g}"])


def write_summary(path: Path, found: dict[str, dict[str, list[Run]]]) -> None:
    """Iterations and seconds to the loss that Adam ends with, and each method's own end, as CSV and as markdown."""
    header = [
        "task",
        "method",
        "best point",
        "iterations to Adam's last loss",
        "stays below from",
        "seconds to it",
        "ms per iteration",
        "last loss",
        "after iterations",
    ]
    rows = []
    for task, methods in found.items():
        goal = median([run.final_loss for run in methods["adam"]]) if "adam" in methods else -math.inf
        for method, runs in methods.items():
            middle = median_curve([run.curve for run in runs])
            reached = next((sample for sample in middle if sample.loss <= goal), None)
            above = [index for index, sample in enumerate(middle) if sample.loss > goal]
            lasting = middle[above[-1] + 1] if above and above[-1] + 1 < len(middle) else None
            last = middle[-1]
            rows.append(
                [
                    task,
                    method,
                    in_words(runs[0].point),
                    "-" if reached is None else str(reached.iteration),
                    "-" if lasting is None else str(lasting.iteration),
                    "-" if reached is None else f"{reached.seconds:.2f}",
                    f"{1e3 * last.seconds / last.iteration:.1f}",
                    f"{last.loss:.4g}",
                    str(last.iteration),
                ]
            )
    with path.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    lines = [header, ["---"] * len(header), *rows]
    path.with_suffix(".md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))


def median_curve(curves: Sequence[Sequence[Sample]]) -> list[Sample]:
    """Median losses and seconds at each iteration that all curves reach."""
    return [
        Sample(samples[0].iteration, median([s.seconds for s in samples]), median([s.loss for s in samples]))
        for samples in zip(*curves, strict=False)
    ]


def median(values: Sequence[float]) -> float:
    """Of finite values and infinities."""
    return statistics.median(values)


def in_words(point: Point) -> str:
    """Of a point of a grid."""
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in point.items()
    )


if __name__ == "__main__":
    main()
