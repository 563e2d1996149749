"""The step that was just applied: what it changed, its predicted KL, and how to take a part of it back."""

from collections.abc import Sequence

import torch
from torch import Tensor

from acktr.kfac.averages import looks_are_free
from acktr.kfac.units import Unit


class AppliedStep:
    """Moves parameters and remembers how.

    Args:
        like: 0-d tensor with the device and dtype of the figures.
    """

    def __init__(self, like: Tensor) -> None:
        self._moves: list[tuple[Tensor, Tensor, Tensor]] = []
        self._changes: list[tuple[Unit, Sequence[Tensor]]] = []
        self._kl: Tensor | None = None
        self._contraction = torch.ones_like(like)

    def move(self, unit: Unit, changes: Sequence[Tensor], rates: Sequence[float | Tensor | None]) -> None:
        """Subtract one change from each of the unit's parameters; those whose rate is None have no gradient."""
        for parameter, change, rate in zip(unit.parameters, changes, rates, strict=True):
            if rate is not None:
                self._moves.append((parameter, parameter.detach().clone(), change))
                parameter.sub_(change)
        self._changes.append((unit, changes))

    def contract(self, factor: Tensor) -> None:
        """Leave `factor` (0-d, 0 to 1) of the step; 0 restores the parameters to the bit."""
        self._contraction = self._contraction * factor
        for parameter, before, change in self._moves:
            kept = self._contraction.to(change)
            if looks_are_free(kept) and not kept > 0:
                parameter.copy_(before)  # nothing is left of a non-finite change either
                continue
            torch.addcmul(before, change, kept, value=-1, out=parameter)
            if not looks_are_free(kept):
                parameter.copy_(torch.where(kept > 0, parameter, before))

    @property
    def parameters(self) -> list[Tensor]:
        """Of the units that moved."""
        return [parameter for unit, _ in self._changes for parameter in unit.parameters]

    @property
    def kl_predicted(self) -> Tensor:
        """`1/2 sᵀ F s` of what is left of the step, by the curvature as of the first reading; nats, 0-d."""
        if self._kl is None:
            terms = [quadratic_form(unit, changes) for unit, changes in self._changes]
            self._kl = torch.stack(terms).sum() / 2 if terms else torch.zeros_like(self._contraction)
        return torch.where(self._contraction > 0, self._kl * self._contraction.square(), 0.0)

    @kl_predicted.setter
    def kl_predicted(self, kl: Tensor) -> None:
        self._kl = kl


def quadratic_form(unit: Unit, changes: Sequence[Tensor]) -> Tensor:
    """`sᵀ F s` of the changes of one unit's parameters, 0-d, at least 0.

    Where rounding makes it negative its size is that of the rounding, and so the least that may be relied on.
    """
    matrix = unit.matrix(changes)
    return (matrix * unit.block.multiply(matrix)).sum().abs()
