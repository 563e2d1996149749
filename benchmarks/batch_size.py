"""What larger batches cost and bring: ACKTR and A2C on 160, 640 and 2,560 rows (Wu et al. 2017, section 5.5).

    python benchmarks/batch_size.py train --results benchmarks/results/batch-size
    python benchmarks/batch_size.py train --results benchmarks/results/batch-size --powers 0 0.5 1
    python benchmarks/batch_size.py table --results benchmarks/results/batch-size

`train` makes the runs that are missing, one after another, and keeps their records; `--part 0/2` and `--part 1/2`
share them out over two calls at once. `table` sums up returns at equal steps and at equal updates, and draws both.

The presets as shipped are for one batch, B0. For another one, B, the learning rate is multiplied by (B / B0)^power and
every limit on a KL by the square of that, since a step that much longer makes that much more KL: with power 0 the step
of a batch stays the same, with 1 that of a row does. `RULE` has the powers that docs/distributed.md advises, and
`--powers` makes runs under others.
"""

import argparse
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from arguments import in_one_line
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from origin import keep

from acktr.agents.metrics_file import Row, read_metrics
from acktr.agents.presets import resolve

BATCHES = (160, 640, 2560)
LIMITS = ("max_kl", "max_measured_kl", "max_measured_value_kl", "desired_kl", "critic_max_kl")
RATES = ("lr", "critic_lr")


MOST_ROWS = 200
"""Of a record's metrics, or two more."""

NUM_STEPS = 20
"""Of every environment in a batch, whatever its size; the number of environments makes the difference."""

TASKS: dict[str, tuple[int, tuple[int, ...]]] = {
    "PongNoFrameskip-v4": (1_000_000, (0,)),
    "HalfCheetah-v5": (300_000, (0, 1, 2)),
}
"""Timesteps and seeds."""


RULE = {"acktr": 0.0, "a2c": 0.5}
"""Powers of the batch that the learning rates follow."""


def flags(env: str, algorithm: str, batch: int, power: float) -> list[str]:
    """What `acktr train` is told beyond the environment."""
    shipped = resolve({"env": env, "algorithm": algorithm}).settings()
    growth = batch / (shipped.num_envs * shipped.num_steps)
    changes: dict[str, float] = {"num_envs": batch // NUM_STEPS, "num_steps": NUM_STEPS}
    powers = dict.fromkeys(RATES, power) | dict.fromkeys(LIMITS, 2 * power)
    names = ("lr",) if algorithm == "a2c" else RATES + LIMITS
    if algorithm == "acktr" and shipped.shared_trunk:
        names = tuple(name for name in names if not name.startswith("critic_"))
    for name in names:
        value = getattr(shipped, name)
        if value and powers[name]:
            changes[name] = value * growth ** powers[name]
    return [word for name, value in changes.items() for word in (f"--{name.replace('_', '-')}", f"{value:.4g}")]


@in_one_line
def main() -> None:
    """Run the verb."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("train", "table"))
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/batch-size"))
    parser.add_argument("--env", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--algorithm", nargs="+", default=list(RULE), choices=list(RULE))
    parser.add_argument("--powers", nargs="+", type=float, metavar="P", help="train: in place of the rule's")
    parser.add_argument("--part", default="0/1", metavar="K/N", help="train: every N-th run, from the K-th on")
    args = parser.parse_args()
    {"train": train, "table": table}[args.verb](args)


def train(args: argparse.Namespace) -> None:
    """Make the runs that are missing and keep their records."""
    first, step = (int(word) for word in args.part.split("/"))
    kinds = [(name, power) for name in args.algorithm for power in args.powers or (RULE[name],)]
    chosen = [
        (env, seed, batch, algorithm, power)
        for env in args.env
        for seed in TASKS[env][1]
        for batch in BATCHES
        for algorithm, power in kinds
    ]
    for env, seed, batch, algorithm, power in chosen[first::step]:
        name = f"{run_name(algorithm, batch, power)}-seed{seed}"
        record, folder = args.results / env / name, args.runs / env / name
        if record.is_dir():
            continue
        words = ["acktr", "train", "--env", env, "--algorithm", algorithm, "--seed", str(seed)]
        words += ["--total-timesteps", str(TASKS[env][0]), "--num-threads", "1", "--log-interval", "1"]
        words += [*flags(env, algorithm, batch, power), "--run-dir", str(folder)]
        if (folder / "settings.yaml").exists():
            words = ["acktr", "resume", str(folder)]
        print(shlex.join(words), flush=True)
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        keep(folder, record)
        thin(record / "metrics.csv", updates=TASKS[env][0] // max(BATCHES))


def thin(metrics: Path, updates: int) -> None:
    """Leave some rows of a record: what many updates print row by row is large, and no curve shows it.

    Args:
        metrics: whose first and last row stay, and some between.
        updates: the row of so many stays, too.
    """
    title, *rows = metrics.read_text().splitlines(keepends=True)
    column = title.strip().split(",").index("updates")
    every = -(-len(rows) // MOST_ROWS)
    kept = [
        row
        for index, row in enumerate(rows)
        if (len(rows) - 1 - index) % every == 0 or index == 0 or row.split(",")[column] == str(updates)
    ]
    metrics.write_text(title + "".join(kept))


def run_name(algorithm: str, batch: int, power: float) -> str:
    """Of a record, without its seed."""
    return f"{algorithm}-{batch}-power{power:g}"


# --- what came out -----------------------------------------------------------------------------------------------


def table(args: argparse.Namespace) -> None:
    """Print the tables, keep them as table.md, and draw the curves."""
    lines = _head(
        "environment", "algorithm", "batch", "updates", "after so many of them", "at half the steps", "at the end"
    )
    for env in args.env:
        runs = {
            (algorithm, batch): found
            for algorithm in RULE
            for batch in BATCHES
            if (found := _records(args.results / env, run_name(algorithm, batch, RULE[algorithm])))
        }
        for (algorithm, batch), found in runs.items():
            updates = found[0][-1]["updates"] or 0
            lines.append(f"| {env} | {algorithm} | {batch:,} | {updates:,.0f} | {_returns(env, found)} |")
        if runs:
            _draw(args.results / f"{env}.png", env, runs)
    more = []
    for env in args.env:
        for algorithm in RULE:
            for batch in BATCHES:
                for power in sorted(_powers(args.results / env, algorithm)):
                    found = _records(args.results / env, run_name(algorithm, batch, power))
                    cells = f"| {env} | {algorithm} | {batch:,} | {power:g} | "
                    more += [f"{cells}{_returns(env, found)} |"] if found else []
    lines += ["", "By the power of the batch that the learning rate follows:", ""]
    titles = ("environment", "algorithm", "batch", "power", "after so many updates", "at half the steps", "at the end")
    lines += _head(*titles) + more
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    (args.results / "table.md").write_text(text)


def _head(*titles: str) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]


def _powers(folder: Path, algorithm: str) -> set[float]:
    """Of which there are records."""
    names = (path.name.split("-") for path in folder.glob(f"{algorithm}-*-power*-seed*"))
    return {float(parts[2].removeprefix("power")) for parts in names}


def _returns(env: str, found: list[list[Row]]) -> str:
    """Cells of returns, means over the seeds with standard deviations; the first after the largest batch's updates."""
    timesteps, _ = TASKS[env]
    updates = timesteps // max(BATCHES)
    places = [("updates", float(updates)), ("timesteps", timesteps / 2), ("timesteps", float(timesteps))]
    cells = []
    for axis, until in places:
        values = [_return(rows, axis, until) for rows in found]
        spread = f" ± {statistics.stdev(values):.0f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.{0 if spread else 1}f}{spread}")
    return f"{updates}: " + " | ".join(cells)


def _records(folder: Path, name: str) -> list[list[Row]]:
    found = sorted(folder.glob(f"{name}-seed*/metrics.csv"))
    return [[row for row in read_metrics(file) if row["return_mean"] is not None] for file in found]


def _return(rows: list[Row], axis: str, until: float) -> float:
    """The mean return of the last hundred games in the last row up to there (with the batch that crosses it)."""
    reached = [row for row in rows if (row[axis] or 0) <= until * 1.005 + (axis == "updates")]
    return float((reached or rows)[-1]["return_mean"] or 0)


def _draw(path: Path, env: str, runs: dict[tuple[str, int], list[list[Row]]]) -> None:
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    colours = {160: "tab:green", 640: "tab:blue", 2560: "tab:purple"}
    for axes, axis, label in zip(figure.subplots(1, 2), ("timesteps", "updates"), ("steps", "updates"), strict=True):
        for (algorithm, batch), found in runs.items():
            style = "-" if algorithm == "acktr" else "--"
            for number, rows in enumerate(found):
                x, y = ([row[name] for row in rows] for name in (axis, "return_mean"))
                name = f"{algorithm.upper()}, {batch:,}" if number == 0 else None
                axes.plot(x, y, style, color=colours[batch], label=name, linewidth=1.2)
        axes.set_xlabel(label)
        axes.set_ylabel("raw return, last 100 episodes")
        axes.grid(alpha=0.3)
        if axis == "updates":
            axes.set_xscale("log")
        else:
            axes.legend(frameon=False)
    figure.suptitle(f"{env}: batches of 160, 640 and 2,560 rows")
    FigureCanvasAgg(figure).print_figure(path, dpi=100)


if __name__ == "__main__":
    main()
