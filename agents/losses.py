"""The actor-critic objective per example, shared by A2C and ACKTR."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from acktr.agents.part import Part
from acktr.agents.rollout import Batch
from acktr.kfac.distributions import entropy, log_prob

Rows = Tensor | slice
"""Which rows of a batch: an index or a slice."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """What the policy gave for some rows of a batch.

    Attributes:
        rows: which.
        distribution: of n rows.
    """

    rows: Rows
    distribution: Distribution


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """What the critic gave for some rows of a batch.

    Attributes:
        rows: which.
        values: (n,).
        held: (n,) the values' part whose gradient reaches the features alone (`ActorCritic.evaluate`), where the value
            loss is to be centred.
    """

    rows: Rows
    values: Tensor
    held: Tensor | None = None


def policy_losses(parts: Sequence[Policies], batch: Batch, *, normalize_advantages: bool) -> tuple[Tensor, Tensor]:
    """Means over the valid rows of a batch, 0-d with their graph; of a batch in parts, what this part adds to them.

    Args:
        parts: what together covers the batch once.
        batch: the rollout.
        normalize_advantages: give the advantages mean 0 and deviation 1 over the valid rows.

    Returns:
        Minus the advantage-weighted log-likelihood, and the entropy in nats.
    """
    advantages = learnt_advantages(batch, normalize=normalize_advantages)
    weights = _joined_weights(parts, batch)
    losses = [-log_prob(part.distribution, batch.actions[part.rows]) * advantages[part.rows] for part in parts]
    entropies = [entropy(part.distribution) for part in parts]
    return batch.mean_share(torch.cat(losses), weights), batch.mean_share(torch.cat(entropies), weights)


def value_loss(parts: Sequence[Values], batch: Batch) -> Tensor:
    """Mean of `1/2 (v - R)²` over the valid rows, 0-d with its graph, however many parts the forward pass was made in.

    Of a batch in parts it is what this part adds to the mean.

    With `held` values the loss is centred below the head: the head learns from all of the error v - R, the layers under
    it from the error less its mean, which is the gradient of half the error's variance. An error common to the whole
    batch is the head's bias's to mend. K-FAC takes layers, and a convolution's positions, as independent; so it
    underestimates the curvature of a common shift of all values, which each of them makes anew, 100 to 1000 times on
    frames whose background stands still.

    Args:
        parts: what together covers the batch once.
        batch: the rollout.
    """
    weights = _joined_weights(parts, batch)
    squares = [(part.values - batch.returns[part.rows]).square() / 2 for part in parts]
    loss = batch.mean_share(torch.cat(squares), weights)
    held = [part.held for part in parts if part.held is not None]
    if not held:
        return loss
    errors = torch.cat([part.values.detach() - batch.returns[part.rows] for part in parts])
    common = batch.mean_share(torch.cat(held), weights)
    return loss - batch.part.mean(errors, weights) * (common - common.detach())  # a gradient, no value


def learnt_advantages(batch: Batch, *, normalize: bool) -> Tensor:
    """The advantages (M,) that the policy learns from: as they are, or with mean 0 and deviation 1."""
    return standardise(batch.advantages, batch.weights, batch.part) if normalize else batch.advantages


def standardise(values: Tensor, weights: Tensor | None, part: Part) -> Tensor:
    """Mean 0 and deviation 1 over the rows of positive weight; (M,) to (M,). Of equal values, 0."""
    mean = part.mean(values, weights)
    deviation = part.mean((values - mean).square(), weights).sqrt()
    rounding = 1e-6 * mean.abs()  # of the mean, which the differences of equal values consist of
    return torch.where(deviation > rounding, (values - mean) / (deviation + 1e-8), 0.0)


def joined_values(parts: Sequence[Values], batch: Batch) -> Tensor:
    """Values (M,) of all rows, in the batch's order, without their graph."""
    values = torch.empty_like(batch.returns)
    for part in parts:
        values[part.rows] = part.values.detach()
    return values


def explained_variance(values: Tensor, returns: Tensor, weights: Tensor | None, part: Part) -> Tensor:
    """`1 - Var(R - V) / Var(R)` over the valid rows, 0-d; 1 is a perfect critic, 0 no better than a constant.

    Of equal returns it is 1 when the residuals are equal too, else 0, as in scikit-learn.
    """
    columns = [returns - values, returns]
    means = part.means(columns, weights)
    squares = [(column - mean).square() for column, mean in zip(columns, means, strict=True)]
    unexplained, total = part.means(squares, weights)
    return torch.where(total > 0, 1 - unexplained / total, (unexplained <= 0).to(total))


def _joined_weights(parts: Sequence[Policies] | Sequence[Values], batch: Batch) -> Tensor | None:
    return None if batch.weights is None else torch.cat([batch.weights[part.rows] for part in parts])
