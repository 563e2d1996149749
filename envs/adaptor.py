"""Any `gymnasium.vector.VectorEnv`, in any of the three autoreset modes, as a `VectorEnvironment`."""

import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from acktr.envs.batches import ObservationBatch, gather_rows, leaf_spaces, leaves, map_leaves
from acktr.envs.episodes import EpisodeAccounting
from acktr.envs.group import GroupedVectorEnv
from acktr.envs.spaces import adapt_actions, adapt_observations, resembles_image
from acktr.envs.vector import Step, VectorEnvironment, checked_seeds
from acktr.errors import RunError, UserError


def declared_autoreset_mode(env: VectorEnv[Any, Any, Any]) -> AutoresetMode | None:
    """Return the autoreset mode that `env` says it has; None if it says nothing that can be trusted.

    The dictionary `gymnasium.vector.VectorEnv.metadata` is shared by all classes without metadata of their own, and
    some environments write their mode into it. What stands there may come from any of them and is not believed.
    """
    base = env.unwrapped
    mode = getattr(base, "autoreset_mode", None)
    if mode is None and base.metadata is not VectorEnv.metadata:
        mode = base.metadata.get("autoreset_mode")
    if isinstance(mode, str):
        mode = next((known for known in AutoresetMode if mode in (known.value, known.name)), None)
    return mode if isinstance(mode, AutoresetMode) else None


class GymnasiumEnvironment(VectorEnvironment):
    """One vector environment of gymnasium's kind behind the common interface.

    In DISABLED mode the finished rows are reset by mask within the step, so that a step looks as in SAME_STEP.

    Args:
        env: the vector environment; closed by `close`.
        name: its id, or the name of what made it.
        family: for the protocol.
        autoreset_mode: None takes the declared one; a value overrides what the environment says.
        max_episode_steps: for the protocol; None when unknown.
        own: for the protocol: `name` alone does not make this environment again.

    Raises:
        UserError: spaces that are not understood, or an environment that declares no mode and none is given.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        *,
        name: str,
        family: str,
        autoreset_mode: AutoresetMode | None = None,
        max_episode_steps: int | None = None,
        own: bool = False,
    ) -> None:
        declared = declared_autoreset_mode(env)
        mode = autoreset_mode or declared
        if mode is None:
            raise UserError(
                f"'{name}' does not say its autoreset mode; set metadata['autoreset_mode'] on its class or pass "
                "autoreset_mode to make_vec"
            )
        if declared is not None and declared is not mode:
            warnings.warn(f"'{name}' says {declared.name} but is run as {mode.name}, as asked", stacklevel=3)
        if getattr(env.unwrapped, "batch_size", env.num_envs) != env.num_envs:
            raise UserError(f"'{name}' steps only some of its environments at a time; make it with batch_size=num_envs")
        observations = adapt_observations(env.single_observation_space, env=name)
        actions = adapt_actions(env.single_action_space, env=name)
        self.id = name
        self.num_envs = env.num_envs
        self.observation_space = observations.space
        self.action_space = actions.space
        self.notes = tuple(
            f"observations {f'{key!r} ' if key else ''}of shape {leaf.shape} {leaf.dtype} look like images, and are "
            "taken as plain numbers: convolutions take uint8"
            for key, leaf in leaf_spaces(env.single_observation_space).items()
            if resembles_image(leaf)
        )
        continuous = isinstance(actions.space, gymnasium.spaces.Box)
        self.protocol = {
            "id": name,
            "family": family,
            "autoreset_mode": mode.value,
            "max_episode_steps": max_episode_steps,
            "actions": "scaled and clipped to the bounds" if continuous else None,
            "num_actions": int(actions.space.n) if isinstance(actions.space, gymnasium.spaces.Discrete) else None,
            "reward": "raw",
            **({"own": True} if own else {}),
        }
        self._env = env
        self._mode = mode
        self._closed = False
        self.source_observation_space = env.single_observation_space
        self._convert_observations = observations.convert
        self._convert_actions = actions.convert
        self._accounting = EpisodeAccounting(self.num_envs)
        self._dummy_next = np.zeros(self.num_envs, dtype=np.bool_)
        self._warned = False

    @property
    def render_fps(self) -> int:
        """See the base class."""
        return int(self._env.metadata.get("render_fps") or 30)

    def render(self) -> NDArray[np.uint8]:
        """See the base class."""
        try:
            frames = self._env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise UserError(f"'{self.id}' gives no picture: {' '.join(str(error).split())}") from error
        if not frames or frames[0] is None:
            raise UserError(f"'{self.id}' gives no picture: it has no render mode 'rgb_array'")
        return np.asarray(frames[0], dtype=np.uint8)

    def policy_observations(self, batch: Any) -> ObservationBatch:
        """See the base class."""
        converted: ObservationBatch = self._convert_observations(batch)
        return converted

    def environment_actions(self, batch: NDArray[Any]) -> NDArray[Any]:
        """See the base class."""
        converted: NDArray[Any] = self._convert_actions(batch)
        return converted

    def reset(self, seeds: Sequence[int] | None) -> ObservationBatch:
        """See the base class.

        A vector class other than gymnasium's sync and async ones and ale-py's takes a single seed by contract; it is
        given the first.
        """
        observations, _ = self._env.reset(seed=None if seeds is None else self._seed_argument(seeds))
        self._dummy_next = np.zeros(self.num_envs, dtype=np.bool_)
        self._accounting.clear()
        return self.policy_observations(observations)

    def step(self, actions: NDArray[Any]) -> Step:
        """See the base class."""
        if self._dummy_next.any() and np.issubdtype(actions.dtype, np.floating):
            actions = np.where(self._dummy_next[:, None], 0.0, actions)  # ignored, and perhaps of a strange last state
        raw, raw_rewards, terminated, truncated, info = self._env.step(self._convert_actions(actions))
        observations = self.policy_observations(raw)
        rewards = np.array(raw_rewards, dtype=np.float64)
        terminated, truncated = np.array(terminated, dtype=np.bool_), np.array(truncated, dtype=np.bool_)
        real = ~self._dummy_next
        if self._dummy_next.any():
            self._check_dummy_rows(rewards, terminated | truncated)
            rewards = np.where(real, rewards, 0.0)
            terminated, truncated = terminated & real, truncated & real
        done = terminated | truncated
        truncations = truncated & ~terminated
        final_observations = None
        match self._mode:
            case AutoresetMode.NEXT_STEP:
                self._dummy_next = done
            case AutoresetMode.SAME_STEP:
                final_observations = self._final_observations(info, truncations) if truncations.any() else None
            case AutoresetMode.DISABLED:
                final_observations = map_leaves(np.copy, observations) if truncations.any() else None
                if done.any():
                    self._reset_rows(done, observations)
        episodes = self._accounting.update(rewards=rewards, real=real, terminated=terminated, truncated=truncated)
        return Step(
            observations=observations,
            rewards=rewards,
            terminals=terminated,
            truncations=truncations,
            valid=real,
            final_observations=final_observations,
            episode_returns=episodes.returns,
            episode_lengths=episodes.lengths,
            episode_envs=episodes.envs,
            episode_truncated=episodes.truncated,
        )

    def close(self) -> None:
        """See the base class."""
        if not self._closed:
            self._closed = True
            self._env.close()

    def _seed_argument(self, seeds: Sequence[int]) -> Any:
        values = checked_seeds(seeds, self.num_envs)
        base = self._env.unwrapped
        if isinstance(base, GroupedVectorEnv | SyncVectorEnv | AsyncVectorEnv):
            return values
        if type(base).__module__.startswith("ale_py."):
            return np.array(values, dtype=np.int64) % 2**31
        return values[0]

    def _final_observations(self, info: dict[str, Any], truncations: NDArray[np.bool_]) -> ObservationBatch:
        """Gather the last observations of the truncated rows, from either layout of `info["final_obs"]`.

        Gymnasium's classes give an array of objects that is None elsewhere, others a full batch whose other rows mean
        nothing.
        """
        given = info.get("final_obs")
        rows = np.flatnonzero(truncations)
        last = None if given is None else gather_rows(self.source_observation_space, given, rows)
        if last is None:
            raise RunError(
                f"'{self.id}' says SAME_STEP but gave no info['final_obs'] for a truncated episode; "
                "pass its real autoreset mode to make_vec or mend the environment"
            )

        def spread(kept: NDArray[Any]) -> NDArray[Any]:
            full = np.zeros((self.num_envs, *kept.shape[1:]), dtype=kept.dtype)
            full[rows] = kept
            return full

        full: ObservationBatch = map_leaves(spread, self.policy_observations(last))
        return full

    def _reset_rows(self, done: NDArray[np.bool_], observations: ObservationBatch) -> None:
        """Reset the finished rows and write their first observations into `observations`."""
        # A fresh mask in a fresh dictionary: gymnasium's classes take it out of the one they are given.
        raw, _ = self._env.reset(options={"reset_mask": done.copy()})
        fresh = self.policy_observations(raw)
        for new, old in zip(leaves(fresh), leaves(observations), strict=True):
            if not (self._warned or np.array_equal(new[~done], old[~done], equal_nan=new.dtype.kind == "f")):
                self._warn(
                    f"'{self.id}' is run as DISABLED but its reset with a reset_mask changed rows outside the mask; "
                    "their episodes are miscounted if it restarted them"
                )
            old[done] = new[done]

    def _check_dummy_rows(self, rewards: NDArray[np.float64], done: NDArray[np.bool_]) -> None:
        if not self._warned and (self._dummy_next & ((rewards != 0.0) | done)).any():
            self._warn(
                f"'{self.id}' is run as NEXT_STEP but the step after an episode's end had a reward or ended again; "
                "pass its real autoreset mode to make_vec"
            )

    def _warn(self, message: str) -> None:
        self._warned = True
        warnings.warn(message, stacklevel=4)
