"""From gradients to what a step could do to each unit: preconditioned, and zero where a batch is not finite."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from acktr.kfac.averages import looks_are_free
from acktr.kfac.rows import GradientRows
from acktr.kfac.units import Unit

Directions = Callable[[Sequence[Unit], Callable[[Unit], Tensor]], list[Tensor]]
"""Preconditioned gradients of units, by a function for one whose inverse is here."""


class Proposal(NamedTuple):
    """What one step could do to one unit."""

    position: int
    """Of the unit among the optimizer's."""
    unit: Unit
    directions: list[Tensor]
    """(F + λ)⁻¹ g, one per parameter, each like it."""
    rates: list[float | Tensor | None]
    """Learning rate of each parameter, 0-d where it is adapted on the device; None where it has no gradient."""


def with_gradient(units: Sequence[Unit], rows: GradientRows) -> list[tuple[int, Unit]]:
    """Those of the units that a loss has reached, with their positions."""
    return [
        (index, unit)
        for index, unit in enumerate(units)
        if rows.has(unit) or any(parameter.grad is not None for parameter in unit.parameters)
    ]


def propose(
    active: Sequence[tuple[int, Unit]],
    rows: GradientRows,
    group_of: Mapping[int, Mapping[str, Any]],
    directions: Directions,
    *,
    like: Tensor,
) -> tuple[list[Proposal], Tensor]:
    """What a step could do to each unit with a gradient, and whether it may move anything (0-d bool).

    Args:
        active: units with a gradient, at least one.
        rows: gradients that were left as rows.
        group_of: settings of a parameter, by its identity: "lr" and "damping".
        directions: computes them.
        like: of the precision that lengths are summed in.
    """

    def direction(unit: Unit) -> Tensor:
        if rows.has(unit):
            return rows.preconditioned(unit)
        gradient = unit.matrix([_grad(parameter) for parameter in unit.parameters])
        return unit.block.precondition(gradient, group_of[id(unit.parameters[0])]["damping"])

    found = directions([unit for _, unit in active], direction)
    # a non-finite gradient makes its direction so too; lengths, summed as squares, leave room for products with F
    lengths = torch.stack([torch.linalg.vector_norm(direction).to(like) for direction in found])
    usable = torch.isfinite(lengths.sum())
    proposals = [
        Proposal(
            index,
            unit,
            [_usable(part, usable) for part in unit.split(direction)],
            [
                group_of[id(parameter)]["lr"] if parameter.grad is not None or rows.has(unit) else None
                for parameter in unit.parameters
            ],
        )
        for (index, unit), direction in zip(active, found, strict=True)
    ]
    return proposals, usable


def _usable(part: Tensor, usable: Tensor) -> Tensor:
    """A part of a direction as it is, or 0 where `usable` (0-d) is false, whatever it holds."""
    if looks_are_free(usable):
        return part if usable else torch.zeros_like(part)
    return torch.where(usable, part, 0.0)


def _grad(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
