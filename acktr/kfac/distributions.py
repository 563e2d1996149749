"""A distribution that torch lacks, and KL divergences that stay finite where torch's overflow."""

from collections.abc import Sequence

import torch
from torch import Size, Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, kl_divergence, register_kl
from torch.nn import functional


class MultiCategorical(Distribution):
    """K independent Categoricals, each with a number of outcomes of its own, as one distribution.

    An outcome is a vector of K integers, each counted from 0.

    Args:
        logits: (N, sum of sizes), those of the first Categorical first; any other number of batch axes will do.
        sizes: number of outcomes of each Categorical, K of them.

    Raises:
        ValueError: the sizes do not add up to the number of logits, or there are none.

    Attributes:
        parts: the K Categoricals.
    """

    arg_constraints = {}  # noqa: RUF012  # torch declares it so

    def __init__(self, logits: Tensor, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        if not self.sizes or sum(self.sizes) != logits.shape[-1]:
            raise ValueError(f"MultiCategorical takes logits (N, {sum(self.sizes)}), got {tuple(logits.shape)}")
        self.parts = tuple(
            Categorical(logits=part, validate_args=False) for part in torch.split(logits, list(self.sizes), dim=-1)
        )
        super().__init__(logits.shape[:-1], Size((len(self.sizes),)), validate_args=False)

    @property
    def logits(self) -> Tensor:
        """(N, sum of sizes) log-probabilities."""
        return torch.cat([part.logits for part in self.parts], dim=-1)

    @property
    def mode(self) -> Tensor:
        """(N, K) the most probable outcome."""
        return torch.stack([part.mode for part in self.parts], dim=-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """`(*sample_shape, N, K)` int64."""
        parts: Sequence[Distribution] = self.parts
        return torch.stack([part.sample(Size(sample_shape)) for part in parts], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """(N, K) integers to (N,)."""
        parts: Sequence[Distribution] = self.parts
        terms = [part.log_prob(outcome) for part, outcome in zip(parts, value.unbind(-1), strict=True)]
        return torch.stack(terms).sum(0)

    def entropy(self) -> Tensor:
        """(N,), nats."""
        parts: Sequence[Distribution] = self.parts
        return torch.stack([part.entropy() for part in parts]).sum(0)


def log_prob(distribution: Distribution, outcomes: Tensor) -> Tensor:
    """Log-density (N,) of outcomes; torch's own of an `Independent` fails on no rows."""
    if type(distribution) is not Independent:
        return distribution.log_prob(outcomes)
    return _joint(log_prob(distribution.base_dist, outcomes), distribution)


def entropy(distribution: Distribution) -> Tensor:
    """(N,) nats; likewise."""
    if type(distribution) is not Independent:
        return distribution.entropy()
    return _joint(entropy(distribution.base_dist), distribution)


def _joint(terms: Tensor, distribution: Independent) -> Tensor:  # type: ignore[type-arg]  # no generic type in older torch
    axes = distribution.reinterpreted_batch_ndims
    return terms.sum(tuple(range(-axes, 0))) if axes else terms


def divergence(before: Distribution, after: Distribution) -> Tensor:
    """KL(before || after) of each distribution of the batch, summed over all axes but the first: (N,), nats.

    Of Categoricals and Bernoullis it is computed from the logarithms, and so is finite wherever they are; torch's own
    is infinite as soon as a probability underflows.
    """
    if isinstance(before, Independent) and isinstance(after, Independent):
        return divergence(before.base_dist, after.base_dist)
    if isinstance(before, MultiCategorical) and isinstance(after, MultiCategorical):
        return torch.stack([divergence(*pair) for pair in zip(before.parts, after.parts, strict=True)]).sum(0)
    if isinstance(before, Categorical) and isinstance(after, Categorical):
        terms = _categorical_terms(before, after).sum(-1)
    elif isinstance(before, Bernoulli) and isinstance(after, Bernoulli):
        terms = _bernoulli_terms(before.logits, after.logits)
    else:
        terms = kl_divergence(before, after)
    return terms if terms.dim() == 1 else terms.flatten(1).sum(1)


def _categorical_terms(before: Categorical, after: Categorical) -> Tensor:
    terms = before.probs * (before.logits - after.logits)
    return torch.where(before.probs > 0, terms, 0.0)


def _bernoulli_terms(before: Tensor, after: Tensor) -> Tensor:
    ones = torch.sigmoid(before) * (functional.softplus(-after) - functional.softplus(-before))
    zeros = torch.sigmoid(-before) * (functional.softplus(after) - functional.softplus(before))
    return ones + zeros


@register_kl(MultiCategorical, MultiCategorical)  # type: ignore[no-untyped-call, untyped-decorator]  # torch's
def _kl_of_multi_categoricals(before: MultiCategorical, after: MultiCategorical) -> Tensor:
    terms = [_categorical_terms(one, other).sum(-1) for one, other in zip(before.parts, after.parts, strict=True)]
    return torch.stack(terms).sum(0)
