"""The block of a whole chain of layers: running factors of the layers and between neighbours, and their inverse."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from acktr.kfac.averages import RunningAverage, Share
from acktr.kfac.blocks import Damping, Missing, RefreshReport
from acktr.kfac.products import product
from acktr.kfac.sums import Sum, Sums
from acktr.kfac.tridiagonal import ChainFactors, TridiagonalInverse, decompose

_AVERAGES = ("inputs", "outputs", "inputs_between", "outputs_between")


class ChainBlock:
    """F̂ of a chain of L layers on their matrices one behind the other, (d,), whose inverse is block-tridiagonal.

    The chain's order is known from the first batch on. Every layer gives one vector of inputs and one of gradients for
    each example: of a convolution the mean over positions and the sum ("reduce"), in all factors alike, so that the
    joint covariance of the layers stays positive semi-definite.

    Args:
        like: a tensor with the device and dtype of the statistics.
    """

    is_symmetric = False

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self.order: list[list[int]] = []
        """Which layers of the network make each link of the chain, from the input on; empty before the first batch."""
        self.shapes: list[tuple[int, int]] = []
        """(o, i) of each link."""
        self.inputs: list[RunningAverage] = []
        self.outputs: list[RunningAverage] = []
        self.inputs_between: list[RunningAverage] = []
        self.outputs_between: list[RunningAverage] = []
        self._inverse: TridiagonalInverse | None = None

    def arrange(self, order: Sequence[Sequence[int]], shapes: Sequence[tuple[int, int]]) -> None:
        """Take the order of the chain and its links' shapes (o, i); nothing else is known yet."""
        self.order = [list(link) for link in order]
        self.shapes = list(shapes)
        links = range(len(shapes) - 1)
        self.inputs = [RunningAverage() for _ in shapes]
        self.outputs = [RunningAverage() for _ in shapes]
        self.inputs_between = [RunningAverage("covariances") for _ in links]
        self.outputs_between = [RunningAverage("covariances") for _ in links]

    def update(self, inputs: Sequence[Tensor], gradients: Sequence[Tensor], weight: Tensor, share: Share) -> Sums[None]:
        """Add a batch; rows are times the root of the example's weight.

        Args:
            inputs: (N, i) of each link.
            gradients: (C N, o) of each link, those of the C backward passes one behind the other.
            weight: 0-d, the sum of the examples' weights.
            share: of the batch.
        """
        averages = [*self.inputs, *self.outputs, *self.inputs_between, *self.outputs_between]
        moments = [Sum(_moment(own, own), symmetric=True) for own in (*inputs, *gradients)]
        for rows in (inputs, gradients):
            moments += [Sum(_moment(one, following)) for one, following in itertools.pairwise(rows)]
        weight, *totals = yield [Sum(weight), *moments]
        for average, total in zip(averages, totals, strict=True):
            average.update(total, weight, share)

    @property
    def missing(self) -> Missing | None:
        """See `Block`."""
        if not self.shapes or self.inputs[0].value is None:
            return "statistics"
        return "inverse" if self._inverse is None else None

    def refresh(self, damping: Damping) -> RefreshReport:
        """Decompose the whole chain; where a factor defies the guard ladder the old inverse stays in use."""
        if self.missing == "statistics":
            return RefreshReport()
        inverse, retries = decompose(self.factors(), damping)
        if inverse is None:
            return RefreshReport(retries=retries, stale=True)
        self._inverse = inverse
        return RefreshReport(retries=retries)

    def decomposition(self) -> list[Tensor] | None:
        """All matrices of the inverse, field by field."""
        if self._inverse is None:
            return None
        return [part for field in dataclasses.fields(self._inverse) for part in getattr(self._inverse, field.name)]

    def decomposition_like(self) -> list[Tensor]:
        """Tensors of these shapes."""
        factors = self.factors()
        A, G = factors.inputs, factors.outputs
        scales = [part.new_empty(1, *shape) for part, shape in zip(A, self.shapes[:-1], strict=False)]
        like = (factors.inputs_between, factors.outputs_between, A[:-1], G[:-1], scales, (A[-1], G[-1]))
        return [torch.empty_like(part) for parts in like for part in parts]

    def adopt(self, parts: Sequence[Tensor]) -> None:
        """Take the inverse of another process into use."""
        rest = iter(parts)
        links = len(self.shapes) - 1
        self._inverse = TridiagonalInverse(
            **{
                field.name: list(itertools.islice(rest, 2 if field.name == "last" else links))
                for field in dataclasses.fields(TridiagonalInverse)
            }
        )

    def precondition(self, gradient: Tensor, damping: Damping) -> Tensor:
        """F̂⁻¹ gradient for (d,), with the damping of the last refresh."""
        if self._inverse is None:
            return gradient
        return self._joined(self._inverse.apply(self._matrices(gradient)))

    def multiply(self, direction: Tensor) -> Tensor:
        """F̂ v for (d,); the diagonal blocks alone before the first refresh, v itself before any statistics."""
        if self.missing == "statistics":
            return direction
        factors, matrices = self.factors(), self._matrices(direction)
        if self._inverse is None:
            parts = zip(factors.outputs, matrices, factors.inputs, strict=True)
            return self._joined([product(product(G, part), A) for G, part, A in parts])
        return self._joined(self._inverse.multiply(matrices, factors))

    def to_dense(self) -> Tensor:
        """(d, d)."""
        if self.missing == "statistics":
            raise RuntimeError("no statistics yet: call update_statistics first")
        size = sum(rows * columns for rows, columns in self.shapes)
        return torch.stack([self.multiply(row) for row in torch.eye(size).to(self._like)])

    def factors(self) -> ChainFactors:
        """The running factors, undamped."""
        lists = (self.inputs, self.outputs, self.inputs_between, self.outputs_between)
        inputs, outputs, inputs_between, outputs_between = (
            [average.value for average in averages if average.value is not None] for averages in lists
        )
        return ChainFactors(
            inputs=inputs, outputs=outputs, inputs_between=inputs_between, outputs_between=outputs_between
        )

    def _matrices(self, flat: Tensor) -> list[Tensor]:
        parts = torch.split(flat, [rows * columns for rows, columns in self.shapes])
        return [part.reshape(1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _joined(self, matrices: Sequence[Tensor]) -> Tensor:
        return torch.cat([matrix.flatten() for matrix in matrices])

    def state_dict(self) -> dict[str, Any]:
        """Shapes, running factors and the inverse in use."""
        inverse = None
        if self._inverse is not None:
            inverse = {field.name: getattr(self._inverse, field.name) for field in dataclasses.fields(self._inverse)}
        return {
            "order": [list(link) for link in self.order],
            "shapes": [list(shape) for shape in self.shapes],
            **{name: [average.state_dict() for average in getattr(self, name)] for name in _AVERAGES},
            "inverse": inverse,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.arrange(state["order"], [(rows, columns) for rows, columns in state["shapes"]])
        for name in _AVERAGES:
            for average, part in zip(getattr(self, name), state[name], strict=True):
                average.load_state_dict(part, self._like)
        inverse: dict[str, list[Tensor]] | None = state["inverse"]
        self._inverse = None
        if inverse is not None:
            copies = {name: [part.to(self._like, copy=True) for part in parts] for name, parts in inverse.items()}
            self._inverse = TridiagonalInverse(**copies)


def _moment(one: Tensor, other: Tensor) -> Tensor:
    return product(one.T.unsqueeze(0), other.unsqueeze(0))
