"""Rewards of any size, and observations that say nothing, leave every number finite."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TransformObservation, TransformReward

import acktr

UPDATES = 200
Factory = Callable[[], gymnasium.Env[Any, Any]]


def rewards_times(factor: float, env_id: str) -> Factory:
    return lambda: TransformReward(gymnasium.make(env_id), lambda reward: factor * float(reward))


def constant_observations(env_id: str) -> Factory:
    def make() -> gymnasium.Env[Any, Any]:
        env = gymnasium.make(env_id)
        return TransformObservation(env, lambda observation: np.full_like(observation, 0.5), env.observation_space)

    return make


@pytest.mark.parametrize(
    ("env_id", "options"),
    [("InvertedPendulum-v5", {"preset": "mujoco"}), ("CartPole-v1", {"preset": "vector", "shared_trunk": True})],
    ids=["Gaussian, separate torsos", "Categorical, shared trunk"],
)
@pytest.mark.parametrize("kind", ["rewards x 1e4", "rewards x 1e-4", "constant observations"])
def test_200_updates_leave_every_number_finite(env_id: str, options: dict[str, Any], kind: str, tmp_path: Path) -> None:
    """Published implementations end in NaN after a few thousand updates, or at once on large rewards."""
    factory = {
        "rewards x 1e4": rewards_times(1e4, env_id),
        "rewards x 1e-4": rewards_times(1e-4, env_id),
        "constant observations": constant_observations(env_id),
    }[kind]
    run = tmp_path / "run"
    agent = acktr.ACKTR(factory, num_envs=4, num_steps=16, seed=1, num_threads=1, run_dir=run, kl_interval=1, **options)
    agent.learn(UPDATES * 4 * 16)
    for name, value in agent.policy.state_dict().items():
        assert bool(torch.isfinite(value).all()), name
    agent.close()
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert int(rows[-1]["updates"]) >= UPDATES
    for row in rows:
        for name in ("policy_loss", "value_loss", "entropy", "explained_variance", "kl_measured", "kl_predicted"):
            assert row[name], name  # a number that is not finite leaves its cell empty
            assert math.isfinite(float(row[name]))
    assert {name: rows[-1][name] for name in ("stale_inverses", "skipped_batches")} == {
        "stale_inverses": "0",
        "skipped_batches": "0",
    }
