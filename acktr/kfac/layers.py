"""What K-FAC knows of a module's geometry: inputs as rows, output gradients as rows, weights as matrices.

The only place that tells one module type from another. A network is described, never modified.
"""

import dataclasses
from collections.abc import Iterator
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from acktr.kfac.statistics import EVERY_POSITION, Thinning, chunks, conv_windows

Affine = nn.Linear | nn.Conv2d
Norm = nn.LayerNorm | nn.GroupNorm | nn.BatchNorm1d | nn.BatchNorm2d
AFFINE_TYPES = (nn.Linear, nn.Conv2d)
NORM_TYPES = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterMap:
    """How one module's weight, and bias where it is joint, form the matrices (b, o, i [+ 1]) of a Kronecker block."""

    weight: Tensor
    bias: Tensor | None
    groups: int

    @property
    def matrix_shape(self) -> tuple[int, int, int]:
        """(b, o, i), with the bias's column where it is joint."""
        outputs = self.weight.shape[0] // self.groups
        return self.groups, outputs, self.weight[0].numel() + (self.bias is not None)

    def matrix(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Arrange tensors shaped like the weight and the bias as (b, o, i), the bias as the last column."""
        rows = weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        if bias is None:
            return rows
        return torch.cat((rows, bias.reshape(self.groups, -1, 1)), dim=-1)

    def split(self, matrix: Tensor) -> tuple[Tensor, Tensor | None]:
        """Undo `matrix`: views shaped like the weight and the bias."""
        if self.bias is None:
            return matrix.reshape(self.weight.shape), None
        return matrix[..., :-1].reshape(self.weight.shape), matrix[..., -1].reshape(self.bias.shape)


def groups_of(module: Affine) -> int:
    """Number of groups: independent blocks of the weight."""
    return module.groups if isinstance(module, nn.Conv2d) else 1


def input_rows(
    module: Affine, inputs: Tensor, thinning: Thinning = EVERY_POSITION
) -> Iterator[tuple[slice | Tensor, Tensor]]:
    """Inputs as rows (n, T, b, i), some of the examples at a time so that patches stay within bounds.

    Args:
        module: the layer.
        inputs: what it was called with; the first axis is the example.
        thinning: which output positions of a convolution to take, where it has that many rows and columns.

    Raises:
        ValueError: the input has no axis of examples.

    Yields:
        The slice of examples and their rows, which may be a view; of thinned ones, whose T differ, the example of each
        row and T = 1, in memory of their own.
    """
    positions = output_positions(module, inputs)
    if isinstance(module, nn.Linear):
        yield slice(0, inputs.shape[0]), inputs.reshape(inputs.shape[0], positions, 1, inputs.shape[-1])
        return
    thinning = possible_thinning(module, inputs, thinning)
    size = module.weight[0].numel() * module.groups
    if thinning.every == 1:
        for part in chunks(inputs.shape[0], positions * size):
            yield part, _conv_rows(module, inputs[part])
        return
    # all grids' rows make one product: nine small ones take half as long again
    for part in chunks(inputs.shape[0], -(-positions // thinning.every**2) * size):
        chosen = _padded(module, inputs[part])
        everyone = torch.arange(part.start, part.stop, device=inputs.device)
        windows: list[Tensor] = []
        owners: list[Tensor] = []
        for examples, grid in thinning.grids(chosen.shape[0], before=part.start):
            window = conv_windows(chosen[examples], **_geometry(module), grid=grid)
            windows.append(window)
            owners.append(everyone[examples].repeat_interleave(window.shape[1] * window.shape[2]))
        owner = torch.cat(owners)
        # columns first in memory, as the product that makes their second moment reads them
        columns = chosen.new_empty(module.groups, size // module.groups, len(owner))
        rows = columns.permute(2, 0, 1).unsqueeze(1)
        sizes = [window.shape[:3].numel() for window in windows]
        for place, window in zip(torch.split(rows, sizes), windows, strict=True):
            place.view(window.shape).copy_(window)
        yield owner, rows


def possible_thinning(module: Affine, inputs: Tensor, thinning: Thinning) -> Thinning:
    """What `input_rows` makes of a thinning: all positions of a linear layer, and of maps that a grid might miss."""
    if isinstance(module, nn.Linear) or min(_output_size(module, inputs)) < thinning.every:
        return EVERY_POSITION
    return thinning


def output_positions(module: Affine, inputs: Tensor) -> int:
    """Number of positions T at which the layer uses its weight on each example.

    Raises:
        ValueError: the input has no axis of examples.
    """
    axes = 2 if isinstance(module, nn.Linear) else 4
    if inputs.dim() < axes:
        raise ValueError(f"{module} was called on a single example of shape {tuple(inputs.shape)}; K-FAC needs a batch")
    if isinstance(module, nn.Linear):
        return inputs.shape[1:-1].numel()
    rows, columns = _output_size(module, inputs)
    return rows * columns


def gradient_rows(module: Affine, gradients: Tensor) -> Tensor:
    """Gradients at the layer's outputs as rows (N, T, b, o).

    Args:
        module: the layer.
        gradients: shaped like the output; the first axis is the example.
    """
    if isinstance(module, nn.Linear):
        return gradients.reshape(gradients.shape[0], gradients.shape[1:-1].numel(), 1, gradients.shape[-1])
    rows = gradients.flatten(2).transpose(1, 2)  # (N, T, channels)
    return rows.reshape(*rows.shape[:2], module.groups, rows.shape[2] // module.groups)


def without_rows(module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs of no example for a layer, of the smallest size that it takes, and gradients at its outputs.

    Args:
        module: the layer.
        like: of the precision and on the device that they shall have.
    """
    if isinstance(module, nn.Linear):
        return like.new_empty(0, module.in_features), like.new_empty(0, module.out_features)
    if isinstance(module, nn.Conv2d):
        spans = [size * (kernel - 1) + 1 for size, kernel in zip(module.dilation, module.kernel_size, strict=True)]
        inputs = like.new_empty(0, module.in_channels, *spans)
        return inputs, like.new_empty(0, module.out_channels, *_output_size(module, inputs))
    assert isinstance(module, NORM_TYPES)
    shape = module.normalized_shape if isinstance(module, nn.LayerNorm) else module.weight.shape
    return like.new_empty(0, *shape), like.new_empty(0, *shape)


def norm_gradients(module: Norm, inputs: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Per-example gradients of a normalisation layer's scale and shift.

    Args:
        module: the layer.
        inputs: what it was called with, (N, ...).
        gradients: gradients at its output, the same shape.

    Returns:
        (N, parameters) for the scale and for the shift.
    """
    if not len(inputs):  # which torch's functions refuse
        none = gradients.new_zeros(0, module.weight.numel())
        return none, none.clone()
    if isinstance(module, nn.LayerNorm):
        normalised = functional.layer_norm(inputs, module.normalized_shape, None, None, module.eps)
        width = module.weight.numel()
        shape = (inputs.shape[0], inputs.shape[1:].numel() // width, width)
        return (gradients * normalised).reshape(shape).sum(1), gradients.reshape(shape).sum(1)
    if isinstance(module, nn.GroupNorm):
        normalised = functional.group_norm(inputs, module.num_groups, None, None, module.eps)
    else:
        use_batch = module.training or module.running_mean is None
        normalised = functional.batch_norm(
            inputs,
            None if use_batch else module.running_mean,
            None if use_batch else module.running_var,
            None,
            None,
            use_batch,
            0.0,
            module.eps,
        )
    channels = (inputs.shape[0], inputs.shape[1], -1)
    return (gradients * normalised).reshape(channels).sum(2), gradients.reshape(channels).sum(2)


def _pads(module: nn.Conv2d) -> tuple[list[int], list[int]]:
    # torch keeps the padding of all modes, 'same' included, as [left, right, top, bottom]
    left, right, top, bottom = module._reversed_padding_repeated_twice
    return [top, left], [bottom, right]


def _output_size(module: nn.Conv2d, inputs: Tensor) -> tuple[int, int]:
    before, after = _pads(module)
    sizes = []
    for axis in range(2):
        span = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
        padded = inputs.shape[2 + axis] + before[axis] + after[axis]
        sizes.append((padded - span) // module.stride[axis] + 1)
    return sizes[0], sizes[1]


def _conv_rows(module: nn.Conv2d, inputs: Tensor) -> Tensor:
    return conv_windows(_padded(module, inputs), **_geometry(module)).flatten(4).flatten(1, 2)


def _padded(module: nn.Conv2d, inputs: Tensor) -> Tensor:
    pads = module._reversed_padding_repeated_twice
    if not any(pads):
        return inputs
    return functional.pad(inputs, pads, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)


class _Geometry(TypedDict):
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def _geometry(module: nn.Conv2d) -> _Geometry:
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    return {
        "kernel_size": (kernel[0], kernel[1]),
        "stride": (stride[0], stride[1]),
        "dilation": (dilation[0], dilation[1]),
        "groups": module.groups,
    }
