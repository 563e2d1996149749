"""From the spaces of an environment to those that policies see, and the conversions between the two."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from numpy.typing import NDArray

from acktr.envs.batches import follow, leaf_paths
from acktr.errors import RunError, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceAdaptor:
    """A single environment's space as the policy sees it, and the conversion of a batch.

    Attributes:
        space: what the policy sees.
        convert: for observations from the environment's batch to the policy's, for actions the other way round;
            always returns fresh arrays.
    """

    space: gymnasium.Space[Any]
    convert: Callable[[Any], Any]


def is_image(space: gymnasium.Space[Any]) -> bool:
    """Return whether observations of `space` are images: uint8 with two or three dimensions."""
    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def resembles_image(space: gymnasium.Space[Any]) -> bool:
    """Return whether observations have the shape of an image and not its dtype, so that no convolution takes them."""
    if not isinstance(space, Box) or space.dtype == np.uint8 or len(space.shape) != 3:
        return False
    channels, *sides = sorted(space.shape)
    return channels <= 4 and min(sides) >= 32


def adapt_observations(space: gymnasium.Space[Any], *, env: str) -> SpaceAdaptor:
    """Choose how observations reach the policy.

    Images become uint8 (channels, height, width), whichever end the channels were at (the smallest of the three
    dimensions, the first at a tie); other Box spaces float32 of the same shape; Discrete int64 counted from 0,
    MultiDiscrete flat rows of such numbers, MultiBinary flat int8. Dict and Tuple spaces, however nested, become one
    Dict of these in the order of its keys: "camera", or "arm/angles" for the key of a key, positions for a Tuple.

    Args:
        space: of a single environment.
        env: its name, for the message.

    Raises:
        UserError: any other space, naming it.
    """
    if isinstance(space, Dict | Tuple):
        return _adapt_parts(space, env=env)
    return _adapt_leaf(space, env=f"'{env}'", remedy="wrap the environment so that it gives one of them")


def _adapt_parts(space: gymnasium.Space[Any], *, env: str) -> SpaceAdaptor:
    paths: dict[str, tuple[Any, ...]] = {}
    parts: dict[str, SpaceAdaptor] = {}
    for path, leaf in leaf_paths(space):
        name = "/".join(map(str, path))
        if name in parts:
            raise UserError(f"'{env}' has two observations called '{name}': rename one of the keys in a wrapper")
        paths[name] = path
        parts[name] = _adapt_leaf(
            leaf,
            env=f"'{env}', under '{name}',",
            remedy="leave the key out, for example by gymnasium.wrappers.FilterObservation",
        )
    if not parts:
        raise UserError(f"'{env}' has the observation space {_named(space)}, which holds nothing to learn from")
    policy_space = Dict({name: part.space for name, part in parts.items()})

    def convert(batch: Any) -> dict[str, NDArray[Any]]:
        return {name: parts[name].convert(follow(batch, paths[name])) for name in policy_space.spaces}

    return SpaceAdaptor(space=policy_space, convert=convert)


def _adapt_leaf(space: gymnasium.Space[Any], *, env: str, remedy: str) -> SpaceAdaptor:
    if isinstance(space, Discrete):
        start = int(space.start)
        return SpaceAdaptor(
            space=Discrete(int(space.n)),
            convert=lambda batch: np.asarray(batch).astype(np.int64) - start,
        )
    if isinstance(space, MultiDiscrete):
        starts = np.asarray(space.start, dtype=np.int64).reshape(-1)
        return SpaceAdaptor(
            space=MultiDiscrete(np.asarray(space.nvec, dtype=np.int64).reshape(-1)),
            convert=lambda batch: np.asarray(batch).astype(np.int64).reshape(-1, len(starts)) - starts,
        )
    if isinstance(space, MultiBinary):
        size = math.prod(space.shape)
        return SpaceAdaptor(
            space=MultiBinary(size), convert=lambda batch: np.array(batch, dtype=np.int8).reshape(-1, size)
        )
    if isinstance(space, Box):
        if is_image(space):
            return _adapt_images(space)
        if space.dtype == np.uint8 and len(space.shape) > 3:
            raise UserError(
                f"{env} has observations of shape {space.shape} uint8; images of two or three dimensions are "
                "understood: stack frames along the channels"
            )
        return SpaceAdaptor(space=_float32_box(space), convert=lambda batch: np.array(batch, dtype=np.float32))
    raise UserError(
        f"{env} has the observation space {_named(space)}; Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple "
        f"are understood: {remedy}"
    )


def adapt_actions(space: gymnasium.Space[Any], *, env: str) -> SpaceAdaptor:
    """Choose how the policy's actions reach the environment.

    Discrete and MultiDiscrete actions are counted from 0 by the policy, MultiBinary ones are zeros and ones; both of
    several numbers are flat rows. Box actions are flat float32 rows with -1 and 1 at the bounds,
    so that a Gaussian of deviation 1 spans any range; where a bound is missing they are in the environment's own units.
    They are clipped to the bounds, since environments saturate the motion but charge the control cost on the unclipped
    action, and given the environment's shape and dtype.

    Args:
        space: of a single environment.
        env: its name, for the message.

    Raises:
        UserError: any other space, a Box that is not of floats, or one whose bounds leave nothing to choose, naming it.
            `convert` raises RunError for an action that is not finite.
    """
    if isinstance(space, Discrete):
        start = int(space.start)
        return SpaceAdaptor(
            space=Discrete(int(space.n)), convert=lambda actions: np.asarray(actions).astype(np.int64) + start
        )
    if isinstance(space, MultiDiscrete) and space.nvec.size:
        starts = np.asarray(space.start, dtype=np.int64)
        return SpaceAdaptor(
            space=MultiDiscrete(np.asarray(space.nvec, dtype=np.int64).reshape(-1)),
            convert=lambda actions: (np.asarray(actions).astype(np.int64).reshape(-1, *starts.shape) + starts).astype(
                space.dtype
            ),
        )
    if isinstance(space, MultiBinary):
        size, binary_shape = math.prod(space.shape), space.shape

        def convert_binary(actions: NDArray[Any]) -> NDArray[Any]:
            _check_finite(actions, env=env)
            return np.asarray(actions).astype(np.int8).reshape(-1, *binary_shape)

        return SpaceAdaptor(space=MultiBinary(size), convert=convert_binary)
    if isinstance(space, Box) and np.issubdtype(space.dtype, np.floating):
        low, high, shape = space.low, space.high, space.shape
        if not (low < high).all():
            raise UserError(f"'{env}' has the action space {_named(space)}, whose bounds leave nothing to choose")
        bounded = np.isfinite(low) & np.isfinite(high)
        # in double precision: the range of bounds near the largest number is none in single precision
        with np.errstate(invalid="ignore"):  # of infinite bounds, whose sum is not taken
            middle = np.where(bounded, (low.astype(np.float64) + high) / 2, 0.0)
            half = np.where(bounded, (high.astype(np.float64) - low) / 2, 1.0)

        def convert(actions: NDArray[Any]) -> NDArray[Any]:
            _check_finite(actions, env=env)
            batch = np.asarray(actions, dtype=np.float64).reshape(-1, *shape) * half + middle
            clipped: NDArray[Any] = np.clip(batch, low, high).astype(low.dtype)
            return clipped

        ends = [np.where(bounded, sign, bound).reshape(-1) for sign, bound in ((-1.0, low), (1.0, high))]
        with np.errstate(over="ignore"):  # a bound beyond float32's range means none, as in `_float32_box`
            lowest, highest = (end.astype(np.float32) for end in ends)
        return SpaceAdaptor(space=Box(lowest, highest, (math.prod(shape),), np.float32), convert=convert)
    raise UserError(
        f"'{env}' has the action space {_named(space)}; Discrete, MultiDiscrete, MultiBinary and Box of floats are "
        "understood: wrap the environment so that it takes one of them"
    )


def _check_finite(actions: NDArray[Any], *, env: str) -> None:
    if not np.isfinite(actions).all():
        raise RunError(f"the policy gave '{env}' an action that is not finite: the run has diverged")


def _adapt_images(space: Box) -> SpaceAdaptor:
    if len(space.shape) == 2:
        return SpaceAdaptor(
            space=Box(space.low[None], space.high[None], dtype=np.uint8),
            convert=lambda batch: np.array(batch, dtype=np.uint8)[:, None],
        )
    if min(range(3), key=lambda axis: space.shape[axis]) == 2:
        return SpaceAdaptor(
            space=Box(np.moveaxis(space.low, -1, 0), np.moveaxis(space.high, -1, 0), dtype=np.uint8),
            convert=lambda batch: np.array(np.moveaxis(np.asarray(batch), -1, 1), dtype=np.uint8, order="C"),
        )
    return SpaceAdaptor(space=space, convert=lambda batch: np.array(batch, dtype=np.uint8))


def _float32_box(space: Box) -> Box:
    # A bound beyond float32's range means "no bound"; it becomes infinite, and that is no mistake to warn of.
    with np.errstate(over="ignore"):
        return Box(space.low.astype(np.float32), space.high.astype(np.float32), space.shape, np.float32)


def _named(space: gymnasium.Space[Any]) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 120 else f"{type(space).__name__} ({text[:100]}...)"
