"""Batches of observations as tensors: one, or, for a Dict space, one a key."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from acktr.envs.batches import ObservationBatch, map_leaves
from acktr.errors import UserError

Observations = Tensor | dict[str, Tensor]
"""(N, *space), or (N, *space) of each key."""


def take_rows(observations: Observations, rows: Tensor | slice | int) -> Observations:
    """What indexing the first axis by `rows` gives, of each tensor."""
    if isinstance(observations, Tensor):
        return _taken(observations, rows)
    return {name: _taken(leaf, rows) for name, leaf in observations.items()}


def _taken(tensor: Tensor, rows: Tensor | slice | int) -> Tensor:
    if not isinstance(rows, Tensor) or tensor.dim() != 4 or not tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor[rows]
    # frames with their channels last: whole at once where indexing copies number by number, 0.02 for 0.6 milliseconds
    return tensor.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


def to_tensors(batch: ObservationBatch, device: torch.device) -> Observations:
    """An environment's arrays on the device; on the CPU they share memory."""
    tensors: Observations = map_leaves(lambda leaf: torch.from_numpy(leaf).to(device), batch)
    return tensors


def as_batch(space: gymnasium.Space[Any], observation: Any) -> tuple[Any, bool]:
    """One observation or a batch of them, as a batch of a nested space, and whether it was one.

    Args:
        space: of a single environment, as the environment has it.
        observation: (*space) or (N, *space), for a Dict or Tuple space a mapping or sequence of such.

    Raises:
        UserError: another shape, or numbers that no observation of the space is, naming the key.
    """
    return _as_batch(space, observation, where="")


def _as_batch(space: gymnasium.Space[Any], observation: Any, *, where: str) -> tuple[Any, bool]:
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, Mapping) or observation.keys() != space.spaces.keys():
            given = list(observation) if isinstance(observation, Mapping) else type(observation).__name__
            raise UserError(f"predict takes observations{where} with the keys {list(space.spaces)}, got {given}")
        pairs: list[tuple[Any, gymnasium.Space[Any], Any]]
        pairs = [(name, part, observation[name]) for name, part in space.spaces.items()]
    elif isinstance(space, spaces.Tuple):
        if not isinstance(observation, list | tuple) or len(observation) != len(space.spaces):
            raise UserError(f"predict takes observations{where} of {len(space.spaces)} parts in a tuple")
        pairs = [(index, part, observation[index]) for index, part in enumerate(space.spaces)]
    else:
        return _leaf_batch(space, observation, where=where)
    batches = {}
    singles = set()
    sizes = set()
    for name, part, given in pairs:
        batches[name], single = _as_batch(part, given, where=f"{where} under '{name}'")
        singles.add(single)
        sizes.update(_sizes(batches[name]))
    if len(singles) > 1 or len(sizes) > 1:
        raise UserError(f"predict takes one observation or N of them{where}, got parts of different numbers")
    batch = batches if isinstance(space, spaces.Dict) else tuple(batches.values())
    return batch, singles.pop()


def _sizes(batch: Any) -> set[int]:
    if isinstance(batch, dict | tuple):
        parts = batch.values() if isinstance(batch, dict) else batch
        return set().union(*(_sizes(part) for part in parts))
    return {len(batch)}


def _leaf_batch(space: gymnasium.Space[Any], observation: Any, *, where: str) -> tuple[Any, bool]:
    shape = space.shape or ()
    batch = np.asarray(observation)
    single = batch.ndim == len(shape)
    if batch.shape[batch.ndim - len(shape) :] != shape or batch.ndim > len(shape) + 1:
        raise UserError(f"predict takes observations{where} of shape {shape} or (N, *{shape}), got {batch.shape}")
    if batch.dtype.kind not in "biuf":
        raise UserError(f"predict takes observations{where} of numbers, got {batch.dtype}")
    if isinstance(space, spaces.Discrete):
        fits = bool(((batch >= space.start) & (batch < space.start + space.n)).all())
    elif isinstance(space, spaces.MultiDiscrete):
        fits = bool(((batch >= space.start) & (batch < space.start + space.nvec)).all())
    elif isinstance(space, spaces.MultiBinary):
        fits = bool(((batch == 0) | (batch == 1)).all())
    elif (
        isinstance(space, spaces.Box) and space.dtype.kind in "iu" and batch.dtype != space.dtype
    ):  # pictures from 0 to 1, say
        fits = bool(((batch >= space.low) & (batch <= space.high) & (batch == np.floor(batch))).all())
    else:
        fits = bool(np.isfinite(batch).all())
    if batch.shape[:1] == (0,) and not single:
        raise UserError(f"predict takes at least one observation{where}, got a batch of none")
    if not fits:
        raise UserError(f"predict takes observations{where} of {space}, got {batch.reshape(-1)[:8]}")
    return batch[None] if single else batch, single
