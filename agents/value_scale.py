"""The standard deviation of the value's Gaussian, set or learnt from the residuals."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from acktr.agents.rollout import Batch

SIGMA_DECAY = 0.95
"""Decay of the running mean square of R - V."""


class ValueScale:
    """σ of N(V, σ²): the setting `value_sigma`, or with 0 the debiased running rms of R - V.

    Args:
        sigma: the setting.
        device: of the batches.
    """

    def __init__(self, sigma: float, device: torch.device) -> None:
        self._sigma = sigma
        self._square = torch.zeros((), device=device)
        self._mass = torch.zeros((), device=device)

    def observe(self, batch: Batch) -> None:
        """Take in a batch, whose R - V are its advantages; one not finite or without valid rows changes nothing."""
        square = batch.part.mean(batch.advantages.square(), batch.weights)
        usable = torch.isfinite(square) & (batch.valid_rows > 0)
        fresh = (1 - SIGMA_DECAY) * usable.to(square)
        self._square = (1 - fresh) * self._square + torch.where(usable, fresh * square, 0.0)
        self._mass = (1 - fresh) * self._mass + fresh

    @property
    def sigma(self) -> Tensor | float:
        """In the units of the values; 1 before the first batch where it is learnt (0-d)."""
        if self._sigma > 0:
            return self._sigma
        known = self._mass > 0
        mean_square = self._square / torch.where(known, self._mass, 1.0)
        return torch.where(known, mean_square.sqrt().clamp(min=1e-6), 1.0)

    @property
    def of_loss(self) -> Tensor | float:
        """What `1/2 (v - R)²` is divided by: σ² where it is learnt, so that the loss knows no scale of the rewards.

        The damping does, being absolute; `scale_rewards` takes it out there.
        """
        return self.sigma**2 if self._sigma == 0 else 1.0

    def state_dict(self) -> dict[str, Any]:
        """The running mean square and its weight."""
        return {"square": self._square, "mass": self._mass}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._square = state["square"].to(self._square.device, copy=True)
        self._mass = state["mass"].to(self._mass.device, copy=True)
