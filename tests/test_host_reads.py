"""No update looks at the device but to refresh, and then once."""

from typing import Any

import pytest
from host_reads import HostReads

import acktr
from acktr.agents.acktr import ACKTRUpdater

FRAMES = {"num_envs": 4, "num_steps": 8, "conv_channels": (4, 6, 3), "conv_features": 64, "num_threads": 1}
VECTORS = {"num_envs": 2, "num_steps": 32, "hidden_sizes": (8, 8)}


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("BreakoutNoFrameskip-v4", FRAMES),
        ("BreakoutNoFrameskip-v4", {**FRAMES, "reuse_forward": False}),
        ("Pendulum-v1", VECTORS),  # a critic of its own, which makes several steps; a KL that is steered by
        ("CartPole-v1", VECTORS),
    ],
    ids=["frames", "frames, forward pass twice", "two torsos", "one torso"],
)
def test_an_update_reads_nothing_from_the_device(
    env: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = acktr.ACKTR(env, **options)._trainer
    trainer.collector.restart()
    updater = trainer.updater
    assert isinstance(updater, ACKTRUpdater)
    updater.update(trainer._collect(), progress=0.1)
    optimizers = [learner.optimizer for learner in updater._learners().values()]
    found = []
    for number in range(24):
        batch = trainer._collect()
        if number == 0:
            for optimizer in optimizers:
                optimizer.steps = 10_000
        refreshed = sum(optimizer.estimate.refresh_count for optimizer in optimizers)
        with monkeypatch.context() as patched, HostReads(patched) as reads:
            updater.update(batch, progress=0.1)
        refreshes = sum(optimizer.estimate.refresh_count for optimizer in optimizers) - refreshed
        found.append((len(reads.found), refreshes))
    steps = trainer.settings.critic_iterations + 1 if len(optimizers) > 1 else 1
    assert all(reads <= min(refreshes, steps) for reads, refreshes in found), found
    assert any(refreshes for _, refreshes in found)
    if env.startswith("Breakout"):
        assert any(not refreshes for _, refreshes in found)
