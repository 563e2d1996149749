"""How far a step really moved the policy and the values, and how much of it the limits allow."""

import dataclasses

import torch
from torch import Tensor

from acktr.agents.losses import Outputs
from acktr.agents.policy import ActorCritic
from acktr.agents.rollout import Batch
from acktr.kfac import mean_kl, weighted_mean

EXTREME_SHARE = 16
"""One row in so many is an extreme one: those of the largest advantages."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Mean KL between the outputs before and after a step, nats, 0-d.

    Attributes:
        policy: of the policy.
        value: `(dV)²/(2 σ²)`, of the values as Gaussians.
        extreme: the same over the rows of the largest advantages, or None where it was not asked for. An input unlike
            all that the curvature remembers, such as the first frame of a game, is moved a thousand times further than
            others; its own row is most often not among those that a share of the batch holds.
    """

    policy: Tensor
    value: Tensor
    extreme: Tensor | None = None

    def shortened(self, policy: Tensor, value: Tensor) -> "Divergence":
        """What remains, to second order, of a step of which these parts are kept."""
        return Divergence(policy=_scaled(self.policy, policy), value=_scaled(self.value, value))


@torch.no_grad()
def measure(
    policy: ActorCritic, outputs: list[Outputs], batch: Batch, sigma: Tensor | float, *, extremes: bool
) -> Divergence:
    """The KL that the last step made on the rows of the first part.

    Args:
        policy: after the step.
        outputs: before it, of the whole batch.
        batch: the rollout.
        sigma: standard deviation of the values.
        extremes: measure the extreme rows too.
    """
    first = outputs[0]
    weights = None if batch.weights is None else batch.weights[first.rows]
    after, values = policy(batch.observed(first.rows))
    extreme = None
    if extremes:
        rows = _largest(batch)
        before = joined_values(outputs, batch)[rows]
        moved = _value_kl(before, policy.values(batch.observed(rows)), sigma)
        extreme = weighted_mean(moved, None if batch.weights is None else batch.weights[rows])
    return Divergence(
        policy=mean_kl(first.distribution, after, weights).to(values),
        value=weighted_mean(_value_kl(first.values, values, sigma), weights),
        extreme=extreme,
    )


def allowed(kl: Tensor, limit: float | None) -> Tensor:
    """What part of a step of this KL keeps the limit; none of a step whose KL is not finite."""
    floor = torch.finfo(kl.dtype).tiny
    part = torch.ones_like(kl) if limit is None else (limit / kl.clamp(min=floor)).clamp(max=1).sqrt()
    return torch.where(torch.isfinite(kl), part, 0.0)


def joined_values(outputs: list[Outputs], batch: Batch) -> Tensor:
    """Values (M,) of all rows, in the batch's order, without their graph."""
    values = torch.empty_like(batch.returns)
    for part in outputs:
        values[part.rows] = part.values.detach()
    return values


def _largest(batch: Batch) -> Tensor:
    sizes = batch.advantages.abs()
    if batch.weights is not None:
        sizes = torch.where(batch.weights > 0, sizes, -1.0)
    return torch.topk(sizes, max(1, len(sizes) // EXTREME_SHARE)).indices


def _value_kl(before: Tensor, after: Tensor, sigma: Tensor | float) -> Tensor:
    return ((after - before) / sigma).square() / 2


def _scaled(kl: Tensor, factor: Tensor) -> Tensor:
    return torch.where(factor > 0, kl * factor.square(), 0.0)
