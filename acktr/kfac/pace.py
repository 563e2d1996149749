"""How often inverses are refreshed and how far back averages reach: faster while the curvature is young."""

from acktr.kfac.averages import Share

MIN_WINDOW = 0.01
"""Smallest `stat_window`: a hundredth of the updates so far."""

REFRESH_GROWTH = 0.1
"""The interval of the refreshes doubles up to its full length, below this share of the steps so far: young factors move
fast. It changes seldom, for at every change some unit waits longer for its turn."""


def batch_share(updates: int, *, decay: float, window: float) -> Share:
    """What the `updates`-th batch weighs in running factors of a decay and a `stat_window`."""
    if window < 1:
        decay = min(decay, max(0.0, 1 - 1 / (window * updates)))
    return Share.of(decay)


def refresh_interval(steps: int, *, full: int) -> int:
    """Steps between two refreshes of one inverse, after that many steps in all."""
    young = int(REFRESH_GROWTH * steps)
    return full if young >= full else 1 << max(0, young.bit_length() - 1)


def has_its_turn(index: int, units: int, *, steps: int, interval: int) -> bool:
    """Whether the unit of that index is due, where all are so once an interval, spread over it."""
    return (steps - index * interval // units) % interval == 0
