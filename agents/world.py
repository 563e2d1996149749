"""The processes of one job as `torchrun` starts them: how they meet, agree, and notice that one of them is gone."""

import contextlib
import datetime
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.profiler import record_function

from acktr.agents.part import Part
from acktr.errors import RunError, UserError
from acktr.kfac.distributed import LostRankError, Ranks
from acktr.process import world_size

T = TypeVar("T")

MARKING_SECONDS = 5.0
"""How long a process that has lost another waits for the others to say that they are there."""


class World:
    """One process among those of its job; the only one unless told otherwise.

    Args:
        ranks: for sums on the policy's device; None for the only process.
        hosts: for sums in the host's memory, by whoever makes the rollouts.
        talk: group for everything else that the hosts of these tell each other.
        everyone: group of all processes, those that only decompose included.
        store: what all processes can reach even when one of them is gone.
    """

    def __init__(
        self,
        ranks: Ranks | None = None,
        hosts: Ranks | None = None,
        talk: dist.ProcessGroup | None = None,
        everyone: dist.ProcessGroup | None = None,
        store: Store | None = None,
    ) -> None:
        self._ranks = ranks
        self._hosts = hosts
        self._talk = talk
        self._everyone = everyone
        self._store = store
        self.rank = 0 if ranks is None else ranks.rank
        self.size = 1 if ranks is None else ranks.size

    @property
    def is_alone(self) -> bool:
        """Whether this is the only process."""
        return self._ranks is None

    @property
    def serves(self) -> bool:
        """Whether this process has no environments and only decomposes for the others."""
        return self._ranks is not None and self._ranks.server is not None

    @property
    def leads(self) -> bool:
        """Whether this process writes the run folder and speaks for the job."""
        return self.rank == 0

    @property
    def ranks(self) -> Ranks | None:
        """The processes, for sums on the policy's device; None of the only one."""
        return self._ranks

    def part(self, num_envs: int) -> Part:
        """This process's part of every batch.

        Raises:
            UserError: fewer environments than processes.
        """
        if self._ranks is None or self._hosts is None:
            return Part.whole(num_envs)
        if num_envs < self.size:
            raise UserError(f"{num_envs} environments are too few for {self.size} processes; raise --num-envs")
        return Part.share(num_envs, self._ranks, self._hosts)

    def device(self, chosen: torch.device) -> torch.device:
        """The device for this process where `chosen` suits the job: with several GPUs in a machine, each its own.

        Raises:
            UserError: more processes than GPUs in this machine.
        """
        if self.is_alone or chosen.type != "cuda":
            return chosen
        own, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if own >= count:
            raise UserError(
                f"process {own} of this machine has no GPU of its own, torch sees {count}; start at most that many "
                "processes per machine, or use --device cpu"
            )
        torch.cuda.set_device(own)
        return torch.device("cuda", own)

    def gather(self, thing: T) -> list[T]:
        """What every process with environments gives, by rank, on all of them."""
        return [thing] if self.is_alone else _gathered(thing, self._talk)

    def led(self, function: Callable[[], T], *, by_all: bool = False) -> T:
        """What the leading process's call of a function returns; no other calls it.

        Args:
            function: may raise what is named below.
            by_all: whether processes that only decompose are to know it, too.

        Raises:
            UserError: it did there. The other processes end in silence.
        """
        if self.is_alone:
            return function()
        told: list[Any] = [None, None]
        failure: Exception | None = None
        if self.leads:
            try:
                told = [function(), None]
            except (UserError, RunError) as error:
                failure, told = error, [None, 2 if isinstance(error, UserError) else 1]
        with LostRankError.watched():
            dist.broadcast_object_list(told, src=0, group=self._everyone if by_all else self._talk)
        if failure is not None:
            raise failure
        result, code = told
        if code is not None:
            raise SystemExit(code)
        return result  # type: ignore[no-any-return]

    def agree(self, settings: Mapping[str, Any], *, apart_from: tuple[str, ...] = ()) -> None:
        """Make sure that all processes have the same settings.

        Args:
            settings: by name.
            apart_from: names of those that may differ.

        Raises:
            UserError: they differ.
        """
        own = {name: value for name, value in settings.items() if name not in apart_from}
        everyone = [own] if self.is_alone else _gathered(own, self._everyone)
        for rank, others in enumerate(everyone):
            for name in sorted(set(everyone[0]) | set(others)):
                if everyone[0].get(name) != others.get(name):
                    raise UserError(_disagreement(name, everyone[0].get(name), others.get(name), rank))

    def loss(self, error: LostRankError) -> RunError:
        """What to say when others cannot be reached: which ones those are, as far as the rest can tell."""
        assert self._store is not None
        number, total = dist.get_rank(), dist.get_world_size()
        missing: set[int] = set()
        try:
            self._store.set(str(number), socket.gethostname())
            with contextlib.suppress(RuntimeError):  # of the error that is being reported
                dist.destroy_process_group()  # so that those that wait for this process know, too
            missing = set(range(total)) - {number}
            until = time.monotonic() + MARKING_SECONDS
            while missing and time.monotonic() < until:
                missing = {rank for rank in missing if not self._store.check([str(rank)])}
                time.sleep(0.05)
        except RuntimeError as gone:  # the process that held the store
            return RunError(f"the ranks lost one another ({error}; {' '.join(str(gone).split())[:80]})")
        lost = ", ".join(map(str, sorted(missing)))
        who = f"rank {lost} of {total} ended or did not answer" if missing else "the ranks lost one another"
        return RunError(f"{who} ({error})")


def _gathered(thing: T, group: dist.ProcessGroup | None) -> list[T]:
    found: list[Any] = [None] * dist.get_world_size(group)
    with record_function("acktr::communication"), LostRankError.watched():
        dist.all_gather_object(found, thing, group=group)
    return found


@contextlib.contextmanager
def joined(timeout: float, *, curvature_ranks: int = 0) -> Iterator[World]:
    """The world that this process belongs to, by the environment variables that `torchrun` sets.

    Args:
        timeout: seconds after which a process that does not answer counts as lost.
        curvature_ranks: how many of the processes, the last ones, only decompose.

    Raises:
        UserError: that leaves none for the environments, or the processes disagree on it.
        RunError: the processes did not meet, or lost one another, which `LostRankError` says inside.
    """
    total = world_size()
    if curvature_ranks and total <= curvature_ranks:
        raise UserError(
            f"curvature_ranks {curvature_ranks} of {total} processes leave none for the environments; start more by "
            "torchrun --nproc-per-node"
        )
    if total == 1:
        yield World()
        return
    shared, rank, size = next(rendezvous("env://"))
    # torchrun may keep its store when it starts a job anew, with the addresses of processes that are no more
    store = PrefixStore(f"acktr/{restarts()}", shared)
    patience = datetime.timedelta(seconds=timeout)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    with _meeting(total, timeout):
        _agree_on_servers(store, rank, size, curvature_ranks)
        groups = PrefixStore("groups", store)
        dist.init_process_group(backend, store=groups, rank=rank, world_size=size, timeout=patience)
    try:
        workers = list(range(size - curvature_ranks))
        sums = dist.new_group(workers, timeout=patience)
        hosts, talk = (dist.new_group(workers, backend="gloo", timeout=patience) for _ in range(2))
        everyone = dist.new_group(backend="gloo", timeout=patience)
        servers = [(dist.new_group([*workers, one], timeout=patience), one) for one in range(len(workers), size)]
        number = rank - len(workers) if rank >= len(workers) else None
        ranks = Ranks(sums, servers=servers, server=number)
        own_hosts = None if number is not None else Ranks(hosts)
        world = World(ranks, own_hosts, talk, everyone, PrefixStore("here", store))
        try:
            yield world
        except LostRankError as error:
            raise world.loss(error) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def _meeting(total: int, timeout: float) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            f"the {total} processes did not meet within {timeout:g} s ({' '.join(str(error).split())[:120]}); see what "
            "the others say, or raise --rank-timeout"
        ) from error


def _agree_on_servers(store: Store, rank: int, size: int, curvature_ranks: int) -> None:
    """Before the groups are made, which follow from it: processes with other ideas would wait for each other.

    Raises:
        UserError: the processes disagree.
    """
    store.set(f"curvature_ranks/{rank}", str(curvature_ranks))
    told = [int(store.get(f"curvature_ranks/{other}")) for other in range(size)]
    store.set(f"curvature_ranks/{rank}/read", "")
    for other, number in enumerate(told):
        if number != told[0]:
            if rank == 0:  # the store may be this process's: all others have to read before it ends
                with contextlib.suppress(RuntimeError):  # of one that is gone, which says so itself
                    store.wait([f"curvature_ranks/{one}/read" for one in range(size)])
            raise UserError(_disagreement("curvature_ranks", told[0], number, other))


def _disagreement(name: str, first: object, other: object, rank: int) -> str:
    return (
        f"the processes disagree on '{name}': {first} on rank 0, {other} on rank {rank}; start all of them with the "
        "same command and version"
    )


def restarts() -> int:
    """How often `torchrun` has started this job anew after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def may_restart() -> bool:
    """Whether `torchrun` was told to start the job anew after a failure."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
