"""The states and networks that `acktr curvature` looks at."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from curvature_networks import SETTINGS, SMALL, networks
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Categorical

import acktr
from acktr.agents import checkpoint, curvature_states
from acktr.agents.curvature_capture import Captured
from acktr.agents.curvature_states import networks_of, value_sigma, visited_states
from acktr.agents.part import Part
from acktr.agents.policy import ActorCritic
from acktr.agents.settings import Settings
from acktr.envs.vector import VectorEnvironment
from acktr.kfac import Fisher, GaussNewton

pytestmark = pytest.mark.usefixtures("one_thread")


class Clock(VectorEnvironment):
    """Observations say when and where they were seen; the decision at every third moment is none."""

    id, num_envs, protocol = "Clock", 2, {}
    observation_space, action_space = Box(-np.inf, np.inf, (3,)), Discrete(3)

    def __init__(self) -> None:
        self.time = 0

    def reset(self, seeds: Any) -> NDArray[np.float32]:
        self.time = 0
        return self._seen()

    def _seen(self) -> NDArray[np.float32]:
        return np.array([[self.time, env, 0] for env in range(2)], dtype=np.float32)

    def step(self, actions: NDArray[Any]) -> Any:
        valid = np.full(2, self.time % 3 != 0)
        self.time += 1
        empty = np.zeros(0)
        return acktr_step(self._seen(), valid, empty)

    def close(self) -> None:
        pass


def acktr_step(observations: NDArray[np.float32], valid: NDArray[np.bool_], empty: NDArray[Any]) -> Any:
    from acktr.envs.vector import Step

    return Step(
        observations=observations,
        rewards=np.zeros(2),
        terminals=np.zeros(2, bool),
        truncations=np.zeros(2, bool),
        valid=valid,
        final_observations=None,
        episode_returns=empty,
        episode_lengths=empty.astype(np.int64),
        episode_envs=empty.astype(np.int64),
        episode_truncated=empty.astype(bool),
    )


def test_states_are_spread_over_play_and_none_is_a_dummy_row() -> None:
    policy = ActorCritic(Clock.observation_space, Clock.action_space, SETTINGS)
    states = visited_states(policy, Clock(), states=10, deterministic=True, seed=0)
    assert isinstance(states, Tensor)
    times, envs = states[:, 0], states[:, 1]
    assert len(states) == 10
    assert (times % 3 != 0).all()
    assert times.max() > curvature_states.SPREAD / 2
    assert set(envs.tolist()) == {0, 1}
    assert len(set(times.tolist())) == 10, "environments are seen at different moments"
    many = visited_states(policy, Clock(), states=3000, deterministic=True, seed=0)
    assert len(many) == 3000


def test_the_network_sees_observations_normalised_as_in_play() -> None:
    torch.manual_seed(0)
    settings = Settings.from_dict({**SETTINGS.to_dict(), "normalize_observations": True, "shared_trunk": False})
    policy = ActorCritic(Box(-np.inf, np.inf, (3,)), Discrete(3), settings)
    states = torch.randn(20, 3) * 7 + 3
    policy.encoder.observe(states, None, Part.whole(len(states)))
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    found = networks_of(policy, states, settings, sigma=1.0, damping=None, seed=0)
    for network, layer in zip(found, ("torso.1", "value_torso.1"), strict=True):
        assert torch.equal(Captured(network, "exact").inputs[layer], policy.encoder(states).double())
    with torch.no_grad():
        played = policy.distribution(states)
    metric = found[0].metric("exact")
    assert isinstance(metric, Fisher)
    torch.testing.assert_close(metric.distribution.logits.float(), cast(Categorical, played).logits)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_policy_and_critic_are_networks_of_their_own_with_their_own_damping() -> None:
    policy, critic = networks()
    assert (policy.name, policy.damping, policy.sigma) == ("policy", 0.02, None)
    assert (critic.name, critic.damping, critic.sigma) == ("critic", 0.3, 0.5)
    assert policy.chain == [["torso.1"], ["torso.3"], ["policy_head.logits"]]
    assert critic.chain == [["value_torso.1"], ["value_torso.3"], ["value_head"]]
    (joint,) = networks(shared=True)
    assert joint.chain == [["torso.1"], ["torso.3"], ["policy_head.logits", "value_head"]]
    assert (joint.name, joint.damping, joint.sigma) == ("joint", 0.02, 0.5)
    metric = critic.metric("exact")
    assert isinstance(metric, GaussNewton)
    assert metric.sigma == 0.5


def test_the_deviation_of_the_values_is_the_one_that_was_learnt(tmp_path: Path) -> None:
    agent = acktr.ACKTR("CartPole-v1", seed=0, value_sigma=0, **SMALL)
    agent.save(tmp_path / "fresh")
    assert value_sigma(tmp_path / "fresh", agent.settings) == 1
    agent.learn(200)
    agent.save(tmp_path / "trained")
    found = value_sigma(tmp_path / "trained", agent.settings)
    assert found != 1
    assert found == pytest.approx(float(agent._trainer.updater._scale.sigma))  # type: ignore[attr-defined]
    state = checkpoint.load(tmp_path / "trained").state
    del state["training"]
    checkpoint.save(tmp_path / "exported", state, kind="policy")
    assert value_sigma(tmp_path / "exported", agent.settings) == 1
    assert value_sigma(tmp_path / "exported", Settings(env="CartPole-v1", value_sigma=0.25)) == 0.25
