"""The actor-critic objective per example, shared by A2C and ACKTR."""

import dataclasses

import torch
from torch import Tensor
from torch.distributions import Distribution

from acktr.agents.rollout import Batch
from acktr.kfac import weighted_mean


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Means over the valid rows of a batch, 0-d with their graph.

    What is minimised is `policy + value_coef · value - entropy_coef · entropy`.

    Attributes:
        policy: minus the advantage-weighted log-likelihood.
        value: `1/2 (v - R)²`, without its coefficient.
        entropy: of the policy, nats.
    """

    policy: Tensor
    value: Tensor
    entropy: Tensor


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What the network gave for some rows of a batch.

    Attributes:
        distribution: of n rows.
        values: (n,).
        rows: which rows of the batch, an index or a slice.
        held_values: (n,) the values' part whose gradient reaches the features alone (`ActorCritic.evaluate`), where
            the value loss is to be centred.
    """

    distribution: Distribution
    values: Tensor
    rows: Tensor | slice
    held_values: Tensor | None = None


def actor_critic_losses(outputs: list[Outputs], batch: Batch, *, normalize_advantages: bool) -> Losses:
    """The losses over all rows, however many parts the forward pass was made in.

    With `held_values` the value loss is centred below the head: the head learns from all of the error v - R, the
    layers under it from the error less its mean, which is the gradient of half the error's variance. An error common
    to the whole batch is the head's bias's to mend. K-FAC takes layers, and a convolution's positions, as independent;
    so it underestimates the curvature of a common shift of all values, which each of them makes anew, 100 to 1000
    times on frames whose background stands still.

    Args:
        outputs: parts that together cover the batch once.
        batch: the rollout.
        normalize_advantages: give the advantages mean 0 and deviation 1 over the valid rows.
    """
    advantages = learnt_advantages(batch, normalize=normalize_advantages)
    policy, value, entropy, weights, held = [], [], [], [], []
    for part in outputs:
        policy.append(-part.distribution.log_prob(batch.actions[part.rows]) * advantages[part.rows])
        value.append((part.values - batch.returns[part.rows]).square() / 2)
        entropy.append(part.distribution.entropy())
        if part.held_values is not None:
            held.append(part.held_values)
        if batch.weights is not None:
            weights.append(batch.weights[part.rows])
    joined = torch.cat(weights) if weights else None
    value_loss = weighted_mean(torch.cat(value), joined)
    if held:
        errors = torch.cat([part.values.detach() - batch.returns[part.rows] for part in outputs])
        common = weighted_mean(torch.cat(held), joined)
        value_loss = value_loss - weighted_mean(errors, joined) * (common - common.detach())  # a gradient, no value
    return Losses(
        policy=weighted_mean(torch.cat(policy), joined),
        value=value_loss,
        entropy=weighted_mean(torch.cat(entropy), joined),
    )


def learnt_advantages(batch: Batch, *, normalize: bool) -> Tensor:
    """The advantages (M,) that the policy learns from: as they are, or with mean 0 and deviation 1."""
    return standardise(batch.advantages, batch.weights) if normalize else batch.advantages


def standardise(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean 0 and deviation 1 over the rows of positive weight; (M,) to (M,). Of equal values, 0."""
    mean = weighted_mean(values, weights)
    deviation = weighted_mean((values - mean).square(), weights).sqrt()
    rounding = 1e-6 * mean.abs()  # of the mean, which the differences of equal values consist of
    return torch.where(deviation > rounding, (values - mean) / (deviation + 1e-8), 0.0)


def explained_variance(values: Tensor, returns: Tensor, weights: Tensor | None) -> Tensor:
    """`1 - Var(R - V) / Var(R)` over the valid rows, 0-d; 1 is a perfect critic, 0 no better than a constant.

    Of equal returns it is 1 when the residuals are equal too, else 0, as in scikit-learn.
    """
    residual = returns - values
    unexplained = weighted_mean((residual - weighted_mean(residual, weights)).square(), weights)
    total = weighted_mean((returns - weighted_mean(returns, weights)).square(), weights)
    return torch.where(total > 0, 1 - unexplained / total, (unexplained <= 0).to(total))
