"""The process itself: settings that training on CPUs is faster with, which change no result, and its companions.

`tune` must run before torch is imported, which is why the command line calls it first and nothing here imports torch.
"""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_SPINS = "20000"
"""Less than a millisecond."""

_KEPT_BYTES = (1 << 31) - 1  # the largest that mallopt's C int takes


def tune() -> None:
    """Let idle compute threads sleep soon, and keep freed memory for the next update.

    OpenMP's threads spin for milliseconds after each parallel region; on few cores they take them from the emulator's
    threads, which run next (an environment step of 16 Atari games took 1.5 times as long on two cores). Threads that
    sleep at once have to be woken for every operation of an update, which takes a sixth longer. GNU's OpenMP can be
    told how long to spin, others know asleep or awake only. What is already set stays.

    glibc hands blocks above 32 MB, and the top of its heap, back to the system when they are freed; every update would
    then fault its frames' pages in again.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries than glibc may have none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def world_size() -> int:
    """Processes of the job that torchrun started this one in; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))
