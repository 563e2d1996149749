"""Gradients of linear layers left as the rows that they are sums of: G⁻¹ (Σ g aᵀ) A⁻¹ = Σ (G⁻¹ g)(A⁻¹ a)ᵀ.

For fewer rows than a layer is wide that takes less work (Martens & Grosse 2015, arXiv:1503.05671, section 8), and the
product of the rows, which is the gradient, need not be formed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from acktr.kfac.kronecker import KroneckerBlock
from acktr.kfac.units import Unit, WeightUnit


class GradientRows:
    """What whoever runs a layer's backward pass may leave here in place of `weight.grad` and `bias.grad`.

    Args:
        units: of a model.
    """

    def __init__(self, units: Sequence[Unit]) -> None:
        self._units = {id(unit.parameters[0]): unit for unit in units if isinstance(unit, WeightUnit)}
        self._rows: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def wants(self, weight: Tensor, bias: Tensor | None, rows: int) -> bool:
        """Whether that many rows are less work than their product, and the layer's curvature can do with them.

        Args:
            weight: (o, i).
            bias: (o,) or None; it must share the weight's block and be trained with it, or neither.
            rows: N.
        """
        unit = self._units.get(id(weight))
        if unit is None or weight.dim() != 2 or not isinstance(unit.block, KroneckerBlock):
            return False
        trained = {id(part) for part in (weight, bias) if part is not None and part.requires_grad}
        if trained != set(map(id, unit.parameters)):
            return False
        return all(parameter.grad is None for parameter in unit.parameters) and unit.block.wants_rows(rows)

    def add(self, weight: Tensor, gradients: Tensor, inputs: Tensor) -> None:
        """Add Σ g aᵀ to the gradient of a layer that `wants` it, and Σ g to its bias's.

        Args:
            weight: the layer's.
            gradients: (N, o) of the training loss at its outputs.
            inputs: (N, i).
        """
        self._rows.setdefault(id(weight), []).append((gradients, inputs))

    def clear(self) -> None:
        """Forget all."""
        self._rows = {}

    def has(self, unit: Unit) -> bool:
        """Whether there is any for this unit."""
        return id(unit.parameters[0]) in self._rows

    def preconditioned(self, unit: Unit) -> Tensor:
        """(F + λ)⁻¹ of the gradient that the unit's rows sum up to, (1, o, i [+ 1]).

        Of that and what has come to `.grad` since, where anything has.
        """
        assert isinstance(unit, WeightUnit)
        assert isinstance(unit.block, KroneckerBlock)
        direction = unit.block.precondition_rows(*self._of(unit))
        later = [parameter.grad for parameter in unit.parameters]
        if all(gradient is None for gradient in later):
            return direction
        known = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(unit.parameters, later, strict=True)
        ]
        return direction + unit.block.precondition(unit.matrix(known), 0.0)  # of the damping in its inverses

    def _of(self, unit: WeightUnit) -> tuple[Tensor, Tensor]:
        pairs = self._rows[id(unit.parameters[0])]
        like = unit.parameters[0]
        gradients = torch.cat([gradient for gradient, _ in pairs]).to(like)
        inputs = torch.cat([rows for _, rows in pairs]).to(like)
        if unit.map.bias is not None:
            inputs = torch.cat((inputs, inputs.new_ones(len(inputs), 1)), dim=1)
        return gradients, inputs
