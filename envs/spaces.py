"""From the spaces of an environment to those that policies see, and the conversions between the two."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from acktr.errors import RunError, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceAdaptor:
    """A single environment's space as the policy sees it, and the conversion of a batch.

    Attributes:
        space: what the policy sees.
        convert: for observations from the environment's batch to the policy's, for actions the other way round;
            always returns a fresh array.
    """

    space: gymnasium.Space[Any]
    convert: Callable[[NDArray[Any]], NDArray[Any]]


def is_image(space: gymnasium.Space[Any]) -> bool:
    """Return whether observations of `space` are images: uint8 with two or three dimensions."""
    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def adapt_observations(space: gymnasium.Space[Any], *, env: str) -> SpaceAdaptor:
    """Choose how observations reach the policy.

    Images become uint8 (channels, height, width), whichever end the channels were at (the smallest of the three
    dimensions, the first at a tie); other Box spaces float32 of the same shape; Discrete int64 counted from 0.

    Args:
        space: of a single environment.
        env: its name, for the message.

    Raises:
        UserError: any other space, naming it.
    """
    if isinstance(space, Discrete):
        start = int(space.start)
        return SpaceAdaptor(
            space=Discrete(int(space.n)),
            convert=lambda batch: np.asarray(batch).astype(np.int64) - start,
        )
    if isinstance(space, Box):
        if is_image(space):
            return _adapt_images(space)
        if space.dtype == np.uint8 and len(space.shape) > 3:
            raise UserError(
                f"'{env}' has observations of shape {space.shape} uint8; images of two or three dimensions are "
                "understood: stack frames along the channels"
            )
        return SpaceAdaptor(space=_float32_box(space), convert=lambda batch: np.array(batch, dtype=np.float32))
    raise UserError(
        f"'{env}' has the observation space {_named(space)}; Box and Discrete are understood: wrap the environment, "
        "for example in gymnasium.wrappers.FlattenObservation"
    )


def adapt_actions(space: gymnasium.Space[Any], *, env: str) -> SpaceAdaptor:
    """Choose how the policy's actions reach the environment.

    Discrete actions are counted from 0 by the policy. Box actions are flat float32 rows with -1 and 1 at the bounds,
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
    if isinstance(space, Box) and np.issubdtype(space.dtype, np.floating):
        low, high, shape = space.low, space.high, space.shape
        if not (low < high).all():
            raise UserError(f"'{env}' has the action space {_named(space)}, whose bounds leave nothing to choose")
        bounded = np.isfinite(low) & np.isfinite(high)
        # in double precision: the range of bounds near the largest number is none in single precision
        middle = np.where(bounded, (low.astype(np.float64) + high) / 2, 0.0)
        half = np.where(bounded, (high.astype(np.float64) - low) / 2, 1.0)

        def convert(actions: NDArray[Any]) -> NDArray[Any]:
            if not np.isfinite(actions).all():
                raise RunError(f"the policy gave '{env}' an action that is not finite: the run has diverged")
            batch = np.asarray(actions, dtype=np.float64).reshape(-1, *shape) * half + middle
            clipped: NDArray[Any] = np.clip(batch, low, high).astype(low.dtype)
            return clipped

        ends = [np.where(bounded, sign, bound).reshape(-1) for sign, bound in ((-1.0, low), (1.0, high))]
        with np.errstate(over="ignore"):  # a bound beyond float32's range means none, as in `_float32_box`
            lowest, highest = (end.astype(np.float32) for end in ends)
        return SpaceAdaptor(space=Box(lowest, highest, (math.prod(shape),), np.float32), convert=convert)
    raise UserError(
        f"'{env}' has the action space {_named(space)}; Discrete and Box of floats are understood: wrap the "
        "environment so that it takes one of them"
    )


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
