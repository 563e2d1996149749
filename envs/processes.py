"""A vector environment in worker processes, one for each usable core, each with an equal share of the environments.

Gymnasium's `AsyncVectorEnv` takes a process for each environment and sends every `info` through a pipe. Here a step is
one short message each way for each worker; observations, actions and rewards lie in shared memory.

Workers are fresh interpreters: nothing is forked, so that no thread, lock or OpenGL context of the trainer is there,
and the main module is not run again, as it would be by `multiprocessing`. They end when the trainer's process does,
however it ends, and leave nothing behind: the shared memory has no name.
"""

import itertools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from acktr.envs.group import Factory, GroupedVectorEnv
from acktr.envs.shared_arrays import map_arrays, open_file, size_of, write_into
from acktr.envs.single import one_line
from acktr.envs.worker import DONE, STEP, Share
from acktr.errors import RunError, UserError

_SECONDS_TO_CLOSE = 5.0
_START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from acktr.envs.worker import serve; serve({})"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def supported() -> bool:
    """Whether worker processes are possible: descriptors must be inherited, as POSIX systems do."""
    return os.name == "posix"


class ProcessVectorEnv(GroupedVectorEnv):
    """Environments in worker processes.

    Args:
        factory: makes one environment anew at every call; sent to the workers by cloudpickle.
        single: an environment as the factory makes it, for its spaces and its metadata.
        num_envs: N.
        workers: processes, at most N.
        name: of the environment, for messages.
        mode: when finished environments start again.

    Raises:
        UserError: the factory cannot be sent, or cannot make environments there.
        RunError: a worker did not start.
    """

    def __init__(
        self,
        factory: Factory,
        single: gymnasium.Env[Any, Any],
        num_envs: int,
        *,
        workers: int,
        name: str,
        mode: AutoresetMode,
    ) -> None:
        self._name = name
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pipes: list[Connection] = []
        self._lifelines: list[int] = []
        self._failed = False
        observations, actions = single.observation_space, single.action_space
        memory = open_file(size_of(observations, actions, num_envs))
        try:
            super().__init__(single, num_envs, map_arrays(memory, observations, actions, num_envs), mode)
            bounds = [round(num_envs * worker / workers) for worker in range(workers + 1)]
            self._shares = [slice(*pair) for pair in itertools.pairwise(bounds)]
            try:
                sent = cloudpickle.dumps(factory)
                shares = [
                    cloudpickle.dumps(
                        Share(
                            factory=sent,
                            name=name,
                            observations=observations,
                            actions=actions,
                            num_envs=num_envs,
                            start=share.start,
                            stop=share.stop,
                            mode=mode,
                        )
                    )
                    for share in self._shares
                ]
            except Exception as error:  # whatever the objects in the function's reach raise
                raise UserError(
                    f"'{name}' cannot be sent to worker processes ({one_line(error)[:200]}): use vectorization sync"
                ) from error
            for _ in self._shares:
                self._start(memory)
            for pipe, message in zip(self._pipes, shares, strict=True):
                self._send(pipe, message)
            self._await(range(workers))
        except BaseException:
            self._failed = True
            self.close()
            raise
        finally:
            os.close(memory)

    def remake(self) -> None:
        """Close all environments and make them anew, as if they had never been used."""
        self._command(pickle.dumps(("remake",)), range(len(self._pipes)))

    def close_extras(self, **_: Any) -> None:
        """End the workers: they close their environments, or are killed where they do not answer soon."""
        for pipe in self._pipes if not self._failed else []:
            try:
                pipe.send_bytes(pickle.dumps(("close",)))
            except OSError:
                continue  # that one is gone already
        for process in self._processes:
            try:
                process.wait(0 if self._failed else _SECONDS_TO_CLOSE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pipe in self._pipes:
            pipe.close()
        for lifeline in self._lifelines:
            os.close(lifeline)
        self._processes, self._pipes, self._lifelines = [], [], []

    def _reset(self, seeds: Sequence[int] | None, mask: NDArray[np.bool_] | None) -> None:
        asked = [worker for worker, share in enumerate(self._shares) if mask is None or mask[share].any()]
        for worker in asked:
            share = self._shares[worker]
            parts = (None if seeds is None else list(seeds[share]), None if mask is None else mask[share])
            self._send(self._pipes[worker], pickle.dumps(("reset", *parts)))
        self._await(asked)

    def _step(self, actions: Any) -> None:
        write_into(self._arrays.actions, actions)
        self._command(STEP, range(len(self._pipes)))

    def _command(self, message: bytes, workers: Sequence[int]) -> None:
        for worker in workers:
            self._send(self._pipes[worker], message)
        self._await(workers)

    def _start(self, memory: int) -> None:
        ours, theirs = Pipe()
        lifeline, held = os.pipe()
        self._pipes.append(ours)
        self._lifelines.append(held)
        inherited = (theirs.fileno(), lifeline, memory)
        try:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _START.format(", ".join(map(str, inherited))),
                    json.dumps([str(path) for path in sys.path]),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=inherited,
                env={**os.environ, **_ONE_THREAD},
                process_group=0,  # Ctrl-C is for the trainer, which finishes its update
            )
        except OSError as error:
            raise RunError(f"a worker process for '{self._name}' does not start: {one_line(error)}") from error
        finally:
            theirs.close()
            os.close(lifeline)
        self._processes.append(process)

    def _send(self, pipe: Connection, message: bytes) -> None:
        if self._failed:
            raise RunError(f"the worker processes of '{self._name}' have failed before; make the environments anew")
        try:
            pipe.send_bytes(message)
        except OSError:
            self._failed = True
            raise self._death(self._pipes.index(pipe)) from None

    def _await(self, workers: Sequence[int]) -> None:
        """Take an answer of each; the first failure is raised, and the others' answers are not waited for."""
        for worker in workers:
            try:
                answer = self._pipes[worker].recv_bytes()
            except (EOFError, OSError):
                self._failed = True
                raise self._death(worker) from None
            except BaseException:  # Ctrl-C in a library user's loop: answers would be taken for those of later commands
                self._failed = True
                raise
            if answer != DONE:
                self._failed = True
                kind, message, trace = pickle.loads(answer)
                error: Exception = kind(message)
                error.add_note(f"In worker process {worker}:\n{trace}")
                raise error

    def _death(self, worker: int) -> RunError:
        try:
            status = self._processes[worker].wait(_SECONDS_TO_CLOSE)
        except subprocess.TimeoutExpired:
            return RunError(
                f"a worker process of '{self._name}' closed its pipe: does the environment close descriptors?"
            )
        reason = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
        advice = "; is there enough memory?" if status == -9 else ""
        share = self._shares[worker]
        return RunError(
            f"the worker process of '{self._name}' with environments {share.start} to {share.stop - 1} {reason}{advice}"
        )
