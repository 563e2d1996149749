"""Momentum over natural gradients, kept in the state of the optimizer so that it is saved with it."""

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Momentum:
    """Running averages of the parameters' directions, and the weight that each unit's average holds.

    Args:
        state: the optimizer's `state`; the averages stay in it as "momentum_buffer".
        units: number of the units.
        like: 0-d tensor with the device and dtype of the weights.
    """

    def __init__(self, state: MutableMapping[Tensor, dict[str, Any]], units: int, like: Tensor) -> None:
        self._state = state
        self._reached: dict[tuple[int, ...], Tensor] = {}
        self.mass: Tensor = like.new_zeros(units)
        """(units,) weight that each average holds, which it is unbiased by."""

    def buffer(self, parameter: Tensor) -> Tensor:
        """The average of one parameter, like it; zero at first."""
        state = self._state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        buffer: Tensor = state["momentum_buffer"]
        return buffer

    def grown(self, active: Sequence[int], decay: float, usable: Tensor) -> Tensor:
        """(units,) weights after one more direction for the units `active`; the same where `usable` (0-d) is false."""
        fresh = (1 - decay) * usable.to(self.mass)
        grown = (1 - fresh) * self.mass + fresh
        if len(active) == len(self.mass):
            return grown
        key = tuple(active)
        if key not in self._reached:  # made and moved to the device once
            chosen = set(active)
            reached = torch.tensor([index in chosen for index in range(len(self.mass))])
            self._reached[key] = reached.to(self.mass.device)
        return torch.where(self._reached[key], grown, self.mass)

    def shorten(self, parameters: Sequence[Tensor], factor: Tensor) -> None:
        """Multiply the averages of these parameters by `factor` (0-d)."""
        for parameter in parameters:
            self.buffer(parameter).mul_(factor)
