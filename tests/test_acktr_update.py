"""One ACKTR update against the limits on what it may move."""

from typing import Any

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from acktr.agents.acktr import ACKTRUpdater
from acktr.agents.policy import ActorCritic
from acktr.agents.rollout import Batch
from acktr.agents.settings import Settings
from acktr.kfac import mean_kl

SIGMA = 0.5


def moved_by_an_update(*, shared: bool, returns: float = 5.0, **options: Any) -> tuple[dict[str, Tensor], float, float]:
    """Figures of one update, and the policy's and the value's KL of what it did, measured from outside."""
    torch.manual_seed(0)
    settings = Settings(
        env="CartPole-v1",
        hidden_sizes=(16,),
        shared_trunk=shared,
        policy_gain=1.0,
        lr=0.1,
        critic_lr=0.1,
        max_kl=1e3,
        critic_max_kl=1e3,
        value_sigma=SIGMA,
        **options,
    )
    policy = ActorCritic(Box(-1, 1, (3,)), Discrete(4), settings)
    batch = Batch(
        observations=torch.randn(64, 3),
        actions=torch.randint(0, 4, (64,)),
        advantages=torch.randn(64),
        returns=torch.randn(64) + returns,
        weights=None,
        valid_rows=64,
        num_envs=4,
    )
    updater = ACKTRUpdater(policy, settings, torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, values = policy(batch.observations)
    report = updater.update(batch, progress=0.0)
    with torch.no_grad():
        after, moved = policy(batch.observations)
    value_kl = float(((moved - values) / SIGMA).square().mean() / 2)
    return dict(report.figures), float(mean_kl(before, after)), value_kl


@pytest.mark.parametrize("shared", [True, False])
def test_the_figures_are_the_kl_really_made(shared: bool) -> None:
    figures, policy, value = moved_by_an_update(shared=shared, kl_interval=1)
    assert float(figures["kl_policy"]) == pytest.approx(policy, rel=1e-3)
    assert float(figures["kl_measured"]) == pytest.approx(policy + value if shared else policy, rel=1e-3)
    assert policy > 2e-3  # above the limits of the tests below
    assert value > 2e-2


@pytest.mark.parametrize("limit", [1e-4, 1e-3])
def test_a_limit_on_the_policy_shortens_the_whole_step_of_a_shared_trunk(limit: float) -> None:
    _, policy, value = moved_by_an_update(shared=True, max_measured_kl=limit)
    assert policy == pytest.approx(limit, rel=0.02)
    _, _, free = moved_by_an_update(shared=True)
    assert value < free / 2


def test_of_two_limits_the_tighter_one_rules() -> None:
    _, policy, value = moved_by_an_update(shared=True, max_measured_kl=1e-3, max_measured_value_kl=1e-3)
    assert value == pytest.approx(1e-3, rel=0.02)
    assert policy < 1e-3


def test_a_limit_on_the_policy_leaves_the_value_room() -> None:
    """A joint limit is spent by the critic's errors, and the policy stands still."""
    _, policy, value = moved_by_an_update(shared=True, max_measured_kl=1e-3)
    assert policy == pytest.approx(1e-3, rel=0.02)
    assert value > 2e-3


def test_separate_torsos_keep_their_limits_apart() -> None:
    _, free_policy, free_value = moved_by_an_update(shared=False)
    _, policy, value = moved_by_an_update(shared=False, max_measured_kl=1e-3)
    assert policy == pytest.approx(1e-3, rel=0.02)
    assert value == pytest.approx(free_value)
    _, policy, value = moved_by_an_update(shared=False, max_measured_value_kl=1e-3)
    assert policy == pytest.approx(free_policy)
    assert value == pytest.approx(1e-3, rel=0.02)


@pytest.mark.parametrize("shared", [True, False])
def test_limits_above_what_a_step_makes_change_nothing(shared: bool) -> None:
    free = moved_by_an_update(shared=shared)[1:]
    assert moved_by_an_update(shared=shared, max_measured_kl=1e6, max_measured_value_kl=1e6)[1:] == free


def test_a_step_whose_kl_is_not_finite_is_taken_back() -> None:
    figures, policy, value = moved_by_an_update(shared=True, returns=1e30, max_measured_value_kl=1.0)
    assert (policy, value) == (0.0, 0.0)
    assert float(figures["kl_measured"]) == 0.0
