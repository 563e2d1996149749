"""Training steps per second of ACKTR, A2C and stable-baselines3's A2C, and where ACKTR's time goes.

All contestants train in processes of their own, one at a time and in turn, for several rounds; medians over the rounds
are compared, since a machine's speed drifts. Needs `pip install -e ".[bench]"`.

    python benchmarks/throughput.py --env BreakoutNoFrameskip-v4 --num-envs 16 --num-steps 20
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if "sb3-a2c" not in sys.argv:
    from acktr.process import tune

    tune()  # as `acktr train` does; before torch is imported

import numpy as np
import psutil
import torch

CONTESTANTS = ("emulator", "acktr", "a2c", "sb3-a2c")
WARMUP_UPDATES = 100
"""K-FAC refreshes its inverses more often while young; what lasts is measured."""

PHASES = {
    "environment": "acktr::environment",
    "act": "acktr::act",
    "forward": "acktr::forward",
    "sampled backward": "kfac::sampled_backward",
    "factors": "kfac::factors",
    "loss backward": "acktr::loss_backward",
    "inverses": "kfac::inverses",
    "apply": "kfac::step",
}


def main() -> None:
    """Measure and print; `--json FILE` keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="BreakoutNoFrameskip-v4")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--num-steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="measured per contestant and round")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings other than the preset's")
    parser.add_argument("--contestant", choices=(*CONTESTANTS, "profile"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        print(json.dumps(measure(args)))
        return
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    for number in range(args.rounds):
        for name in CONTESTANTS:
            results[name].append(in_process(args, name))
            rate = results[name][-1]["steps_per_second"]
            print(f"round {number + 1}: {name:<10}{rate:8.0f} steps/s", file=sys.stderr)
    phases = in_process(args, "profile")["milliseconds"]
    report(args, results, phases)


def in_process(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Run one contestant in a fresh process and return what it printed."""
    words = [sys.executable, __file__, "--contestant", name, "--env", args.env, "--device", args.device]
    words += ["--num-envs", str(args.num_envs), "--num-steps", str(args.num_steps), "--seconds", str(args.seconds)]
    words += ["--set", *args.set]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one contestant, in this process."""
    if args.contestant == "emulator":
        rate = emulator_rate(args)
    elif args.contestant == "sb3-a2c":
        rate = sb3_rate(args)
    else:
        trainer = make_trainer(args, "a2c" if args.contestant == "a2c" else "acktr")
        if args.contestant == "profile":
            return {"milliseconds": profile(trainer)}
        rate = timed(lambda: one_update(trainer), args)
    return {"steps_per_second": rate, "memory_mb": psutil.Process().memory_info().rss / 2**20}


def timed(update: Callable[[], None], args: argparse.Namespace) -> float:
    """Steps per second of an update that makes num_envs x num_steps of them, after a warm-up."""
    for _ in range(WARMUP_UPDATES):
        update()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < args.seconds:
        update()
        count += 1
    return count * args.num_envs * args.num_steps / (time.perf_counter() - start)


def make_trainer(args: argparse.Namespace, algorithm: str) -> Any:
    """A trainer with the preset as shipped and no run folder."""
    from acktr.agents.presets import resolve
    from acktr.agents.reporting import Reporter
    from acktr.agents.runs import build_policy, build_updater, choose_device, make_environment, set_threads
    from acktr.agents.settings import convert
    from acktr.agents.streams import Streams
    from acktr.agents.trainer import Trainer

    overrides = {"env": args.env, "algorithm": algorithm, "num_envs": args.num_envs, "num_steps": args.num_steps}
    changes = convert(dict(word.split("=", 1) for word in args.set), source="cli") if algorithm == "acktr" else {}
    settings = resolve({**overrides, "device": args.device, **changes}).settings()
    environment = make_environment(settings)
    set_threads(0)
    device, _ = choose_device(settings, environment)
    streams = Streams(0, device)
    streams.seed_globals()
    policy = build_policy(settings, environment, device)
    reporter = Reporter(None, settings, console=False)
    updater = build_updater(settings, policy, streams)
    trainer = Trainer(settings, environment, policy, updater=updater, streams=streams, reporter=reporter, folder=None)
    trainer._restart_environments()
    return trainer


def one_update(trainer: Any) -> None:
    """Collect a rollout and learn from it, as the training loop does."""
    trainer.updater.update(trainer._collect(), progress=0.1)


def emulator_rate(args: argparse.Namespace) -> float:
    """Steps per second of the environments alone, under random actions."""
    from acktr.agents.presets import resolve
    from acktr.agents.runs import make_environment

    environment = make_environment(resolve({"env": args.env, "num_envs": args.num_envs}).settings())
    environment.reset(list(range(args.num_envs)))
    draw = np.random.default_rng(0)
    actions = draw.integers(0, environment.action_space.n, (1000, args.num_envs))  # type: ignore[attr-defined]
    position = 0

    def update() -> None:
        nonlocal position
        for _ in range(args.num_steps):
            environment.step(actions[position % 1000])
            position += 1

    return timed(update, args)


def sb3_rate(args: argparse.Namespace) -> float:
    """Steps per second of stable-baselines3's A2C with its CnnPolicy on its own Atari wrappers."""
    import ale_py
    import gymnasium
    from stable_baselines3 import A2C
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gymnasium.register_envs(ale_py)
    env = VecFrameStack(make_atari_env(args.env, n_envs=args.num_envs, seed=0), n_stack=4)
    model = A2C("CnnPolicy", env, n_steps=args.num_steps, ent_coef=0.01, vf_coef=0.25, verbose=0)

    class Clock(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.updates, self.start, self.counted = 0, 0.0, 0

        def _on_rollout_start(self) -> None:
            self.updates += 1
            if self.updates == 8:
                self.start, self.counted = time.perf_counter(), self.num_timesteps

        def _on_step(self) -> bool:
            return self.updates < 8 or time.perf_counter() - self.start < args.seconds

    clock = Clock()
    model.learn(10**9, callback=clock)
    return (model.num_timesteps - clock.counted) / (time.perf_counter() - clock.start)


def profile(trainer: Any, updates: int = 20) -> dict[str, float]:
    """Milliseconds per update by phase, from the labels in the code."""
    for _ in range(WARMUP_UPDATES):
        one_update(trainer)
    start = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(updates):
            one_update(trainer)
    total = 1e3 * (time.perf_counter() - start) / updates
    by_label = {event.key: event.cpu_time_total / 1e3 / updates for event in profiler.key_averages()}
    phases = {name: by_label.get(label, 0.0) for name, label in PHASES.items()}
    phases["apply"] -= phases["inverses"]  # refreshes happen inside the step
    phases["everything else"] = max(0.0, total - sum(phases.values()))
    return phases


def report(args: argparse.Namespace, results: dict[str, list[dict[str, Any]]], phases: dict[str, float]) -> None:
    """Print the tables."""
    rates = {name: [round_["steps_per_second"] for round_ in rounds] for name, rounds in results.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    memory = {name: max(round_["memory_mb"] for round_ in rounds) for name, rounds in results.items()}
    machine = f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}"
    print(f"{args.env}, {args.num_envs} x {args.num_steps}, float32, {machine}")
    for name in CONTESTANTS:
        low, high = min(rates[name]), max(rates[name])
        print(f"  {name:<10}{medians[name]:8.0f} steps/s  [{low:.0f}, {high:.0f}]  {memory[name]:6.0f} MB resident")
    ratios = {
        "acktr / sb3-a2c": medians["acktr"] / medians["sb3-a2c"],
        "a2c / sb3-a2c": medians["a2c"] / medians["sb3-a2c"],
        "acktr / a2c": medians["acktr"] / medians["a2c"],
        "acktr / emulator": medians["acktr"] / medians["emulator"],
    }
    for name, ratio in ratios.items():
        print(f"  {name:<18}{ratio:6.2f}")
    print("  milliseconds of an ACKTR update, under the profiler:")
    for name, value in phases.items():
        print(f"    {name:<18}{value:7.1f}")
    if args.json:
        content = {"rates": rates, "memory_mb": memory, "ratios": ratios, "milliseconds": phases}
        content["arguments"] = {name: value for name, value in vars(args).items() if name != "json"}
        args.json.write_text(json.dumps(content, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
