"""Environments in this process or in worker processes, whichever is quicker: decided by measuring both."""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import gymnasium
from gymnasium.vector import AutoresetMode, VectorEnv

from acktr.envs.cpus import usable_cpus
from acktr.envs.group import Factory, LocalVectorEnv
from acktr.envs.processes import ProcessVectorEnv, supported
from acktr.errors import UserError

Vectorization = Literal["auto", "sync", "async"]

_ROUND_TRIP = 2e-4
"""Seconds that a message to the workers and their answers take on busy cores; what sharing saves must be more."""

_SECONDS = 0.4
_SAMPLE = 4  # environments that are timed in this process, for all of them
_GAIN = 0.9  # workers take memory and a second to start: they must be quicker by a tenth


def vectorized(
    factory: Factory,
    single: gymnasium.Env[Any, Any],
    num_envs: int,
    *,
    how: Vectorization,
    name: str,
    mode: AutoresetMode,
) -> tuple[VectorEnv[Any, Any, Any], Literal["sync", "async"], str]:
    """Make the environments.

    What is measured is thrown away: the environments returned are new, so that the choice changes no byte of a run.

    Args:
        factory: makes one environment anew at every call.
        single: an environment as the factory makes it, for its spaces.
        num_envs: N.
        how: "auto" measures.
        name: of the environment, for messages.
        mode: when finished environments start again.

    Returns:
        The environments, how they are vectorised, and a line that says why; empty where nothing was to be decided.

    Raises:
        UserError: worker processes were asked for and cannot be had.
    """
    workers = min(num_envs, usable_cpus())

    def local() -> LocalVectorEnv:
        return LocalVectorEnv(factory, single, num_envs, name=name, mode=mode)

    def processes() -> ProcessVectorEnv:
        return ProcessVectorEnv(factory, single, num_envs, workers=workers, name=name, mode=mode)

    if how == "async" and not supported():
        raise UserError(f"vectorization async is not possible on {os.name}: use sync")
    if how == "async":
        return processes(), "async", ""
    if how == "sync" or workers == 1 or not supported():
        return local(), "sync", ""
    alone = _time(LocalVectorEnv(factory, single, min(_SAMPLE, num_envs), name=name, mode=mode))
    alone *= num_envs / min(_SAMPLE, num_envs)
    step = f"a step of {num_envs} environments takes"
    if alone * (1 - 1 / workers) < _ROUND_TRIP:
        return local(), "sync", f"vectorization: sync, {step} {1e3 * alone:.2f} ms, too little to share out"
    shared = processes()
    try:
        together = _time(shared, close=False)
        figures = f"{step} {1e3 * together:.2f} ms in {workers} worker processes, {1e3 * alone:.2f} ms in this one"
        if together < _GAIN * alone:
            shared.remake()
            return shared, "async", f"vectorization: async, {figures}"
    except BaseException:
        shared.close()
        raise
    shared.close()
    return local(), "sync", f"vectorization: sync, {figures}"


def _time(
    envs: VectorEnv[Any, Any, Any], *, close: bool = True, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median seconds of a step with random actions."""
    try:
        envs.action_space.seed(0)
        envs.reset(seed=list(range(envs.num_envs)))  # type: ignore[arg-type]  # one each is allowed
        envs.step(envs.action_space.sample())  # the first one warms up
        seconds: list[float] = []
        end = clock() + _SECONDS
        while clock() < end or len(seconds) < 3:
            actions = envs.action_space.sample()
            start = clock()
            _, _, terminated, truncated, _ = envs.step(actions)
            done = terminated | truncated
            if done.any() and envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED:
                envs.reset(options={"reset_mask": done})
            seconds.append(clock() - start)
        return statistics.median(seconds)
    finally:
        if close:
            envs.close()
