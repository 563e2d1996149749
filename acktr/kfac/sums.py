"""Sums over all examples of a batch, whoever holds its parts.

What a batch says of a curvature are sums over its examples. A computation that needs them is written as a generator: it
yields the sums of the examples at hand, and is given back those of all. It runs by itself where these are the same, and
in step with others where the sums of several processes travel together.
"""

from collections.abc import Generator
from typing import NamedTuple, TypeVar

from torch import Tensor


class Sum(NamedTuple):
    """A sum over the examples at hand, which whoever adds it up may overwrite."""

    total: Tensor
    symmetric: bool = False
    """Whether it holds (b, n, n) symmetric matrices, of which one triangle says all."""


T = TypeVar("T")

Sums = Generator[list[Sum], list[Tensor], T]
"""Yields sums over the examples at hand, is sent those over all in their order, and returns a T."""


def alone(computation: Sums[T]) -> T:
    """Run a computation on a batch of which all is at hand."""
    try:
        sums = next(computation)
        while True:
            sums = computation.send([total for total, _ in sums])
    except StopIteration as end:
        result: T = end.value
        return result
