"""When statistics and inverses are due and how far back averages reach: faster while the curvature is young."""

import dataclasses

from acktr.kfac.averages import Share
from acktr.kfac.checks import check_count, check_range
from acktr.kfac.statistics import Thinning

MIN_WINDOW = 0.01
"""Smallest `stat_window`: a hundredth of the updates so far."""

REFRESH_GROWTH = 0.1
"""The interval of the refreshes doubles up to its full length, below this share of the steps so far: young factors move
fast. It changes seldom, for at every change some unit waits longer for its turn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """Intervals and decays; each field as in `KFAC`.

    Raises:
        ValueError: a value out of range.
    """

    stat_decay: float
    stat_window: float
    stat_interval: int
    inverse_interval: int
    position_stride: int
    stagger_inverses: bool = True

    def __post_init__(self) -> None:
        check_range("stat_decay", self.stat_decay, 0.0, 1.0, high_open=True)
        check_range("stat_window", self.stat_window, MIN_WINDOW, 1.0)
        check_count("stat_interval", self.stat_interval, 1)
        check_count("inverse_interval", self.inverse_interval, 1)
        check_count("position_stride", self.position_stride, 1)

    def share(self, updates: int) -> Share:
        """What the `updates`-th batch weighs in the running factors."""
        decay = self.stat_decay
        if self.stat_window < 1:
            decay = min(decay, max(0.0, 1 - 1 / (self.stat_window * updates)))
        return Share.of(decay)

    def thinning(self, turn: int, before: int = 0, places: tuple[int, ...] | None = None) -> Thinning:
        """The positions of one turn, behind so many examples of its batch; `places` as in `Thinning`.

        Once around, the grids shift by one more: batches that repeat at an interval, such as the parts that samples
        rotate through, would else meet the same few grids for ever.
        """
        every = self.position_stride
        return Thinning(every=every, turn=turn + turn // every**2 + before, places=places)

    def is_due(self, index: int, units: int, *, steps: int) -> bool:
        """Whether the inverse of one of so many units is due: each once an interval, all at once or spread over it."""
        interval = self.refresh_interval(steps)
        return (steps - self.stagger_inverses * index * interval // units) % interval == 0

    def refresh_interval(self, steps: int) -> int:
        """Steps between two refreshes of one inverse, after that many steps in all."""
        young = int(REFRESH_GROWTH * steps)
        return self.inverse_interval if young >= self.inverse_interval else 1 << max(0, young.bit_length() - 1)
