"""Numbers and lists as people read them."""

import math
from collections.abc import Sequence
from typing import Any

NONE = "\u2013"
"""Where there is no number."""


def number(value: float | None) -> str:
    """With as many digits as say something: 12,835 and 489.3 and 0.0123; a dash where there is none."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if (float(value).is_integer() and size < 1e15) or size >= 1000:
        text = f"{value:,.0f}"
    elif size >= 10:
        text = f"{value:.1f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "\u2212", 1) if text.startswith("-") else text


def duration(seconds: float | None) -> str:
    """In the two largest units: 2 h 5 min, 1 min 54 s, 7.2 s."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def shown(value: Any) -> str:
    """A setting's or a protocol's value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def in_words(words: Sequence[str]) -> str:
    """A, B and C."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
