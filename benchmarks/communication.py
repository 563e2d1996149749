"""What several processes send one another in an update, by kind, beside the model of docs/distributed.md.

    python benchmarks/communication.py --json communication.json

Two processes on gloo train for some updates, and each counts what it puts into messages. The model (traffic.py) counts
the same from the shapes of the layers and the settings alone: sums of gradients and factors, decompositions at their
refreshes. A sum over R processes sends a message's bytes about 2 (R - 1) / R times from each of them, a broadcast once
to each other.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from acktr.process import tune

    tune()  # as `acktr train` does; before torch is imported

import torch
from arguments import count, in_one_line, output
from origin import commit, in_words, machine
from processes import in_processes, settings_of, trainer_of
from traffic import KINDS, traffic_of

from acktr.agents.acktr import ACKTRUpdater
from acktr.agents.world import joined
from acktr.kfac import KFAC

CASES: dict[str, dict[str, Any]] = {
    "BreakoutNoFrameskip-v4, kfac": {"env": "BreakoutNoFrameskip-v4", "num_envs": 8},
    "BreakoutNoFrameskip-v4, every position": {"env": "BreakoutNoFrameskip-v4", "num_envs": 8, "position_stride": 1},
    "HalfCheetah-v5, kfac": {"env": "HalfCheetah-v5"},
    "HalfCheetah-v5, ekfac": {"env": "HalfCheetah-v5", "curvature": "ekfac"},
    "HalfCheetah-v5, kfoc": {"env": "HalfCheetah-v5", "curvature": "kfoc"},
    "HalfCheetah-v5, kfac, owner": {"env": "HalfCheetah-v5", "inverse_placement": "owner"},
    "CartPole-v1, kfac": {"env": "CartPole-v1"},
    "CartPole-v1, diagonal": {"env": "CartPole-v1", "curvature": "diagonal"},
}


def measured(case: Mapping[str, Any], updates: int) -> dict[str, Any] | None:
    """By kind the bytes that were sent, and those of the model; None on all ranks but the first."""
    settings = settings_of(case)
    with joined(timeout=120.0) as world:
        trainer = trainer_of(settings, world)
        updater = trainer.updater
        assert isinstance(updater, ACKTRUpdater)
        for _ in range(updates):
            updater.update(trainer._collect(), progress=0.1)
        trainer.collector.environment.close()
        if not world.leads or world.ranks is None:
            return None
        kfacs: list[KFAC] = [learner.optimizer for learner in updater._learners().values()]
        model = traffic_of(updater, settings, updates)
        return {
            "updates": updates,
            "parameters": sum(parameter.numel() for parameter in trainer.policy.parameters()),
            "units": sum(len(optimizer.units) for optimizer in kfacs),
            "measured": dict(world.ranks.bytes_sent),
            "model": {kind: model[kind] for kind in KINDS},
        }


def in_two_processes(case: Mapping[str, Any], updates: int) -> dict[str, Any]:
    """What `measured` gives of a case in two processes."""
    return in_processes(__file__, ["--updates", str(updates), "--case", json.dumps(dict(case))], size=2)


@in_one_line
def main() -> None:
    """Measure, print a table, and keep the figures with `--json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=count, default=24)
    parser.add_argument("--json", type=output)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        found = measured(json.loads(args.case), args.updates)
        if found is not None:
            print(json.dumps(found))
        return
    content: dict[str, Any] = {**commit(), "machine": machine(), "torch": torch.__version__, "cases": {}}
    print(f"commit {in_words(content)}; bytes in messages of one of two processes, mean of {args.updates} updates")
    print(f"{'':<42}{'kind':<12}{'measured':>14}{'model':>14}")
    for name, case in CASES.items():
        found = content["cases"][name] = in_two_processes(case, args.updates)
        for kind, number in sorted(found["measured"].items()):
            model = f"{found['model'][kind] / args.updates:14,.0f}" if kind in found["model"] else f"{'-':>14}"
            print(f"{name:<42}{kind:<12}{number / args.updates:14,.0f}{model}", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
