"""What runs in a worker process: a group of environments that obeys commands until the trainer's process is gone.

Imports no torch and nothing that starts threads of its own.
"""

import os
import pickle
import signal
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from acktr.envs.group import EnvironmentGroup, Factory
from acktr.envs.shared_arrays import SharedArrays, map_arrays, part_of, write_into
from acktr.envs.single import blame
from acktr.errors import RunError, UserError

STEP = b"step"
DONE = b"done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A worker's part of the environments.

    Attributes:
        factory: makes one environment, as cloudpickle's bytes.
        name: of the environment, for messages.
        observations: space of one environment.
        actions: space of one environment.
        num_envs: of all workers together.
        start: number of the worker's first environment.
        stop: number behind its last one.
        mode: when finished environments start again.
    """

    factory: bytes
    name: str
    observations: gymnasium.Space[Any]
    actions: gymnasium.Space[Any]
    num_envs: int
    start: int
    stop: int
    mode: AutoresetMode


def serve(commands: int, lifeline: int, memory: int) -> None:
    """Obey commands. Ends the process when the other end of `lifeline` is closed.

    Args:
        commands: descriptor of a two-way pipe. The first message is a `Share`; then `STEP`, or a pickled
            ("reset", seeds, mask), ("remake",) or ("close",). Every answer is `DONE`, or a pickled (class, message,
            traceback).
        lifeline: descriptor of a pipe's end to read, on which nothing ever comes.
        memory: descriptor of the shared arrays' file.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the trainer gets them too, and ends its workers when it is done
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    pipe = Connection(commands)
    worker: _Worker | None = None
    try:
        while True:
            message = pipe.recv_bytes()
            try:
                if worker is None:
                    worker = _Worker(cloudpickle.loads(message), memory)
                elif not worker.obey(message):
                    pipe.send_bytes(DONE)
                    return
            except Exception as error:  # told to the trainer, which ends the run
                pipe.send_bytes(_report(error))
            else:
                pipe.send_bytes(DONE)
    except (EOFError, OSError):  # the trainer is gone
        return


class _Worker:
    def __init__(self, share: Share, memory: int) -> None:
        every = map_arrays(memory, share.observations, share.actions, share.num_envs)
        self._share = share
        self._arrays: SharedArrays = part_of(every, share.start, share.stop)
        self._actions = _copy(self._arrays.actions)
        self._group = self._make()

    def _make(self) -> EnvironmentGroup:
        share = self._share
        try:
            factory: Factory = cloudpickle.loads(share.factory)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"'{share.name}' cannot be made in a worker process ({blame(error)}): put its code where other "
                "processes can import it, or use vectorization sync"
            ) from error
        group = EnvironmentGroup(factory, self._arrays, name=share.name, first=share.start, mode=share.mode)
        for env in group.envs:
            if env.observation_space != share.observations or env.action_space != share.actions:
                raise UserError(f"environments of '{share.name}' differ in their spaces; make them alike")
        return group

    def obey(self, message: bytes) -> bool:
        """Do what a message says; False if it was the last."""
        if message == STEP:
            write_into(self._actions, self._arrays.actions)
            self._group.step(_copy(self._actions))  # an environment may keep its action
            return True
        command, *arguments = pickle.loads(message)
        if command == "reset":
            self._group.reset(*arguments)
        elif command == "remake":
            self._group.close()
            self._group = self._make()
        else:
            self._group.close()
            return False
        return True


def _copy(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {name: _copy(part) for name, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(map(_copy, batch))
    return np.array(batch)


def _report(error: Exception) -> bytes:
    known = type(error) if isinstance(error, UserError | RunError) else RunError
    message = str(error) if isinstance(error, UserError | RunError) else blame(error)
    return pickle.dumps((known, message, "".join(traceback.format_exception(error))))


def _end_with(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(0)
