"""One setting: how it is declared, read from plain values, described and checked."""

import dataclasses
import math
from typing import Any, Literal, get_args, get_origin

from acktr.errors import UserError

Field = dataclasses.Field[Any]


def setting(
    default: Any,
    meaning: str,
    *,
    typical: str,
    origin: str,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
) -> Any:
    """Declare one setting: its default, what it means, its typical range and where the default comes from.

    Args:
        default: value used when no preset, flag or keyword gives one.
        meaning: one sentence, shown by `acktr train --help`.
        typical: the range people use.
        origin: where the default comes from: a paper, a published code, or an experiment of this project.
        low: smallest value accepted (exclusive with `low_open`).
        high: largest value accepted.
        low_open: whether `low` itself is refused.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "meaning": meaning,
            "typical": typical,
            "origin": origin,
            "low": low,
            "high": high,
            "low_open": low_open,
        },
    )


def values_taken(field: Field) -> str:
    """Say in words which values a setting takes, for help texts and error messages."""
    kind: Any = field.type
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    text = "whole numbers" if get_origin(kind) is tuple else words[kind]
    low, high = field.metadata["low"], field.metadata["high"]
    if low is not None:
        text += f" above {low:g}" if field.metadata["low_open"] else f" of at least {low:g}"
    if high is not None:
        text += f"{' and' if low is not None else ''} at most {high:g}"
    return text


def converted_value(kind: Any, value: Any) -> Any:
    """Convert a plain value to the declared type of a setting.

    Raises:
        TypeError, ValueError: it does not convert.
    """
    origin = get_origin(kind)
    if origin is Literal:
        if isinstance(value, bool):  # YAML 1.1 reads a bare `none`-like word such as `no` as False
            raise ValueError
        if str(value) not in get_args(kind):
            raise ValueError
        return str(value)
    if origin is tuple:
        if isinstance(value, str):
            value = value.replace(",", " ").split()
        parts = value if isinstance(value, list | tuple) else [value]
        return tuple(converted_value(int, part) for part in parts)
    if kind is bool:
        if isinstance(value, bool):
            return value
        words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        if str(value).lower() not in words:
            raise ValueError
        return words[str(value).lower()]
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    if kind is int:
        return _to_int(value)
    if kind is float:
        return float(value)
    return str(value)


def _to_int(value: int | float | str) -> int:
    if isinstance(value, int):
        return value
    try:
        return int(value) if isinstance(value, str) else _to_int(repr(value))
    except ValueError:  # not digits alone: `1e6` and `20.0` are whole numbers too
        number = float(value)
        if not number.is_integer():
            raise
        return int(number)


def check(field: Field, value: Any) -> None:
    """Compare a value with its setting's type and range.

    Raises:
        UserError: it does not fit; names the setting and what it takes.
    """
    kind: Any = field.type
    message = f"setting '{field.name}' takes {values_taken(field)}, got {value!r}"
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UserError(message)
        return
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple) or not value:
            raise UserError(message)
        numbers: tuple[Any, ...] = value
    else:
        numbers = (value,)
    expected = int if get_origin(kind) is tuple else kind
    for number in numbers:
        accepted = (int, float) if expected is float else expected
        if not isinstance(number, accepted) or (isinstance(number, bool) and expected is not bool):
            raise UserError(message)
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(message)
        low, high = field.metadata["low"], field.metadata["high"]
        if low is not None and (number < low or (field.metadata["low_open"] and number == low)):
            raise UserError(message)
        if high is not None and number > high:
            raise UserError(message)
