"""Wall time by phase, from the labels that the package's code carries for torch's profiler.

The profiler itself takes a sixth of the time of an update of many short operations.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from torch.profiler import record_function

Laps = list[dict[str, float]]
"""Seconds of each training iteration by the path of the labels open at a time, "outer/inner"; "" is under none."""


class PhaseClock:
    """Wall time by the labels open at a time, called as torch's `record_function` is.

    Each moment belongs to the innermost label alone, so the times of a lap add up to its length. Labels of other
    threads than the one that started it are not heard.

    Args:
        synchronize: waits for the device.
        now: seconds.

    Attributes:
        laps: of each training iteration.
    """

    def __init__(
        self, synchronize: Callable[[], None] = lambda: None, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.laps: Laps = []
        self._synchronize = synchronize
        self._now = now
        self._open: list[str] = []
        self._lap: dict[str, float] = {}
        self._last = 0.0
        self._thread = threading.get_ident()

    def start(self) -> None:
        """Begin the first lap."""
        self._thread = threading.get_ident()
        self._synchronize()
        self._last = self._now()
        self._lap = {}

    def lap(self) -> None:
        """End a lap and begin the next."""
        self._switch()
        self.laps.append(self._lap)
        self._lap = {}

    @contextlib.contextmanager
    def __call__(self, label: str, args: str | None = None) -> Iterator[None]:
        """Time what is inside as `label`."""
        if threading.get_ident() != self._thread:
            yield
            return
        self._switch()
        self._open.append(label)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def _switch(self) -> None:
        self._synchronize()
        now = self._now()
        path = "/".join(self._open)
        self._lap[path] = self._lap.get(path, 0.0) + now - self._last
        self._last = now


@contextlib.contextmanager
def clocked(clock: PhaseClock) -> Iterator[None]:
    """Let the clock take the place of torch's `record_function` in all of this project's modules."""
    modules = [vars(module) for name, module in sys.modules.items() if name.partition(".")[0] == "acktr"]
    holders = [names for names in modules if names.get("record_function") is record_function]
    readers = [(names, names["labels_are_read"]) for names in holders if "labels_are_read" in names]
    for names in holders:
        names["record_function"] = clock
    for names, _ in readers:
        names["labels_are_read"] = lambda: True
    try:
        yield
    finally:
        for names in holders:
            names["record_function"] = record_function
        for names, before in readers:
            names["labels_are_read"] = before
