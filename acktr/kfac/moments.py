"""What a batch says of one weight: second moments of its layer's inputs, outputs and per-example gradients.

With a row a of the inputs and g of the gradients at the outputs for each position t, the gradient of one example's
loss is `P = Σ_t g_t a_tᵀ`. Every curvature of a weight is some second moment of a, of g or of P.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from acktr.kfac.capture import Call
from acktr.kfac.layers import (
    AFFINE_TYPES,
    Affine,
    ParameterMap,
    gradient_rows,
    input_rows,
    output_positions,
    possible_thinning,
)
from acktr.kfac.products import product
from acktr.kfac.statistics import (
    EVERY_POSITION,
    FactorKind,
    Thinning,
    chunks,
    gradient_moment,
    second_moment,
    total_weight,
    weighted_rows,
)

Gradients = Sequence[tuple[Call, Tensor]]
"""Calls of one parameter's modules with the gradients at their outputs, one set per backward pass."""


class Moment(NamedTuple):
    """A sum over a batch, and what it is to be divided by."""

    total: Tensor
    weight: Tensor
    """0-d: the sum of the examples' weights, times the positions where the mean is over those too."""


class InputMoment(NamedTuple):
    """The same of a layer's inputs."""

    total: Tensor
    weight: Tensor
    extent: tuple[Tensor, Tensor] | None = None
    """Of thinned ones, 0-d: the weight, each position counting for as many as it was taken out of, and the same of a
    batch of which no position is left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightBatch:
    """The captured calls of the modules that use one weight, with the gradients at their outputs.

    Attributes:
        name: of the layer, for messages.
        map: how weight and bias form the matrix (b, o, i).
        kind: expand or reduce.
        passes: one set of calls with gradients per backward pass, at least one, none of them empty.
        weights: (N,) of the examples, or None.
        examples: N of the metric's losses. Means are over them, even where the layer's rows are others: frames folded
            into its first axis, or those of a part of the batch.
        thinning: positions that the inputs' own moment is taken at; moments of P take all.
        dtype: of the statistics.
    """

    name: str
    map: ParameterMap
    kind: FactorKind
    passes: Sequence[Gradients]
    weights: Tensor | None
    examples: int
    thinning: Thinning
    dtype: torch.dtype

    @property
    def exact(self) -> "WeightBatch":
        """The same with P as it is, whatever approximation `kind` makes of it."""
        return self if self.kind == "expand" else dataclasses.replace(self, kind="expand")

    @property
    def positions(self) -> int:
        """T of the rows in `pairs`: those of one pass."""
        return 1 if self.kind == "reduce" else _positions([call for call, _ in self.passes[0]])

    def total_weight(self) -> Tensor:
        """0-d, the sum of the examples' weights."""
        return total_weight(self.examples, self.weights, self.passes[0][0][1].new_empty((), dtype=self.dtype))

    # --- of inputs and of gradients, each by itself ------------------------------------------------------------

    def of_inputs(self) -> InputMoment:
        """Σ a aᵀ, (b, i, i); several calls of the modules count as further positions.

        Grids of positions weigh in the average by what they hold: those of one map differ in size, and were they all to
        weigh the same, a position on a small one would count for more.

        Raises:
            ValueError: the calls have different numbers of examples, or others than the weights.
        """
        calls = list({id(call): call for gradients in self.passes for call, _ in gradients}.values())
        homogeneous = self.map.bias is not None
        # the second moment of a mean over fewer positions is another number
        thinning = EVERY_POSITION if self.kind == "reduce" else self.thinning
        examples = calls[0].inputs.shape[0]
        weights = weights_of_rows(self.weights, calls[0].inputs, self.name)
        if any(call.inputs.shape[0] != examples for call in calls):
            numbers = ", ".join(str(call.inputs.shape[0]) for call in calls)
            raise ValueError(
                f"{self.name} was called with different numbers of examples ({numbers}) in one capture; capture each "
                "batch on its own"
            )
        if self.kind == "reduce":
            mean = self._mean_inputs(calls)
            total = second_moment(mean.unsqueeze(1), weights, homogeneous=homogeneous)
            return InputMoment(total, total_weight(examples, weights, total))
        moments: list[Tensor] = []
        masses: list[Tensor] = []
        told: list[Tensor] = []
        for call in calls:
            every = possible_thinning(_affine(call), call.inputs, thinning).every
            for part, rows in self._input_rows(call, thinning):
                own = None if weights is None else weights[part]
                copied = isinstance(part, Tensor)
                moments.append(second_moment(rows, own, homogeneous=homogeneous, in_place=copied))
                masses.append(total_weight(len(rows), own, rows) * rows.shape[1])
                told.append(masses[-1] * every**2)
        total = torch.stack(moments).sum(0) if len(moments) > 1 else moments[0]
        weight = torch.stack(masses).sum()
        if thinning.every == 1:
            return InputMoment(total, weight)
        possible = total_weight(examples, weights, total) * _positions(calls)
        return InputMoment(total, weight, (torch.stack(told).sum(), possible))

    def of_outputs(self) -> Moment:
        """Σ g gᵀ, (b, o, o), summed over backward passes and over positions."""
        moments = []
        for gradients in self.passes:
            rows = self._output_rows(gradients)
            weights = weights_of_rows(self.weights, rows, self.name)
            moments.append(gradient_moment(rows, weights, kind=self.kind))
        total = torch.stack(moments).sum(0) if len(moments) > 1 else moments[0]
        return Moment(total, self.total_weight())

    # --- of the gradients of the examples ----------------------------------------------------------------------

    def squares(self, left: Tensor | None = None, right: Tensor | None = None) -> Moment:
        """Σ (leftᵀ P right)², element by element, (b, o, i): the diagonal of the Fisher in a Kronecker basis.

        Args:
            left: (b, o, o) orthogonal, or None for the identity; basis of the outputs.
            right: (b, i, i) likewise, of the inputs; None where `left` is.
        """
        total: Tensor | None = None
        for g, a in self.pairs():
            if _pairs_are_cheaper(g, a, turned=left is not None):
                part = _squares_of_pairs(_turned(g, left), _turned(self._extended(a), right))
            else:
                gradients = self._gradients_of(g, a)
                if left is not None and right is not None:
                    gradients = _rotated(gradients, left, right)
                part = gradients.square_().sum(0)
            total = part if total is None else total.add_(part)
        assert total is not None
        return Moment(total, self.total_weight())

    def gradients(self) -> Iterator[Tensor]:
        """P of the examples, each times the root of its weight, (n, b, o, i): some of them at a time."""
        for g, a in self.pairs():
            yield self._gradients_of(g, a)

    def extended_pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """As `pairs`, the inputs with the 1 of a joint bias."""
        for g, a in self.pairs():
            yield g, self._extended(a)

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (n, T, b, o) of gradients, times the root of the example's weight, and (n, T, b, i) of inputs.

        T counts the positions of all calls; under "reduce" it is 1, the gradients' sum and the inputs' mean, which take
        the place of P. Some examples at a time, so that patches stay within bounds; the passes one after another. The
        1 of a joint bias is not among the inputs: on patches it would cost a copy.
        """
        for gradients in self.passes:
            outputs = self._output_rows(gradients)
            weights = weights_of_rows(self.weights, outputs, self.name)
            outputs = weighted_rows(outputs, weights)
            if self.kind == "reduce":
                outputs = outputs.sum(1, keepdim=True)
            calls = [call for call, _ in gradients]
            per_example = _positions(calls)
            columns = self.map.matrix_shape[0] * self.map.matrix_shape[2]
            for part in chunks(outputs.shape[0], per_example * columns):
                yield outputs[part], self._pair_inputs(calls, part, None if weights is None else weights[part])

    def _pair_inputs(self, calls: Sequence[Call], part: slice, weights: Tensor | None) -> Tensor:
        rows: list[Tensor] = []
        for call in calls:
            inputs = call.checked_inputs()[part].to(self.dtype)
            if weights is not None:  # what an example of weight 0 holds has no influence, be it NaN
                inputs = torch.where(weights.reshape(-1, *[1] * (inputs.dim() - 1)) > 0, inputs, 0.0)
            rows.extend(found for _, found in input_rows(_affine(call), inputs))
        together = torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]
        return together.mean(1, keepdim=True) if self.kind == "reduce" else together

    def _extended(self, inputs: Tensor) -> Tensor:
        if self.map.bias is None:
            return inputs
        return torch.cat((inputs, inputs.new_ones(()).expand(*inputs.shape[:-1], 1)), dim=-1)

    def _gradients_of(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        by_group = outputs.permute(0, 2, 3, 1)  # (n, b, o, T)
        weight = by_group @ inputs.permute(0, 2, 1, 3)
        if self.map.bias is None:
            return weight
        return torch.cat((weight, by_group.sum(-1, keepdim=True)), dim=-1)

    def mean_inputs(self) -> Tensor:
        """Mean over positions of the inputs of the first pass, times the root of the example's weight.

        (N, i) with the 1 of a joint bias, for a weight of one group.
        """
        mean = self._extended(self._mean_inputs([call for call, _ in self.passes[0]]).unsqueeze(1))
        return weighted_rows(mean.flatten(1), self.weights)

    def summed_outputs(self) -> Tensor:
        """Sum over positions of the gradients of the first pass, (N, o), times the root of the example's weight."""
        return weighted_rows(self._output_rows(self.passes[0]).sum(1).flatten(1), self.weights)

    # --- rows --------------------------------------------------------------------------------------------------

    def _input_rows(self, call: Call, thinning: Thinning) -> Iterator[tuple[slice | Tensor, Tensor]]:
        return input_rows(_affine(call), call.checked_inputs().to(self.dtype), thinning)

    def _mean_inputs(self, calls: Sequence[Call]) -> Tensor:
        summed = [torch.cat([rows.sum(1) for _, rows in self._input_rows(call, EVERY_POSITION)]) for call in calls]
        return torch.stack(summed).sum(0) / _positions(calls)

    def _output_rows(self, gradients: Gradients) -> Tensor:
        rows = [gradient_rows(_affine(call), gradient.to(self.dtype)) for call, gradient in gradients]
        return torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]


def weights_of_rows(weights: Tensor | None, rows: Tensor, name: str) -> Tensor | None:
    """The examples' weights, where the rows of a layer are the examples.

    Raises:
        ValueError: they are not, and there are weights.
    """
    if weights is not None and len(weights) != len(rows):
        raise ValueError(
            f"{name} was called on {len(rows)} rows, and there are {len(weights)} weights: weights go with layers that "
            "see one row per example"
        )
    return weights


def _positions(calls: Sequence[Call]) -> int:
    return sum(output_positions(_affine(call), call.inputs) for call in calls)


def _affine(call: Call) -> Affine:
    assert isinstance(call.module, AFFINE_TYPES)
    return call.module


def _pairs_are_cheaper(outputs: Tensor, inputs: Tensor, *, turned: bool) -> bool:
    """Whether squares of P cost less by pairs of positions than by P itself; always so for one position."""
    positions, rows, columns = outputs.shape[1], outputs.shape[-1], inputs.shape[-1]
    by_pairs = positions * (positions + 1) // 2 * rows * columns
    by_gradients = positions * rows * columns
    if turned:
        by_pairs += positions * (rows**2 + columns**2)
        by_gradients += rows * columns * (rows + columns)
    return by_pairs <= by_gradients


def _turned(rows: Tensor, basis: Tensor | None) -> Tensor:
    """Rows (n, T, b, k) times the basis (b, k, k) of their group."""
    if basis is None:
        return rows
    if basis.shape[0] == 1:  # one plain product is faster than a batched one
        return product(rows.reshape(1, -1, rows.shape[-1]), basis).reshape(rows.shape)
    return (rows.unsqueeze(-2) @ basis).squeeze(-2)


def _rotated(gradients: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Each of (n, b, o, i) as leftᵀ P right."""
    if right.shape[0] == 1:
        gradients = product(gradients.reshape(1, -1, gradients.shape[-1]), right).reshape(gradients.shape)
    else:
        gradients = gradients @ right
    return left.transpose(-1, -2) @ gradients


def _squares_of_pairs(outputs: Tensor, inputs: Tensor) -> Tensor:
    """Σ_n (Σ_t g_t a_tᵀ)² as `Σ_n Σ_{t,t'} (g_t g_t')(a_t a_t')ᵀ`: one matrix product, no gradient of any example."""
    positions = outputs.shape[1]
    first, second = torch.triu_indices(positions, positions, device=outputs.device)
    twice = torch.where(first == second, 1.0, 2.0).to(outputs)[:, None, None]  # (t, t') and (t', t)
    left = (outputs[:, first] * outputs[:, second] * twice).flatten(0, 1).transpose(0, 1)  # (b, pairs, o)
    right = (inputs[:, first] * inputs[:, second]).flatten(0, 1).transpose(0, 1)
    return product(left.transpose(1, 2), right)
