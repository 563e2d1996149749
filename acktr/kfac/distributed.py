"""Sums over a batch whose parts lie with several processes of torch.distributed (Ba, Grosse & Martens 2017).

Every process keeps the whole curvature and makes the same step; it is the batch that is divided. So what travels are
sums over examples: of the factors, packed as triangles into a few buckets while the training loss is still on its way
back through the network, of gradients and of figures.
"""

import collections
import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from acktr.kfac.sums import Sum, Sums

BUCKET_BYTES = 25 * 2**20
"""Of one message, as torch's DistributedDataParallel has it: large enough to hide latency, small enough to overlap."""

_STRIP = 64
"""Rows that a triangle is cut into: few copies, and little more than the half of a wide matrix."""


class LostRankError(RuntimeError):
    """Another process has ended, or did not answer in time."""

    @classmethod
    @contextlib.contextmanager
    def watched(cls) -> Iterator[None]:
        """For a collective operation of torch.distributed, which raises a RuntimeError then."""
        try:
            yield
        except RuntimeError as error:
            raise cls(" ".join(str(error).split())[:200]) from error


@dataclasses.dataclass(frozen=True, slots=True)
class _Message:
    """A bucket on its way, and what lies where in it."""

    work: dist.Work
    flat: Tensor
    sums: list[Sum]


class Ranks:
    """The processes that hold the parts of each batch.

    Args:
        group: of torch.distributed; None for all processes.
        servers: of processes that only decompose, a group of all of these ranks and one of those each, and its rank
            among all processes (`acktr.kfac.service`).
        server: which of them this process is; None of a rank that holds a part of the batches.

    Attributes:
        rank: of this process among them.
        size: their number.
        bytes_sent: what each message's kind has put on the wire so far, by name, in bytes of one process's copy.
        messages_sent: their number, likewise.

    Raises:
        RuntimeError: torch.distributed has not been initialised.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        *,
        servers: Sequence[tuple[dist.ProcessGroup, int]] = (),
        server: int | None = None,
    ) -> None:
        if not dist.is_initialized():
            raise RuntimeError("torch.distributed is not initialised: call init_process_group first")
        self._group = group
        self._registered = 0
        self.servers = tuple(servers)
        self.server = server
        self.rank = dist.get_rank(group) if server is None else -1
        self.size = dist.get_world_size(group) if server is None else 0
        by_host = server is not None or "gloo" in str(dist.get_backend_config(group))
        self._host = torch.device("cpu" if by_host or not torch.cuda.is_available() else "cuda")
        self.bytes_sent: collections.Counter[str] = collections.Counter()
        self.messages_sent: collections.Counter[str] = collections.Counter()

    def register(self) -> int:
        """A number for one more user of the servers: optimizers are made in the same order by all processes."""
        self._registered += 1
        return self._registered - 1

    def count(self, message: Tensor, *, kind: str) -> None:
        """Note a message that leaves."""
        self.bytes_sent[kind] += message.numel() * message.element_size()
        self.messages_sent[kind] += 1

    def add_up(self, tensors: Sequence[Tensor], *, kind: str) -> list[Tensor]:
        """The sums of tensors, of the same shapes on all ranks, over the ranks; waits for them."""
        exchange = Exchange(self, kind=kind)
        exchange.send([Sum(tensor) for tensor in tensors])
        return exchange.received()

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Whether a thing holds on any rank, for each of several; waits, in the host's memory where the group can."""
        told = torch.tensor(flags, dtype=torch.float32, device=self._host)
        self.count(told, kind="figures")
        with record_function("kfac::communication"), LostRankError.watched():
            dist.all_reduce(told, group=self._group)
        return [value > 0 for value in told.tolist()]

    def start_sum(self, flat: Tensor, *, kind: str) -> dist.Work:
        """Begin to add up a tensor in its place; `wait` for what is returned."""
        self.count(flat, kind=kind)
        with LostRankError.watched():
            work: dist.Work = dist.all_reduce(flat, group=self._group, async_op=True)
        return work

    def broadcast(self, flat: Tensor, *, source: int, kind: str) -> dist.Work:
        """Begin to overwrite a tensor by that of the rank `source`."""
        self.count(flat, kind=kind)
        root = source if self._group is None else dist.get_global_rank(self._group, source)
        with LostRankError.watched():
            work: dist.Work = dist.broadcast(flat, src=root, group=self._group, async_op=True)
        return work

    def wait(self, work: dist.Work) -> None:
        """Until a message has arrived.

        Raises:
            LostRankError: it never will.
        """
        with record_function("kfac::communication"), LostRankError.watched():
            work.wait()


class Exchange:
    """Sums that travel together, in as few messages as buckets are filled.

    Args:
        ranks: that add them up.
        kind: name for the count of bytes.
    """

    def __init__(self, ranks: Ranks, *, kind: str) -> None:
        self._ranks = ranks
        self._kind = kind
        self._waiting: list[Sum] = []
        self._bytes = 0
        self._messages: list[_Message] = []

    def send(self, sums: Sequence[Sum]) -> None:
        """Add sums; full buckets leave at once."""
        for item in sums:
            total = item.total
            if self._waiting and not _fit_together(total, self._waiting[0].total):
                self._leave()
            self._waiting.append(item)
            self._bytes += _entries(item) * total.element_size()
            if self._bytes >= BUCKET_BYTES:
                self._leave()

    def received(self) -> list[Tensor]:
        """Everything that was sent, added up over the ranks and in the order of sending."""
        if self._waiting:
            self._leave()
        found: list[Tensor] = []
        for message in self._messages:
            self._ranks.wait(message.work)
            found.extend(unpacked(message.flat, message.sums))
        self._messages = []
        return found

    def _leave(self) -> None:
        flat = torch.cat([packed(item) for item in self._waiting])
        work = self._ranks.start_sum(flat, kind=self._kind)
        self._messages.append(_Message(work, flat, self._waiting))
        self._waiting, self._bytes = [], 0


class Together:
    """Runs computations in step with the other ranks', which run the same ones on their parts of the batch.

    Args:
        ranks: the processes.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._running: list[tuple[Sums[None], int]] = []
        self._exchange: Exchange | None = None

    def begin(self, computations: Sequence[Sums[None]]) -> None:
        """Run each up to its first sums, which leave meanwhile."""
        self.finish()
        self._exchange = Exchange(self._ranks, kind="factors")
        for computation in computations:
            self._advance(computation, None)

    def finish(self) -> None:
        """Wait for the sums, and run all computations to their ends."""
        while self._exchange is not None and self._running:
            received = iter(self._exchange.received())
            running, self._running = self._running, []
            self._exchange = Exchange(self._ranks, kind="factors")
            for computation, number in running:
                self._advance(computation, list(itertools.islice(received, number)))
        self._exchange = None

    def _advance(self, computation: Sums[None], totals: list[Tensor] | None) -> None:
        assert self._exchange is not None
        try:
            sums = next(computation) if totals is None else computation.send(totals)
        except StopIteration:
            return
        self._running.append((computation, len(sums)))
        self._exchange.send(sums)


def owners(costs: Sequence[float], ranks: int) -> list[int]:
    """Which rank does which piece of work: longest first, each to the rank that has least to do (Graham 1969).

    Args:
        costs: of the pieces, in any unit.
        ranks: number of ranks, at least 1.

    Returns:
        A rank for each piece, the same on every process.
    """
    loads = [0.0] * ranks
    found = [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        rank = min(range(ranks), key=lambda index: (loads[index], index))
        found[piece] = rank
        loads[rank] += costs[piece]
    return found


def _fit_together(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device


def _entries(item: Sum) -> int:
    if not item.symmetric:
        return item.total.numel()
    return packed_entries(*item.total.shape[:2])


def packed_entries(groups: int, width: int) -> int:
    """Numbers that travel of (groups, width, width) symmetric matrices."""
    return groups * sum((stop - start) * (width - start) for start, stop in _strips(width))


def packed(item: Sum) -> Tensor:
    """A flat message of a sum: of symmetric matrices a little more than one triangle."""
    if not item.symmetric:
        return item.total.flatten()
    matrices = item.total
    strips = _strips(matrices.shape[-1])
    return torch.cat([matrices[:, start:stop, start:].flatten() for start, stop in strips])


def unpacked(flat: Tensor, sums: Sequence[Sum]) -> Iterator[Tensor]:
    """What messages one behind another hold, in the shapes of these sums, symmetric ones in their memory."""
    parts = torch.split(flat, [_entries(item) for item in sums])
    for item, part in zip(sums, parts, strict=True):
        yield _from_strips(part, item.total) if item.symmetric else part.view(item.total.shape).to(item.total)


def _from_strips(flat: Tensor, matrices: Tensor) -> Tensor:
    """Overwrite (b, n, n) by the symmetric matrices that strips of them hold."""
    place, width = 0, matrices.shape[-1]
    for start, stop in _strips(width):
        strip = flat[place : place + matrices.shape[0] * (stop - start) * (width - start)]
        place += strip.numel()
        strip = strip.view(matrices.shape[0], stop - start, width - start)
        matrices[:, start:stop, start:] = strip
        matrices[:, start:, start:stop] = strip.mT
    return matrices


def _strips(width: int) -> list[tuple[int, int]]:
    """Rows of a matrix by strips, of which what is left of the diagonal blocks stays behind."""
    return [(start, min(start + _STRIP, width)) for start in range(0, width, _STRIP)]
