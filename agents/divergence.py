"""How far a step really moved the policy and the values, and how much of it the limits allow."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from acktr.agents.losses import Policies, Values, joined_values, learnt_advantages
from acktr.agents.policy import ActorCritic
from acktr.agents.rollout import Batch
from acktr.kfac import mean_kl, weighted_mean

EXTREME_SHARE = 16
"""One row in so many is an extreme one: those of the largest advantages."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Mean KL between the outputs before and after a step, nats, 0-d; 0 where the step was not one of theirs.

    Attributes:
        policy: of the policy.
        value: `(dV)²/(2 σ²)`, of the values as Gaussians.
        extreme: the same over the rows of the largest advantages, or 0 where it was not asked for. An input unlike
            all that the curvature remembers, such as the first frame of a game, is moved a thousand times further than
            others; its own row is most often not among those that a share of the batch holds.
        gain: what the step added to the surrogate objective, the mean of `π_after / π_before · advantage`.
    """

    policy: Tensor
    value: Tensor
    extreme: Tensor
    gain: Tensor

    def shortened(self, part: Tensor) -> "Divergence":
        """What remains, to second order (the gain: to first), of a step of which `part` (0-d, 0 to 1) is kept."""
        square = part.square()
        kls = (torch.where(part > 0, kl * square, 0.0) for kl in (self.policy, self.value, self.extreme))
        policy, value, extreme = kls
        return Divergence(
            policy=policy, value=value, extreme=extreme, gain=torch.where(part > 0, self.gain * part, 0.0)
        )

    def allowed(self, policy_limit: float | None, value_limit: float | None) -> Tensor:
        """What part of the step keeps both limits, taking the KLs as quadratic in its length; 0-d, 0 to 1.

        None of a step whose KL is not finite.
        """
        farthest = torch.maximum(self.value, self.extreme)
        return torch.minimum(_part(self.policy, policy_limit), _part(farthest, value_limit))


@torch.no_grad()
def measure(
    policy: ActorCritic,
    policies: Sequence[Policies],
    values: Sequence[Values],
    batch: Batch,
    *,
    sigma: Tensor | float,
    extremes: bool,
    normalize_advantages: bool,
) -> Divergence:
    """The KL that the last step made on the rows of the first part.

    Args:
        policy: after the step.
        policies: what it gave before the step, of the whole batch; empty when the step was the critic's alone.
        values: likewise of the critic.
        batch: the rollout.
        sigma: standard deviation of the values.
        extremes: measure the extreme rows too.
        normalize_advantages: as in the loss.
    """
    zero = batch.returns.new_zeros(())
    policy_kl = value_kl = extreme = gain = zero
    first = (policies or values)[0].rows
    observations = batch.observed(first)
    weights = None if batch.weights is None else batch.weights[first]
    if policies and values:
        after, moved = policy(observations)
    elif policies:
        after = policy.distribution(observations)
    else:
        moved = policy.values(observations)
    if policies:
        before, actions = policies[0].distribution, batch.actions[first]
        policy_kl = mean_kl(before, after, weights).to(zero)
        ratio = torch.exp(after.log_prob(actions) - before.log_prob(actions))
        advantages = learnt_advantages(batch, normalize=normalize_advantages)[first]
        gain = weighted_mean((ratio - 1) * advantages, weights)
    if values:
        value_kl = weighted_mean(_value_kl(values[0].values, moved, sigma), weights)
    if values and extremes:
        rows = _largest(batch)
        far = _value_kl(joined_values(values, batch)[rows], policy.values(batch.observed(rows)), sigma)
        extreme = weighted_mean(far, None if batch.weights is None else batch.weights[rows])
    return Divergence(policy=policy_kl, value=value_kl, extreme=extreme, gain=gain)


def _part(kl: Tensor, limit: float | None) -> Tensor:
    floor = torch.finfo(kl.dtype).tiny
    part = torch.ones_like(kl) if limit is None else (limit / kl.clamp(min=floor)).clamp(max=1).sqrt()
    return torch.where(torch.isfinite(kl), part, 0.0)


def _largest(batch: Batch) -> Tensor:
    sizes = batch.advantages.abs()
    if batch.weights is not None:
        sizes = torch.where(batch.weights > 0, sizes, -1.0)
    return torch.topk(sizes, max(1, len(sizes) // EXTREME_SHARE)).indices


def _value_kl(before: Tensor, after: Tensor, sigma: Tensor | float) -> Tensor:
    return ((after - before) / sigma).square() / 2
