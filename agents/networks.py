"""Torsos: from encoded observations to features. Orthogonal weights of gain sqrt(2), biases 0 (as in Baselines)."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from acktr.agents.encoders import DictEncoder, Encoder
from acktr.agents.settings import Settings
from acktr.errors import UserError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}


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
        raise UserError(
            f"frames of {shape[1]}x{shape[2]} are too small for network 'nature': use 36x36 or larger, "
            "or network small-conv or mlp"
        )
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


class DictTorso(nn.Module):
    """Features of the keys of a Dict, side by side: each image through convolutions of its own.

    Where there is more than one key, an MLP over all of them follows, so that what one key says can depend on another.

    Args:
        shapes: of the encoded observations, by key, in the order of their features.
        images: the keys that go through convolutions.
        settings: conv_channels, conv_features and zero_sum_filters; hidden_sizes and activation of the MLP.

    Raises:
        UserError: see `nature_torso`.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], images: Collection[str], settings: Settings) -> None:
        super().__init__()
        self.names = tuple(shapes)
        parts = [_convolutions(shapes[name], settings) if name in images else nn.Flatten() for name in self.names]
        self.parts = nn.ModuleList(parts)
        widths = [settings.conv_features if name in images else math.prod(shapes[name]) for name in self.names]
        alone = len(self.names) == 1 and bool(images)
        self.body = nn.Sequential() if alone else _mlp(sum(widths), settings)

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        """(N, *shape) of each key to (N, features)."""
        parts = [part(encoded[name]) for name, part in zip(self.names, self.parts, strict=True)]
        features: Tensor = self.body(torch.cat(parts, dim=1))
        return features


def build_torso(encoder: Encoder | DictEncoder, settings: Settings) -> nn.Module:
    """The torso that the settings name, on encoded observations.

    Raises:
        UserError: a convolutional network on observations that are no frames, and hold none.
    """
    parts = encoder.parts if isinstance(encoder, DictEncoder) else {"": encoder}
    images = [name for name, part in parts.items() if part.is_image and settings.network != "mlp"]
    if settings.network in ("nature", "small-conv") and not images:
        raise UserError(
            f"network '{settings.network}' takes frames (uint8 on three axes); use --network mlp for vectors"
        )
    if isinstance(encoder, DictEncoder):
        return DictTorso(encoder.shape, images, settings)
    if images:
        return _convolutions(encoder.shape, settings)
    return nn.Sequential(nn.Flatten(), *_mlp(math.prod(encoder.shape), settings))


def _convolutions(shape: tuple[int, ...], settings: Settings) -> nn.Sequential:
    torso = small_conv_torso if settings.network == "small-conv" else nature_torso
    return torso(
        shape, channels=settings.conv_channels, features=settings.conv_features, zero_sum=settings.zero_sum_filters
    )


def _mlp(inputs: int, settings: Settings) -> nn.Sequential:
    return mlp_torso(inputs, sizes=settings.hidden_sizes, activation=settings.activation)


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
