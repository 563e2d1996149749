"""Spaces as plain values, for files that a policy is loaded from without its environment."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from acktr.errors import UserError


def space_to_dict(space: gymnasium.Space[Any]) -> dict[str, Any]:
    """A Box or Discrete space as plain values; equal bounds are written once.

    Raises:
        UserError: any other space.
    """
    if isinstance(space, Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, Box):
        return {
            "type": "Box",
            "shape": list(space.shape),
            "dtype": str(np.dtype(space.dtype)),
            "low": _bound(space.low),
            "high": _bound(space.high),
        }
    raise UserError(f"space {space} cannot be saved: Box and Discrete spaces can")


def space_from_dict(values: Mapping[str, Any]) -> gymnasium.Space[Any]:
    """Undo `space_to_dict`.

    Raises:
        UserError: values that describe no space.
    """
    try:
        if values["type"] == "Discrete":
            return Discrete(int(values["n"]), start=int(values["start"]))
        if values["type"] == "Box":
            shape, dtype = tuple(values["shape"]), np.dtype(values["dtype"])
            low, high = (np.broadcast_to(np.asarray(values[name], dtype), (_size(shape),)) for name in ("low", "high"))
            return Box(low.reshape(shape), high.reshape(shape), shape, dtype.type)
    except (KeyError, TypeError, ValueError, AssertionError, MemoryError) as error:
        raise UserError(f"a saved space does not read: {error!r}; the file is damaged") from error
    raise UserError(f"a saved space is of type {values['type']!r}, which this version does not know; upgrade acktr")


def _bound(bound: Any) -> Any:
    flat = np.asarray(bound).reshape(-1)
    return flat[0].item() if flat.size and (flat == flat[0]).all() else flat.tolist()


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
