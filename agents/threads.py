"""How many CPU threads torch uses, and how work is shared out where none may wait for another."""

import concurrent.futures
import functools
import itertools
import os
from collections.abc import Callable

import torch
from torch import Tensor

from acktr.envs.cpus import usable_cpus


def set_threads(num_threads: int, *, small: bool = False) -> None:
    """Let torch use that many CPU threads.

    Args:
        num_threads: the setting; 0 takes as many cores as this process may run on, or one for a small network, unless
            the environment variable OMP_NUM_THREADS has said how many.
        small: whether the network is an MLP on vectors, whose operations are too short to share out: a second thread
            costs more than it brings, and several times more when the cores have other work.
    """
    torch.set_num_threads(num_threads or (1 if small else _threads_asked_for() or usable_cpus()))


def _threads_asked_for() -> int:
    """What OMP_NUM_THREADS says, 0 if nothing; of a list the outermost level counts."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def summed_over_parts(function: Callable[[slice], tuple[Tensor | None, ...]], rows: int) -> tuple[Tensor | None, ...]:
    """The sums of what a function gives for parts of the rows, one part to each thread of torch's, which runs alone.

    For kernels that share their work out by themselves and have all threads wait for one another again and again, by
    spinning: on cores that another process takes part of, each of those waits lasts until the scheduler's next turn.

    Args:
        function: of a slice of the rows, to tensors or None; called in several threads at once.
        rows: how many there are.
    """
    threads = torch.get_num_threads()
    if threads == 1 or rows < threads:
        return function(slice(0, rows))
    bounds = [rows * part // threads for part in range(threads + 1)]
    parts = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
    torch.set_num_threads(1)
    try:
        others = [_helpers(threads - 1).submit(function, part) for part in parts[1:]]
        sums = list(function(parts[0]))
        for other in others:
            sums = [
                None if total is None or part is None else total.add_(part)
                for total, part in zip(sums, other.result(), strict=True)
            ]
    finally:
        torch.set_num_threads(threads)
    return tuple(sums)


@functools.cache
def _helpers(count: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(count, "acktr", initializer=torch.set_num_threads, initargs=(1,))
