"""Running scales: observations of about mean 0 and deviation 1, rewards whose returns have about deviation 1.

Both are learnt from what training meets and are frozen wherever a policy is played.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_SMALLEST_DEVIATION = 1e-4
"""Of a coordinate that hardly ever changes; what it says is not blown up beyond this."""

OBSERVATION_LIMIT = 10.0
"""Normalised observations are cut off here (openai/baselines, VecNormalize; emansim/acktr: 5)."""

REWARD_LIMIT = 10.0
"""Scaled rewards are cut off here (emansim/acktr, openai/baselines)."""


class ObservationNorm(nn.Module):
    """Shift and scale by the mean and deviation of all observations so far, coordinate by coordinate.

    The moments are those of all rows together to float64's precision, in whatever batches they came (Chan, Golub &
    LeVeque 1983). They are buffers: part of the policy, its checkpoints and its exports.

    Args:
        size: number of coordinates, d.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(size, dtype=torch.float64))  # sum of squared differences to it
        self.register_buffer("shift", torch.zeros(size))  # the moments as `forward` takes them
        self.register_buffer("scale", torch.ones(size))

    def forward(self, rows: Tensor) -> Tensor:
        """(N, d) to (N, d) within `OBSERVATION_LIMIT`; the rows themselves before any update."""
        return ((rows - self.shift) * self.scale).clamp(-OBSERVATION_LIMIT, OBSERVATION_LIMIT)

    @torch.no_grad()
    def update(self, rows: Tensor, weights: Tensor | None) -> None:
        """Take in a batch.

        Args:
            rows: (M, d).
            weights: (M,) of zeros and ones, or None for all ones; rows that are not finite have weight 0.
        """
        rows = rows.to(torch.float64)
        usable = torch.isfinite(rows).all(1, keepdim=True)  # one that is not would stay in the moments for ever
        rows = torch.where(usable, rows, 0.0)
        column = usable.to(rows) if weights is None else usable * weights.to(rows).unsqueeze(1)
        fresh = column.sum()
        total = self.count + fresh
        mean = (rows * column).sum(0) / fresh.clamp(min=1)
        gap = mean - self.mean
        self.squares += ((rows - mean).square() * column).sum(0) + gap.square() * self.count * fresh / total.clamp(
            min=1
        )
        self.mean += gap * fresh / total.clamp(min=1)
        self.count.copy_(total)
        deviation = (self.squares / total.clamp(min=1)).sqrt().clamp(min=_SMALLEST_DEVIATION)
        self.shift.copy_(self.mean)
        self.scale.copy_(torch.where(total > 0, 1 / deviation, 1.0))


class RewardScale:
    """Divide rewards by the deviation of the discounted returns so far, and cut off at `REWARD_LIMIT`.

    Each environment's discounted sum of past rewards, the reverse of a return, has a return's spread and is known at
    once (openai/baselines, VecNormalize). The sign and the zero of rewards stay.

    Args:
        num_envs: N.
        gamma: discount.
    """

    def __init__(self, *, num_envs: int, gamma: float) -> None:
        self._gamma = gamma
        self._sums = np.zeros(num_envs)
        self._count = 0.0
        self._mean = 0.0
        self._squares = 0.0

    def restart(self) -> None:
        """Forget the episodes in progress, not what was learnt: the environments start fresh ones."""
        self._sums[:] = 0.0

    def __call__(self, rewards: NDArray[Any], *, ended: NDArray[np.bool_], valid: NDArray[np.bool_]) -> NDArray[Any]:
        """Take in one step of all environments, and scale its rewards.

        Args:
            rewards: (N,).
            ended: (N,) whether an episode ends with the step.
            valid: (N,) whether the row is a real transition; other rows are scaled and not learnt from.

        Returns:
            (N,) float64.
        """
        valid = valid & np.isfinite(rewards)
        self._sums[valid] = self._gamma * self._sums[valid] + rewards[valid]
        known = self._sums[valid]
        if known.size:
            total = self._count + known.size
            gap = known.mean() - self._mean
            self._squares += ((known - known.mean()) ** 2).sum() + gap**2 * self._count * known.size / total
            self._mean += gap * known.size / total
            self._count = total
        self._sums[ended & valid] = 0.0
        deviation = np.sqrt(self._squares / self._count) if self._squares > 0 else 1.0
        scaled: NDArray[Any] = np.clip(rewards / deviation, -REWARD_LIMIT, REWARD_LIMIT)
        return scaled

    def state_dict(self) -> dict[str, float]:
        """What was learnt."""
        return {"count": self._count, "mean": float(self._mean), "squares": float(self._squares)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take back what `state_dict` gave."""
        self._count, self._mean, self._squares = state["count"], state["mean"], state["squares"]
