"""Running scales of observations and rewards."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st

import acktr
from acktr.agents.encoders import Encoder
from acktr.agents.normalization import ObservationNorm, RewardScale
from acktr.agents.part import Part
from acktr.errors import UserError


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(0, 1000), st.sampled_from([0.0, 1e6]))
def test_moments_are_those_of_all_rows_together(sizes: list[int], seed: int, offset: float) -> None:
    draw = np.random.default_rng(seed)
    norm, kept = ObservationNorm(3), []
    for size in sizes:
        rows, weights = draw.normal(size=(size, 3)) + offset, draw.integers(0, 2, size)
        norm.update(torch.tensor(rows), torch.tensor(weights, dtype=torch.float32), Part.whole(1))
        kept.append(rows[weights > 0])
    together = np.concatenate(kept)
    assert float(norm.count) == len(together)
    if len(together) > 1:
        np.testing.assert_allclose(norm.mean.numpy(), together.mean(0), rtol=1e-9)
        np.testing.assert_allclose(norm.squares.numpy() / len(together), together.var(0), rtol=1e-6, atol=1e-9)
        scale = 1 / together.std(0).clip(min=1e-4)
        np.testing.assert_allclose(norm.scale.numpy(), scale, rtol=1e-5)


def test_before_any_row_observations_stay_as_they_are() -> None:
    norm, rows = ObservationNorm(2), torch.tensor([[0.5, -3.0]])
    assert torch.equal(norm(rows), rows)
    norm.update(rows, torch.zeros(1), Part.whole(1))
    assert torch.equal(norm(rows), rows)


def test_a_coordinate_that_never_changes_becomes_0_and_an_outlier_is_cut_off() -> None:
    norm = ObservationNorm(2)
    norm.update(torch.tensor([[5.0, 0.0], [5.0, 1.0]]), None, Part.whole(1))
    assert norm(torch.tensor([[5.0, 1e9]])).tolist() == [[0.0, 10.0]]


@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
def test_one_observation_that_is_no_number_does_not_stay_in_the_moments(strange: float) -> None:
    norm, clean = ObservationNorm(2), ObservationNorm(2)
    rows = torch.tensor([[1.0, 2.0], [strange, 0.0], [3.0, 5.0]])
    norm.update(rows, None, Part.whole(1))
    clean.update(rows[[0, 2]], None, Part.whole(1))
    for one, two in zip(norm.buffers(), clean.buffers(), strict=True):
        assert torch.equal(one, two)


def test_rewards_are_divided_by_the_deviation_of_the_discounted_returns() -> None:
    draw, scale = np.random.default_rng(0), RewardScale(part=Part.whole(3), gamma=0.9)
    sums, seen = np.zeros(3), []
    for step in range(40):
        rewards, ended, valid = draw.normal(size=3) * 50, draw.random(3) < 0.1, draw.random(3) < 0.8
        (found,) = scale(rewards[None], ended=ended[None], valid=valid[None])
        for env in range(3):
            if valid[env]:
                sums[env] = 0.9 * sums[env] + rewards[env]
                seen.append(sums[env])
                sums[env] = 0.0 if ended[env] else sums[env]
        if step > 3:
            np.testing.assert_allclose(found, (rewards / np.std(seen)).clip(-10, 10), rtol=1e-9)


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_learning_does_not_depend_on_the_scale_of_rewards(factor: float) -> None:
    def make() -> gymnasium.Env[object, object]:
        return gymnasium.wrappers.TransformReward(gymnasium.make("Pendulum-v1"), lambda reward: reward * factor)

    plain = acktr.ACKTR("Pendulum-v1", scale_rewards=True, num_envs=4).learn(2000)
    scaled = acktr.ACKTR(make, preset="classic-control", scale_rewards=True, num_envs=4).learn(2000)
    for one, two in zip(plain.policy.parameters(), scaled.policy.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_the_policy_keeps_its_scales(tmp_path: Path) -> None:
    agent = acktr.ACKTR("Pendulum-v1", normalize_observations=True, scale_rewards=True, num_envs=4).learn(1000)
    agent.save(tmp_path / "agent.safetensors")
    loaded = acktr.load(tmp_path / "agent.safetensors")
    assert float(loaded.policy.encoder.norm.count) == agent.timesteps  # type: ignore[union-attr]
    observation = np.array([0.3, -0.2, 4.0], np.float32)
    assert np.array_equal(
        agent.predict(observation, deterministic=True), loaded.predict(observation, deterministic=True)
    )
    assert (
        loaded._trainer.state_dict()["training"]["reward_scale"]
        == agent._trainer.state_dict()["training"]["reward_scale"]
    )
    before = {name: value.clone() for name, value in agent.policy.encoder.state_dict().items()}
    agent.evaluate(2)
    agent.predict(observation)
    for name, value in agent.policy.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("space", [Discrete(3), Box(0, 255, (3, 84, 84), np.uint8)])
def test_what_is_no_vector_is_not_normalised(space: gymnasium.Space[object]) -> None:
    with pytest.raises(UserError, match="normalize_observations"):
        Encoder(space, normalize=True)
