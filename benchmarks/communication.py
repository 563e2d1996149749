"""What several processes send one another in an update, by kind, beside the model of docs/distributed.md.

    python benchmarks/communication.py --json communication.json

Two processes on gloo train for some updates, and each counts what it puts into messages. The model counts the same from
the shapes of the layers and the settings alone: sums of gradients and factors, decompositions at their refreshes. A sum
over R processes sends a message's bytes about 2 (R - 1) / R times from each of them, a broadcast once to each other.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from acktr.process import tune

    tune()  # as `acktr train` does; before torch is imported

import torch
from arguments import count, in_one_line, output
from origin import commit, in_words, machine

from acktr.agents.acktr import ACKTRUpdater
from acktr.agents.learner import Learner
from acktr.agents.presets import resolve
from acktr.agents.reporting import Reporter
from acktr.agents.runs import build_policy, build_updater, choose_device, make_environment
from acktr.agents.settings import Settings, convert
from acktr.agents.streams import Streams
from acktr.agents.threads import set_threads
from acktr.agents.trainer import Trainer
from acktr.agents.world import World, joined
from acktr.kfac import KFAC
from acktr.kfac.chains import ChainUnit
from acktr.kfac.corrected import CorrectedBlock
from acktr.kfac.distributed import packed_entries
from acktr.kfac.kronecker import KroneckerBlock
from acktr.kfac.optimal_factors import COLD_STEPS, OptimalFactors
from acktr.kfac.pace import has_its_turn
from acktr.kfac.small_blocks import DiagonalBlock, FullBlock
from acktr.kfac.units import Unit, WeightUnit

KINDS = ("gradients", "factors", "inverses")
CASES: dict[str, dict[str, Any]] = {
    "BreakoutNoFrameskip-v4, kfac": {"env": "BreakoutNoFrameskip-v4", "num_envs": 8},
    "BreakoutNoFrameskip-v4, every position": {"env": "BreakoutNoFrameskip-v4", "num_envs": 8, "position_stride": 1},
    "HalfCheetah-v5, kfac": {"env": "HalfCheetah-v5"},
    "HalfCheetah-v5, ekfac": {"env": "HalfCheetah-v5", "curvature": "ekfac"},
    "HalfCheetah-v5, kfoc": {"env": "HalfCheetah-v5", "curvature": "kfoc"},
    "CartPole-v1, kfac": {"env": "CartPole-v1"},
    "CartPole-v1, diagonal": {"env": "CartPole-v1", "curvature": "diagonal"},
}


# --- the model ---------------------------------------------------------------------------------------------------


def factor_numbers(unit: Unit, *, thinned: bool, steps: int, has_basis: bool) -> int:
    """Numbers that a unit's statistics of one batch consist of.

    Args:
        unit: a weight's, or a small parameter's.
        thinned: whether positions are left out.
        steps: of K-FOC's power method.
        has_basis: whether EKFAC has one already.
    """
    block = unit.block
    if isinstance(block, FullBlock | DiagonalBlock):
        size = unit.matrix([torch.empty_like(parameter) for parameter in unit.parameters]).numel()
        return (size if isinstance(block, DiagonalBlock) else packed_entries(1, size)) + 1
    assert isinstance(unit, WeightUnit)
    assert isinstance(block, KroneckerBlock | CorrectedBlock)
    groups, rows, columns = unit.map.matrix_shape
    pair = packed_entries(groups, rows) + packed_entries(groups, columns)
    # of thinned positions also how much the batch tells
    number = steps * pair + 1 if isinstance(block.factors, OptimalFactors) else pair + 2 + 2 * thinned
    return number + (groups * rows * columns + 1) * (isinstance(block, CorrectedBlock) and has_basis)


def inverse_numbers(unit: Unit, settings: Settings) -> int:
    """Numbers of a unit's decomposition, with two on how it came out."""
    block = unit.block
    if isinstance(block, DiagonalBlock):
        return 0
    if isinstance(block, FullBlock):
        size = sum(parameter.numel() for parameter in unit.parameters)
        return size**2 + 2
    assert isinstance(unit, WeightUnit)
    groups, rows, columns = unit.map.matrix_shape
    entries, borders = groups * rows * columns, groups * (rows + columns)
    if isinstance(block, CorrectedBlock):
        null = borders * (2 if settings.damping_mode == "factored" else 1)
        return groups * (rows**2 + columns**2) + 2 + entries + 1 + null
    if settings.damping_mode == "exact":
        return groups * (rows**2 + columns**2) + 2 + entries
    return packed_entries(groups, rows) + packed_entries(groups, columns) + 2


def predicted(learner: Learner, settings: Settings, updates: int, figures: int) -> Counter[str]:
    """Bytes of a learner's messages in its first updates, by kind.

    Args:
        learner: with its optimizer, whose parameters are float32.
        settings: of the run.
        updates: its steps so far.
        figures: numbers that travel with a gradient.
    """
    optimizer, found = learner.optimizer, Counter[str]()
    assert not any(isinstance(unit, ChainUnit) for unit in optimizer.units)
    parameters = sum(parameter.numel() for parameter in learner.optimizer.param_groups[0]["params"])
    refreshed: set[int] = set()
    for step in range(updates):
        found["gradients"] += 4 * (parameters + figures)
        if step % settings.stat_interval == 0:
            found["factors"] += 4 * sum(
                factor_numbers(
                    unit,
                    thinned=settings.position_stride > 1,
                    steps=settings.kfoc_steps if step else max(settings.kfoc_steps, COLD_STEPS),
                    has_basis=index in refreshed,
                )
                for index, unit in enumerate(optimizer.units)
            )
        interval = optimizer.estimate.pace.refresh_interval(step)
        number = len(optimizer.units)
        due = {k for k in range(number) if has_its_turn(k, number, steps=step, interval=interval)}
        due |= set(range(number)) - refreshed
        found["inverses"] += 4 * sum(inverse_numbers(optimizer.units[index], settings) for index in due)
        refreshed |= due
    return found


# --- measuring ---------------------------------------------------------------------------------------------------


def train(case: Mapping[str, Any], updates: int, world: World) -> tuple[Trainer, Settings]:
    """Train one rank's part for so many updates."""
    settings = resolve({"vectorization": "sync", "num_threads": 1, **case}).settings()
    set_threads(1)
    part = world.part(settings.num_envs)
    environment = make_environment(Settings.from_dict({**settings.to_dict(), "num_envs": part.count}))
    device = world.device(choose_device(settings, environment)[0])
    streams = Streams(settings.seed, device)
    streams.seed_globals()
    policy = build_policy(settings, environment, device)
    updater = build_updater(settings, policy, streams, world.ranks)
    reporter = Reporter(None, settings, console=False)
    trainer = Trainer(
        settings, environment, policy, updater=updater, streams=streams, reporter=reporter, folder=None, world=world
    )
    trainer.collector.restart()
    for _ in range(updates):
        updater.update(trainer._collect(), progress=0.1)
    environment.close()
    return trainer, settings


def measured(case: Mapping[str, Any], updates: int) -> dict[str, Any] | None:
    """By kind the bytes that were sent, and those of the model; None on all ranks but the first."""
    with joined(timeout=120.0) as world:
        trainer, settings = train(case, updates, world)
        assert isinstance(trainer.updater, ACKTRUpdater)
        if not world.leads or world.ranks is None:
            return None
        model: Counter[str] = Counter()
        critic = trainer.updater.critic
        model += predicted(trainer.updater.actor, settings, updates, figures=3 if critic is None else 2)
        if critic is not None:
            model += predicted(critic, settings, updates * settings.critic_iterations, figures=1)
        kfacs: list[KFAC] = [learner.optimizer for learner in trainer.updater._learners().values()]
        return {
            "updates": updates,
            "parameters": sum(parameter.numel() for parameter in trainer.policy.parameters()),
            "units": sum(len(optimizer.units) for optimizer in kfacs),
            "measured": dict(world.ranks.bytes_sent),
            "model": {kind: model[kind] for kind in KINDS},
        }


def in_processes(case: Mapping[str, Any], updates: int, size: int = 2) -> dict[str, Any]:
    """What the first of some processes has measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__, "--updates", str(updates), "--case", json.dumps(dict(case))]
    ranks = [
        subprocess.Popen(
            words,
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        sys.exit(f"a process failed on {dict(case)}")
    result: dict[str, Any] = json.loads(outputs[0].splitlines()[-1])
    return result


@in_one_line
def main() -> None:
    """Measure, print a table, and keep the figures with `--json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=count, default=24)
    parser.add_argument("--json", type=output)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        found = measured(convert_case(json.loads(args.case)), args.updates)
        if found is not None:
            print(json.dumps(found))
        return
    content: dict[str, Any] = {**commit(), "machine": machine(), "torch": torch.__version__, "cases": {}}
    print(f"commit {in_words(content)}; bytes in messages of one of two processes, mean of {args.updates} updates")
    print(f"{'':<42}{'kind':<12}{'measured':>14}{'model':>14}")
    for name, case in CASES.items():
        found = content["cases"][name] = in_processes(case, args.updates)
        for kind, number in sorted(found["measured"].items()):
            model = f"{found['model'][kind] / args.updates:14,.0f}" if kind in found["model"] else f"{'-':>14}"
            print(f"{name:<42}{kind:<12}{number / args.updates:14,.0f}{model}", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(content, indent=1) + "\n")


def convert_case(case: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a case, checked."""
    return convert(dict(case), source="--case")


if __name__ == "__main__":
    main()
