"""Training in some processes of this machine, joined by torch.distributed, without run folder and console."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from acktr.agents.presets import resolve
from acktr.agents.reporting import Reporter
from acktr.agents.runs import build_policy, build_updater, choose_device, make_environment, with_precision
from acktr.agents.settings import Settings, convert
from acktr.agents.streams import Streams
from acktr.agents.threads import set_threads
from acktr.agents.trainer import Trainer
from acktr.agents.world import World


def in_processes(script: str, words: Sequence[str], size: int) -> dict[str, Any]:
    """What the first of some processes prints, as JSON in its last line.

    Args:
        script: a benchmark, which `joined` makes one of the processes.
        words: its arguments.
        size: number of processes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, script, *words],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        sys.exit(f"one of {size} processes failed: {' '.join(words)}")
    result: dict[str, Any] = json.loads(outputs[0].splitlines()[-1])
    return result


def settings_of(case: Mapping[str, Any]) -> Settings:
    """Settings of a case, one thread a process, checked."""
    given = convert({"vectorization": "sync", "num_threads": 1, **case}, source="--case")
    return resolve(given).settings()


def trainer_of(settings: Settings, world: World) -> Trainer:
    """A trainer of this process's part, its environments at the start of episodes; the caller closes them."""
    set_threads(1)
    environment = make_environment(
        Settings.from_dict({**settings.to_dict(), "num_envs": world.part(settings.num_envs).count})
    )
    device = world.device(choose_device(settings, environment)[0])
    settings, _ = with_precision(settings, environment, device)
    streams = Streams(settings.seed, device)
    streams.seed_globals()
    policy = build_policy(settings, environment, device)
    updater = build_updater(settings, policy, streams, world.ranks)
    reporter = Reporter(None, settings, console=False)
    trainer = Trainer(
        settings, environment, policy, updater=updater, streams=streams, reporter=reporter, folder=None, world=world
    )
    trainer.collector.restart()
    return trainer
