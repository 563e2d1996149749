"""Policy heads: from features to a distribution over actions."""

import math
from collections.abc import Sequence

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal
from torch.nn import functional

from acktr.agents.networks import orthogonal_linear
from acktr.agents.settings import Settings
from acktr.errors import UserError
from acktr.kfac import MultiCategorical

LOG_STD_REACH = 5.0
"""Nats that a deviation which depends on the state stays within, of the one it starts with."""

_NODES = 32


class CategoricalHead(nn.Module):
    """Logits of a Categorical over the n actions of a Discrete space.

    Args:
        features: width of the torso's output.
        actions: n.
        gain: of the orthogonal initialisation; 0.01 starts near the uniform policy.
    """

    def __init__(self, features: int, actions: int, *, gain: float) -> None:
        super().__init__()
        self.logits = orthogonal_linear(features, actions, gain=gain)

    def forward(self, features: Tensor) -> Distribution:
        """(N, features) to N distributions over {0, ..., n - 1}."""
        return Categorical(logits=self.logits(features), validate_args=False)


class MultiCategoricalHead(nn.Module):
    """Logits of a Categorical for each of the K numbers of a MultiDiscrete space, from one layer.

    Args:
        features: width of the torso's output.
        sizes: number of choices for each.
        gain: of the orthogonal initialisation.
    """

    def __init__(self, features: int, sizes: Sequence[int], *, gain: float) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.logits = orthogonal_linear(features, sum(self.sizes), gain=gain)

    def forward(self, features: Tensor) -> Distribution:
        """(N, features) to N distributions over vectors of K integers, counted from 0."""
        return MultiCategorical(self.logits(features), self.sizes)


class BernoulliHead(nn.Module):
    """Logits of d independent Bernoullis, for a MultiBinary space.

    Args:
        features: width of the torso's output.
        dimensions: d.
        gain: of the orthogonal initialisation.
    """

    def __init__(self, features: int, dimensions: int, *, gain: float) -> None:
        super().__init__()
        self.logits = orthogonal_linear(features, dimensions, gain=gain)

    def forward(self, features: Tensor) -> Distribution:
        """(N, features) to N distributions over vectors of d zeros and ones."""
        return Independent(Bernoulli(logits=self.logits(features), validate_args=False), 1, validate_args=False)


class GaussianHead(nn.Module):
    """Diagonal Gaussian over the d dimensions of a Box.

    Args:
        features: width of the torso's output.
        dimensions: d.
        gain: of the orthogonal initialisation of the mean.
        log_std_init: logarithm of the deviation at the start, everywhere.
        state_dependent_std: the log-std is a linear function of the features, bent by tanh so that it stays within
            `LOG_STD_REACH` of its start, in place of d parameters. It has a layer of its own: mean and deviation are
            orthogonal in a Gaussian's Fisher, so a layer that held both would have blocks of zeros to estimate.
        squash: give distributions of tanh-squashed actions, `SquashedGaussian`.
    """

    log_std: nn.Parameter | nn.Linear

    def __init__(
        self,
        features: int,
        dimensions: int,
        *,
        gain: float,
        log_std_init: float = 0.0,
        state_dependent_std: bool = False,
        squash: bool = False,
    ) -> None:
        super().__init__()
        self.squash = squash
        self.log_std_init = log_std_init
        self.mean = orthogonal_linear(features, dimensions, gain=gain)
        if state_dependent_std:
            self.log_std = nn.Linear(features, dimensions)
            nn.init.zeros_(self.log_std.weight)
            nn.init.zeros_(self.log_std.bias)
        else:
            self.log_std = nn.Parameter(torch.full((dimensions,), log_std_init))

    def forward(self, features: Tensor) -> Distribution:
        """(N, features) to N distributions over vectors of d numbers, with -1 and 1 at the bounds of the action."""
        mean = self.mean(features)
        if isinstance(self.log_std, nn.Linear):
            log_std = self.log_std_init + LOG_STD_REACH * torch.tanh(self.log_std(features) / LOG_STD_REACH)
        else:
            log_std = self.log_std
        normal = Normal(mean, log_std.exp().expand_as(mean), validate_args=False)
        return SquashedGaussian(normal) if self.squash else Independent(normal, 1, validate_args=False)


class SquashedGaussian(Independent):  # type: ignore[type-arg]  # no generic type in older torch
    """Distribution of tanh(u) for a diagonal Gaussian u, whose outcomes are given as u.

    Near 1 the digits of tanh(u) no longer tell u, so it is u that is drawn, stored and asked the density of; `squashed`
    makes the action of it. The tanh has no parameters: the gradient of the log-density, the Fisher and the KL are those
    of the Gaussian, only density and entropy differ from it.

    Args:
        normal: (N, d).
    """

    def __init__(self, normal: Normal) -> None:
        super().__init__(normal, 1, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density (N,) of the action tanh(value), for value (N, d)."""
        normal: Distribution = self.base_dist
        return (normal.log_prob(value) - _log_slope(value)).sum(-1)

    def entropy(self) -> Tensor:
        """Differential entropy (N,) of the action, nats: at most log 2 for each dimension.

        It has no closed form. The mean of the log-slope of the tanh is taken by Gauss-Hermite quadrature, so it is
        deterministic and differentiable; with 32 nodes the error is below 0.001 nats up to a deviation of 1, 0.05 up
        to 5.
        """
        normal: Normal = self.base_dist
        nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
        at = normal.loc.unsqueeze(-1) + normal.scale.unsqueeze(-1) * torch.as_tensor(nodes).to(normal.loc)
        means = (_log_slope(at) * torch.as_tensor(weights / math.sqrt(2 * math.pi)).to(normal.loc)).sum(-1)
        gaussian: Distribution = normal
        return (gaussian.entropy() + means).sum(-1)


PolicyHead = CategoricalHead | MultiCategoricalHead | BernoulliHead | GaussianHead


def build_head(space: gymnasium.Space[object], features: int, settings: Settings) -> PolicyHead:
    """The head for an action space.

    Args:
        space: as policies see it (`acktr.envs.spaces.adapt_actions`).
        features: width of the torso's output.
        settings: policy_gain and, for a Box, log_std_init, state_dependent_std and squash_actions.

    Raises:
        UserError: another space than Discrete, or a vector MultiDiscrete, MultiBinary or Box; a setting that is for Box
            actions only; squashed actions without bounds to squash them to.
    """
    gain = settings.policy_gain
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        if settings.squash_actions and not np.isfinite([space.low, space.high]).all():
            raise UserError(
                f"setting 'squash_actions' takes actions with both bounds; this environment takes {space}: "
                "leave it off, or give the environment's actions bounds"
            )
        return GaussianHead(
            features,
            space.shape[0],
            gain=gain,
            log_std_init=settings.log_std_init,
            state_dependent_std=settings.state_dependent_std,
            squash=settings.squash_actions,
        )
    for name in ("squash_actions", "state_dependent_std"):
        if getattr(settings, name):
            raise UserError(f"setting '{name}' is for Box actions; this environment takes {space}: leave it off")
    if isinstance(space, spaces.Discrete):
        return CategoricalHead(features, int(space.n), gain=gain)
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) == 1:
        return MultiCategoricalHead(features, [int(size) for size in space.nvec], gain=gain)
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return BernoulliHead(features, space.shape[0], gain=gain)
    raise UserError(
        f"action space {space} is not supported: use Discrete, or a one-dimensional MultiDiscrete, MultiBinary or Box"
    )


def at_rows(distribution: Distribution, rows: Tensor | slice) -> Distribution:
    """Some of the N distributions that a head gave, without their graph."""
    if isinstance(distribution, SquashedGaussian):
        return SquashedGaussian(_normal_at(distribution.base_dist, rows))
    if isinstance(distribution, Independent):
        base = distribution.base_dist
        if isinstance(base, Bernoulli):
            part: Distribution = Bernoulli(logits=base.logits.detach()[rows], validate_args=False)
        else:
            part = _normal_at(base, rows)
        return Independent(part, distribution.reinterpreted_batch_ndims, validate_args=False)
    if isinstance(distribution, MultiCategorical):
        return MultiCategorical(distribution.logits.detach()[rows], distribution.sizes)
    assert isinstance(distribution, Categorical)
    return Categorical(logits=distribution.logits.detach()[rows], validate_args=False)


def _normal_at(normal: Normal, rows: Tensor | slice) -> Normal:
    return Normal(normal.loc.detach()[rows], normal.scale.detach()[rows], validate_args=False)


def squashed(distribution: Distribution, outcomes: Tensor) -> Tensor:
    """Outcomes of a policy's distribution as the environment takes them: through tanh where they are squashed."""
    return torch.tanh(outcomes) if isinstance(distribution, SquashedGaussian) else outcomes


def most_probable(distribution: Distribution) -> Tensor:
    """The mode (N, ...): of a squashed Gaussian that of the Gaussian, of a Bernoulli at even odds 0.

    torch calls the latter not a number, and a policy that starts with even odds would start with no action.
    """
    if isinstance(distribution, Independent) and isinstance(distribution.base_dist, Bernoulli):
        bernoulli = distribution.base_dist
        return torch.where(bernoulli.logits.isnan(), bernoulli.logits, (bernoulli.logits > 0).to(bernoulli.logits))
    mode: Tensor = distribution.mode
    return mode


def _log_slope(value: Tensor) -> Tensor:
    """log(1 - tanh(value)²), without the rounding of the difference and of the tanh near 1."""
    return 2 * (math.log(2) - value - functional.softplus(-2 * value))
