"""The one interface to vectorised environments: `VectorEnvironment` and the `Step` it returns."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np
from numpy.typing import NDArray

from acktr.envs.batches import ObservationBatch
from acktr.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step of N environments brought, with the same meaning in every autoreset mode.

    All arrays are fresh: neither the environment nor later steps write into them.

    The three modes differ in where the last observation of a truncated episode is found. In NEXT_STEP it is in
    `observations`, since the step after it is a dummy row (`valid` False) that brings the reset observation. In
    SAME_STEP and DISABLED `observations` already holds the reset observation and the last one is in
    `final_observations`.

    Attributes:
        observations: (N, *obs) what the policy acts on next; uint8 for images, float32 for other Box spaces, int64
            for Discrete and MultiDiscrete, int8 for MultiBinary; for a Dict a dictionary of such arrays.
        rewards: (N,) float64 raw rewards; 0 in dummy rows.
        terminals: (N,) bool, cuts the bootstrap: the episode terminated, or a life was lost and that is asked to count.
        truncations: (N,) bool, a limit ended the episode and it is not terminal: bootstrap from the last observation.
        valid: (N,) bool, False where the row is no transition of the policy: a NEXT_STEP dummy row or a forced FIRE.
        final_observations: like `observations` in SAME_STEP and DISABLED, rows meaningful where `truncations` only;
            None when no row was truncated, and always None in NEXT_STEP.
        episode_returns: (E,) float64 raw returns of the full episodes that ended in this step.
        episode_lengths: (E,) int64 steps that the environment really made in them, forced ones included.
        episode_envs: (E,) int64 the environment each of them belongs to, ascending.
        episode_truncated: (E,) bool, whether a limit ended it (False when it terminated in the same step).
    """

    observations: ObservationBatch
    rewards: NDArray[np.float64]
    terminals: NDArray[np.bool_]
    truncations: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    final_observations: ObservationBatch | None
    episode_returns: NDArray[np.float64]
    episode_lengths: NDArray[np.int64]
    episode_envs: NDArray[np.int64]
    episode_truncated: NDArray[np.bool_]


class VectorEnvironment(ABC):
    """N environments stepped together, whatever library and autoreset mode is underneath.

    Attributes:
        id: the environment's id, or the name of what made it.
        num_envs: N.
        observation_space: of a single environment, as `Step.observations` has it: images are uint8 and channel-first,
            Box vectors float32, Discrete spaces start at 0, MultiDiscrete and MultiBinary are flat, nested ones a Dict.
        action_space: of a single environment, as `step` takes it: Discrete starting at 0, or a flat MultiDiscrete
            starting at 0, MultiBinary or float32 Box.
        source_observation_space: of a single environment, as the environment itself has it.
        vectorization: "sync" in this process, "async" in worker processes; None where neither is meant.
        notes: lines for people about what was chosen when it was made.
        protocol: plain JSON values that say how the environment is run (autoreset mode, stickiness, no-ops, life
            and FIRE rules, frame skip, action set, cap), for the records of an evaluation.
    """

    id: str
    num_envs: int
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    protocol: dict[str, Any]
    source_observation_space: gymnasium.Space[Any]
    vectorization: Literal["sync", "async"] | None = None
    notes: tuple[str, ...] = ()

    @property
    def render_fps(self) -> int:
        """Frames per second that a film of the environment should have."""
        return 30

    def render(self) -> NDArray[np.uint8]:
        """A picture (H, W, 3) of the first environment as it stands.

        Raises:
            UserError: the environment was not made for rendering, or cannot.
        """
        raise UserError(f"'{self.id}' gives no picture: it was not made for rendering")

    def policy_observations(self, batch: Any) -> ObservationBatch:
        """Convert a batch of observations as the environment's own space has them to what the policy sees."""
        observations: ObservationBatch = batch
        return observations

    def environment_actions(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Convert a batch of the policy's actions to the environment's own space."""
        return batch

    @abstractmethod
    def reset(self, seeds: Sequence[int] | None) -> ObservationBatch:
        """Start a fresh episode in every environment and forget the unfinished ones.

        Args:
            seeds: one non-negative integer per environment, or None to go on with the environments' own generators.

        Returns:
            (N, *obs) first observations, fresh arrays.

        Raises:
            ValueError: the number of seeds is not `num_envs`, or one is negative.
        """

    @abstractmethod
    def step(self, actions: NDArray[Any]) -> Step:
        """Act once in every environment.

        Args:
            actions: (N,) int64 counted from 0, (N, K) of such numbers, (N, d) zeros and ones, or (N, d) float32 with
                -1 and 1 at the bounds of a Box. The last are clipped to the bounds here, since environments charge
                control costs on what they are given.

        Raises:
            RunError: a Box action is not finite, the environment breaks the rules of its autoreset mode, or its own
                code fails.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the environments' resources. Calling it again does nothing."""


def checked_seeds(seeds: Sequence[int], num_envs: int) -> list[int]:
    """Return `seeds` as Python integers, which is what every library underneath accepts.

    Raises:
        ValueError: their number is not `num_envs`, or one is negative.
    """
    values = [int(seed) for seed in seeds]
    if len(values) != num_envs or any(value < 0 for value in values):
        raise ValueError(f"seeds must be {num_envs} non-negative integers, one per environment, got {values}")
    return values
