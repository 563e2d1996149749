"""Which process decomposes which block, and how the others come by what it made (Pauloski et al. 2021, KAISA)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from acktr.kfac.blocks import Decomposed, RefreshReport
from acktr.kfac.chains import ChainUnit
from acktr.kfac.decomposers import DampingOf, decomposed
from acktr.kfac.distributed import Ranks, owners, packed, unpacked
from acktr.kfac.kronecker import KroneckerBlock
from acktr.kfac.small_blocks import FullBlock
from acktr.kfac.sums import Sum
from acktr.kfac.units import Unit, WeightUnit

InversePlacement = Literal["broadcast", "owner"]

_OWNABLE = (KroneckerBlock, FullBlock)
"""Blocks whose decomposition nothing but `precondition` needs, so that it may stay where it was made."""


class Placement:
    """Decompositions shared out over ranks by their cost, longest first.

    Args:
        ranks: the processes.
        units: of the model, the same on all of them.
        kind: "broadcast" gives each decomposition to all ranks once it is made, and every rank preconditions
            everything; "owner" leaves it where it is, and its owner gives the preconditioned gradients to all at every
            step. The former sends less where inverses are kept for several steps, the latter takes less memory.

    Raises:
        ValueError: a curvature whose decompositions all ranks need.
    """

    def __init__(self, ranks: Ranks, units: Sequence[Unit], kind: InversePlacement = "broadcast") -> None:
        self._ranks = ranks
        self._kind = kind
        costs = [refresh_cost(unit) for unit in units]
        self._elsewhere: set[int] = set()  # what other owners have, where it stays with them
        self._owner = {id(unit): owner for unit, owner in zip(units, owners(costs, ranks.size), strict=True)}
        for unit in units:
            if kind == "owner" and isinstance(unit.block, Decomposed) and not isinstance(unit.block, _OWNABLE):
                raise ValueError(
                    "inverse_placement 'owner' needs curvature kfac or kfoc and structure block-diagonal: all ranks "
                    f"need the decomposition of {unit.name}"
                )

    def is_mine(self, unit: Unit) -> bool:
        """Whether this process decomposes the unit's block; of a block that takes no work every process does."""
        return not isinstance(unit.block, Decomposed) or self._owner[id(unit)] == self._ranks.rank

    def lacks(self, unit: Unit) -> bool:
        """Whether its owner has never decomposed it."""
        return unit.block.missing == "inverse" and id(unit) not in self._elsewhere

    def refresh(self, units: Sequence[Unit], damping_of: DampingOf, step: int) -> list[RefreshReport]:
        """Decompose those that are this rank's, and where they are broadcast take the others' into use."""
        mine = [unit for unit in units if self.is_mine(unit)]
        made = dict(zip(map(id, mine), decomposed(mine, damping_of), strict=True))
        return self.spread(units, made) if self._kind == "broadcast" else self._told(units, made)

    def gather(self, units: Sequence[Unit]) -> list[RefreshReport]:
        """Make every rank have all decompositions in use, as a checkpoint wants them."""
        if self._kind == "owner":
            self.spread(units, {id(unit): _in_use(unit) for unit in units if self.is_mine(unit)})
            self._elsewhere.clear()  # all of it is here now, and a state that is loaded next may lack it
        return []

    def _told(self, units: Sequence[Unit], made: Mapping[int, RefreshReport]) -> list[RefreshReport]:
        """Reports of all owners, whose decompositions stay with them."""
        travelling = [unit for unit in units if self._travels(unit)]
        if not travelling:
            return [made.get(id(unit), RefreshReport()) for unit in units]
        own = [made[id(unit)] if self.is_mine(unit) else RefreshReport() for unit in travelling]
        figures = travelling[0].parameters[0].new_tensor([[report.retries, report.stale] for report in own])
        (total,) = self._ranks.add_up([figures.float()], kind="inverses")
        found = dict(made)
        for unit, (retries, stale) in zip(travelling, total.tolist(), strict=True):
            found[id(unit)] = RefreshReport(retries=int(retries), stale=bool(stale))
            if not stale and not self.is_mine(unit):
                self._elsewhere.add(id(unit))
        return [found.get(id(unit), RefreshReport()) for unit in units]

    def directions(self, units: Sequence[Unit], compute: Callable[[Unit], Tensor]) -> list[Tensor]:
        """Preconditioned gradients of some units, each made by a rank that has its inverse.

        Args:
            units: the same on all ranks.
            compute: preconditions the gradient of one, or where there is no inverse returns it as it is.
        """
        if self._kind == "broadcast":
            return [compute(unit) for unit in units]
        found: dict[int, Tensor] = {}
        messages: list[tuple[list[Unit], Tensor, dist.Work]] = []
        for rank in range(self._ranks.size):
            own = [unit for unit in units if self._travels(unit) and self._owner[id(unit)] == rank]
            if own:
                parts = [compute(unit) if rank == self._ranks.rank else _room(unit) for unit in own]
                flat = torch.cat([part.flatten() for part in parts])
                messages.append((own, flat, self._ranks.broadcast(flat, source=rank, kind="directions")))
        for unit in units:
            if not self._travels(unit):
                found[id(unit)] = compute(unit)
        for own, flat, work in messages:
            self._ranks.wait(work)
            sizes = [_room(unit).numel() for unit in own]
            for unit, part in zip(own, torch.split(flat, sizes), strict=True):
                room = _room(unit)
                found[id(unit)] = part.view(room.shape).to(room)
        return [found[id(unit)] for unit in units]

    def spread(self, units: Sequence[Unit], made: Mapping[int, RefreshReport]) -> list[RefreshReport]:
        """Give every rank what was made of these units by their owners.

        Args:
            units: those that were due, the same on all ranks.
            made: reports of those of this rank, by the unit's identity.

        Returns:
            The reports of all.
        """
        found = dict(made)
        messages: list[tuple[list[Unit], Tensor, dist.Work]] = []
        for rank in range(self._ranks.size):
            own = [unit for unit in units if self._travels(unit) and self._owner[id(unit)] == rank]
            if own:
                flat = torch.cat([message_of(unit, made.get(id(unit))) for unit in own])
                messages.append((own, flat, self._ranks.broadcast(flat, source=rank, kind="inverses")))
        for own, flat, work in messages:
            self._ranks.wait(work)
            for unit, (report, parts) in zip(own, read_messages(own, flat), strict=True):
                found[id(unit)] = report
                if not report.stale and not self.is_mine(unit):
                    unit.block.adopt(parts)  # type: ignore[attr-defined]
        return [found.get(id(unit), RefreshReport()) for unit in units]

    @staticmethod
    def _travels(unit: Unit) -> bool:
        return isinstance(unit.block, Decomposed) and unit.block.missing != "statistics"


def _in_use(unit: Unit) -> RefreshReport:
    assert isinstance(unit.block, Decomposed)
    return RefreshReport(stale=unit.block.decomposition() is None)


def _room(unit: Unit) -> Tensor:
    """A tensor of the shape of the unit's matrix, without values."""
    return unit.matrix([torch.empty_like(parameter) for parameter in unit.parameters])


def message_of(unit: Unit, report: RefreshReport | None) -> Tensor:
    """What a unit's owner tells of it, flat; of any other rank room for it."""
    block = unit.block
    assert isinstance(block, Decomposed)
    parts = block.decomposition_like() if report is None else block.decomposition() or block.decomposition_like()
    told = [0.0, 0.0] if report is None else [report.retries, report.stale]
    return torch.cat([parts[0].new_tensor(told), *(packed(item) for item in _items(block, parts))])


def read_messages(units: Sequence[Unit], flat: Tensor) -> Iterator[tuple[RefreshReport, list[Tensor]]]:
    """What `message_of` has told of each of the units, and their decompositions."""
    items: list[list[Sum]] = []
    for unit in units:
        assert isinstance(unit.block, Decomposed)
        items.append([Sum(flat.new_empty(2)), *_items(unit.block, unit.block.decomposition_like())])
    found = unpacked(flat, [item for group in items for item in group])
    for group in items:
        (retries, stale), *parts = (next(found) for _ in group)
        yield RefreshReport(retries=int(retries), stale=bool(stale)), [part.clone() for part in parts]


def _items(block: Decomposed, parts: Sequence[Tensor]) -> list[Sum]:
    return [Sum(part, block.is_symmetric) for part in parts]


def refresh_cost(unit: Unit) -> float:
    """Of a refresh: the cubes of the widths of what is decomposed."""
    if not isinstance(unit.block, Decomposed):
        return 0.0
    if isinstance(unit, ChainUnit):
        return sum(_cubes(layer) for layer in unit.layers)
    if isinstance(unit, WeightUnit) and not isinstance(unit.block, FullBlock):
        return _cubes(unit)
    return float(sum(parameter.numel() for parameter in unit.parameters)) ** 3


def _cubes(unit: WeightUnit) -> float:
    groups, rows, columns = unit.map.matrix_shape
    return groups * (float(rows) ** 3 + float(columns) ** 3)
