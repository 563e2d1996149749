"""A model of the time that one update takes on several processes, fitted to some runs and asked about others.

An update is a rollout, the work on a process's rows, the inverses that hold the others up, and messages:

    rollout        T (a + b n) c s           T steps of n environments in each process; a, b by environment
    rows           (u + v r) c s             r = T n rows; u, v by environment
    inverses       (p k + q w) c             k decompositions, w the sum of n^3 of their factors, by the process that
                                             has most to do at each step, per update
    messages       (x h + y B) (1 + s) / 2   h hops and B bytes

s = max(1, processes / cores) is for processes that share a core; of a message half is waiting, which they do at the
same time. c = 1 + z (busy - 1) / (cores - 1) is what other busy cores cost, through memory that is shared and caches
that messages have emptied: z by environment and by part, for passes through convolutions and a thousand small
operations suffer differently. Sums go round a ring: a message makes 2 (R - 1) hops between R processes, and 2 (R - 1) /
R times its bytes leave each of them. Broadcasts go down a tree of log2 R levels.

The terms are fitted one after another by non-negative least squares on relative errors, each to its own share of the
time: a, b, u, v, p, q to runs of one process, z to those of several, then messages to what is left.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

PARTS = ("rollout", "rows", "inverses", "messages")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one update asks of one of the processes, means over the updates.

    Attributes:
        task: id of the environment.
        processes: R.
        cores: that the machine has for them.
        steps: T of every environment.
        environments: n of the process that has most.
        refreshes: decompositions that hold the others up.
        cubes: the sum of n^3 of the factors that are decomposed there.
        sums: messages that are added up.
        sum_bytes: of one process's copies of these.
        broadcasts: messages from one to all.
        broadcast_bytes: of these.
    """

    task: str
    processes: int
    cores: int
    steps: int
    environments: int
    refreshes: float
    cubes: float
    sums: float
    sum_bytes: float
    broadcasts: float
    broadcast_bytes: float

    @property
    def rows(self) -> int:
        """Of the process's part of a batch."""
        return self.steps * self.environments

    @property
    def levels(self) -> int:
        """Of a tree over the processes."""
        return math.ceil(math.log2(self.processes))

    @property
    def hops(self) -> float:
        """One behind another, of all messages."""
        return self.sums * 2 * (self.processes - 1) + self.broadcasts * self.levels

    @property
    def bytes_moved(self) -> float:
        """Out of a process, one behind another."""
        ring = 2 * (self.processes - 1) / self.processes
        return self.sum_bytes * ring + self.broadcast_bytes * self.levels


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The fitted terms, in seconds.

    Attributes:
        rollout: a of a step and b of an environment's, by task.
        rows: u of an update and v of a row, by task.
        inverses: p of a decomposition and q of n^3.
        messages: x of a hop and y of a byte.
        sharing: z of rollout, rows and inverses by task: the share by which a busy machine is slower, or quicker.
    """

    rollout: Mapping[str, tuple[float, float]]
    rows: Mapping[str, tuple[float, float]]
    inverses: tuple[float, float]
    messages: tuple[float, float]
    sharing: Mapping[str, tuple[float, float, float]]

    def predict(self, load: Load) -> dict[str, float]:
        """Seconds of an update by part."""
        slower = [1 + share * _busy(load) for share in self.sharing[load.task]]
        turns = max(1.0, load.processes / load.cores)
        messages = self.messages[0] * load.hops + self.messages[1] * load.bytes_moved
        return {
            "rollout": turns * slower[0] * load.steps * _line(self.rollout[load.task], load.environments),
            "rows": turns * slower[1] * _line(self.rows[load.task], load.rows),
            "inverses": slower[2] * (self.inverses[0] * load.refreshes + self.inverses[1] * load.cubes),
            "messages": messages * (1 + turns) / 2,
        }

    def seconds(self, load: Load) -> float:
        """Of an update."""
        return sum(self.predict(load).values())


def fit(runs: Sequence[tuple[Load, Mapping[str, float]]]) -> Model:
    """The terms from runs of one process and of several, and their seconds by part.

    Raises:
        ValueError: a task has fewer than two runs of one process, or none of several.
    """
    alone = [run for run in runs if run[0].processes == 1]
    several = [run for run in runs if run[0].processes > 1]
    rollout, rows = {}, {}
    tasks = sorted({load.task for load, _ in runs})
    for task in tasks:
        own = [run for run in alone if run[0].task == task]
        if len(own) < 2 or not any(load.task == task for load, _ in several):
            raise ValueError(f"{task}: two runs of one process at least, and one of several")
        rollout[task] = _fitted(own, "rollout", lambda load: (load.steps, load.steps * load.environments))
        rows[task] = _fitted(own, "rows", lambda load: (1, load.rows))
    inverses = _fitted(alone, "inverses", lambda load: (load.refreshes, load.cubes))
    quiet = dict.fromkeys(tasks, (0.0, 0.0, 0.0))
    before = Model(rollout=rollout, rows=rows, inverses=inverses, messages=(0.0, 0.0), sharing=quiet)
    return dataclasses.replace(
        before,
        sharing={task: _sharing([run for run in several if run[0].task == task], before) for task in tasks},
        messages=_fitted(several, "messages", lambda load: (load.hops, load.bytes_moved)),
    )


def _line(terms: tuple[float, float], size: float) -> float:
    return terms[0] + terms[1] * size


def _busy(load: Load) -> float:
    return (min(load.processes, load.cores) - 1) / max(1, load.cores - 1)


def _sharing(several: Sequence[tuple[Load, Mapping[str, float]]], model: Model) -> tuple[float, float, float]:
    """The shares that lead the means of the ratios to what quiet cores would take to where they are."""

    def share(part: str) -> float:
        return float(np.mean([(times[part] / model.predict(load)[part] - 1) / _busy(load) for load, times in several]))

    return share("rollout"), share("rows"), share("inverses")


def _fitted(
    runs: Sequence[tuple[Load, Mapping[str, float]]], part: str, sizes: Callable[[Load], tuple[float, float]]
) -> tuple[float, float]:
    """Two terms of at least 0 by least squares on the part's relative errors; runs without such a part say nothing."""
    found = [(sizes(load), times[part]) for load, times in runs if times[part] > 0]
    matrix: NDArray[np.float64] = np.array([[size / seconds for size in pair] for pair, seconds in found])
    candidates = [_least_squares(matrix, columns) for columns in ((0, 1), (0,), (1,))]
    best = min((terms for terms in candidates if (terms >= 0).all()), key=lambda terms: _misfit(matrix, terms))
    return float(best[0]), float(best[1])


def _least_squares(matrix: NDArray[np.float64], columns: tuple[int, ...]) -> NDArray[np.float64]:
    """Terms that bring the matrix nearest to ones, 0 but for these columns."""
    terms = np.zeros(2)
    scale = np.linalg.norm(matrix[:, columns], axis=0)
    scale[scale == 0] = 1.0  # terms are seconds of a call and of a byte
    terms[list(columns)] = np.linalg.lstsq(matrix[:, columns] / scale, np.ones(len(matrix)), rcond=None)[0] / scale
    return terms


def _misfit(matrix: NDArray[np.float64], terms: NDArray[np.float64]) -> float:
    return float(np.square(matrix @ terms - 1).sum())
