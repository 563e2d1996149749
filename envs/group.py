"""Several environments stepped one after the other: all of them in this process, or a worker process's share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from acktr.envs.shared_arrays import SharedArrays, local_arrays, write_into
from acktr.envs.single import blame
from acktr.errors import RunError, UserError

Factory = Callable[[], gymnasium.Env[Any, Any]]


class EnvironmentGroup:
    """Environments that write what they return into arrays of theirs.

    Unlike gymnasium's `SyncVectorEnv` it gathers no `info`, which nobody here reads and which takes an eighth of a step
    of HalfCheetah.

    Args:
        factory: makes one environment anew at every call.
        arrays: of these environments, one row each.
        name: of the environment, for messages.
        first: number of the first one, for messages.
        mode: when finished environments start again.

    Raises:
        UserError: the factory returned one environment twice.
    """

    def __init__(self, factory: Factory, arrays: SharedArrays, *, name: str, first: int, mode: AutoresetMode) -> None:
        self._arrays = arrays
        self._name = name
        self._first = first
        self._mode = mode
        count = len(arrays.rewards)
        self._over = np.zeros(count, dtype=np.bool_)
        self._rows = [rows_of_one(arrays.observations, row) for row in range(count)]
        self._final_rows = [rows_of_one(arrays.final_observations, row) for row in range(count)]
        self.envs = [factory() for _ in range(count)]
        if len({id(env) for env in self.envs}) != count:
            raise UserError(
                f"the factory '{name}' returned one environment twice; it must make a new one at every call"
            )

    def reset(self, seeds: Sequence[int] | None, mask: NDArray[np.bool_] | None) -> None:
        """Start fresh episodes.

        Args:
            seeds: one each; None goes on with the environments' own generators.
            mask: which environments; None means all.

        Raises:
            RunError: an environment failed.
        """
        index = 0
        try:
            for index, env in enumerate(self.envs):
                if mask is None or mask[index]:
                    observation, _ = env.reset(seed=None if seeds is None else seeds[index])
                    write_into(self._rows[index], observation)
        except Exception as error:  # it is the environment's own code that ran
            raise self._failure(index, error) from error
        self._over[slice(None) if mask is None else mask] = False

    def step(self, actions: Any) -> None:
        """Act once in each.

        Args:
            actions: as the batched action space has them; the environments may keep them.

        Raises:
            RunError: an environment failed.
        """
        arrays, mode, index = self._arrays, self._mode, 0
        try:
            for index, env in enumerate(self.envs):
                if mode is AutoresetMode.NEXT_STEP and self._over[index]:
                    observation, _ = env.reset()
                    reward, terminated, truncated = 0.0, False, False
                else:
                    observation, given, terminated, truncated, _ = env.step(_action(actions, index))
                    reward = float(given)
                    if mode is AutoresetMode.SAME_STEP and (terminated or truncated):
                        write_into(self._final_rows[index], observation)
                        observation, _ = env.reset()
                write_into(self._rows[index], observation)
                arrays.rewards[index] = reward
                arrays.terminated[index] = terminated
                arrays.truncated[index] = truncated
        except Exception as error:  # it is the environment's own code that ran
            raise self._failure(index, error) from error
        np.logical_or(arrays.terminated, arrays.truncated, out=self._over)

    def close(self) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()

    def _failure(self, index: int, error: Exception) -> Exception:
        if isinstance(error, UserError | RunError):
            return error
        where = f"environment {self._first + index} of '{self._name}'"
        trace = error.__traceback__
        if trace is not None and trace.tb_next is None and "to unpack" in str(error):  # raised here, not in its code
            return RunError(
                f"{where} does not return what gymnasium's interface asks for, reset (observation, info) and step "
                f"(observation, reward, terminated, truncated, info): {error}; change the class"
            )
        return RunError(f"{where} failed: {blame(error)}")


class GroupedVectorEnv(VectorEnv[Any, Any, Any], ABC):
    """A vector environment of gymnasium's kind made of groups; gives `final_obs` and no other `info`.

    Its observations are views that the next step writes into.

    Args:
        single: an environment as the factory makes it, for its spaces and its metadata.
        num_envs: N.
        arrays: of all environments.
        mode: when finished environments start again.
    """

    def __init__(
        self, single: gymnasium.Env[Any, Any], num_envs: int, arrays: SharedArrays, mode: AutoresetMode
    ) -> None:
        self.num_envs = num_envs
        self.metadata = {**single.metadata, "autoreset_mode": mode}
        self.autoreset_mode = mode
        self.render_mode = single.render_mode
        self.single_observation_space = single.observation_space
        self.single_action_space = single.action_space
        self.observation_space = batch_space(single.observation_space, num_envs)
        self.action_space = batch_space(single.action_space, num_envs)
        self._arrays = arrays

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start fresh episodes, where `options["reset_mask"]` says or everywhere.

        Args:
            seed: one per environment, or None.
            options: "reset_mask", (N,) bool.
        """
        self._reset(seed, (options or {}).get("reset_mask"))
        return self._arrays.observations, {}

    def step(
        self, actions: Any
    ) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Act."""
        self._step(actions)
        arrays = self._arrays
        info: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            done = arrays.terminated | arrays.truncated
            if done.any():
                last = np.full(self.num_envs, None, dtype=object)
                for row in np.flatnonzero(done).tolist():
                    last[row] = rows_of_one(arrays.final_observations, row)
                info = {"final_obs": last}
        return arrays.observations, arrays.rewards, arrays.terminated, arrays.truncated, info

    @abstractmethod
    def _reset(self, seeds: Sequence[int] | None, mask: NDArray[np.bool_] | None) -> None:
        """Start fresh episodes where `mask` says."""

    @abstractmethod
    def _step(self, actions: Any) -> None:
        """Act once in each environment."""


class LocalVectorEnv(GroupedVectorEnv):
    """All environments in this process.

    Args:
        factory: makes one environment anew at every call.
        num_envs: N.
        name: of the environment, for messages.
        mode: when finished environments start again.

    Raises:
        UserError: the factory returned one environment twice.
    """

    def __init__(
        self, factory: Factory, single: gymnasium.Env[Any, Any], num_envs: int, *, name: str, mode: AutoresetMode
    ) -> None:
        arrays = local_arrays(single.observation_space, single.action_space, num_envs)
        super().__init__(single, num_envs, arrays, mode)
        self._group = EnvironmentGroup(factory, arrays, name=name, first=0, mode=mode)

    def render(self) -> tuple[Any, ...]:
        """A picture of each environment."""
        return tuple(env.render() for env in self._group.envs)

    def close_extras(self, **_: Any) -> None:
        """Close the environments."""
        self._group.close()

    def _reset(self, seeds: Sequence[int] | None, mask: NDArray[np.bool_] | None) -> None:
        self._group.reset(seeds, mask)

    def _step(self, actions: Any) -> None:
        self._group.step(actions)


def _action(actions: Any, row: int) -> Any:
    """One environment's action; of a Discrete space a scalar, which environments look up in dictionaries."""
    if isinstance(actions, dict):
        return {name: _action(part, row) for name, part in actions.items()}
    if isinstance(actions, tuple):
        return tuple(_action(part, row) for part in actions)
    return actions[row]


def rows_of_one(batch: Any, row: int) -> Any:
    """One row of a batch as arrays to write into: views, of no dimension where rows are scalars."""
    if isinstance(batch, dict):
        return {name: rows_of_one(part, row) for name, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(rows_of_one(part, row) for part in batch)
    one = batch[row]
    return one if isinstance(one, np.ndarray) else batch[row : row + 1].reshape(())
