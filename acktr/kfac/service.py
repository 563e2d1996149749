"""Processes that do nothing but decompose: the curvature nodes of Ba, Grosse & Martens (2017, section 5).

The ranks that hold the batches, the workers, send a server the factors of the blocks that are due and go on; they take
what it made of them into use a fixed number of steps later, waiting for it where it is late. So an inverse is older by
that many steps, always, and a run does not depend on who was quick. A block that has no inverse yet is waited for.
"""

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from acktr.kfac.averages import RunningAverage
from acktr.kfac.blocks import Decomposed, RefreshReport
from acktr.kfac.decomposers import DampingOf, decomposed
from acktr.kfac.distributed import LostRankError, Ranks, owners, packed, unpacked
from acktr.kfac.kronecker import KroneckerBlock
from acktr.kfac.placement import message_of, read_messages, refresh_cost
from acktr.kfac.small_blocks import FullBlock
from acktr.kfac.sums import Sum
from acktr.kfac.units import Unit, WeightUnit, statistics_dtype

_STOP = -1


class _Request(NamedTuple):
    """What a server was asked for."""

    step: int
    units: list[Unit]
    answer: Tensor
    work: dist.Work
    sent: list[tuple[Tensor, dist.Work]]


class Remote:
    """A worker's side.

    Args:
        ranks: the workers, with their servers.
        units: of the model, the same on all processes.
        lag: steps between a request and its use.

    Raises:
        ValueError: a curvature whose statistics need the decomposition.
    """

    def __init__(self, ranks: Ranks, units: Sequence[Unit], lag: int) -> None:
        self._ranks = ranks
        self._units = list(units)
        self._lag = lag
        self._index = ranks.register()
        self._server = _assigned(units, len(ranks.servers))
        self._pending: collections.deque[_Request] = collections.deque()

    def lacks(self, unit: Unit) -> bool:
        """Whether no answer about it has come."""
        return unit.block.missing == "inverse"

    def refresh(self, units: Sequence[Unit], damping_of: DampingOf, step: int) -> list[RefreshReport]:
        """Take what is old enough into use, and ask for what is due."""
        reports: list[RefreshReport] = []
        while self._pending and self._pending[0].step + self._lag <= step:
            reports += self._adopt(self._pending.popleft())
        known = [unit for unit in units if unit.block.missing != "statistics"]
        for number in range(len(self._ranks.servers)):
            own = [unit for unit in known if self._server[id(unit)] == number]
            if own:
                self._pending.append(self._ask(number, own, damping_of, step))
        reports += decomposed([unit for unit in known if id(unit) not in self._server], damping_of)
        if any(unit.block.missing == "inverse" for unit in known):
            reports += self._drain()
        return reports

    def gather(self, units: Sequence[Unit]) -> list[RefreshReport]:
        """Take into use whatever was asked for: a checkpoint holds no requests."""
        return self._drain()

    def directions(self, units: Sequence[Unit], compute: Callable[[Unit], Tensor]) -> list[Tensor]:
        """Compute them here."""
        return [compute(unit) for unit in units]

    def _drain(self) -> list[RefreshReport]:
        reports: list[RefreshReport] = []
        while self._pending:
            reports += self._adopt(self._pending.popleft())
        return reports

    def _ask(self, number: int, units: list[Unit], damping_of: DampingOf, step: int) -> _Request:
        group, server = self._ranks.servers[number]
        sent: list[tuple[Tensor, dist.Work]] = []
        if self._ranks.rank == 0:
            due = {id(unit) for unit in units}
            damping = [float(damping_of(unit)) if id(unit) in due else torch.nan for unit in self._units]
            values = [packed(Sum(value, symmetric=True)) for unit in units for value in _values(unit)]
            factors = torch.cat(values).to(_dtype(self._units))
            head = torch.tensor([self._index], device=factors.device)
            for message in (head, factors.new_tensor(damping), factors):
                with LostRankError.watched():
                    work = dist.isend(message, dst=server, group=group)
                assert work is not None
                sent.append((message, work))
                self._ranks.count(message, kind="requests")
        answer = torch.cat([message_of(unit, None) for unit in units])
        with LostRankError.watched():
            work = dist.broadcast(answer, src=server, group=group, async_op=True)
        assert work is not None
        return _Request(step, units, answer, work, sent)

    def _adopt(self, request: _Request) -> list[RefreshReport]:
        for _, work in request.sent:
            self._ranks.wait(work)
        self._ranks.wait(request.work)
        reports = []
        for unit, (report, parts) in zip(request.units, read_messages(request.units, request.answer), strict=True):
            assert isinstance(unit.block, Decomposed)
            if not report.stale:
                unit.block.adopt(parts)
            reports.append(report)
        return reports


def serve(ranks: Ranks, models: Sequence[Sequence[Unit]]) -> None:
    """A server's side: decompose what the workers send until they have enough.

    Args:
        ranks: with this process among its servers.
        models: the units of each optimizer, in the order of their making.

    Raises:
        LostRankError: the workers are gone.
    """
    number = ranks.server
    assert number is not None
    group, me = ranks.servers[number]
    device = models[0][0].parameters[0].device
    head = torch.empty(1, dtype=torch.int64, device=device)
    while (index := int(_received(head, group))) != _STOP:
        units = models[index]
        like = torch.empty(0, device=device, dtype=_dtype(units))
        assigned = _assigned(units, len(ranks.servers))
        damping = _received(like.new_empty(len(units)), group)
        own = {
            id(unit): value
            for unit, value in zip(units, damping.tolist(), strict=True)
            if value == value and assigned.get(id(unit)) == number
        }
        due = [unit for unit in units if id(unit) in own]
        items = [Sum(like.new_empty(shape), symmetric=True) for unit in due for shape in _shapes(unit)]
        flat = _received(like.new_empty(sum(packed(item).numel() for item in items)), group)
        values = unpacked(flat, items)
        for unit in due:
            for average in _averages(unit):
                average.value = next(values).to(statistics_dtype(unit.parameters[0]))
                average.mass = average.value.new_ones(())
        reports = decomposed(due, _by_identity(own))
        answer = torch.cat([message_of(unit, report) for unit, report in zip(due, reports, strict=True)])
        with LostRankError.watched():
            dist.broadcast(answer, src=me, group=group)


def dismiss(ranks: Ranks, device: torch.device) -> None:
    """Tell the servers that no more requests will come; called by all workers after their last checkpoint."""
    if ranks.rank == 0:
        for group, server in ranks.servers:
            with LostRankError.watched():
                dist.send(torch.tensor([_STOP], device=device), dst=server, group=group)


def _by_identity(damping: Mapping[int, float]) -> DampingOf:
    return lambda unit: damping[id(unit)]


def _received(room: Tensor, group: dist.ProcessGroup) -> Tensor:
    with LostRankError.watched():
        dist.recv(room, src=0, group=group)
    return room


def _assigned(units: Sequence[Unit], servers: int) -> dict[int, int]:
    """Which server decomposes which unit, by its identity; small ones without a decomposition are nobody's."""
    remote = [unit for unit in units if isinstance(unit.block, Decomposed)]
    for unit in remote:
        if not isinstance(unit.block, KroneckerBlock | FullBlock):
            raise ValueError(
                "curvature_ranks need curvature kfac or kfoc and structure block-diagonal: statistics of "
                f"{unit.name} need its decomposition"
            )
    found = owners([refresh_cost(unit) for unit in remote], servers)
    return {id(unit): server for unit, server in zip(remote, found, strict=True)}


def _averages(unit: Unit) -> list[RunningAverage]:
    block = unit.block
    assert isinstance(block, KroneckerBlock | FullBlock)
    return [block.moment] if isinstance(block, FullBlock) else [block.inputs, block.outputs]


def _values(unit: Unit) -> list[Tensor]:
    return [average.value for average in _averages(unit) if average.value is not None]


def _shapes(unit: Unit) -> list[tuple[int, int, int]]:
    if isinstance(unit.block, FullBlock):
        size = unit.matrix([torch.empty_like(parameter) for parameter in unit.parameters]).numel()
        return [(1, size, size)]
    assert isinstance(unit, WeightUnit)
    groups, rows, columns = unit.map.matrix_shape
    return [(groups, columns, columns), (groups, rows, rows)]


def _dtype(units: Sequence[Unit]) -> torch.dtype:
    """That holds the statistics of all."""
    dtypes = [statistics_dtype(parameter) for unit in units for parameter in unit.parameters]
    return functools.reduce(torch.promote_types, dtypes)
