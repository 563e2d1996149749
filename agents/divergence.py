"""How far a step really moved the policy and the values, and how much of it the limits allow."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from acktr.agents.distributions import at_rows
from acktr.agents.forward_pass import Outputs
from acktr.agents.losses import learnt_advantages
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
    parts: Sequence[Outputs],
    batch: Batch,
    *,
    sigma: Tensor | float,
    extremes: Tensor | None,
    normalize_advantages: bool,
) -> Divergence:
    """The KL that the last step made. Where none of the rows measured is valid, NaN: nothing is known of the step.

    Args:
        policy: after the step.
        parts: what it gave before the step, for the rows to measure.
        batch: the rollout.
        sigma: standard deviation of the values.
        extremes: values (M,) before the step, to measure the extreme rows of the batch too, or None.
        normalize_advantages: as in the loss.
    """
    advantages = learnt_advantages(batch, normalize=normalize_advantages)
    kls: list[Tensor] = []
    gains: list[Tensor] = []
    value_kls: list[Tensor] = []
    shares: list[Tensor] = []
    largest = None if extremes is None else _largest(batch)
    for part in parts:
        rows, policies, values = part.rows, part.policies, part.values
        weights = None if batch.weights is None else batch.weights[rows]
        shares.append(batch.returns.new_full((), len(advantages[rows])) if weights is None else weights.sum())
        after, moved, far = _outputs(policy, part, batch, beside=largest if part is parts[-1] else None)
        if policies is not None and after is not None:
            before, actions = policies.distribution, batch.actions[rows]
            kls.append(mean_kl(before, after, weights).to(advantages))
            ratio = torch.exp(after.log_prob(actions) - before.log_prob(actions))
            gains.append(weighted_mean((ratio - 1) * advantages[rows], weights))
        if values is not None and moved is not None:
            value_kls.append(weighted_mean(_value_kl(values.values, moved, sigma), weights))
    extreme = zero = batch.returns.new_zeros(())
    if extremes is not None and largest is not None and far is not None:
        weights = None if batch.weights is None else batch.weights[largest]
        extreme = weighted_mean(_value_kl(extremes[largest], far, sigma), weights)
    return Divergence(
        policy=_over_parts(kls, shares) if kls else zero,
        value=_over_parts(value_kls, shares) if value_kls else zero,
        extreme=extreme,
        gain=_over_parts(gains, shares) if gains else zero,
    )


def _outputs(
    policy: ActorCritic, part: Outputs, batch: Batch, *, beside: Tensor | None
) -> tuple[Distribution | None, Tensor | None, Tensor | None]:
    """Distributions and values of a part's rows, and the values of the rows `beside`, all in one forward pass."""
    rows = part.rows
    within = beside is None or isinstance(rows, slice)
    observations = batch.observed(rows if within else torch.cat((rows, beside)))  # type: ignore[arg-type]
    distribution: Distribution | None = None
    values: Tensor | None = None
    if part.policies is not None and part.values is not None:
        distribution, values = policy(observations)
    elif part.policies is not None:
        distribution = policy.distribution(observations)
    else:
        values = policy.values(observations)
    if beside is None or values is None:
        return distribution, values, None
    if isinstance(rows, slice):
        return distribution, values, values[beside]
    count = len(rows)
    if distribution is not None:
        distribution = at_rows(distribution, slice(count))
    return distribution, values[:count], values[count:]


def _over_parts(means: Sequence[Tensor], shares: Sequence[Tensor]) -> Tensor:
    """Mean of the parts' means by their share of the rows, 0-d; NaN where all shares are 0."""
    if len(means) == 1:
        return torch.where(shares[0] > 0, means[0], torch.nan)
    share = torch.stack(list(shares))
    return (torch.stack(list(means)) * share).sum() / share.sum()


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
