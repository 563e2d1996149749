"""Batches of observations: one array, or, for a Dict, one array a key."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

ObservationBatch = NDArray[Any] | dict[str, NDArray[Any]]
"""(N, *obs), or (N, *obs) of each key."""


def map_leaves(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Call a function on an array or tensor, or key by key on dictionaries of the same keys, and keep the form."""
    if isinstance(first, dict):
        return {name: function(leaf, *(other[name] for other in others)) for name, leaf in first.items()}
    return function(first, *others)


def leaves(batch: Any) -> list[Any]:
    """The arrays or tensors of a batch, in the order of its keys."""
    return list(batch.values()) if isinstance(batch, dict) else [batch]


def leaf_spaces(space: gymnasium.Space[Any]) -> dict[str, gymnasium.Space[Any]]:
    """The spaces inside nested Dict and Tuple spaces by their path; one that is neither has the path "".

    Paths are the keys, for a Tuple the positions, joined by slashes. Two leaves of one path stand as one here.
    """
    return {"/".join(map(str, path)): leaf for path, leaf in leaf_paths(space)}


def leaf_paths(space: gymnasium.Space[Any]) -> list[tuple[tuple[Any, ...], gymnasium.Space[Any]]]:
    """The keys and positions that lead to each leaf of nested Dict and Tuple spaces, and the leaf."""
    inner: list[tuple[Any, gymnasium.Space[Any]]]
    if isinstance(space, spaces.Dict):
        inner = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        inner = list(enumerate(space.spaces))
    else:
        return [((), space)]
    return [((key, *path), leaf) for key, part in inner for path, leaf in leaf_paths(part)]


def follow(batch: Any, path: Sequence[Any]) -> Any:
    """What a batch, nested as its space, holds at a path of `leaf_paths`."""
    for key in path:
        batch = batch[key]
    return batch


def gather_rows(space: gymnasium.Space[Any], batch: Any, rows: NDArray[np.intp]) -> Any:
    """Some rows of a batch, nested as its space, from either layout that vector environments give.

    Args:
        space: of a single environment.
        batch: arrays (N, *obs) nested as the space, or N observations one by one.
        rows: (n,) which.

    Returns:
        A batch of n rows; None where one of N observations is missing.
    """
    if isinstance(space, spaces.Dict) and isinstance(batch, Mapping):
        return {name: gather_rows(part, batch[name], rows) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple) and isinstance(batch, tuple) and len(batch) == len(space.spaces):
        return tuple(gather_rows(part, batch[index], rows) for index, part in enumerate(space.spaces))
    observations = [batch[row] for row in rows]
    return None if any(observation is None for observation in observations) else _stack(space, observations)


def _stack(space: gymnasium.Space[Any], observations: Sequence[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {name: _stack(part, [row[name] for row in observations]) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_stack(part, [row[index] for row in observations]) for index, part in enumerate(space.spaces))
    return np.stack(observations)
