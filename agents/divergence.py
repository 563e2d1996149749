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
from acktr.kfac.distributions import log_prob
from acktr.kfac.trust_region import kls

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
    columns: dict[str, list[Tensor]] = {}
    rows_measured: list[Tensor] = []
    far: Tensor | None = None
    largest = None if extremes is None else _largest(batch)
    for part in parts:
        rows, policies, values = part.rows, part.policies, part.values
        after, moved, far = _outputs(policy, part, batch, beside=largest if part is parts[-1] else None)
        if policies is not None and after is not None:
            before, actions = policies.distribution, batch.actions[rows]
            columns.setdefault("policy", []).append(kls(before, after))
            ratio = torch.exp(log_prob(after, actions) - log_prob(before, actions))
            columns.setdefault("gain", []).append((ratio - 1) * advantages[rows])
        if values is not None and moved is not None:
            columns.setdefault("value", []).append(_value_kl(values.values, moved, sigma))
        if batch.weights is not None:
            rows_measured.append(batch.weights[rows])
    weights = torch.cat(rows_measured) if rows_measured else None
    joined = {name: torch.cat(column) for name, column in columns.items()}
    means = dict(zip(joined, batch.part.means_or_nan(list(joined.values()), weights), strict=True))
    zero = batch.returns.new_zeros(())
    extreme = zero
    if extremes is not None and largest is not None and far is not None:
        weights = None if batch.weights is None else batch.weights[largest]
        extreme = batch.part.mean(_value_kl(extremes[largest], far, sigma), weights)
    return Divergence(
        policy=means.get("policy", zero).to(zero),
        value=means.get("value", zero).to(zero),
        extreme=extreme,
        gain=means.get("gain", zero).to(zero),
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


def _part(kl: Tensor, limit: float | None) -> Tensor:
    floor = torch.finfo(kl.dtype).tiny
    part = torch.ones_like(kl) if limit is None else (limit / kl.clamp(min=floor)).clamp(max=1).sqrt()
    return torch.where(torch.isfinite(kl), part, 0.0)


def _largest(batch: Batch) -> Tensor:
    """Rows here that are among those of the largest advantages in the whole batch."""
    sizes = batch.advantages.abs()
    if batch.weights is not None:
        sizes = torch.where(batch.weights > 0, sizes, -1.0)
    sizes = batch.part.everywhere(sizes)
    largest = torch.topk(sizes, max(1, len(sizes) // EXTREME_SHARE)).indices
    return largest if batch.part.is_whole else batch.part.among(largest)[1]


def _value_kl(before: Tensor, after: Tensor, sigma: Tensor | float) -> Tensor:
    return ((after - before) / sigma).square() / 2
