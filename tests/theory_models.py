"""A network, and the same function in other parameters: layers between invertible affine maps that undo each other."""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Layer = nn.Linear | nn.Conv2d

Kind = Literal["shift", "rotation", "similarity", "coordinates", "offset", "linear", "affine"]
"""Of the maps around layers: all have a shift behind the layer, and "offset" and "affine" one before it too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AffineMap:
    """Values (N, k) or (N, k, height, width) to `matrix · x + shift`, over the k channels at each position."""

    matrix: Tensor
    shift: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        mixed = torch.einsum("ij,nj...->ni...", self.matrix, values)
        return mixed + self.shift.reshape(-1, *[1] * (values.dim() - 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """What a layer is put between: `s = after(layer(before(a)))`.

    In the words of Martens & Grosse 2015, section 10, the activation becomes φ†(s) = Ω φ(Φ s + τ) + γ: Φ and τ are the
    `after` of one layer, Ω and γ the `before` of the next. The first `before` maps the network's inputs, the last
    `after` its outputs.
    """

    before: AffineMap
    after: AffineMap


class Chain(nn.Module):
    """Layers with an activation between them, each layer between two maps; a Linear flattens what it gets.

    Args:
        layers: from the inputs to the outputs.
        activation: element by element.
        changes: one for each layer.
        border: zeros around what a convolution gets, laid there before its first map.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        activation: Callable[[Tensor], Tensor],
        changes: Sequence[Change],
        *,
        border: int = 0,
    ) -> None:
        super().__init__()
        self.layers = list(layers)
        self.registered = nn.ModuleList(layers)
        self.activation = activation
        self.changes = changes
        self.border = border

    def forward(self, inputs: Tensor) -> Tensor:
        values = inputs
        for index, (layer, change) in enumerate(zip(self.layers, self.changes, strict=True)):
            values = self.activation(values) if index else values
            if isinstance(layer, nn.Conv2d):
                values = functional.pad(values, [self.border] * 4)
            values = change.before(values)
            values = change.after(layer(values.flatten(1) if isinstance(layer, nn.Linear) else values))
        return values


def unchanged(size: int) -> AffineMap:
    """The identity."""
    return AffineMap(matrix=torch.eye(size), shift=torch.zeros(size))


def chain(layers: Sequence[Layer], activation: Callable[[Tensor], Tensor] = torch.tanh) -> Chain:
    """Layers with nothing but the activation between them."""
    widths = [layers[0].weight.shape[1], *(layer.weight.shape[0] for layer in layers)]
    pairs = itertools.pairwise(widths)
    return Chain(layers, activation, [Change(before=unchanged(i), after=unchanged(o)) for i, o in pairs])


def compensated(layer: Layer, change: Change) -> Layer:
    """The layer that is, between the maps of the change, the same function as this one is by itself."""
    other = copy.deepcopy(layer)
    undo_before, undo_after = torch.linalg.inv(change.before.matrix), torch.linalg.inv(change.after.matrix)
    assert layer.bias is not None
    assert other.bias is not None
    with torch.no_grad():
        # of a Linear behind a convolution, each channel has a column per position
        weight = layer.weight.reshape(len(layer.weight), len(undo_before), -1)
        weight = torch.einsum("ock,cd->odk", weight, undo_before)
        bias = layer.bias - torch.einsum("odk,d->o", weight, change.before.shift) - change.after.shift
        other.weight.copy_(torch.einsum("po,odk->pdk", undo_after, weight).reshape(layer.weight.shape))
        other.bias.copy_(undo_after @ bias)
    return other


def reparametrised(model: Chain, changes: Sequence[Change]) -> Chain:
    """The same function of the inputs in other parameters, of a `chain`."""
    layers = [compensated(layer, change) for layer, change in zip(model.layers, changes, strict=True)]
    return Chain(layers, model.activation, changes)


def random_changes(model: Chain, kind: Kind) -> list[Change]:
    """Maps of one kind around every layer, at random."""
    changes = []
    for change in model.changes:
        inputs, outputs = len(change.before.shift), len(change.after.shift)
        offset = 0.7 * torch.randn(inputs) if kind in ("offset", "affine") else torch.zeros(inputs)
        factor = 1.7 if kind == "similarity" else 1.0
        changes.append(
            Change(
                before=AffineMap(matrix=_matrix(kind, inputs), shift=offset),
                after=AffineMap(matrix=factor * _matrix(kind, outputs), shift=torch.randn(outputs)),
            )
        )
    return changes


def whitening(moment: Tensor) -> AffineMap:
    """Centre and whiten, given the second moment of values with a 1 behind them."""
    mean = moment[:-1, -1]
    values, vectors = torch.linalg.eigh(moment[:-1, :-1] - torch.outer(mean, mean))
    matrix = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    return AffineMap(matrix=matrix, shift=-matrix @ mean)


def _rotation(size: int) -> Tensor:
    orthogonal: Tensor = torch.linalg.qr(torch.randn(size, size))[0]
    return orthogonal


def _scales(size: int) -> Tensor:
    return torch.exp(torch.linspace(-0.7, 0.7, size) if size > 1 else torch.tensor([0.4]))


def _matrix(kind: Kind, size: int) -> Tensor:
    if kind in ("shift", "offset"):
        return torch.eye(size)
    if kind in ("rotation", "similarity"):
        return _rotation(size)
    if kind == "coordinates":
        signs = torch.where(torch.rand(size) < 0.5, -1.0, 1.0)
        return torch.eye(size)[torch.randperm(size)] * (_scales(size) * signs)
    return _rotation(size) @ torch.diag(_scales(size)) @ _rotation(size)
