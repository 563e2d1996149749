"""ACKTR under every curvature of the family: returns at equal steps, and steps per second beside plain K-FAC.

    python benchmarks/family.py train --results benchmarks/results/family
    python benchmarks/family.py speed --results benchmarks/results/family
    python benchmarks/family.py table --results benchmarks/results/family

`train` makes the runs one after another with the presets as shipped (a run that is there is left alone) and keeps
their records; `speed` lets all variants collect and learn in turn in one process, since a machine's speed drifts;
`table` sums up what is there.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from arguments import amount, count, in_one_line
from origin import commit, in_words, keep
from scipy import stats

if __name__ == "__main__":
    from acktr.process import tune

    tune()  # as `acktr train` does; before torch is imported

from acktr.agents.metrics_file import Row, read_metrics
from acktr.agents.presets import resolve
from acktr.agents.reporting import Reporter
from acktr.agents.runs import build_policy, build_updater, choose_device, make_environment
from acktr.agents.settings import convert
from acktr.agents.streams import Streams
from acktr.agents.threads import set_threads
from acktr.agents.trainer import Trainer

VARIANTS: dict[str, dict[str, str]] = {
    "kfac": {},
    "ekfac": {"curvature": "ekfac"},
    "kfoc": {"curvature": "kfoc"},
    "ekfoc": {"curvature": "ekfoc"},
    "diagonal": {"curvature": "diagonal"},
    "block-tridiagonal": {"structure": "block-tridiagonal"},
    "noisy-kfac": {"exploration": "noisy-kfac"},
    "full": {"curvature": "full"},
}
TASKS: dict[str, tuple[int, tuple[int, ...]]] = {
    "CartPole-v1": (150_000, (0, 1, 2)),
    "HalfCheetah-v5": (300_000, (0, 1, 2)),
    "PongNoFrameskip-v4": (500_000, (0,)),
}
"""Timesteps and seeds."""
LAST_BATCH = 5000
"""A run ends with the first update at or beyond its total."""


def fits(variant: str, env: str) -> bool:
    """Whole blocks are for the smallest network alone."""
    return variant != "full" or env == "CartPole-v1"


@in_one_line
def main() -> None:
    """Run the verb."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("train", "speed", "table"))
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/family"))
    parser.add_argument("--env", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--seconds", type=amount, default=4.0, help="speed: measured per variant and round")
    args = parser.parse_args()
    {"train": train, "speed": speed, "table": table}[args.verb](args)


# --- returns -------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    """Make the runs that are missing and keep their records."""
    for env in args.env:
        timesteps, seeds = TASKS[env]
        for seed in seeds:
            for variant in args.variants:
                record = args.results / env / f"{variant}-seed{seed}"
                if not fits(variant, env) or record.is_dir():
                    continue
                folder = args.runs / env / f"{variant}-seed{seed}"
                flags = [word for name, value in VARIANTS[variant].items() for word in (f"--{name}", value)]
                words = ["acktr", "train", "--env", env, "--total-timesteps", str(timesteps), "--seed", str(seed)]
                words += ["--num-threads", "1", *flags, "--run-dir", str(folder)]
                if (folder / "settings.yaml").exists():
                    words = ["acktr", "resume", str(folder)]
                print(" ".join(words), flush=True)
                subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
                keep(folder, record)


# --- speed ---------------------------------------------------------------------------------------------------------


def speed(args: argparse.Namespace) -> None:
    """Steps per second of the variants in turn."""
    found: dict[str, Any] = {}
    file = args.results / "speed.json"
    if file.exists():
        found = json.loads(file.read_text())
    for env in args.env:
        trainers = {name: make_trainer(env, VARIANTS[name]) for name in args.variants if fits(name, env)}
        rates: dict[str, list[float]] = {name: [] for name in trainers}
        for trainer in trainers.values():
            for _ in range(20):
                trainer.updater.update(trainer._collect(), progress=0.1)
            for learner in trainer.updater._learners().values():
                learner.optimizer.steps = 1000  # young inverses are refreshed more often; what lasts is measured
        for _ in range(args.rounds):
            for name, trainer in trainers.items():
                rates[name].append(rate(trainer, args.seconds))
        found[env] = {name: [round(value, 1) for value in values] for name, values in rates.items()}
        for trainer in trainers.values():
            trainer.environment.close()
    found["commit"] = in_words(commit())
    args.results.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n")


def rate(trainer: Any, seconds: float) -> float:
    """Steps per second over whole rounds of refreshes."""
    interval = trainer.settings.inverse_interval
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(interval):
            trainer.updater.update(trainer._collect(), progress=0.1)
        count += interval * trainer.settings.num_envs * trainer.settings.num_steps
    return count / (time.perf_counter() - start)


def make_trainer(env: str, flags: dict[str, str]) -> Any:
    """A trainer with the preset as shipped but for the flags, one thread, and no run folder."""
    settings = resolve({"env": env, "num_threads": 1, **convert(flags, source="variant")}).settings()
    environment = make_environment(settings)
    set_threads(settings.num_threads)
    device, _ = choose_device(settings, environment)
    streams = Streams(0, device)
    streams.seed_globals()
    policy = build_policy(settings, environment, device)
    updater = build_updater(settings, policy, streams)
    reporter = Reporter(None, settings, console=False)
    trainer = Trainer(settings, environment, policy, updater=updater, streams=streams, reporter=reporter, folder=None)
    trainer.collector.restart()
    return trainer


# --- the table -----------------------------------------------------------------------------------------------------


def table(args: argparse.Namespace) -> None:
    """Print the table and keep it as table.md."""
    speeds = json.loads((args.results / "speed.json").read_text()) if (args.results / "speed.json").exists() else {}
    lines = ["| environment | curvature | steps/s of plain | return at a half | return at the end | seeds |"]
    lines += ["|---|---|---|---|---|---|"]
    for env in args.env:
        timesteps, seeds = TASKS[env]
        for variant in args.variants:
            folders = [args.results / env / f"{variant}-seed{seed}" for seed in seeds]
            metrics = [read_metrics(folder / "metrics.csv") for folder in folders if (folder / "metrics.csv").exists()]
            if not metrics:
                continue
            halves, ends = ([value_at(one, share * timesteps) for one in metrics] for share in (0.5, 1.0))
            rates = speeds.get(env, {})
            relative = ""
            if variant in rates:
                relative = f"{statistics.median(rates[variant]) / statistics.median(rates['kfac']):.2f}"
            lines.append(
                f"| {env} | {variant} | {relative} | {spread(halves)} | {spread(ends)} | "
                f"{', '.join(f'{value:.4g}' for value in ends)} |"
            )
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    (args.results / "table.md").write_text(text)


def value_at(rows: list[Row], timesteps: float) -> float:
    """Mean return of the last hundred games, in the last row up to that many steps."""
    reached = [
        row for row in rows if (row["timesteps"] or 0) <= timesteps + LAST_BATCH and row["return_mean"] is not None
    ]
    return float(reached[-1]["return_mean"] or 0)


def spread(values: list[float]) -> str:
    """Mean, and standard error where there are several."""
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{statistics.mean(values):.4g} ± {stats.sem(values):.3g}"


if __name__ == "__main__":
    main()
