"""Random numbers that belong to a whole batch, whichever part of it a process holds."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

Fill = Callable[[Tensor, torch.Generator | None], Tensor]
"""Overwrites a tensor with random numbers, and returns it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Draws:
    """A generator of numbers for all examples of a batch, of which those of some examples are taken.

    Processes with generators of equal states and parts of one batch draw what a single one would draw for all of it.

    Attributes:
        generator: source of the numbers.
        rows: of the whole batch that are at hand.
        whole: number of its examples.
    """

    generator: torch.Generator
    rows: slice | Tensor
    whole: int


Source = torch.Generator | Draws | None
"""Where random numbers come from; None is torch's default generator."""


def uniform(like: Tensor, source: Source) -> Tensor:
    """Numbers in [0, 1) like `like`, the first axis being the example."""
    return _drawn(like, lambda empty, generator: empty.uniform_(generator=generator), source)


def normal(like: Tensor, source: Source) -> Tensor:
    """Standard normal numbers, likewise."""
    return _drawn(like, lambda empty, generator: empty.normal_(generator=generator), source)


def exponential(like: Tensor, source: Source) -> Tensor:
    """Numbers of the exponential distribution of rate 1, likewise."""
    return _drawn(like, lambda empty, generator: empty.exponential_(generator=generator), source)


def _drawn(like: Tensor, fill: Fill, source: Source) -> Tensor:
    if isinstance(source, Draws):
        return fill(like.new_empty(source.whole, *like.shape[1:]), source.generator)[source.rows]
    return fill(torch.empty_like(like, memory_format=torch.contiguous_format), source)
