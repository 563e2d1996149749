"""How far one step may go: rescaling by the KL that the curvature predicts.

With s the change of the parameters and F the undamped Fisher, the second-order model of the mean KL divergence between
the policy before and after is `1/2 sᵀ F s` nats.
"""

import torch
from torch import Tensor, distributions

from acktr.kfac.distributions import MultiCategorical, divergence


def trust_region_scale(quadratic: Tensor, max_kl: float | None) -> Tensor:
    """Largest factor, at most 1, by which a step may be taken so that `1/2 sᵀ F s <= max_kl`.

    Args:
        quadratic: 0-d, `sᵀ F s` of the full step, which is 0 or more up to rounding.
        max_kl: in nats; None sets no bound.

    Returns:
        0-d, on the device of `quadratic`: `min(1, sqrt(2 max_kl / quadratic))` (Wu et al. 2017, section 3.2).
    """
    if max_kl is None:
        return torch.ones_like(quadratic)
    floor = torch.finfo(quadratic.dtype).tiny
    return (2 * max_kl / quadratic.clamp(min=floor)).sqrt().clamp(max=1)


def baselines_scale(inner: Tensor, kl_clip: float | None) -> Tensor:
    """The published code's factor `min(1, sqrt(kl_clip / (lr² Σ u·g)))`: no 2, and the damped form u·g.

    Args:
        inner: 0-d, `lr² Σ u·g` of the preconditioned and the plain gradient.
        kl_clip: what the published settings call the trust region; the bound it sets on the KL is about half of it;
            None sets none.
    """
    if kl_clip is None:
        return torch.ones_like(inner)
    floor = torch.finfo(inner.dtype).tiny
    return (kl_clip / inner.clamp(min=floor)).sqrt().clamp(max=1)


def mean_kl(
    before: distributions.Distribution, after: distributions.Distribution, weights: Tensor | None = None
) -> Tensor:
    """Mean KL(before || after) over the examples, in nats, 0-d.

    Distributions of the types below are compared in float64: between float32 log-probabilities a KL below
    1e-7 drowns in rounding, and may come out negative.

    Args:
        before: batch of N distributions.
        after: batch of N distributions of the same type.
        weights: (N,) non-negative weights of the examples, or None.

    Returns:
        0-d; float64 for Categorical, MultiCategorical, Bernoulli and Normal, else the distributions' own dtype.
    """
    return weighted_mean(kls(before, after), weights)


def kls(before: distributions.Distribution, after: distributions.Distribution) -> Tensor:
    """KL(before || after) of each example, in nats, (N,); see `mean_kl`."""
    return divergence(_double(before), _double(after))


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of (N,) values by weight; values of weight 0 do not enter, whatever they are. 0 when all weights are 0."""
    if weights is None:
        return values.mean()
    weights = weights.to(values.dtype)
    kept = torch.where(weights > 0, values, values.new_zeros(()))
    return (kept * weights).sum() / weights.sum().clamp(min=torch.finfo(values.dtype).tiny)


def _double(distribution: distributions.Distribution) -> distributions.Distribution:
    if isinstance(distribution, distributions.Independent):
        inner = _double(distribution.base_dist)
        return distributions.Independent(inner, distribution.reinterpreted_batch_ndims, validate_args=False)
    if isinstance(distribution, MultiCategorical) and distribution.logits.device.type != "mps":
        return MultiCategorical(distribution.logits.double(), distribution.sizes)
    if isinstance(distribution, distributions.Categorical) and distribution.logits.device.type != "mps":
        return distributions.Categorical(logits=distribution.logits.double(), validate_args=False)
    if isinstance(distribution, distributions.Bernoulli) and distribution.logits.device.type != "mps":
        return distributions.Bernoulli(logits=distribution.logits.double(), validate_args=False)
    if isinstance(distribution, distributions.Normal) and distribution.loc.device.type != "mps":
        return distributions.Normal(distribution.loc.double(), distribution.scale.double(), validate_args=False)
    return distribution
