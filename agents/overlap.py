"""Acting and learning at the same time: the next batch is collected while the last one is learnt from.

Every batch but the first was made by the parameters that the policy had one update before it is learnt from: exactly
one, however fast either side is, so that a run does not depend on the timing of threads.
"""

import contextlib
import copy
import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from acktr.agents.collector import Collected, Collector
from acktr.agents.policy import ActorCritic


class OverlappedCollector:
    """Collects on a thread of its own, and on CUDA on a stream of its own, with a copy of the policy.

    Args:
        collector: what it collects with, of two buffers; no other thread may use it, or the environments, between
            `next` and `settle`.
        policy: the one that is trained.
    """

    def __init__(self, collector: Collector, policy: ActorCritic) -> None:
        self._collector = collector
        self._policy = policy
        self._actor = copy.deepcopy(policy)
        self._device = next(policy.parameters()).device
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        # how many threads torch uses is told to each thread that calls it
        self._thread = ThreadPoolExecutor(1, "acktr-collect", torch.set_num_threads, (torch.get_num_threads(),))
        self._pending: Future[Collected] | None = None

    def next(self) -> Collected:
        """Wait for the batch that is being collected, and begin the one after it with the parameters as they are now.

        Raises:
            RunError: as `Collector.collect`.
        """
        if self._pending is None:
            self._begin()
        assert self._pending is not None
        pending, self._pending = self._pending, None
        collected = pending.result()
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._begin()
        return dataclasses.replace(collected, batch=dataclasses.replace(collected.batch, is_on_policy=False))

    def settle(self) -> None:
        """Wait until nothing is being collected; what was, be it a failure, stays for `next`."""
        if self._pending is not None:
            self._pending.exception()

    def discard(self) -> None:
        """Wait until nothing is being collected, and forget it: the environments start afresh, or are closed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.exception()

    @torch.no_grad()
    def _begin(self) -> None:
        for mine, theirs in zip(self._actor.parameters(), self._policy.parameters(), strict=True):
            mine.copy_(theirs)
        for kept, moved in zip(self._actor.buffers(), self._policy.buffers(), strict=True):
            kept.copy_(moved)
        if self._stream is not None:
            # behind the copies, and behind all that reads the batch before last, whose memory is written again
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._pending = self._thread.submit(self._collect)

    def _collect(self) -> Collected:
        stream = contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with stream:
            return self._collector.collect(self._actor)
