"""Settings of the process itself that training on CPUs is faster with; they change no result.

Must run before torch is imported, which is why the command line calls it first and nothing here imports torch.
"""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = (1 << 31) - 1  # the largest that mallopt's C int takes


def tune() -> None:
    """Let idle compute threads sleep, and keep freed memory for the next update.

    OpenMP's threads spin for some time after each parallel region; on few cores they take them from the emulator's
    threads, which run next (an environment step of 16 Atari games took 1.5 times as long on two cores). A value of
    `OMP_WAIT_POLICY` that is already set stays.

    glibc hands blocks above 32 MB, and the top of its heap, back to the system when they are freed; every update would
    then fault its frames' pages in again.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries than glibc may have none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
