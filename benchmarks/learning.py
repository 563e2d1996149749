"""Train environments over seeds and algorithms with the presets as shipped, keep the records, and sum them up.

    python benchmarks/learning.py --env HalfCheetah-v5 Hopper-v5 --seeds 0 1 2 --results runs/learning

Each run goes to its own folder under `--runs` by `acktr train`; an interrupted one is resumed, a finished one is left
alone. What stays is its record under `--results`: command, settings, metrics. `--jobs 0` trains nothing and sums up
the records that are there.
"""

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from arguments import in_one_line
from origin import keep
from scipy import stats

from acktr.agents.metrics_file import read_metrics
from acktr.agents.plots import plot
from acktr.agents.run_folder import RunFolder


class Job(NamedTuple):
    """One run."""

    env: str
    algorithm: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder, under `--runs` and `--results`."""
        return f"{self.env}/{self.algorithm}-seed{self.seed}"


@in_one_line
def main() -> None:
    """Train what is missing, then print one table row per environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--algorithms", nargs="+", choices=["acktr", "a2c"], default=["acktr", "a2c"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once, one thread each; 0: none")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("flags", nargs="*", help="after --: further flags for `acktr train`")
    args = parser.parse_args()
    jobs = [
        Job(env, algorithm, seed) for env in args.env for seed in args.seeds for algorithm in args.algorithms
    ]  # seeds before environments: a first look at all of them comes early
    jobs.sort(key=lambda job: job.seed)
    if args.jobs:
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda job: train(job, args.runs, args.results, args.flags), jobs))
    sum_up(args.results, args.env, args.algorithms)


def train(job: Job, runs: Path, results: Path, flags: Sequence[str]) -> None:
    """Bring one run to its end and keep its record."""
    run, record = runs / job.name, results / job.name
    if record.is_dir():
        return
    shared = ["--seed", str(job.seed), "--algorithm", job.algorithm, "--num-threads", "1"]
    command = ["acktr", "train", "--env", job.env, *shared, "--run-dir", str(run), *flags]
    if (run / "settings.yaml").is_file():
        command = ["acktr", "resume", str(run)]
    run.parent.mkdir(parents=True, exist_ok=True)
    with (run.parent / f"{run.name}.log").open("a") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
    keep(run, record)
    print(f"{job.name}: {last_return(record):.1f}", file=sys.stderr, flush=True)


def last_return(record: Path) -> float:
    """`return_mean` in the last row of metrics.csv."""
    value = read_metrics(record / "metrics.csv")[-1]["return_mean"]
    assert value is not None
    return value


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % t interval of a mean over two runs or more."""
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def sum_up(results: Path, environments: Sequence[str], algorithms: Sequence[str]) -> None:
    """Print a Markdown table and what went wrong numerically, and draw `curve.png` per environment."""
    print("| environment | " + " | ".join(f"{name.upper()}: mean ± 95 %, runs" for name in algorithms) + " |")
    print("|---|" + "---|" * len(algorithms))
    for env in environments:
        cells = []
        for algorithm in algorithms:
            records = sorted((results / env).glob(f"{algorithm}-seed*"))
            values = [last_return(record) for record in records]
            cells.append(in_words(values) if values else "")
        print(f"| {env} | " + " | ".join(cells) + " |")
        folders = sorted(path for path in (results / env).glob("*-seed*") if RunFolder.open(path))
        if folders:
            plot(folders, results / env / "curve.png")
        for folder in folders:
            report_faults(folder)


def in_words(values: Sequence[float]) -> str:
    """Mean, interval and the values themselves, in as many decimals as the mean's size deserves."""
    mean = float(np.mean(values))
    decimals = 0 if abs(mean) >= 1000 else 1 if abs(mean) >= 20 else 2
    shown = ", ".join(f"{value:.{decimals}f}" for value in values)
    half = "" if len(values) == 1 else f" ± {interval(values):.{decimals}f}"
    return f"**{mean:.{decimals}f}**{half} ({shown})"


def report_faults(record: Path) -> None:
    """Name a run with a number that is not finite, or that fell back to an old inverse or skipped a batch."""
    rows = read_metrics(record / "metrics.csv")
    losses = ("policy_loss", "value_loss", "entropy", "explained_variance")
    strange = sum(row[name] is None for row in rows for name in losses)  # what is not finite leaves its cell empty
    counts = {name: rows[-1][name] for name in ("stale_inverses", "skipped_batches", "decomposition_retries")}
    if strange or any(counts.values()):
        print(f"{record}: {strange} numbers not finite, {counts}", file=sys.stderr)


if __name__ == "__main__":
    main()
