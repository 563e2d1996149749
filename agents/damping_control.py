"""Damping that follows how well the curvature predicts the KL."""

import math
from typing import Any

import torch
from torch import Tensor

GAIN = 0.1
"""Share of the logarithmic ratio by which one update changes λ."""

TOLERANCE = math.log(2)
"""Ratios from a half to two change nothing: single batches scatter by as much."""

RATIO_BOUND = math.log(4)
"""One update's ratio counts no more than a factor of four."""

MIN_FACTOR, MAX_FACTOR = 1e-2, 1e2
"""Range of λ relative to the setting's."""


class DampingControl:
    """Moves a factor on λ by the ratio of the measured KL to the predicted one, of the same full step.

    In supervised learning λ follows the reduction ratio of the loss (Levenberg and Marquardt). The policy's loss has
    none to offer, for its curvature is that of the KL; so the prediction of the KL is judged: a step that moves the
    outputs farther than `1/2 sᵀ F s` says goes along directions whose curvature is underestimated, and a larger λ
    shortens it there first.

    Args:
        like: 0-d tensor with the device and dtype of the factor.
    """

    def __init__(self, like: Tensor) -> None:
        self.factor: Tensor = torch.ones_like(like)
        """0-d; multiplies λ. Never read by the host."""

    def observe(self, measured: Tensor, predicted: Tensor) -> None:
        """Adapt to the two KLs (0-d, nats) of one step before any of it is taken back.

        A measured KL that is not finite counts as far too long; a step of 0 says nothing.
        """
        tiny = torch.finfo(measured.dtype).tiny
        ratio = torch.log(measured.clamp(min=tiny) / predicted.to(measured).clamp(min=tiny))
        ratio = torch.nan_to_num(ratio, nan=RATIO_BOUND, posinf=RATIO_BOUND).clamp(-RATIO_BOUND, RATIO_BOUND)
        acts = (ratio.abs() > TOLERANCE) & (measured != 0) & (predicted != 0)
        change = torch.exp(GAIN * torch.where(acts, ratio, 0.0))
        self.factor = (self.factor * change.to(self.factor)).clamp(MIN_FACTOR, MAX_FACTOR)

    def state_dict(self) -> dict[str, Any]:
        """The factor."""
        return {"factor": self.factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.factor = state["factor"].to(self.factor, copy=True)
