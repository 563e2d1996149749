"""From raw observations to the numbers that torsos take."""

import math

import gymnasium
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional

from acktr.agents.normalization import ObservationNorm
from acktr.agents.observations import Observations
from acktr.agents.part import Part
from acktr.errors import UserError

Shape = tuple[int, ...]


class Encoder(nn.Module):
    """Raw observations to floating point: frames / 255, vectors flat and perhaps normalised, choices as one-hot.

    Args:
        space: Box, Discrete, or a vector MultiDiscrete or MultiBinary; of one environment.
        normalize: shift and scale vectors by their running moments, which `observe` keeps.

    Attributes:
        shape: of one encoded observation.
        frame_dtype: that frames are encoded in; None for torch's default one.

    Raises:
        UserError: a space that no torso takes, or `normalize` for other observations than vectors.
    """

    def __init__(self, space: gymnasium.Space[object], *, normalize: bool = False) -> None:
        super().__init__()
        self.is_image = is_image(space)
        self.space_shape: Shape = tuple(space.shape or ())
        self.categories: int | None = None
        self.sizes: tuple[int, ...] | None = None
        if isinstance(space, spaces.Discrete):
            self.categories = int(space.n)
            self.shape: Shape = (self.categories,)
        elif isinstance(space, spaces.MultiDiscrete) and len(space.shape) == 1:
            self.sizes = tuple(int(size) for size in space.nvec)
            self.shape = (sum(self.sizes),)
        elif isinstance(space, spaces.Box | spaces.MultiBinary):
            self.shape = self.space_shape if self.is_image else (math.prod(self.space_shape),)
        else:
            raise UserError(
                f"observation space {space} is not supported: use Box, Discrete, MultiDiscrete or MultiBinary, or a "
                "Dict of them"
            )
        if math.prod(self.shape) == 0:
            raise UserError(f"observation space {space} holds nothing to learn from")
        if normalize and not is_vector(space):
            raise UserError(f"setting 'normalize_observations' is for vectors; this environment observes {space}")
        self.norm = ObservationNorm(self.shape[0]) if normalize else None
        self.frame_dtype: torch.dtype | None = None

    def observe(self, observations: Observations, weights: Tensor | None, part: Part) -> None:
        """Take a batch (M, *space) of training's observations into the running moments, where they are kept."""
        if self.norm is not None:
            assert isinstance(observations, Tensor)
            self.norm.update(_flat(observations), weights, part)

    def forward(self, observations: Tensor) -> Tensor:
        """(N, *space) to (N, *self.shape) in the default dtype, frames in `frame_dtype`."""
        dtype = torch.get_default_dtype()
        if self.categories is not None:
            return functional.one_hot(observations.long(), self.categories).to(dtype)
        if self.sizes is not None:
            return _one_hots(observations.long(), self.sizes).to(dtype)
        if not self.is_image:
            rows = _flat(observations).to(dtype)
            return rows if self.norm is None else self.norm(rows)
        # channels-last convolutions take two thirds of the time on CPUs; the values are the same. Bytes are reordered,
        # not floats: a quarter of the memory moves; those of a rollout are in that order already
        ordered = observations.contiguous(memory_format=torch.channels_last)
        return ordered.to(self.frame_dtype or dtype, copy=True).div_(255)


class DictEncoder(nn.Module):
    """An encoder for each key of a Dict; what comes out is a dictionary of the same keys, in the space's order.

    Args:
        space: a Dict of what `Encoder` takes; of one environment.
        normalize: shift and scale the vectors among the keys.

    Attributes:
        names: the keys.
        encoders: theirs, in the same order. They go by number, since a module's name may not be any text.

    Raises:
        UserError: a key that no torso takes, or `normalize` where no key holds vectors.
    """

    def __init__(self, space: spaces.Dict, *, normalize: bool = False) -> None:
        super().__init__()
        if normalize and not any(is_vector(part) for part in space.spaces.values()):
            raise UserError(f"setting 'normalize_observations' is for vectors; this environment observes {space}")
        self.names = tuple(space.spaces)
        self.encoders = nn.ModuleList(
            Encoder(part, normalize=normalize and is_vector(part)) for part in space.spaces.values()
        )
        self.space_shape: Shape = ()

    @property
    def parts(self) -> dict[str, Encoder]:
        """The encoder of each key."""
        found: dict[str, Encoder] = dict(zip(self.names, self.encoders, strict=True))  # type: ignore[arg-type]
        return found

    @property
    def shape(self) -> dict[str, Shape]:
        """Of one encoded observation, by key."""
        return {name: part.shape for name, part in self.parts.items()}

    def observe(self, observations: Observations, weights: Tensor | None, part: Part) -> None:
        """See `Encoder`."""
        assert isinstance(observations, dict)
        for name, encoder in self.parts.items():
            encoder.observe(observations[name], weights, part)

    def forward(self, observations: dict[str, Tensor]) -> dict[str, Tensor]:
        """(N, *space) to (N, *shape), key by key."""
        return {name: part(observations[name]) for name, part in self.parts.items()}


def _flat(observations: Tensor) -> Tensor:
    """(N, *space) to (N, d), of no rows too; a scalar space's have no axis of their own."""
    return observations.flatten(1) if observations.dim() > 1 else observations.unsqueeze(1)


def build_encoder(space: gymnasium.Space[object], *, normalize: bool = False) -> Encoder | DictEncoder:
    """The encoder for an observation space as policies see it (`acktr.envs.spaces.adapt_observations`).

    Raises:
        UserError: see `Encoder` and `DictEncoder`.
    """
    if isinstance(space, spaces.Dict):
        return DictEncoder(space, normalize=normalize)
    return Encoder(space, normalize=normalize)


def _one_hots(rows: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """(N, K) integers to (N, sum of sizes), side by side."""
    if len(set(sizes)) == 1:
        return functional.one_hot(rows, sizes[0]).flatten(1)
    return torch.cat([functional.one_hot(row, size) for row, size in zip(rows.unbind(1), sizes, strict=True)], dim=1)


def is_image(space: gymnasium.Space[object]) -> bool:
    """Whether the space holds frames: uint8 on three axes, channels first."""
    return isinstance(space, spaces.Box) and space.dtype == "uint8" and len(space.shape) == 3


def is_vector(space: gymnasium.Space[object]) -> bool:
    """Whether the space holds measurements, which have a scale: a Box of anything but frames."""
    return isinstance(space, spaces.Box) and not is_image(space)
