"""Policy heads: from features to a distribution over actions."""

import gymnasium
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

from acktr.agents.networks import orthogonal_linear
from acktr.errors import UserError


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


class GaussianHead(nn.Module):
    """Diagonal Gaussian over the d dimensions of a Box, with a log-std that does not depend on the state.

    Args:
        features: width of the torso's output.
        dimensions: d.
        gain: of the orthogonal initialisation of the mean.
    """

    def __init__(self, features: int, dimensions: int, *, gain: float) -> None:
        super().__init__()
        self.mean = orthogonal_linear(features, dimensions, gain=gain)
        self.log_std = nn.Parameter(torch.zeros(dimensions))

    def forward(self, features: Tensor) -> Distribution:
        """(N, features) to N distributions over vectors of d numbers, in the units of the action."""
        mean = self.mean(features)
        return Independent(
            Normal(mean, self.log_std.exp().expand_as(mean), validate_args=False), 1, validate_args=False
        )


def build_head(space: gymnasium.Space[object], features: int, *, gain: float) -> CategoricalHead | GaussianHead:
    """The head for an action space.

    Raises:
        UserError: a space other than Discrete or a vector Box.
    """
    if isinstance(space, spaces.Discrete):
        return CategoricalHead(features, int(space.n), gain=gain)
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return GaussianHead(features, space.shape[0], gain=gain)
    raise UserError(f"action space {space} is not supported: use a Discrete or a one-dimensional Box action space")
