"""A critic that Adam trains, beside a policy that K-FAC trains."""

import dataclasses
from pathlib import Path

import pytest
import torch

from acktr.agents.acktr import ACKTRUpdater
from acktr.agents.api import ACKTR, load
from acktr.agents.presets import resolve

SETTINGS = {"critic_optimizer": "adam", "critic_lr": 1e-3, "critic_iterations": 3, "num_envs": 4, "num_steps": 16}


def test_adam_moves_the_critic_as_torch_does_and_leaves_the_policy_alone() -> None:
    agent = ACKTR("CartPole-v1", seed=0, **SETTINGS)  # type: ignore[arg-type]
    trainer = agent._trainer
    updater, policy = trainer.updater, trainer.policy
    assert isinstance(updater, ACKTRUpdater)
    assert updater.critic is None
    assert updater.adam_critic is not None
    trainer.collector.restart()
    batch = trainer._collect()
    modules = (policy.value_torso, policy.value_head)
    weights = [parameter for module in modules for parameter in module.parameters()]  # type: ignore[union-attr]
    expected = [weight.detach().clone().requires_grad_() for weight in weights]
    actor = [own.detach().clone() for own in updater.actor._parameters]
    adam = torch.optim.Adam(expected, lr=1e-3)
    updater._scale.observe(batch)
    names = [name for name, _ in policy.named_parameters() if name.startswith("value_")]
    for _ in range(3):
        values = torch.func.functional_call(policy, dict(zip(names, expected, strict=True)), (batch.observations,))[1]
        loss = 0.5 * (values - batch.returns).square().mean() * trainer.settings.value_coef / updater._scale.of_loss
        adam.zero_grad()
        torch.autograd.backward(loss)
        adam.step()
    for _ in range(3):
        figures = updater.adam_critic.step(batch, updater._scale, progress=0.0)
        assert figures["value_loss"] > 0
    for weight, other in zip(weights, expected, strict=True):
        # a step of Adam is 1e-3 long; where a gradient is all but 0 its length hangs on rounding
        torch.testing.assert_close(weight, other, rtol=0, atol=2e-5)
    for own, before in zip(updater.actor._parameters, actor, strict=True):
        assert own.equal(before)
    agent.close()


def test_a_gradient_that_is_not_finite_moves_neither_the_critic_nor_its_moments() -> None:
    agent = ACKTR("CartPole-v1", seed=0, **SETTINGS)  # type: ignore[arg-type]
    trainer = agent._trainer
    updater = trainer.updater
    assert isinstance(updater, ACKTRUpdater)
    critic = updater.adam_critic
    assert critic is not None
    trainer.collector.restart()
    batch = trainer._collect()
    updater._scale.observe(batch)
    broken = dataclasses.replace(batch, returns=batch.returns * torch.nan)
    for made in (0, 2):  # before any moments are there, and after
        for _ in range(made):
            critic.step(batch, updater._scale, progress=0.0)
        weights = [own.detach().clone() for own in critic._parameters]
        moments = [part.clone() for own in critic._parameters for part in critic.optimizer.state[own].values()]
        critic.step(broken, updater._scale, progress=0.0)
        for own, before in zip(critic._parameters, weights, strict=True):
            assert own.equal(before)
        now = [part for own in critic._parameters for part in critic.optimizer.state[own].values()]
        assert all(part.equal(kept) for part, kept in zip(now, moments, strict=False))
        assert {float(critic.optimizer.state[own]["step"]) for own in critic._parameters} == {made}
    assert critic.skipped == 2
    agent.close()


def test_it_is_saved_with_the_agent(tmp_path: Path) -> None:
    agent = ACKTR("CartPole-v1", seed=0, **SETTINGS).learn(640)  # type: ignore[arg-type]
    agent.save(tmp_path / "agent.safetensors")
    copy = load(tmp_path / "agent.safetensors")
    one, other = agent._trainer.updater.state_dict(), copy._trainer.updater.state_dict()
    moments = [state["adam_critic"]["optimizer"]["state"]["0"]["exp_avg"] for state in (one, other)]
    assert moments[0].abs().sum() > 0
    assert moments[0].equal(moments[1])
    agent.close()
    copy.close()


def test_it_learns_cartpole() -> None:
    agent = ACKTR("CartPole-v1", seed=0, critic_optimizer="adam", critic_lr=1e-3, critic_iterations=5)
    agent.learn(50_000)
    assert agent.return_mean is not None
    assert agent.return_mean > 150
    agent.close()


@pytest.mark.parametrize("name", ["critic_max_kl", "critic_damping", "critic_momentum"])
def test_settings_of_a_kfac_critic_are_without_effect_beside_it(name: str) -> None:
    settings = resolve({"env": "CartPole-v1", "critic_optimizer": "adam"}).settings()
    from acktr.agents.idle_settings import idle

    assert idle(settings, [name]) == {"critic_optimizer is adam": {name}}
