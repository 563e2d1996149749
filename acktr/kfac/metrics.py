"""Which curvature K-FAC estimates: the Fisher of a distribution, the Gauss-Newton matrix of a value, or both.

A metric is a list of per-example scalar losses. The gradients g of those losses at a layer's output give its factor
G = E[g gᵀ], so each metric only says which losses to differentiate:

- sampled: one loss, minus the log-likelihood of a draw from the model itself (Martens & Grosse 2015, section 5);
- exact: the columns of a square root S of the output Fisher, S Sᵀ = F, one loss per column ("type 2");
- empirical: the training loss itself. Free, but not the Fisher.

The losses are linear in the outputs wherever a closed form exists; only their gradients matter, not their values.
"""

import dataclasses
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, distributions

from acktr.kfac.distributions import MultiCategorical, log_prob
from acktr.kfac.draws import Source, exponential, normal, uniform

FisherKind = Literal["sampled", "exact"]


@runtime_checkable
class Metric(Protocol):
    """What `KFAC.update_statistics` takes: anything with these three members.

    `Fisher`, `GaussNewton`, `EmpiricalFisher` and `Joint` are such.
    """

    @property
    def summable(self) -> bool:
        """Whether the single row of `losses` may be added to that of another metric and differentiated with it."""
        ...

    def losses(self) -> Tensor:
        """Per-example losses (C, N) that estimate the metric; each of the C rows costs one backward pass."""
        ...

    def exact_losses(self) -> Tensor:
        """Per-example losses (C', N) whose gradients' outer products sum to the metric, nothing sampled.

        For parameters small enough to be treated exactly, such as a Gaussian's log-std.
        """
        ...


def checked(metric: Metric) -> Metric:
    """The metric itself.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(metric, Metric):
        raise TypeError(f"a metric is wanted, such as Fisher(distribution=...), got {type(metric).__name__}")
    return metric


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fisher:
    """Fisher metric of a Categorical, MultiCategorical, Bernoulli or Normal, or of Independent ones.

    Attributes:
        distribution: batch of N distributions with their graph.
        kind: "sampled" (one draw per example) or "exact".
        draw: outcomes to use as the sample, e.g. the actions of an on-policy rollout, which are draws from the model.
            None draws afresh.
        generator: source of fresh draws; None takes torch's default one.
    """

    distribution: distributions.Distribution
    kind: FisherKind = "sampled"
    draw: Tensor | None = None
    generator: Source = None

    @property
    def summable(self) -> bool:
        """Yes when sampled: the gradients of a draw have mean 0, so cross terms with other draws vanish."""
        return self.kind == "sampled"

    def losses(self) -> Tensor:
        """(1, N) when sampled, (C, N) when exact."""
        if self.kind == "exact":
            return self.exact_losses()
        with torch.no_grad():
            outcome = sample(self.distribution, self.generator) if self.draw is None else self.draw
        shape = self.distribution.batch_shape + self.distribution.event_shape
        if outcome.shape != shape:
            raise ValueError(f"draw takes outcomes of shape {tuple(shape)}, got {tuple(outcome.shape)}")
        return -_per_example(log_prob(self.distribution, outcome)).unsqueeze(0)

    def exact_losses(self) -> Tensor:
        """(C, N): a column per outcome of each Categorical, one per Bernoulli, two per Gaussian dimension.

        Of a sampled metric whose distribution has no known closed form, (1, N): the sampled loss.

        Raises:
            TypeError: kind "exact" of such a distribution.
        """
        base = self.distribution
        while isinstance(base, distributions.Independent):
            base = base.base_dist
        if isinstance(base, distributions.Categorical):
            return _categorical_columns(base)
        if isinstance(base, MultiCategorical):
            return torch.cat([_categorical_columns(part) for part in base.parts])
        if isinstance(base, distributions.Bernoulli):
            probs = base.probs.detach()
            return _columns((probs * (1 - probs)).sqrt() * base.logits)
        if isinstance(base, distributions.Normal):
            mean, scale = base.loc, base.scale
            return _columns(torch.stack((mean / scale.detach(), 2**0.5 * scale.log()), dim=-1))
        if self.kind == "sampled":
            return self.losses()
        raise TypeError(
            f"no exact Fisher is known for {type(base).__name__}; use kind='sampled', or give a metric of your own"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussNewton:
    """Gauss-Newton metric of values under a Gaussian of fixed deviation: the Fisher of N(v, sigma²), factor 1/sigma².

    Attributes:
        values: (N,) or (N, K) with their graph.
        sigma: standard deviation, in the units of the values; a 0-d tensor where it is estimated.
        kind: "sampled" or "exact".
        generator: source of draws; None takes torch's default one.
    """

    values: Tensor
    sigma: float | Tensor = 1.0
    kind: FisherKind = "sampled"
    generator: Source = None

    def __post_init__(self) -> None:
        if isinstance(self.sigma, float | int) and not self.sigma > 0:
            raise ValueError(f"sigma takes a number above 0, got {self.sigma}")

    @property
    def summable(self) -> bool:
        """Yes when sampled: the gradients of a draw have mean 0, so cross terms with other draws vanish."""
        return self.kind == "sampled"

    def losses(self) -> Tensor:
        """(1, N) when sampled, (K, N) when exact."""
        if self.kind == "exact":
            return self.exact_losses()
        noise = normal(self.values, self.generator)
        # the gradient of 1/2 (v - y)²/sigma² at y = v + sigma · noise is -noise/sigma; the sign is free
        return _per_example(self.values * noise / self.sigma).unsqueeze(0)

    def exact_losses(self) -> Tensor:
        """(K, N): one column v/sigma per output."""
        return _columns(self.values / self.sigma)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmpiricalFisher:
    """Outer products of the training loss's own per-example gradients.

    Attributes:
        example_losses: (N,) un-averaged losses with their graph.
    """

    example_losses: Tensor

    @property
    def summable(self) -> bool:
        """Yes: the loss of several outputs is the sum of their losses, cross terms included."""
        return True

    def losses(self) -> Tensor:
        """(1, N)."""
        return self.example_losses.unsqueeze(0)

    def exact_losses(self) -> Tensor:
        """(1, N): the empirical Fisher has no sampling to remove."""
        return self.losses()


class Joint:
    """Metric of independent outputs, such as a policy and a value on one trunk (Wu et al. 2017, section 3.1).

    Sampled losses are summed into a single backward pass: independent draws make the cross terms vanish in expectation.
    Otherwise the rows are listed one after another, with no cross terms at all.
    """

    def __init__(self, *metrics: Metric) -> None:
        self.metrics = metrics

    @property
    def summable(self) -> bool:
        """Whether every part is."""
        return all(metric.summable for metric in self.metrics)

    def losses(self) -> Tensor:
        """(1, N) when every part may be summed, else (sum of rows, N)."""
        parts = [metric.losses() for metric in self.metrics]
        if self.summable and all(part.shape[0] == 1 for part in parts):
            return torch.stack(parts).sum(0)
        return torch.cat(parts)

    def exact_losses(self) -> Tensor:
        """(sum of rows, N)."""
        return torch.cat([metric.exact_losses() for metric in self.metrics])


def sample(distribution: distributions.Distribution, generator: Source) -> Tensor:
    """Draw one outcome per example, from a generator of one's own where torch's distributions take none.

    Args:
        distribution: Categorical, MultiCategorical, Bernoulli, Normal or Independent ones; any other uses the default
            generator.
        generator: source of randomness, on the distribution's device; None takes torch's default one.

    Returns:
        Outcomes shaped and typed as `distribution.sample()`.
    """
    if isinstance(distribution, distributions.Independent):
        return sample(distribution.base_dist, generator)
    if isinstance(distribution, MultiCategorical):
        return torch.stack([sample(part, generator) for part in distribution.parts], dim=-1)
    if isinstance(distribution, distributions.Categorical):
        # an exponential race: argmax of p_c / e_c is distributed as p; no host read, no error on non-finite logits
        probs = distribution.logits.exp()
        return (probs / exponential(probs, generator)).argmax(-1)
    if isinstance(distribution, distributions.Bernoulli):
        probs = distribution.probs
        return (uniform(probs, generator) < probs).to(probs.dtype)
    if isinstance(distribution, distributions.Normal):
        mean = distribution.loc
        return mean + distribution.scale * normal(mean, generator)
    return distribution.sample()


def _categorical_columns(distribution: distributions.Categorical) -> Tensor:
    """Column c is sqrt(p_c) (e_c - p), the gradient of sqrt(p_c) log p_c."""
    log_probs = distribution.logits
    return _columns(log_probs.detach().mul(0.5).exp() * log_probs)


def _per_example(values: Tensor) -> Tensor:
    return values if values.dim() == 1 else values.flatten(1).sum(1)


def _columns(values: Tensor) -> Tensor:
    return values.reshape(values.shape[0], values.shape[1:].numel()).T
