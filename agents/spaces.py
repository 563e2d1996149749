"""Spaces as plain values, for files that a policy is loaded from without its environment."""

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from acktr.errors import UserError


def space_to_dict(space: gymnasium.Space[Any]) -> dict[str, Any]:
    """A space as plain values: Box, Discrete, MultiDiscrete, MultiBinary or a Dict; equal bounds are written once.

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
    if isinstance(space, MultiDiscrete):
        return {
            "type": "MultiDiscrete",
            "shape": list(space.shape),
            "nvec": space.nvec.reshape(-1).tolist(),
            "start": _bound(space.start),
        }
    if isinstance(space, MultiBinary):
        return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    if isinstance(space, Dict):
        return {"type": "Dict", "spaces": {str(name): space_to_dict(part) for name, part in space.spaces.items()}}
    raise UserError(
        f"space {space} cannot be saved: Box, Discrete, MultiDiscrete, MultiBinary and Dict spaces of them can"
    )


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
        if values["type"] == "MultiDiscrete":
            shape, nvec = tuple(values["shape"]), np.asarray(values["nvec"], np.int64)
            start = np.broadcast_to(np.asarray(values["start"], np.int64), nvec.shape)
            return MultiDiscrete(nvec.reshape(shape), start=start.reshape(shape))
        if values["type"] == "MultiBinary":
            count = values["n"]
            return MultiBinary([int(size) for size in count] if isinstance(count, list) else int(count))
        if values["type"] == "Dict":
            return Dict({str(name): space_from_dict(part) for name, part in values["spaces"].items()})
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, MemoryError, OverflowError) as error:
        raise UserError(f"a saved space does not read: {error!r}; the file is damaged") from error
    raise UserError(f"a saved space is of type {values['type']!r}, which this version does not know; upgrade acktr")


def alike(one: gymnasium.Space[Any], other: gymnasium.Space[Any]) -> bool:
    """Whether a policy for one space takes the other: of the same kind and size; ranges of numbers may differ."""
    if isinstance(one, Dict) and isinstance(other, Dict):
        keys = one.spaces.keys()
        return keys == other.spaces.keys() and all(alike(one.spaces[key], other.spaces[key]) for key in keys)
    if type(one) is not type(other) or one.shape != other.shape:
        return False
    if isinstance(one, MultiDiscrete) and isinstance(other, MultiDiscrete):
        return bool((one.nvec == other.nvec).all())
    return not (isinstance(one, Discrete) and isinstance(other, Discrete)) or one.n == other.n


def first_difference(
    name: str,
    one: gymnasium.Space[Any],
    other: gymnasium.Space[Any],
    same: Callable[[gymnasium.Space[Any], gymnasium.Space[Any]], bool],
) -> tuple[str, str, str] | None:
    """Where two spaces first differ, and what stands there in each, for a message; None where they do not.

    Args:
        name: what to call the spaces.
        one: a space.
        other: another.
        same: which pairs do not differ.
    """
    if same(one, other):
        return None
    if isinstance(one, Dict) and isinstance(other, Dict):
        if one.spaces.keys() != other.spaces.keys():
            return f"{name} of the keys", str(list(one.spaces)), str(list(other.spaces))
        for key, part in one.spaces.items():
            found = first_difference(f"{name} under '{key}'", part, other.spaces[key], same)
            if found is not None:
                return found
    return name, " ".join(str(one).split()), " ".join(str(other).split())


def _bound(bound: Any) -> Any:
    flat = np.asarray(bound).reshape(-1)
    return flat[0].item() if flat.size and (flat == flat[0]).all() else flat.tolist()


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
