"""Advantages and bootstrapping, down to the worked truncation example in every autoreset mode."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import acktr
from acktr.agents.part import Part
from acktr.agents.policy import ActorCritic
from acktr.agents.returns import gae
from acktr.agents.rollout import Batch, Rollout
from acktr.envs.make import make_vec


def reference(
    rewards: Any, values: Any, next_values: Any, terminals: Any, truncations: Any, gamma: float, lam: float
) -> Any:
    """The definition, term by term: a discounted sum of errors up to the end of the episode or of the rollout."""
    steps = len(rewards)
    errors = [r + gamma * n * (not d) - v for r, n, v, d in zip(rewards, next_values, values, terminals, strict=True)]
    advantages = []
    for start in range(steps):
        total, weight = 0.0, 1.0
        for step in range(start, steps):
            total += weight * errors[step]
            weight *= gamma * lam
            if terminals[step] or truncations[step]:
                break
        advantages.append(total)
    return advantages


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.floats(0, 1), st.floats(0, 1), st.integers(0, 10_000))
def test_gae_is_the_discounted_sum_of_errors_within_each_episode(
    steps: int, gamma: float, lam: float, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    rewards, values, next_values = draw.normal(size=(3, steps))
    terminals, truncations = draw.random((2, steps)) < 0.2
    found = gae(
        rewards=torch.tensor(rewards)[:, None],
        values=torch.tensor(values)[:, None],
        next_values=torch.tensor(next_values)[:, None],
        terminals=torch.tensor(terminals)[:, None],
        truncations=torch.tensor(truncations)[:, None],
        gamma=gamma,
        gae_lambda=lam,
    )
    expected = reference(rewards, values, next_values, terminals, truncations, gamma, lam)
    np.testing.assert_allclose(found[:, 0].numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("beyond", [float("nan"), float("inf")])
@pytest.mark.parametrize("flag", ["terminals", "truncations"])
def test_what_lies_beyond_an_end_reaches_nothing_before_it(beyond: float, flag: str) -> None:
    """In NEXT_STEP mode the row after an end is no transition; its value may be no number."""
    ends = torch.tensor([False, True, False])[:, None]
    advantages = gae(
        rewards=torch.ones(3, 1),
        values=torch.tensor([[0.5], [0.5], [beyond]]),
        next_values=torch.tensor([[0.5], [0.5 if flag == "truncations" else beyond], [0.5]]),
        terminals=ends & (flag == "terminals"),
        truncations=ends & (flag == "truncations"),
        gamma=0.9,
        gae_lambda=0.8,
    )
    last = 0.5 + (0.45 if flag == "truncations" else 0)
    torch.testing.assert_close(advantages[:2, 0], torch.tensor([0.95 + 0.72 * last, last]))


class Scripted(gymnasium.Env[Any, Any]):
    """Observation = steps made; reward 1 a step; the first episode ends at step 2 in the way asked for."""

    observation_space = Box(-100, 100, (1,), np.float32)
    action_space = Discrete(2)

    def __init__(self, *, terminated: bool, truncated: bool) -> None:
        self.flags = (terminated, truncated)
        self.episode = -1
        self.count = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.episode += 1
        self.count = 0
        return np.array([10.0 * self.episode], np.float32), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        ended = self.episode == 0 and self.count == 2
        observation = np.array([99.0 if ended else 10.0 * self.episode + self.count], np.float32)
        return observation, 1.0, ended and self.flags[0], ended and self.flags[1], {}


class TabularValues(torch.nn.Module):
    """V = 4 at the final observation (99), 2 at the last observation of the rollout, 0 elsewhere."""

    def __init__(self, last: float) -> None:
        super().__init__()
        self.last = last

    def values(self, observations: Tensor) -> Tensor:
        seen = observations.flatten()
        return 4.0 * (seen == 99) + 2.0 * (seen == self.last)


def rollout_of(mode: AutoresetMode, *, terminated: bool, truncated: bool, steps: int) -> Batch:
    env = SyncVectorEnv([lambda: Scripted(terminated=terminated, truncated=truncated)], autoreset_mode=mode)
    environment = make_vec(env, 1)
    rollout = Rollout(
        num_steps=steps, part=Part.whole(1), observation_space=environment.observation_space, device=torch.device("cpu")
    )
    last = {AutoresetMode.NEXT_STEP: steps - 3, AutoresetMode.SAME_STEP: steps - 2, AutoresetMode.DISABLED: steps - 2}
    policy: Any = TabularValues(10.0 + last[mode])
    rollout.start(environment.reset([0]))
    for index in range(steps):
        values = policy.values(rollout.observations[index])
        step = environment.step(np.zeros(1, np.int64))
        rollout.store(index, actions=torch.zeros(1, dtype=torch.long), values=values, rewards=step.rewards, step=step)
    return rollout.finish(policy, gamma=0.5, gae_lambda=0.5)


def test_truncation_bootstraps_from_final_obs_next_step() -> None:
    batch = rollout_of(AutoresetMode.NEXT_STEP, terminated=False, truncated=True, steps=4)
    assert batch.weights is not None
    assert batch.weights.tolist() == [1, 1, 0, 1]
    assert batch.valid_rows == 3
    valid = batch.weights > 0
    # the dummy row's value, V(final) = 4, is what row 1 bootstraps from; rows 0, 1 and 3 have V = 0
    assert batch.advantages[valid].tolist() == [1.75, 3.0, 2.0]
    assert batch.returns[valid].tolist() == [1.75, 3.0, 2.0]


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_truncation_bootstraps_from_final_obs_same_step_and_disabled(mode: AutoresetMode) -> None:
    batch = rollout_of(mode, terminated=False, truncated=True, steps=3)
    assert batch.weights is None
    assert batch.advantages.tolist() == [1.75, 3.0, 2.0]


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("truncated", [False, True])
def test_termination_cuts_the_bootstrap_even_when_both_flags_are_set(mode: AutoresetMode, truncated: bool) -> None:
    steps = 4 if mode is AutoresetMode.NEXT_STEP else 3
    batch = rollout_of(mode, terminated=True, truncated=truncated, steps=steps)
    valid = torch.ones(steps, dtype=torch.bool) if batch.weights is None else batch.weights > 0
    assert batch.advantages[valid].tolist() == [1.25, 1.0, 2.0]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_rollout_that_ends_on_a_truncation_bootstraps_from_the_final_observation(mode: AutoresetMode) -> None:
    batch = rollout_of(mode, terminated=False, truncated=True, steps=2)
    assert batch.advantages.tolist() == [1.75, 3.0]


def test_n_step_returns_are_gae_with_lambda_one() -> None:
    rewards = torch.tensor([[1.0], [0.0], [2.0]])
    values = torch.tensor([[0.3], [0.1], [0.7]])
    never = torch.zeros(3, 1, dtype=torch.bool)
    advantages = gae(
        rewards=rewards,
        values=values,
        next_values=torch.tensor([[0.1], [0.7], [5.0]]),
        terminals=never,
        truncations=never,
        gamma=0.9,
        gae_lambda=1.0,
    )
    expected = 1.0 + 0.9 * 0.0 + 0.81 * 2.0 + 0.729 * 5.0
    assert float(advantages[0] + values[0]) == pytest.approx(expected)


def test_policy_of_shared_and_separate_trunks_have_the_parameters_they_say() -> None:
    from acktr.agents.settings import Settings

    space, actions = Box(-1, 1, (3,), np.float32), Discrete(2)
    shared = ActorCritic(space, actions, Settings(env="x", shared_trunk=True))
    separate = ActorCritic(space, actions, Settings(env="x", shared_trunk=False))
    assert shared.value_torso is None
    assert separate.value_torso is not None
    count = sum(p.numel() for p in shared.torso.parameters())
    assert sum(p.numel() for p in separate.parameters()) == sum(p.numel() for p in shared.parameters()) + count


def test_a_critic_of_its_own_judges_a_rollout_at_once_as_it_does_step_by_step() -> None:
    """Pendulum is truncated all the time, so bootstrapping from final observations is among it."""
    batches = []
    for later in (True, False):
        agent = acktr.ACKTR("Pendulum-v1", shared_trunk=False, num_envs=3, num_steps=150, num_threads=1, seed=5)
        trainer = agent._trainer
        assert trainer.collector.values_later
        trainer.collector.values_later = later
        trainer.collector.restart()
        batches.append([trainer._collect() for _ in range(2)])
    for at_once, stepwise in zip(*batches, strict=True):
        assert torch.equal(at_once.actions, stepwise.actions)
        torch.testing.assert_close(at_once.returns, stepwise.returns, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(at_once.advantages, stepwise.advantages, rtol=1e-4, atol=1e-4)
