"""The actor-critic: observations to a distribution over actions and a value."""

import contextlib
import copy
from collections.abc import Iterator, Mapping

import gymnasium
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from acktr.agents.distributions import build_head, most_probable, squashed
from acktr.agents.encoders import Encoder, build_encoder
from acktr.agents.networks import build_torso, orthogonal_linear
from acktr.agents.observations import Observations
from acktr.agents.settings import Settings
from acktr.errors import UserError
from acktr.kfac import sample
from acktr.kfac.draws import Source


class ActorCritic(nn.Module):
    """A policy and a value on one torso (`shared_trunk`) or on two.

    Args:
        observation_space: of one environment.
        action_space: of one environment.
        settings: network, shared_trunk, policy_gain and the sizes.
        torso: a network of one's own from encoded observations (N, *shape), for a Dict a dictionary of them, to
            features (N, F); it is used as it is for the policy, and for the value too when shared; otherwise the value
            gets a copy.

    Attributes:
        own_torso: whether `torso` was given, so that the settings alone do not make this network.

    Raises:
        UserError: a space that no network here takes, or a torso that gives no features (N, F).
    """

    def __init__(
        self,
        observation_space: gymnasium.Space[object],
        action_space: gymnasium.Space[object],
        settings: Settings,
        *,
        torso: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(observation_space, normalize=settings.normalize_observations)
        self.own_torso = torso is not None
        self.torso = build_torso(self.encoder, settings) if torso is None else torso
        self.value_torso: nn.Module | None = None
        if not settings.shared_trunk:
            self.value_torso = build_torso(self.encoder, settings) if torso is None else copy.deepcopy(torso)
        features = _width(self.torso, self.encoder.shape)
        self.policy_head = build_head(action_space, features, settings)
        self.value_head = orthogonal_linear(features, 1, gain=1.0)
        self._precision = torch.float32

    def use_precision(self, dtype: torch.dtype) -> None:
        """Compute the torsos in float32 or bfloat16 from now on; parameters and heads stay as they are."""
        self._precision = dtype
        for module in self.encoder.modules():
            if isinstance(module, Encoder):
                module.frame_dtype = None if dtype == torch.float32 else dtype

    @contextlib.contextmanager
    def unchanging(self) -> Iterator[None]:
        """For forward passes without gradients while the weights stay: they are rounded once, not in every pass."""
        # what autocast has rounded is forgotten when the outermost of nested contexts is left
        with torch.autocast(self.value_head.weight.device.type, enabled=False):
            yield

    def forward(self, observations: Observations) -> tuple[Distribution, Tensor]:
        """Distributions over actions and values.

        Args:
            observations: (N, *space), raw; for a Dict a dictionary of them.

        Returns:
            N distributions, and values (N,).
        """
        features, value_features = self._features(observations)
        return self.policy_head(features), self.value_head(value_features).squeeze(-1)

    def evaluate(self, observations: Observations) -> tuple[Distribution, Tensor, Tensor]:
        """`forward`, and the values' part w·features (N,) whose gradient reaches the features and not w."""
        features, value_features = self._features(observations)
        values = self.value_head(value_features).squeeze(-1)
        return self.policy_head(features), values, self._held(value_features)

    def _features(self, observations: Observations) -> tuple[Tensor, Tensor]:
        encoded = self.encoder(observations)
        features = self._through(self.torso, encoded)
        return features, features if self.value_torso is None else self._through(self.value_torso, encoded)

    def _through(self, torso: nn.Module, encoded: Observations) -> Tensor:
        weight = self.value_head.weight
        if self._precision == torch.float32:
            features: Tensor = torso(encoded)
            return features
        with torch.autocast(weight.device.type, dtype=self._precision):
            return torso(encoded).to(weight)  # type: ignore[no-any-return]

    def distribution(self, observations: Observations) -> Distribution:
        """N distributions over actions alone."""
        features = self._through(self.torso, self.encoder(observations))
        distribution: Distribution = self.policy_head(features)
        return distribution

    def values(self, observations: Observations) -> Tensor:
        """Values (N,) alone."""
        values: Tensor = self.value_head(self._value_features(observations)).squeeze(-1)
        return values

    def values_and_held(self, observations: Observations) -> tuple[Tensor, Tensor]:
        """Values (N,), and the part of them that `evaluate` speaks of."""
        features = self._value_features(observations)
        return self.value_head(features).squeeze(-1), self._held(features)

    def _value_features(self, observations: Observations) -> Tensor:
        torso = self.torso if self.value_torso is None else self.value_torso
        return self._through(torso, self.encoder(observations))

    def _held(self, features: Tensor) -> Tensor:
        return functional.linear(features, self.value_head.weight.detach()).squeeze(-1)

    @torch.no_grad()
    def act(
        self, observations: Observations, *, generator: torch.Generator | None = None, deterministic: bool = False
    ) -> Tensor:
        """Actions for raw observations (N, *space): (N,) int64 or (N, d), drawn, or the mode when deterministic."""
        distribution = self.distribution(observations)
        outcomes = most_probable(distribution) if deterministic else sample(distribution, generator)
        return squashed(distribution, outcomes)

    @torch.no_grad()
    def act_and_value(
        self, observations: Observations, *, generator: Source, valued: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Act in one forward pass, and keep what is to be learnt from.

        Args:
            observations: (N, *space), raw.
            generator: of the draws.
            valued: whether the values are wanted.

        Returns:
            Actions as the environment takes them, the outcomes drawn from the policy's distributions, which are the
            same unless actions are squashed, and values (N,) or None.
        """
        values: Tensor | None = None
        if valued:
            distribution, values = self(observations)
        else:
            distribution = self.distribution(observations)
        outcomes = sample(distribution, generator)
        return squashed(distribution, outcomes), outcomes, values


def _width(torso: nn.Module, shape: tuple[int, ...] | Mapping[str, tuple[int, ...]]) -> int:
    """Number of features that a torso gives, found by a forward pass of two rows.

    Raises:
        UserError: it does not take such observations, or gives something else than (N, F).
    """
    if isinstance(torso, type):
        raise UserError(f"torso= takes a module, not the class {torso.__name__}: pass {torso.__name__}(...)")
    if not isinstance(torso, nn.Module):
        raise UserError(f"torso= takes a torch.nn.Module, not a {type(torso).__name__}")
    for name, part in torso.named_modules():
        if isinstance(part, _BatchNorm) or (isinstance(part, _DropoutNd) and part.p > 0):
            raise UserError(
                f"the torso has a {type(part).__name__}{f' ({name!r})' if name else ''}: what a row gives must hang on "
                "nothing else, as actions are drawn from what is learnt from; take LayerNorm, or nothing"
            )
    if isinstance(shape, Mapping):
        rows: Observations = {name: torch.zeros(2, *part) for name, part in shape.items()}
        given = "{" + ", ".join(f"'{name}': {(2, *part)}" for name, part in shape.items()) + "}"
    else:
        rows, given = torch.zeros(2, *shape), str((2, *shape))
    try:
        with torch.no_grad():
            features = torso(rows)
    except (RuntimeError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the torso does not take observations of shape {given}: {reason}") from error
    if not isinstance(features, Tensor):
        raise UserError(f"the torso must give features (N, F), it gave a {type(features).__name__}")
    if features.dim() != 2 or features.shape[0] != 2:
        raise UserError(
            f"the torso takes observations {given} and must give features (2, F), it gave {tuple(features.shape)}"
        )
    return int(features.shape[1])
