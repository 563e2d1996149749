"""Second-moment statistics of layer inputs and output gradients: pure functions from tensors to tensors.

Shapes: N examples, T weight-sharing positions per example (1 for a linear layer on vectors, the output pixels of a
convolution), `b` groups of a grouped convolution (1 otherwise), `i` inputs and `o` outputs per group.

Scaling (Martens & Grosse 2015, arXiv:1503.05671; Grosse & Martens 2016, arXiv:1602.01407): with the un-averaged
gradient g of one example's loss at one position,

    A = mean over n and t of a aᵀ,    G = mean over n of (sum over t of g gᵀ),    block = A ⊗ G.

The papers average G over positions too and write the block as T · A ⊗ G; the product is the same, and keeping T
inside G lets damping act on the block with no T anywhere.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from acktr.kfac.averages import looks_are_free
from acktr.kfac.products import product

FactorKind = Literal["expand", "reduce"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A regular grid of output positions: every so many rows and columns, from an offset on.

    Attributes:
        every: step of the grid in both directions; 1 takes all positions.
        row: first row, below `every`.
        column: first column, below `every`.
    """

    every: int = 1
    row: int = 0
    column: int = 0

    def count(self, rows: int, columns: int) -> int:
        """Number of positions taken of a rows x columns map."""
        return -(-(rows - self.row) // self.every) * -(-(columns - self.column) // self.every)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Thinning:
    """A grid for each example, neighbouring examples' shifted against each other.

    A batch of `every`² examples or more sees all positions, and an example after so many turns; with one grid for the
    whole batch an average over few batches would know few positions.

    Attributes:
        every: step of the grids in both directions; 1 takes all positions.
        turn: shifts all of them.
        places: of the examples in a larger batch that this one is a part of, by which they take their grids; None for
            those of the batch itself.
    """

    every: int = 1
    turn: int = 0
    places: tuple[int, ...] | None = None

    def grids(self, examples: int, before: int = 0) -> Iterator[tuple[slice | list[int], Grid]]:
        """Slices, or lists, that together hold every example once, with their grid.

        Args:
            examples: of this part of a batch.
            before: examples of the batch in front of them.
        """
        number = self.every**2
        if self.places is not None:
            by_shift: dict[int, list[int]] = {}
            for position, place in enumerate(self.places[before : before + examples]):
                by_shift.setdefault((place + self.turn) % number, []).append(position)
            for shift, positions in sorted(by_shift.items()) or [(0, [])]:
                row, column = divmod(shift, self.every)
                yield positions, Grid(every=self.every, row=row, column=column)
            return
        for first in range(min(number, max(1, examples))):  # of no example one slice, which holds none
            row, column = divmod((first + before + self.turn) % number, self.every)
            yield slice(first, examples, number), Grid(every=self.every, row=row, column=column)


EVERY_POSITION = Thinning()
ALL_OF_A_MAP = Grid()

_CHUNK_ELEMENTS = 1 << 23
"""Patches are materialised for at most this many elements at a time (32 MiB in float32)."""


def conv_windows(
    inputs: Tensor,
    *,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    grid: Grid = ALL_OF_A_MAP,
) -> Tensor:
    """Patches that a 2-d convolution sees, without padding (pad before), as a view of its inputs.

    Args:
        inputs: (N, C, H, W).
        kernel_size: height and width of the kernel.
        stride: vertical and horizontal stride.
        dilation: vertical and horizontal dilation.
        groups: number of groups; must divide C.
        grid: which of the positions to take.

    Returns:
        (N, rows, columns, groups, C / groups, kernel height, kernel width) with the rows and columns of the positions
        taken; a patch's entries are in the order of `weight.flatten(1)`.
    """
    span = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    windows = inputs.unfold(2, span[0], stride[0]).unfold(3, span[1], stride[1])
    windows = windows[:, :, grid.row :: grid.every, grid.column :: grid.every]
    windows = windows[..., :: dilation[0], :: dilation[1]]  # (N, C, Oh, Ow, kh, kw), a view
    examples, channels, rows, columns = windows.shape[:4]
    windows = windows.reshape(examples, groups, channels // groups, rows, columns, *kernel_size)
    return windows.permute(0, 3, 4, 1, 2, 5, 6)


def weighted_rows(rows: Tensor, weights: Tensor | None, *, in_place: bool = False) -> Tensor:
    """Scale each example by the square root of its weight; a row of weight 0 becomes exactly 0, whatever it holds.

    Args:
        rows: (N, ...).
        weights: (N,) non-negative, or None for all ones.
        in_place: whether the rows may be overwritten.

    Returns:
        The same shape; the input itself when `weights` is None.
    """
    if weights is None:
        return rows
    column = weights.reshape(-1, *[1] * (rows.dim() - 1)).to(rows.dtype)
    if not looks_are_free(rows):
        return torch.where(column > 0, rows, rows.new_zeros(())) * column.sqrt()
    left_out = weights == 0
    if not in_place:
        scaled = rows * column.sqrt()
    else:
        scaled = rows if (left_out | (weights == 1)).all() else rows.mul_(column.sqrt())
    if left_out.any():
        scaled[left_out] = 0.0
    return scaled


def total_weight(examples: int, weights: Tensor | None, like: Tensor) -> Tensor:
    """Sum of the examples' weights, a 0-d tensor on the device of `like`."""
    if weights is None:
        return torch.full((), float(examples), dtype=like.dtype, device=like.device)
    return weights.sum().to(like.dtype)


def second_moment(rows: Tensor, weights: Tensor | None, *, homogeneous: bool, in_place: bool = False) -> Tensor:
    """Un-normalised second moment of layer inputs: the sum over examples and positions of w · a aᵀ.

    Args:
        rows: (N, T, b, i) inputs or patches.
        weights: (N,) or None.
        homogeneous: append a coordinate 1, for a joint bias.
        in_place: whether the rows may be overwritten.

    Returns:
        (b, i, i), or (b, i + 1, i + 1) with `homogeneous`.
    """
    positions = rows.shape[1]
    if homogeneous and rows.shape[0] * positions < rows.shape[-1]:
        # few rows: widening them costs less than widening the result
        ones = rows.new_ones(()).expand(*rows.shape[:-1], 1)
        return _gram(weighted_rows(torch.cat((rows, ones), dim=-1), weights))
    rows = weighted_rows(rows, weights, in_place=in_place)
    moment = _gram(rows)
    if not homogeneous:
        return moment
    root = None if weights is None else weights.to(rows.dtype).sqrt()
    column = _weighted_sum(rows, root)  # Σ w a, (b, i)
    count = total_weight(rows.shape[0], weights, rows) * positions
    size = moment.shape[-1]
    extended = moment.new_empty(moment.shape[0], size + 1, size + 1)
    extended[:, :size, :size] = moment
    extended[:, :size, size] = column
    extended[:, size, :size] = column
    extended[:, size, size] = count
    return extended


def gradient_moment(gradients: Tensor, weights: Tensor | None, *, kind: FactorKind) -> Tensor:
    """Un-normalised second moment of output gradients: the sum over examples and positions of w · g gᵀ.

    Args:
        gradients: (N, T, b, o) gradients of un-averaged per-example losses.
        weights: (N,) or None.
        kind: "expand", or "reduce" (Eschenhagen et al. 2023, arXiv:2311.00636), which sums each example's gradients
            over positions first; its inputs are their mean over positions.

    Returns:
        (b, o, o).
    """
    if kind == "reduce":
        gradients = gradients.sum(1, keepdim=True)
    return _gram(weighted_rows(gradients, weights))


def chunks(examples: int, elements_per_example: int) -> Iterator[slice]:
    """Slices of the example axis whose patches stay within a fixed memory."""
    size = max(1, _CHUNK_ELEMENTS // max(1, elements_per_example))
    for start in range(0, max(1, examples), size):
        yield slice(start, min(start + size, examples))


def per_example_gradients(losses: Tensor, parameter: Tensor) -> Tensor | None:
    """Gradient of each per-example loss with respect to a small parameter that all examples share.

    Reverse mode gives Jᵀu for a vector u over examples; it is linear in u, so differentiating its d-th entry by u
    returns the d-th column of J for all examples at once. Costs one double backward per entry of the parameter,
    through the path between the parameter and the losses only.

    Args:
        losses: (C, N) per-example losses with their graph.
        parameter: a leaf of that graph, d entries.

    Returns:
        (C, N, d), or None when the losses do not depend on the parameter.
    """
    direction = torch.zeros_like(losses, requires_grad=True)
    (product,) = torch.autograd.grad(losses, parameter, direction, create_graph=True, allow_unused=True)
    if product is None or not product.requires_grad:
        return None
    columns = [torch.autograd.grad(entry, direction, retain_graph=True)[0] for entry in product.flatten()]
    return torch.stack(columns, dim=-1)


def _gram(rows: Tensor) -> Tensor:
    if rows.shape[2] == 1:  # one plain matrix product is faster than a batched one
        flat = rows.reshape(1, -1, rows.shape[-1])
        return product(flat.transpose(1, 2), flat)
    flat = rows.flatten(0, 1).transpose(0, 1)  # (b, N T, i)
    return flat.transpose(1, 2) @ flat


def _weighted_sum(rows: Tensor, root_weights: Tensor | None) -> Tensor:
    if root_weights is None:
        return rows.flatten(0, 1).sum(0)
    # rows already carry one square root of the weight
    summed = rows.squeeze(1) if rows.shape[1] == 1 else rows.sum(1)
    return (root_weights @ summed.flatten(1)).view(summed.shape[1:])
