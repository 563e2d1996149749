"""One ACKTR update against the limits on what it may move."""

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import acktr
from acktr.agents.acktr import ACKTRUpdater
from acktr.agents.forward_pass import MOST_KEPT, ForwardPass, part_of_part, rotating_part
from acktr.agents.part import Part
from acktr.agents.policy import ActorCritic
from acktr.agents.rollout import Batch
from acktr.agents.settings import Settings
from acktr.agents.settings_learning import Schedule
from acktr.agents.updates import scheduled
from acktr.agents.value_scale import ValueScale
from acktr.kfac import mean_kl

SIGMA = 0.5


class Moved(NamedTuple):
    """What one update did: its figures, and from outside the KL of the policy, the values and the extreme values."""

    figures: dict[str, Tensor]
    policy: float
    value: float
    extreme: float
    counters: dict[str, int]


def random_batch(rows: int) -> Batch:
    """For boxes of three numbers and four actions, from four environments, every row valid."""
    return Batch(
        observations=torch.randn(rows, 3),
        actions=torch.randint(0, 4, (rows,)),
        advantages=torch.randn(rows),
        returns=torch.randn(rows),
        weights=None,
        valid_rows=rows,
        part=Part.whole(4),
    )


def moved_by_an_update(
    *,
    shared: bool,
    returns: float = 5.0,
    advantages: dict[int, float] | None = None,
    observations: dict[int, float] | None = None,
    weights: Tensor | None = None,
    **options: Any,
) -> Moved:
    """Update once on a random batch in which some rows have advantages and observations of their own."""
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
    batch = random_batch(64)
    batch.returns.add_(returns)
    if weights is not None:
        batch = dataclasses.replace(batch, weights=weights, valid_rows=int(weights.sum()))
    for row, size in (advantages or {}).items():
        batch.advantages[row] = size
    for row, size in (observations or {}).items():
        batch.observations[row] = size
    updater = ACKTRUpdater(policy, settings, torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, values = policy(batch.observations)
    report = updater.update(batch, progress=0.0)
    with torch.no_grad():
        after, moved = policy(batch.observations)
    value_kl = ((moved - values) / SIGMA).square() / 2
    extreme = value_kl[batch.advantages.abs().argsort(descending=True)[:4]]
    kls = (float(mean_kl(before, after)), float(value_kl.mean()), float(extreme.mean()))
    return Moved(dict(report.figures), *kls, dict(updater.counters()))


@pytest.mark.parametrize("shared", [True, False])
def test_the_figures_are_the_kl_really_made(shared: bool) -> None:
    figures, policy, value, *_ = moved_by_an_update(shared=shared, kl_interval=1)
    assert float(figures["kl_policy"]) == pytest.approx(policy, rel=1e-3)
    assert float(figures["kl_measured"]) == pytest.approx(policy + value if shared else policy, rel=1e-3)
    assert policy > 2e-3  # above the limits of the tests below
    assert value > 2e-2


@pytest.mark.parametrize("limit", [1e-4, 1e-3])
def test_a_limit_on_the_policy_shortens_the_whole_step_of_a_shared_trunk(limit: float) -> None:
    moved = moved_by_an_update(shared=True, max_measured_kl=limit)
    assert moved.policy == pytest.approx(limit, rel=0.02)
    assert moved.value < moved_by_an_update(shared=True).value / 2


def test_of_two_limits_the_tighter_one_rules() -> None:
    moved = moved_by_an_update(shared=True, max_measured_kl=1e-3, max_measured_value_kl=1e-3)
    assert max(moved.value, moved.extreme) == pytest.approx(1e-3, rel=0.02)
    assert moved.policy < 1e-3


def test_a_limit_on_the_policy_leaves_the_value_room() -> None:
    """A joint limit is spent by the critic's errors, and the policy stands still."""
    moved = moved_by_an_update(shared=True, max_measured_kl=1e-3)
    assert moved.policy == pytest.approx(1e-3, rel=0.02)
    assert moved.value > 2e-3


def test_separate_torsos_keep_their_limits_apart() -> None:
    free = moved_by_an_update(shared=False)
    moved = moved_by_an_update(shared=False, max_measured_kl=1e-3)
    assert moved.policy == pytest.approx(1e-3, rel=0.02)
    assert moved.value == pytest.approx(free.value)
    moved = moved_by_an_update(shared=False, max_measured_value_kl=1e-3)
    assert moved.policy == pytest.approx(free.policy)
    assert max(moved.value, moved.extreme) == pytest.approx(1e-3, rel=0.1)


def test_more_iterations_of_the_critic_fit_the_batch_better_and_leave_the_policy_alone() -> None:
    """Wu et al.'s code for vectors takes 25 steps of the critic on each batch."""
    moved = [moved_by_an_update(shared=False, critic_iterations=number, critic_momentum=0.0) for number in (1, 5, 25)]
    assert moved[0].value < moved[1].value / 4 < moved[2].value / 16
    assert len({each.policy for each in moved}) == 1
    assert len({float(each.figures["value_loss"]) for each in moved}) == 1  # as it was before the first


def test_the_critic_has_a_damping_of_its_own() -> None:
    free = moved_by_an_update(shared=False)
    damped = moved_by_an_update(shared=False, critic_damping=100.0)
    assert damped.value < free.value / 100
    assert damped.policy == free.policy


def test_a_single_value_that_would_leap_holds_the_step_back() -> None:
    """The first frame of a game, unlike all that the curvature remembers, was sent to a value of -1700."""
    options: dict[str, Any] = {"advantages": {37: 3.0}, "observations": {37: 50.0}, "activation": "relu"}
    options["stat_fraction"] = 0.25  # of which row 37 is not a part
    free = moved_by_an_update(shared=True, **options)
    held = moved_by_an_update(shared=True, max_measured_value_kl=0.05, **options)
    assert free.extreme > 1e4
    assert 0.01 < held.extreme < 0.5  # so long a step is not quadratic any more
    assert held.value < 0.05


@pytest.mark.parametrize("shared", [True, False])
def test_limits_above_what_a_step_makes_change_nothing(shared: bool) -> None:
    free = moved_by_an_update(shared=shared)[1:4]
    assert moved_by_an_update(shared=shared, max_measured_kl=1e6, max_measured_value_kl=1e6)[1:4] == free


def test_a_step_whose_kl_is_not_finite_is_taken_back() -> None:
    moved = moved_by_an_update(shared=True, returns=1e30, max_measured_value_kl=1.0)
    assert (moved.policy, moved.value) == (0.0, 0.0)
    assert float(moved.figures["kl_measured"]) == 0.0


@given(num_envs=st.integers(1, 20), num_steps=st.integers(1, 20), parts=st.integers(1, 20), turn=st.integers(0, 99))
def test_the_parts_that_curvature_is_taken_from_divide_the_batch_and_none_is_empty(
    num_envs: int, num_steps: int, parts: int, turn: int
) -> None:
    rows = num_envs * num_steps
    parts = min(parts, rows)
    everything: list[int] = []
    for offset in range(parts):
        part, rest = (indices.tolist() for indices in rotating_part(rows, num_envs, parts, turn + offset))
        assert part
        assert sorted(part + rest) == list(range(rows))
        everything += part
    assert sorted(everything) == list(range(rows))


@given(
    num_envs=st.integers(1, 20),
    num_steps=st.integers(1, 20),
    parts=st.integers(1, 6),
    stride=st.integers(2, 9),
)
def test_the_rows_that_kls_are_measured_on_take_turns_through_the_sample(
    num_envs: int, num_steps: int, parts: int, stride: int
) -> None:
    rows = num_envs * num_steps
    parts = min(parts, rows)
    for first in range(parts):
        part = rotating_part(rows, num_envs, parts, first)[0].tolist()
        seen: set[int] = set()
        for turn in range(first, first + parts * stride, parts):
            positions, chosen = (found.tolist() for found in part_of_part(rows, num_envs, parts, stride, turn))
            assert chosen == [part[position] for position in positions]
            assert chosen
            seen.update(chosen)
        assert seen == set(part)


def test_the_rows_that_kls_are_measured_on_are_of_all_environments() -> None:
    """Those of half of the environments never were, and with statistics of all rows those of one alone were."""
    for parts, stride in ((4, 2), (1, 8)):
        _, chosen = part_of_part(320, 16, parts, stride, 0)
        assert set((chosen % 16).tolist()) == set(range(16))
        assert len(chosen) == 40


def test_the_indices_of_samples_do_not_fill_the_memory() -> None:
    """With a sample of one row there are as many as rows, and each leaves all others."""
    trainer = acktr.ACKTR("CartPole-v1", hidden_sizes=(4,), stat_fraction=1 / 200, num_envs=2, num_steps=100)._trainer
    trainer.collector.restart()
    batch = trainer._collect()
    passes = trainer.updater.actor._passes  # type: ignore[attr-defined]
    for turn in range(300):
        passes.turn = turn
        passes._sample(batch, 200, 200)
    assert len(passes._samples) == MOST_KEPT


@pytest.mark.parametrize(("kl_fraction", "rows"), [(0.001, 16), (0.125, 20), (1.0, 160)])
def test_the_rows_that_kls_are_measured_on_are_never_a_few_that_may_all_be_dummies(
    kl_fraction: float, rows: int
) -> None:
    """One row in a thousand was one that followed the end of an episode, and the whole step was taken back."""
    agent = acktr.ACKTR("CartPole-v1", hidden_sizes=(4,), stat_fraction=1.0, kl_fraction=kl_fraction, num_envs=8)
    agent._trainer.collector.restart()
    batch = agent._trainer._collect()
    passes = agent._trainer.updater.actor._passes  # type: ignore[attr-defined]
    for turn in range(40):
        passes.turn = turn
        _, measured = passes._measured_rows(batch, len(batch.returns), 1)
        assert len(batch.returns if measured is None else measured) >= min(rows, len(batch.returns))


@pytest.mark.parametrize("interval", [1, 2, 4])
def test_statistics_rotate_through_the_rows_whatever_their_interval(interval: int) -> None:
    torch.manual_seed(0)
    settings = Settings(env="CartPole-v1", hidden_sizes=(4,), stat_fraction=0.25, stat_interval=interval)
    policy = ActorCritic(Box(-1, 1, (3,)), Discrete(4), settings)
    updater = ACKTRUpdater(policy, settings, torch.Generator())
    seen: list[frozenset[int]] = []
    original = updater.actor._update_statistics

    def spied(forward: ForwardPass, *args: Any) -> None:
        assert isinstance(forward.sample.rows, Tensor)
        seen.append(frozenset(forward.sample.rows.tolist()))
        original(forward, *args)

    updater.actor._update_statistics = spied  # type: ignore[method-assign]
    for _ in range(4 * interval):
        updater.update(random_batch(16), progress=0.1)
    assert len(seen) == 4
    assert frozenset().union(*seen) == frozenset(range(16))


def test_the_running_sigma_starts_with_the_first_usable_batch() -> None:
    scale, cpu = ValueScale(0.0, torch.device("cpu")), torch.ones(4)
    assert float(scale.sigma) == 1.0
    scale.observe(residual_batch(torch.nan, cpu))
    assert float(scale.sigma) == 1.0
    scale.observe(residual_batch(2.0, cpu))
    assert float(scale.sigma) == pytest.approx(2.0)
    scale.observe(residual_batch(0.0, torch.zeros(4)))
    assert float(scale.sigma) == pytest.approx(2.0)
    scale.observe(residual_batch(8.0, cpu))
    assert float(scale.sigma) > 2.5


def residual_batch(residual: float, weights: Tensor) -> Batch:
    return Batch(
        observations=torch.zeros(4, 3),
        actions=torch.zeros(4),
        advantages=torch.full((4,), residual),
        returns=torch.zeros(4),
        weights=weights,
        valid_rows=int(weights.sum()),
        part=Part.whole(1),
    )


def test_a_set_sigma_is_not_learnt() -> None:
    scale = ValueScale(0.5, torch.device("cpu"))
    scale.observe(residual_batch(8.0, torch.ones(4)))
    assert (scale.sigma, scale.of_loss) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [("constant", [2.0, 2.0, 2.0, 2.0]), ("linear", [2.0, 1.0, 0.5, 0.0]), ("late", [2.0, 2.0, 1.0, 0.0])],
)
def test_schedules_reach_their_values(schedule: Schedule, values: list[float]) -> None:
    assert [scheduled(2.0, schedule, progress) for progress in (0.0, 0.5, 0.75, 1.0)] == values
    assert scheduled(2.0, schedule, 1.01) >= 0  # the last batch may go a little past the end


def test_the_entropy_bonus_follows_its_schedule() -> None:
    entropies = []
    for progress in (0.0, 1.0):
        settings = Settings(env="CartPole-v1", entropy_coef=10.0, entropy_schedule="linear", lr_schedule="constant")
        torch.manual_seed(0)
        policy = ActorCritic(Box(-1, 1, (3,)), Discrete(4), settings)
        with torch.no_grad():
            policy.policy_head.logits.weight.normal_()
        batch = dataclasses.replace(random_batch(64), advantages=torch.zeros(64), returns=torch.zeros(64))
        before = policy(batch.observations)[0].entropy().mean()
        ACKTRUpdater(policy, settings, torch.Generator().manual_seed(0)).update(batch, progress=progress)
        entropies.append(float((policy(batch.observations)[0].entropy().mean() - before).detach()))
    assert entropies[0] > 1e-3
    assert abs(entropies[1]) < 1e-6


@pytest.mark.parametrize("shared", [True, False])
def test_a_batch_without_a_valid_row_moves_nothing(shared: bool) -> None:
    """The momentum of earlier batches made a full step, which no valid row could measure."""
    settings = Settings(env="CartPole-v1", shared_trunk=shared, max_measured_kl=1e-3, value_sigma=0.0)
    policy = ActorCritic(Box(-1, 1, (3,)), Discrete(4), settings)
    updater = ACKTRUpdater(policy, settings, torch.Generator().manual_seed(0))
    batch = random_batch(8)
    updater.update(batch, progress=0.0)
    before = [parameter.clone() for parameter in policy.parameters()]
    updater.update(dataclasses.replace(batch, weights=torch.zeros(8), valid_rows=0), progress=0.0)
    assert all(torch.equal(one, two) for one, two in zip(before, policy.parameters(), strict=True))


@pytest.mark.parametrize("iterations", [1, 5])
def test_a_bad_batch_counts_once_however_many_steps_the_critic_makes_on_it(iterations: int) -> None:
    """Two rewards of 1e30 ended a run as diverged: each counted five times."""
    moved = moved_by_an_update(shared=False, returns=1e30, critic_iterations=iterations)
    assert moved.value == 0.0
    assert moved.counters["skipped_batches"] == 1


@pytest.mark.parametrize("limited", [True, False])
def test_a_step_that_no_valid_row_can_measure_is_taken_back_where_it_is_limited(limited: bool) -> None:
    weights = torch.ones(64)
    weights[rotating_part(64, 4, 8, 0)[0]] = 0.0
    moved = moved_by_an_update(shared=True, stat_fraction=0.125, weights=weights, max_measured_kl=1e-4 * limited)
    assert (moved.policy == 0.0) == limited
