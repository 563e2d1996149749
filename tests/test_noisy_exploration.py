"""Acting on weights drawn from the posterior, and learning about their mean."""

from typing import Any

import pytest
import torch
from torch import Tensor

import acktr
from acktr.agents.a2c import A2CUpdater
from acktr.agents.trainer import Trainer
from acktr.kfac import NoisyKFAC, mean_kl

NOISY: dict[str, Any] = {"exploration": "noisy-kfac", "num_threads": 1, "seed": 0, "hidden_sizes": (16,)}


def agent(env: str = "CartPole-v1", **options: Any) -> Any:
    return acktr.ACKTR(env, **{**NOISY, **options})


def trainer_of(agent: Any) -> Trainer:
    trainer: Trainer = agent._trainer
    trainer.collector.restart()
    return trainer


def parameters(trainer: Trainer) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in trainer.policy.parameters()]


def test_a_rollout_acts_on_a_draw_and_leaves_the_mean_to_the_bit() -> None:
    trainer = trainer_of(agent(noise_examples=100))
    before, seen = parameters(trainer), []
    original = trainer.policy.act_and_value

    def spied(*args: Any, **options: Any) -> Any:
        seen.append(parameters(trainer))
        return original(*args, **options)

    trainer.policy.act_and_value = spied  # type: ignore[method-assign]
    trainer._collect()
    trainer._collect()
    assert all(torch.equal(one, two) for one, two in zip(before, parameters(trainer), strict=True))
    steps = trainer.settings.num_steps
    first, last, other = seen[0], seen[steps - 1], seen[steps]
    assert all(torch.equal(one, two) for one, two in zip(first, last, strict=True))  # one draw for a rollout
    assert not any(torch.equal(one, two) for one, two in zip(first[:2], other[:2], strict=True))
    assert not torch.equal(first[0], before[0])


def test_gradients_are_taken_at_the_draw_and_the_step_moves_the_mean() -> None:
    trainer = trainer_of(agent(noise_examples=100, shared_trunk=True, max_measured_kl=0, max_measured_value_kl=0))
    batch = trainer._collect()
    optimizer = trainer.updater.actor.optimizer  # type: ignore[attr-defined]
    with optimizer.sampled(again=True):
        drawn = parameters(trainer)
    seen: list[list[Tensor]] = []
    handle = trainer.policy.policy_head.register_forward_pre_hook(lambda *_: seen.append(parameters(trainer)))
    mean = parameters(trainer)
    trainer.updater.update(batch, progress=0.0)
    handle.remove()
    assert all(torch.equal(one, two) for one, two in zip(seen[0], drawn, strict=True))
    moved = [after - before for after, before in zip(parameters(trainer), mean, strict=True)]
    assert max(float(part.abs().max()) for part in moved) > 0
    # the KL is measured between the draw before and the draw that has moved with its mean
    for after, before, part in zip(seen[-1], drawn, moved, strict=True):
        torch.testing.assert_close(after - before, part, rtol=0, atol=1e-6)


def test_more_examples_are_less_noise() -> None:
    kls = []
    for examples in (1_000, 100_000):
        made = agent(noise_examples=examples).learn(3000)
        trainer = trainer_of(made)
        batch = trainer._collect()
        with torch.no_grad():
            mean = trainer.policy(batch.observations)[0]
            with trainer.updater.exploring():
                drawn = trainer.policy(batch.observations)[0]
        kls.append(float(mean_kl(mean, drawn)))
    assert kls[0] > 10 * kls[1] > 0


def test_only_the_policy_s_own_network_is_noisy() -> None:
    trainer = trainer_of(agent())
    assert isinstance(trainer.updater.actor.optimizer, NoisyKFAC)  # type: ignore[attr-defined]
    assert not isinstance(trainer.updater.critic.optimizer, NoisyKFAC)  # type: ignore[attr-defined]


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_two_runs_of_one_seed_are_equal_and_another_differs(env: str) -> None:
    made = [agent(env, seed=seed).learn(1500) for seed in (0, 0, 1)]
    weights = [torch.cat([parameter.detach().flatten() for parameter in one.policy.parameters()]) for one in made]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a2c_explores_by_its_actions_alone() -> None:
    made = acktr.A2C("CartPole-v1", num_threads=1)
    assert isinstance(made._trainer.updater, A2CUpdater)
    before = parameters(made._trainer)
    with made._trainer.updater.exploring():
        assert all(torch.equal(one, two) for one, two in zip(before, parameters(made._trainer), strict=True))
