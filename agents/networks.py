"""Torsos: from raw observations to features. Orthogonal initialisation, gain sqrt(2), biases 0 (as in Baselines)."""

import math
from collections.abc import Callable, Sequence

import gymnasium
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional

from acktr.agents.normalization import ObservationNorm
from acktr.agents.settings import Settings
from acktr.errors import UserError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}


class Encoder(nn.Module):
    """Raw observations to floating point: frames / 255, vectors flat and perhaps normalised, Discrete as one-hot.

    Args:
        space: observation space of one environment.
        normalize: shift and scale vectors by their running moments, which `observe` keeps.

    Raises:
        UserError: a space that no torso takes, or `normalize` for other observations than vectors.
    """

    def __init__(self, space: gymnasium.Space[object], *, normalize: bool = False) -> None:
        super().__init__()
        self.is_image = is_image(space)
        self.space_shape = tuple(space.shape or ())
        if isinstance(space, spaces.Discrete):
            self.categories: int | None = int(space.n)
            self.shape: tuple[int, ...] = (int(space.n),)
        elif isinstance(space, spaces.Box):
            self.categories = None
            self.shape = tuple(space.shape) if self.is_image else (math.prod(space.shape),)
        else:
            raise UserError(f"observation space {space} is not supported: use a Box or Discrete observation space")
        if normalize and (self.is_image or self.categories is not None):
            raise UserError(f"setting 'normalize_observations' is for vectors; this environment observes {space}")
        self.norm = ObservationNorm(self.shape[0]) if normalize else None

    def observe(self, observations: Tensor, weights: Tensor | None) -> None:
        """Take a batch (M, *space) of training's observations into the running moments, where they are kept."""
        if self.norm is not None:
            self.norm.update(observations.reshape(observations.shape[0], -1), weights)

    def forward(self, observations: Tensor) -> Tensor:
        """(N, *space) to (N, *self.shape) in float32 or the default dtype."""
        dtype = torch.get_default_dtype()
        if self.categories is not None:
            return functional.one_hot(observations.long(), self.categories).to(dtype)
        if not self.is_image:
            rows = observations.to(dtype).reshape(observations.shape[0], -1)  # a scalar space's rows have no axis
            return rows if self.norm is None else self.norm(rows)
        # channels-last convolutions take two thirds of the time on CPUs; the values are the same. Bytes are reordered,
        # not floats: a quarter of the memory moves
        return observations.contiguous(memory_format=torch.channels_last).to(dtype, copy=True).div_(255)


def is_image(space: gymnasium.Space[object]) -> bool:
    """Whether the space holds frames: uint8 on three axes, channels first."""
    return isinstance(space, spaces.Box) and space.dtype == "uint8" and len(space.shape) == 3


def nature_torso(
    shape: tuple[int, ...], *, channels: Sequence[int], features: int, zero_sum: bool = True
) -> nn.Sequential:
    """Three convolutions and a linear layer (Mnih et al. 2015; 32-64-32 channels in Wu et al. 2017).

    Args:
        shape: (C, H, W) of the encoded frames; H and W of at least 36.
        channels: of the three convolutions.
        features: width of the linear layer.
        zero_sum: see `without_sums`.

    Raises:
        UserError: frames too small for the kernels, or a number of channels other than three.
    """
    if len(channels) != 3:
        raise UserError(f"setting 'conv_channels' takes three numbers, got {tuple(channels)}")
    height, width = shape[1:]
    for kernel, stride in ((8, 4), (4, 2), (3, 1)):
        height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    if height < 1 or width < 1:
        raise UserError(f"frames of {shape[1]}x{shape[2]} are too small for network 'nature': use 36x36 or larger")
    first = _orthogonal(nn.Conv2d(shape[0], channels[0], 8, 4))
    return nn.Sequential(
        without_sums(first) if zero_sum else first,
        nn.ReLU(inplace=True),
        _orthogonal(nn.Conv2d(channels[0], channels[1], 4, 2)),
        nn.ReLU(inplace=True),
        _orthogonal(nn.Conv2d(channels[1], channels[2], 3, 1)),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        _orthogonal(nn.Linear(channels[2] * height * width, features)),
        nn.ReLU(inplace=True),
    )


def small_conv_torso(
    shape: tuple[int, ...], *, channels: Sequence[int], features: int, zero_sum: bool = True
) -> nn.Sequential:
    """Convolutions of 3x3 with stride 2 and a linear layer, for small frames.

    Two convolutions are the network of Wu et al. 2017 for 42x42 pictures, four that of Pathak et al. 2017 (theirs with
    ELU). The last ones may run out of pixels, which padding then stands in for.

    Args:
        shape: (C, H, W) of the encoded frames.
        channels: of the convolutions, each of which halves height and width, rounded up.
        features: width of the linear layer.
        zero_sum: see `without_sums`.
    """
    inputs, height, width = shape
    layers: list[nn.Module] = []
    for outputs in channels:
        layers += [_orthogonal(nn.Conv2d(inputs, outputs, 3, 2, padding=1)), nn.ReLU(inplace=True)]
        inputs, height, width = outputs, (height + 1) // 2, (width + 1) // 2
    if zero_sum:
        without_sums(layers[0])
    linear = _orthogonal(nn.Linear(inputs * height * width, features))
    return nn.Sequential(*layers, nn.Flatten(), linear, nn.ReLU(inplace=True))


def mlp_torso(inputs: int, *, sizes: Sequence[int], activation: str) -> nn.Sequential:
    """Linear layers with an activation behind each.

    Args:
        inputs: width of the encoded observation.
        sizes: widths of the hidden layers.
        activation: tanh, relu or elu.
    """
    layers: list[nn.Module] = []
    for size in sizes:
        layers += [_orthogonal(nn.Linear(inputs, size)), ACTIVATIONS[activation]()]
        inputs = size
    return nn.Sequential(*layers)


def build_torso(encoder: Encoder, settings: Settings) -> nn.Sequential:
    """The torso that the settings name, on encoded observations.

    Raises:
        UserError: a convolutional network on observations that are no frames.
    """
    kind = settings.network
    if kind == "auto":
        kind = "nature" if encoder.is_image else "mlp"
    if kind in ("nature", "small-conv") and not encoder.is_image:
        raise UserError(f"network '{kind}' takes frames (uint8 on three axes); use --network mlp for vectors")
    if kind == "small-conv":
        return small_conv_torso(
            encoder.shape,
            channels=settings.conv_channels,
            features=settings.conv_features,
            zero_sum=settings.zero_sum_filters,
        )
    if kind == "nature":
        return nature_torso(
            encoder.shape,
            channels=settings.conv_channels,
            features=settings.conv_features,
            zero_sum=settings.zero_sum_filters,
        )
    body = mlp_torso(math.prod(encoder.shape), sizes=settings.hidden_sizes, activation=settings.activation)
    return nn.Sequential(nn.Flatten(), *body)


def without_sums(layer: nn.Module) -> nn.Module:
    """Take each filter's mean out of its weights, in place, and keep the filter's norm.

    A filter that sums to s answers a uniform background of grey c with s c wherever nothing happens. That constant is
    most of what the layers behind it see: on Pong (background 0.34) a third of all units never fire and others always
    do, from the first step to the last. On a black background, as Breakout's, it changes next to nothing.

    Args:
        layer: with weights (out, in, ...); biases stay, and filters of equal weights, which have nothing else.
    """
    weight = layer.get_parameter("weight").detach()
    over = tuple(range(1, weight.dim()))
    norms = torch.linalg.vector_norm(weight, dim=over, keepdim=True)
    centred = weight - weight.mean(over, keepdim=True)
    left = torch.linalg.vector_norm(centred, dim=over, keepdim=True)
    weight.copy_(torch.where(left > 1e-6 * norms, centred * (norms / left), weight))
    return layer


def orthogonal_linear(inputs: int, outputs: int, *, gain: float) -> nn.Linear:
    """A linear layer with orthogonal weights of the given gain and bias 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def _orthogonal(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    nn.init.orthogonal_(layer.weight, math.sqrt(2))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
