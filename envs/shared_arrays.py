"""Arrays of N environments that several processes see: observations, actions, rewards and the ends of episodes."""

import mmap
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import create_empty_array
from numpy.typing import NDArray

_ALIGNMENT = 64  # bytes: a cache line, so that no two arrays share one


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedArrays:
    """What goes between processes in a step. Observations and actions are as gymnasium batches their spaces.

    Attributes:
        observations: (N, *space), or dictionaries and tuples of such.
        final_observations: likewise, rows meaningful where an episode ended and the environment was reset in the same
            step.
        actions: (N, *space).
        rewards: (N,) float64.
        terminated: (N,) bool.
        truncated: (N,) bool.
    """

    observations: Any
    final_observations: Any
    actions: Any
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]


def size_of(observations: gymnasium.Space[Any], actions: gymnasium.Space[Any], num_envs: int) -> int:
    """Bytes that `map_arrays` needs.

    Raises:
        gymnasium.error.CustomSpaceError, TypeError: a space whose values are no arrays of a fixed shape.
    """
    end = 0

    def measure(shape: Any, dtype: Any = np.float64) -> NDArray[Any]:
        nonlocal end
        end = _after(end, shape, dtype)[1]
        return np.empty(0, dtype=dtype)

    _lay_out(observations, actions, num_envs, measure)
    return max(end, 1)


def map_arrays(
    file: int, observations: gymnasium.Space[Any], actions: gymnasium.Space[Any], num_envs: int
) -> SharedArrays:
    """Map the arrays of an open file of `size_of` bytes; equal arguments give the same memory in every process.

    Args:
        file: its descriptor.
        observations: space of one environment.
        actions: space of one environment.
        num_envs: N.
    """
    memory = mmap.mmap(file, size_of(observations, actions, num_envs))
    end = 0

    def place(shape: Any, dtype: Any = np.float64) -> NDArray[Any]:
        nonlocal end
        start, end = _after(end, shape, dtype)
        return np.ndarray(shape, dtype=dtype, buffer=memory, offset=start)

    return _lay_out(observations, actions, num_envs, place)


def local_arrays(observations: gymnasium.Space[Any], actions: gymnasium.Space[Any], num_envs: int) -> SharedArrays:
    """The same arrays in this process's own memory.

    Raises:
        gymnasium.error.CustomSpaceError, TypeError: a space whose values are no arrays of a fixed shape.
    """
    return _lay_out(observations, actions, num_envs, np.zeros)


def open_file(size: int) -> int:
    """Descriptor of a new file of that many bytes that has no name, so that nothing is left of it after a crash."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("acktr")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, size)
    return file


def rows_of(batch: Any, start: int, stop: int) -> Any:
    """Views of some rows."""
    if isinstance(batch, dict):
        return {name: rows_of(part, start, stop) for name, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(rows_of(part, start, stop) for part in batch)
    return batch[start:stop]


def part_of(arrays: SharedArrays, start: int, stop: int) -> SharedArrays:
    """Views of the rows of some environments."""
    names = SharedArrays.__dataclass_fields__
    return SharedArrays(**{name: rows_of(getattr(arrays, name), start, stop) for name in names})


def write_into(target: Any, source: Any) -> None:
    """Copy a batch, or one row of it, into arrays of the same structure.

    Raises:
        ValueError: another shape.
        TypeError: a dtype that does not fit.
    """
    if isinstance(target, dict):
        for name, part in target.items():
            write_into(part, source[name])
    elif isinstance(target, tuple):
        for part, value in zip(target, source, strict=True):
            write_into(part, value)
    else:
        if np.shape(source) != target.shape:  # a smaller one would be repeated until it fits
            raise ValueError(f"got an array of shape {np.shape(source)} where the space has {target.shape}")
        np.copyto(target, source)


def _lay_out(
    observations: gymnasium.Space[Any],
    actions: gymnasium.Space[Any],
    num_envs: int,
    allocate: Callable[..., NDArray[Any]],
) -> SharedArrays:
    return SharedArrays(
        observations=create_empty_array(observations, num_envs, fn=allocate),
        final_observations=create_empty_array(observations, num_envs, fn=allocate),
        actions=create_empty_array(actions, num_envs, fn=allocate),
        rewards=allocate((num_envs,), np.float64),
        terminated=allocate((num_envs,), np.bool_),
        truncated=allocate((num_envs,), np.bool_),
    )


def _after(end: int, shape: Any, dtype: Any) -> tuple[int, int]:
    """Start and end of the next array behind `end`."""
    start = -(-end // _ALIGNMENT) * _ALIGNMENT
    count = int(np.prod(shape, dtype=np.int64))
    return start, start + count * np.dtype(dtype).itemsize
