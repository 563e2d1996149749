"""The actor-critic objective against its gradients written out."""

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from acktr.agents.losses import Policies, Values, explained_variance, policy_losses, standardise, value_loss
from acktr.agents.part import Part
from acktr.agents.policy import ActorCritic
from acktr.agents.rollout import Batch
from acktr.agents.settings import Settings


def policy_and_batch(weights: Tensor | None) -> tuple[ActorCritic, Batch]:
    torch.manual_seed(0)
    settings = Settings(env="CartPole-v1", hidden_sizes=(7,), shared_trunk=True)
    policy = ActorCritic(Box(-1, 1, (3,)), Discrete(4), settings)
    batch = Batch(
        observations=torch.randn(12, 3),
        actions=torch.randint(0, 4, (12,)),
        advantages=torch.randn(12),
        returns=torch.randn(12) + 5,
        weights=weights,
        valid_rows=12 if weights is None else int(weights.sum()),
        part=Part.whole(4),
    )
    return policy, batch


def value_gradients(policy: ActorCritic, batch: Batch, *, centred: bool, parts: int = 1) -> dict[str, Tensor]:
    parted = []
    for rows in torch.arange(12).split(12 // parts):
        values, held = policy.values_and_held(batch.observations[rows])
        parted.append(Values(rows=rows, values=values, held=held if centred else None))
    loss = value_loss(parted, batch)
    policy.zero_grad()
    loss.backward()
    found = {name: value.grad.clone() for name, value in policy.named_parameters() if value.grad is not None}
    return {**found, "loss": loss.detach()}


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1])])
@pytest.mark.parametrize("parts", [1, 3])
def test_centred_value_loss_is_half_the_variance_below_the_head_and_the_whole_error_at_it(
    weights: Tensor | None, parts: int
) -> None:
    policy, batch = policy_and_batch(weights)
    plain, centred = (value_gradients(policy, batch, centred=flag, parts=parts) for flag in (False, True))
    torch.testing.assert_close(centred["loss"], plain["loss"])
    for name in ("value_head.weight", "value_head.bias"):
        torch.testing.assert_close(centred[name], plain[name])

    valid = slice(None) if weights is None else weights > 0
    _, values = policy(batch.observations)
    errors = (values - batch.returns)[valid]
    policy.zero_grad()
    (errors.var(correction=0) / 2).backward()
    for name, parameter in policy.torso.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(centred[f"torso.{name}"], parameter.grad, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(centred[f"torso.{name}"], plain[f"torso.{name}"])


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1])])
def test_the_parts_of_a_batch_give_the_policy_losses_of_the_whole(weights: Tensor | None) -> None:
    policy, batch = policy_and_batch(weights)
    found = []
    for number in (1, 3):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(number))
        parts = [
            Policies(rows=rows, distribution=policy.distribution(batch.observations[rows]))
            for rows in order.split(12 // number)
        ]
        found.append(policy_losses(parts, batch, normalize_advantages=True))
    for one, three in zip(*found, strict=True):
        torch.testing.assert_close(one, three)


def test_explained_variance_of_equal_returns_is_finite() -> None:
    ones = torch.ones(4)
    assert float(explained_variance(ones * 3, ones, None, Part.whole(1))) == 1.0
    assert float(explained_variance(torch.randn(4), ones, None, Part.whole(1))) == 0.0
    assert float(explained_variance(ones, ones, torch.zeros(4), Part.whole(1))) == 1.0
    values = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert float(explained_variance(values, values + 5, None, Part.whole(1))) == 1.0


@pytest.mark.parametrize("value", [0.0, 0.1, 3.7, 100.1])
@pytest.mark.parametrize("rows", [320, 2048])
def test_equal_advantages_standardise_to_zero(value: float, rows: int) -> None:
    """The rounding of their mean, divided by itself, gave 1."""
    assert torch.equal(standardise(torch.full((rows,), value), None, Part.whole(1)), torch.zeros(rows))


def test_advantages_standardise_to_mean_0_and_deviation_1() -> None:
    found = standardise(torch.randn(320) * 1e-3 + 5, None, Part.whole(1))
    assert abs(float(found.mean())) < 1e-3
    assert float(found.std(correction=0)) == pytest.approx(1, abs=1e-3)
