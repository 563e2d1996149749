"""Who decomposes the blocks: this process, the ranks by shares (`placement`), or processes that do nothing else."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from acktr.kfac.blocks import Damping, RefreshReport
from acktr.kfac.solvers import Attempt, Outcome, settled
from acktr.kfac.units import Unit

DampingOf = Callable[[Unit], Damping]


class Decomposer(Protocol):
    """Keeps the inverses of a model's units up to date."""

    def lacks(self, unit: Unit) -> bool:
        """Whether a unit with statistics has no decomposition yet, wherever it is to be; the same on all ranks."""
        ...

    def refresh(self, units: Sequence[Unit], damping_of: DampingOf, step: int) -> list[RefreshReport]:
        """Decompose these units, which are due, at this step; called at every step, also with none."""
        ...

    def gather(self, units: Sequence[Unit]) -> list[RefreshReport]:
        """Make all decompositions in use be here, for a checkpoint; reports of those that were under way."""
        ...

    def directions(self, units: Sequence[Unit], compute: Callable[[Unit], Tensor]) -> list[Tensor]:
        """Preconditioned gradients of some units, by a function that computes that of one whose inverse is here."""
        ...


class Here:
    """Everything in this process."""

    def lacks(self, unit: Unit) -> bool:
        """Whether it was never decomposed."""
        return unit.block.missing == "inverse"

    def refresh(self, units: Sequence[Unit], damping_of: DampingOf, step: int) -> list[RefreshReport]:
        """Decompose them."""
        return decomposed(units, damping_of)

    def gather(self, units: Sequence[Unit]) -> list[RefreshReport]:
        """They are here."""
        return []

    def directions(self, units: Sequence[Unit], compute: Callable[[Unit], Tensor]) -> list[Tensor]:
        """Compute them."""
        return [compute(unit) for unit in units]


@runtime_checkable
class _InTwoParts(Protocol):
    """A block whose refresh leaves it to the caller to look at how its decompositions came out."""

    def begin_refresh(self, damping: Damping) -> Sequence[Attempt]:
        """Try them, without a look from the host."""
        ...

    def finish_refresh(self, outcomes: Sequence[Outcome]) -> RefreshReport:
        """Take what came of them into use."""
        ...


def decomposed(units: Sequence[Unit], damping_of: DampingOf) -> list[RefreshReport]:
    """Decompose some units in this process: with one host read for all that comes out at once."""
    begun = []
    for unit in units:
        block, damping = unit.block, damping_of(unit)
        begun.append((block, damping, block.begin_refresh(damping) if isinstance(block, _InTwoParts) else []))
    outcomes = iter(settled([attempt for _, _, attempts in begun for attempt in attempts]))
    return [
        block.finish_refresh([next(outcomes) for _ in attempts])
        if isinstance(block, _InTwoParts)
        else block.refresh(damping)
        for block, damping, attempts in begun
    ]
