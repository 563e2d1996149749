"""Arguments of a caller, checked: what each takes, said in one line."""

import operator
from collections.abc import Iterable
from typing import SupportsFloat, SupportsIndex, get_args

import torch
from torch import Tensor


def check_range(name: str, value: float, low: float, high: float | None, *, high_open: bool = False) -> None:
    """Refuse a number outside [low, high], or [low, high) when `high_open`.

    Raises:
        ValueError: it lies outside, is NaN, or is no number.
    """
    is_number = isinstance(value, SupportsFloat) and not isinstance(value, str | bool)
    fits = is_number and value >= low and (high is None or (value < high if high_open else value <= high))
    if not fits:
        bound = "" if high is None else f" and {'below' if high_open else 'at most'} {high:g}"
        raise ValueError(f"{name} takes a number of at least {low:g}{bound}, got {value!r}")


def check_count(name: str, value: object, low: int) -> None:
    """Refuse what is no whole number of at least `low`.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or operator.index(value) < low:
        raise ValueError(f"{name} takes a whole number of at least {low}, got {value!r}")


def check_choice(name: str, value: str, choices: object) -> None:
    """Refuse a text that is none of a Literal's.

    Raises:
        ValueError: it is none.
    """
    if value not in get_args(choices):
        raise ValueError(f"{name} takes one of {', '.join(get_args(choices))}, got {value!r}")


def check_precision(parameters: Iterable[Tensor]) -> None:
    """Refuse parameters of less than single precision.

    Raises:
        ValueError: there are some.
    """
    coarse = {parameter.dtype for parameter in parameters} - {torch.float32, torch.float64}
    if coarse:
        raise ValueError(
            f"parameters must be float32 or float64, the model has {', '.join(map(str, coarse))}; keep them so and "
            "run the forward pass under torch.autocast"
        )
