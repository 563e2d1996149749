"""Agents that train in one process or in several; run as a script by each of the latter, in torchrun's environment.

    python parallel_agents.py FOLDER CASES LEG

leaves in FOLDER what came out of the cases or, with a LEG from 0 on, a checkpoint of the first one so far.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acktr.agents import checkpoint
from acktr.agents.acktr import ACKTRUpdater
from acktr.agents.part import Part
from acktr.agents.presets import resolve
from acktr.agents.reporting import Reporter
from acktr.agents.rollout import Batch
from acktr.agents.runs import build_policy, build_updater, make_environment
from acktr.agents.settings import Settings
from acktr.agents.streams import Streams
from acktr.agents.trainer import Trainer
from acktr.agents.world import World, joined
from acktr.kfac.service import dismiss, serve

OF_THE_CLOCK = ("wall_time", "steps_per_second")
UPDATES, LEG, CPU = 30, 10, torch.device("cpu")


def run(case: dict[str, Any], world: World) -> dict[str, Any]:
    """Parameters and figures after the case's updates, or `UPDATES`; the same on every rank."""
    torch.set_default_dtype(getattr(torch, case.get("dtype", "float64")))
    torch.set_num_threads(1)
    try:
        return _recorded(case, world) if case["env"].startswith("Breakout") else _trained(case, world)
    finally:
        torch.set_default_dtype(torch.float32)


def served(case: dict[str, Any], world: World) -> dict[str, Any] | None:
    """The same where the last processes only decompose; None of those."""
    if not world.serves:
        found = run(case, world)
        assert world.ranks is not None
        dismiss(world.ranks, CPU)
        return found
    torch.set_default_dtype(torch.float64)
    settings = _settings(case)
    environment = make_environment(dataclasses.replace(settings, num_envs=1))
    streams = Streams(settings.seed, CPU)
    streams.seed_globals()
    updater = build_updater(settings, build_policy(settings, environment, CPU), streams, world.ranks)
    assert isinstance(updater, ACKTRUpdater)
    assert world.ranks is not None
    serve(world.ranks, updater.units())
    return None


def _settings(case: dict[str, Any]) -> Settings:
    chosen = {name: value for name, value in case.items() if name not in ("dtype", "updates")}
    settings = resolve({"precision": "float32", "num_threads": 1, "vectorization": "sync", **chosen}).settings()
    return dataclasses.replace(
        settings, total_timesteps=case.get("updates", UPDATES) * settings.num_envs * settings.num_steps
    )


def _trained(case: dict[str, Any], world: World) -> dict[str, Any]:
    """Of a whole training with its environments."""
    trainer = trainer_of(case, world)
    trainer.train()
    trainer.environment.close()
    state = trainer.policy.state_dict()
    row = trainer.reporter.last_row or {}
    return {
        "parameters": torch.cat([state[name].double().flatten() for name in sorted(state)]),
        "returns": list(trainer.returns),
        "figures": {name: value for name, value in row.items() if name not in OF_THE_CLOCK and value is not None},
    }


def trainer_of(case: dict[str, Any], world: World) -> Trainer:
    """A training of one rank's environments."""
    settings = _settings(case)
    part = world.part(settings.num_envs)
    environment = make_environment(dataclasses.replace(settings, num_envs=part.count))
    streams = Streams(settings.seed, CPU)
    streams.seed_globals()
    policy = build_policy(settings, environment, CPU)
    updater = build_updater(settings, policy, streams, world.ranks)
    reporter = Reporter(None, settings, console=False)
    return Trainer(
        settings, environment, policy, updater=updater, streams=streams, reporter=reporter, folder=None, world=world
    )


def leg(case: dict[str, Any], world: World, folder: Path, number: int) -> None:
    """Go on with a training from the checkpoint of leg `number - 1` in the folder, and leave one there.

    Raises:
        AssertionError: what was restored differs from what the checkpoint holds.
    """
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    try:
        trainer = trainer_of(case, world)
        if number:
            state = checkpoint.load(folder / f"leg{number - 1}.safetensors").state
            trainer.load_state_dict(state)
            assert_equal(trainer.updater.state_dict(), state["training"]["updater"])
        trainer.extend(LEG * trainer.settings.num_envs * trainer.settings.num_steps)
        trainer.train()
        trainer.environment.close()
        reached = trainer.state_dict()
        if world.leads:
            checkpoint.save(folder / f"leg{number}.safetensors", reached, kind="checkpoint")
    finally:
        torch.set_default_dtype(torch.float32)


def assert_equal(found: Any, expected: Any, path: str = "") -> None:
    """Nested states are the same to the bit."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), path
        for name in expected:
            assert_equal(found[name], expected[name], f"{path}/{name}")
    elif isinstance(expected, Tensor):
        assert torch.equal(found, expected), path
    else:
        assert found == expected, path


def _recorded(case: dict[str, Any], world: World) -> dict[str, Any]:
    """Of updates on a recorded sequence of batches: random play, random advantages, some rows without weight."""
    settings = _settings(case)
    part = world.part(settings.num_envs)
    environment = make_environment(settings)
    streams = Streams(settings.seed, CPU)
    streams.seed_globals()
    policy = build_policy(settings, environment, CPU)
    updater = build_updater(settings, policy, streams, world.ranks)
    start = torch.cat([parameter.detach().double().flatten() for parameter in policy.parameters()])
    draws = torch.Generator().manual_seed(1)
    observations = environment.reset(list(range(settings.num_envs)))
    assert "updates" not in case
    for update in range(UPDATES):
        frames, actions = [], torch.randint(0, 4, (settings.num_steps, settings.num_envs), generator=draws)
        for step in range(settings.num_steps):
            assert not isinstance(observations, dict)
            frames.append(torch.from_numpy(observations.copy()))
            observations = environment.step(actions[step].numpy()).observations
        advantages, returns = torch.randn(2, *actions.shape, generator=draws)
        weights = (torch.rand(actions.shape, generator=draws) > 0.1).to(advantages)
        batch = _batch(part, torch.stack(frames), actions, advantages, returns, weights)
        updater.update(batch, progress=update / UPDATES)
    environment.close()
    end = torch.cat([parameter.detach().double().flatten() for parameter in policy.parameters()])
    return {"parameters": end, "moved": end - start}


def _batch(part: Part, frames: Tensor, actions: Tensor, advantages: Tensor, returns: Tensor, weights: Tensor) -> Batch:
    here = slice(part.first, part.first + part.count)
    return Batch(
        observations=frames[:, here].flatten(0, 1),
        actions=actions[:, here].flatten(),
        advantages=(advantages * weights)[:, here].flatten(),
        returns=(returns * weights)[:, here].flatten(),
        weights=weights[:, here].flatten(),
        valid_rows=int(weights.sum()),
        part=part,
    )


def main() -> None:
    """One rank's part."""
    folder, cases, number = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
    servers = cases[0].get("curvature_ranks", 0)
    with joined(timeout=60.0, curvature_ranks=servers) as world:
        if servers:
            torch.save([served(cases[0], world)], folder / f"rank{world.rank}.pt")
        elif number >= 0:
            leg(cases[0], world, folder, number)
        else:
            torch.save([run(case, world) for case in cases], folder / f"rank{world.rank}.pt")


if __name__ == "__main__":
    main()
