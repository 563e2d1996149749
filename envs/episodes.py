"""Raw return and length of full episodes, counted here once for every autoreset mode.

The wrappers that come with the environment libraries miscounted in one mode or another, and a vector environment that
resets within the step already reports the new episode's counters, so nothing of theirs is used.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """The E episodes that ended in one step.

    Attributes:
        returns: (E,) float64 sums of raw rewards.
        lengths: (E,) int64 environment steps.
        envs: (E,) int64 environment indices, ascending.
        truncated: (E,) bool, ended by a limit and not terminated.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    envs: NDArray[np.int64]
    truncated: NDArray[np.bool_]


class EpisodeAccounting:
    """Running return and length of each environment's episode."""

    def __init__(self, num_envs: int) -> None:
        self._returns = np.zeros(num_envs, dtype=np.float64)
        self._lengths = np.zeros(num_envs, dtype=np.int64)

    def clear(self) -> None:
        """Forget all unfinished episodes."""
        self._returns[:] = 0.0
        self._lengths[:] = 0

    def update(
        self,
        *,
        rewards: NDArray[np.float64],
        real: NDArray[np.bool_],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> Episodes:
        """Count one step and return the episodes that ended in it.

        Args:
            rewards: (N,) raw rewards.
            real: (N,) False where the environment made no step (a NEXT_STEP dummy row): nothing is counted there.
            terminated: (N,) the episode is over for good; a lost life is not meant here.
            truncated: (N,) a limit ended it.
        """
        self._returns += np.where(real, rewards, 0.0)
        self._lengths += real
        envs = np.flatnonzero((terminated | truncated) & real)
        ended = Episodes(
            returns=self._returns[envs],
            lengths=self._lengths[envs],
            envs=envs.astype(np.int64, copy=False),
            truncated=(truncated & ~terminated)[envs],
        )
        self._returns[envs] = 0.0
        self._lengths[envs] = 0
        return ended
