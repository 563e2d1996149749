"""The running estimate of a model's Fisher: its units, what each batch tells them, and when they are decomposed."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from acktr.kfac.averages import Share
from acktr.kfac.batches import additions
from acktr.kfac.blocks import RefreshReport
from acktr.kfac.capture import Recorder
from acktr.kfac.chains import chained
from acktr.kfac.curvatures import BlockChoice
from acktr.kfac.decomposers import DampingOf, Decomposer, Here
from acktr.kfac.distributed import Ranks, Together
from acktr.kfac.metrics import Metric
from acktr.kfac.pace import Pace
from acktr.kfac.placement import InversePlacement, Placement
from acktr.kfac.service import Remote
from acktr.kfac.sums import alone
from acktr.kfac.units import Unit, build_units, recorded_modules

_SHAPING = ("curvature", "structure", "damping_mode", "bias")
"""Choices that decide what a state holds; statistics may go on under another of the others."""


class FisherEstimate:
    """The units of a model, and the statistics that are taken of its batches.

    Args:
        model: the network; it is not modified.
        choice: of the blocks.
        pace: when statistics and inverses are due.
        ranks: the processes that hold the parts of each batch; None where it is whole.
        placement: of the decompositions among them.

    Attributes:
        units: a block each, with the parameters that it treats.
        plain: names of the parameters that get their plain gradient.
        steps: made so far, which the pace goes by.
        refresh_count: decompositions so far.
        retry_count: rungs of the guard ladder that failed.
        stale_count: refreshes after which the old inverse had to stay.
        asked: whether there ever was a batch.
        counted: the step that the newest batch with something to say belongs to; -1 before any.

    Raises:
        ValueError: a layer that the curvature does not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        choice: BlockChoice,
        pace: Pace,
        ranks: Ranks | None = None,
        placement: InversePlacement = "broadcast",
    ) -> None:
        self._any_of = None if ranks is None else ranks.any_of
        self._together = None if ranks is None else Together(ranks)
        self.choice = choice
        self.pace = pace
        self.units, self.plain = build_units(model, choice)
        if choice.structure == "block-tridiagonal":
            self.units = chained(self.units)
        self._decomposer = _decomposer(ranks, self.units, placement, pace)
        self.steps = 0
        self.refresh_count = 0
        self.retry_count = 0
        self.stale_count = 0
        self.asked = False
        self.counted = -1
        self._taken = 0  # examples of the newest step, whose grids of positions those that follow go on with
        self._recorder = Recorder(recorded_modules(self.units))

    @property
    def due(self) -> bool:
        """Whether this step's statistics are wanted."""
        return self.steps % self.pace.stat_interval == 0

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Record the forward passes made inside; nothing when no statistics are due.

        Raises:
            RuntimeError: entered a second time before it was left.
        """
        if not self.due:
            self._recorder.take()
            yield
            return
        with self._recorder.recording():
            yield

    def update(self, metric: Metric, weights: Tensor | None, places: tuple[int, ...] | None = None) -> None:
        """Add what was captured; see `KFAC.update_statistics`."""
        if not self.due:
            return
        calls = self._recorder.take()
        if not calls and any(unit.modules for unit in self.units):
            raise RuntimeError(
                "nothing was captured: run the forward pass inside `with optimizer.capture():`, with gradients enabled"
            )
        self.asked = True
        turn = self.steps // self.pace.stat_interval
        share = self.pace.share(turn + 1)
        before = 0
        if self.counted == self.steps:  # a further part of one step's batch: the first has aged what is older
            share, before = Share(keep=1.0, add=share.add), self._taken
        thinning = self.pace.thinning(turn, before if places is None else 0, places)
        found = additions(
            self.units,
            metric,
            weights,
            calls,
            share=share,
            thinning=thinning,
            any_of=self._any_of,
        )
        if found is None:
            return
        with torch.no_grad(), record_function("kfac::factors"):
            if self._together is not None:
                self._together.begin(found)
            else:
                for addition in found:
                    alone(addition)
        self.counted = self.steps
        self._taken = before + (len(calls[0].inputs) if calls else 0)

    @torch.no_grad()
    def settle(self) -> None:
        """Wait for what other processes add to the newest batch; the factors hold it only then."""
        if self._together is not None:
            self._together.finish()

    @torch.no_grad()
    def refresh_due(self, damping_of: DampingOf) -> list[Unit]:
        """Decompose the units whose turn it is, and those that never were; returns them."""
        self.settle()
        due = [
            unit
            for index, unit in enumerate(self.units)
            if self._decomposer.lacks(unit) or self.pace.is_due(index, len(self.units), steps=self.steps)
        ]
        self.refresh(due, damping_of)
        return due

    @torch.no_grad()
    def refresh(self, units: list[Unit], damping_of: DampingOf) -> None:
        """Decompose some units: with one host read for all that comes out at once, whatever their number.

        Further reads where a rung of the guard ladder fails, and for each eigenbasis, which torch itself looks at.
        """
        self.settle()
        self._count(self._decomposer.refresh(units, damping_of, self.steps))

    def _count(self, reports: Sequence[RefreshReport]) -> None:
        self.refresh_count += len(reports)
        self.retry_count += sum(report.retries for report in reports)
        self.stale_count += sum(report.stale for report in reports)

    def directions(self, units: Sequence[Unit], compute: Callable[[Unit], Tensor]) -> list[Tensor]:
        """Preconditioned gradients of some units, by a function that computes that of one whose inverse is here."""
        return self._decomposer.directions(units, compute)

    def state_dict(self) -> dict[str, Any]:
        """Factors with their masses, inverses in use, phase and counters; where there are ranks, called by all."""
        self.settle()
        self._count(self._decomposer.gather(self.units))
        return {
            "choice": dataclasses.asdict(self.choice),
            "blocks": {unit.name: unit.block.state_dict() for unit in self.units},
            "steps": self.steps,
            "counted": self.counted,
            "counts": [self.refresh_count, self.retry_count, self.stale_count],
        }

    def check(self, state: dict[str, Any]) -> None:
        """Refuse a state that does not fit.

        Raises:
            ValueError: it was made under another choice or for other parameters.
        """
        for name, value in dataclasses.asdict(self.choice).items():
            found = state["choice"][name]
            if name in _SHAPING and found != value:
                raise ValueError(f"this state was made with {name} '{found}', this optimizer has '{value}'")
        names = [unit.name for unit in self.units]
        if sorted(state["blocks"]) != sorted(names):
            raise ValueError(f"this state holds blocks {sorted(state['blocks'])}, the model has {sorted(names)}")
        for unit in self.units:
            unit.check(state["blocks"][unit.name])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave, and `check` has passed; where there are ranks, called by all."""
        self.settle()  # what is under way belongs to what was before
        self._decomposer.gather(self.units)
        for unit in self.units:
            unit.block.load_state_dict(state["blocks"][unit.name])
        self.steps = state["steps"]
        self.asked, self.counted = True, state["counted"]
        self.refresh_count, self.retry_count, self.stale_count = state["counts"]


def _decomposer(ranks: Ranks | None, units: Sequence[Unit], placement: InversePlacement, pace: Pace) -> Decomposer:
    if ranks is None:
        return Here()
    if ranks.servers:
        return Remote(ranks, units, lag=max(1, pace.inverse_interval // 2))
    return Placement(ranks, units, placement)
