"""Closed-loop step size: adapted to the KL that the steps are measured to make, or searched for along each step.

The KL that the curvature predicts may be wrong by a factor of ten to hundreds (docs/architecture.md), and the size of
the advantages changes tenfold over a run; the measured KL knows of both.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from acktr.agents.divergence import Divergence

GAIN = 0.05
"""Share of the logarithmic error that one update corrects: a change by a factor of e takes some twenty updates, so that
no single batch, however informative, rules the step size."""

ERROR_BOUND = math.log(4)
"""One update's error counts no more than a factor of four: KLs of single small batches scatter by more than that."""

MIN_FACTOR, MAX_FACTOR = 1e-3, 8.0
"""Range of the step size relative to the setting's."""


class StepControl:
    """Moves a factor on the learning rate until the typical measured KL is the desired one.

    Wu et al.'s continuous-control code multiplies or divides the learning rate by 1.5 outside half and twice the
    desired KL. This is the smooth form of that rule, on the logarithm: `log f += GAIN · clip(log(desired / measured))`.
    At rest as many steps are too long as too short; a rare long one does not shorten those that follow.

    Args:
        like: 0-d tensor with the device and dtype of the factor.
    """

    def __init__(self, like: Tensor) -> None:
        self.factor: Tensor = torch.ones_like(like)
        """0-d; multiplies the learning rate. Never read by the host."""

    def observe(self, measured: Tensor, desired: float) -> None:
        """Adapt to the KL (0-d, nats) that the last step would have made at its full length.

        A measured KL that is not finite counts as too long; one of 0, which says nothing, changes nothing.
        """
        error = torch.log(desired / measured.clamp(min=torch.finfo(measured.dtype).tiny))
        error = torch.nan_to_num(error, nan=-ERROR_BOUND, neginf=-ERROR_BOUND).clamp(-ERROR_BOUND, ERROR_BOUND)
        error = torch.where(measured == 0, 0.0, error)
        self.factor = (self.factor * torch.exp(GAIN * error).to(self.factor)).clamp(MIN_FACTOR, MAX_FACTOR)

    def state_dict(self) -> dict[str, Any]:
        """The factor."""
        return {"factor": self.factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.factor = state["factor"].to(self.factor, copy=True)


NEARLY = 0.98
"""A step of which this part may be kept counts as within its limit: the extrapolation is no better than that."""

LEAST, SHRINK = 0.1, 0.5
"""One backtrack leaves at least a tenth, the KL of a long step being far from quadratic; it leaves at most half of a
step that keeps the limit and yet makes the surrogate worse."""


def backtrack(
    moved: Divergence,
    measured: Callable[[], Divergence],
    contract: Callable[[Tensor], None],
    limits: tuple[float | None, float | None],
    *,
    most: int,
) -> tuple[Divergence, bool]:
    """Shorten a step until it keeps the limits on the KL and does not make the surrogate objective worse.

    Schulman et al. 2015 (appendix C) search likewise, with fixed fractions; here the next fraction is the one that the
    last measurement asks for. Reads the device once per measurement.

    Args:
        moved: the step at its full length.
        measured: measures it as it stands.
        contract: leaves a part (0-d, 0 to 1) of what stands.
        limits: of the policy's and of the values' KL, nats.
        most: number of backtracks.

    Returns:
        What the step that stands makes, and whether it is good; one that is not is its owner's to take back whole.
    """
    for left in range(most, -1, -1):
        part, gain = torch.stack((moved.allowed(*limits), moved.gain)).tolist()
        if part >= NEARLY and gain >= 0:
            return moved, True
        if left:
            factor = max(part, LEAST)
            contract(torch.full_like(moved.policy, factor if gain >= 0 else min(factor, SHRINK)))
            moved = measured()
    return moved, False
