"""Running scales: observations of about mean 0 and deviation 1, rewards whose returns have about deviation 1.

Both are learnt from what training meets and are frozen wherever a policy is played.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from acktr.agents.part import Part

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
    def update(self, rows: Tensor, weights: Tensor | None, part: Part) -> None:
        """Take in a batch.

        Args:
            rows: (m, d), those of the batch that are here.
            weights: (m,) of zeros and ones, or None for all ones; rows that are not finite have weight 0.
            part: whose rows they are.
        """
        rows = rows.to(torch.float64)
        usable = torch.isfinite(rows).all(1, keepdim=True)  # one that is not would stay in the moments for ever
        rows = torch.where(usable, rows, 0.0)
        column = usable.to(rows) if weights is None else usable * weights.to(rows).unsqueeze(1)
        fresh, sums = part.add_up([column.sum(), (rows * column).sum(0)])
        total = self.count + fresh
        mean = sums / fresh.clamp(min=1)
        gap = mean - self.mean
        (squares,) = part.add_up([((rows - mean).square() * column).sum(0)])
        self.squares += squares + gap.square() * self.count * fresh / total.clamp(min=1)
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
        part: whose N environments.
        gamma: discount.
    """

    def __init__(self, *, part: Part, gamma: float) -> None:
        self._part = part
        self._gamma = gamma
        self._sums = np.zeros(part.count)
        self._count = 0.0
        self._mean = 0.0
        self._squares = 0.0

    def restart(self) -> None:
        """Forget the episodes in progress, not what was learnt: the environments start fresh ones."""
        self._sums[:] = 0.0

    def __call__(self, rewards: NDArray[Any], *, ended: NDArray[np.bool_], valid: NDArray[np.bool_]) -> NDArray[Any]:
        """Take in a rollout, and scale each step's rewards by what is known from all environments up to that step.

        Args:
            rewards: (T, N).
            ended: (T, N) whether an episode ends with the step.
            valid: (T, N) whether the row is a real transition; other rows are scaled and not learnt from.

        Returns:
            (T, N) float64.
        """
        valid = valid & np.isfinite(rewards)
        moments = np.zeros((len(rewards), 3))  # number, mean and sum of squared differences to it, of each step
        for step, (paid, over, real) in enumerate(zip(rewards, ended, valid, strict=True)):
            self._sums[real] = self._gamma * self._sums[real] + paid[real]
            if (known := self._sums[real]).size:
                moments[step] = known.size, known.mean(), ((known - known.mean()) ** 2).sum()
            self._sums[over & real] = 0.0
        scaled = np.empty(rewards.shape)
        for step, parts in enumerate(self._of_all_parts(moments)):
            for number, mean, squares in parts[parts[:, 0] > 0]:
                self._merge(number, mean, squares)
            deviation = np.sqrt(self._squares / self._count) if self._squares > 0 else 1.0
            scaled[step] = np.clip(rewards[step] / deviation, -REWARD_LIMIT, REWARD_LIMIT)
        return scaled

    def _of_all_parts(self, moments: NDArray[Any]) -> NDArray[Any]:
        """(T, 3) of this process to (T, P, 3) of all."""
        hosts = self._part.hosts
        if hosts is None:
            return moments[:, None]
        own = torch.zeros(len(moments), hosts.size, 3, dtype=torch.float64)
        own[:, hosts.rank] = torch.from_numpy(moments)
        (all_parts,) = hosts.add_up([own], kind="rollouts")
        return all_parts.numpy()

    def _merge(self, number: float, mean: float, squares: float) -> None:
        total = self._count + number
        gap = mean - self._mean
        self._squares += squares + gap**2 * self._count * number / total
        self._mean += gap * number / total
        self._count = total

    def state_dict(self) -> dict[str, float]:
        """What was learnt."""
        return {"count": self._count, "mean": float(self._mean), "squares": float(self._squares)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take back what `state_dict` gave."""
        self._count, self._mean, self._squares = state["count"], state["mean"], state["squares"]
