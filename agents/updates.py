"""What one update reports, whichever algorithm made it."""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from acktr.agents.part import Part
from acktr.agents.rollout import Batch
from acktr.agents.settings_learning import Schedule


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """Figures of one update, left on the device: whoever logs them reads them.

    Attributes:
        figures: 0-d tensors by their name in metrics.csv.
    """

    figures: Mapping[str, Tensor]


class Updater(Protocol):
    """An algorithm: turns a batch into a change of the policy's parameters."""

    def update(self, batch: Batch, *, progress: float) -> UpdateReport:
        """Learn from one batch.

        Args:
            batch: the rollout.
            progress: share of the run that is over, 0 to 1, which schedules follow.
        """
        ...

    def exploring(self) -> contextlib.AbstractContextManager[None]:
        """A context to make the next rollout in, where the policy acts as the algorithm explores."""
        ...

    def learning_rate(self) -> float:
        """The learning rate of the last update."""
        ...

    def counters(self) -> Mapping[str, int]:
        """Counts since the start, by their names in metrics.csv, from decomposition_retries on. Reads the device."""
        ...

    def conditions(self) -> Mapping[str, float]:
        """Condition numbers of what it inverts, by layer. Takes a while, and reads the device."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything the next update needs beside the policy's parameters."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        ...


def scheduled(value: float, schedule: Schedule, progress: float) -> float:
    """A setting at `progress` (0 to 1): `linear` falls to 0, `late` does so over the second half, `constant` stays."""
    left = max(0.0, 1.0 - progress)
    return value * {"linear": left, "late": min(1.0, 2 * left), "constant": 1.0}[schedule]


def add_up_gradients(parameters: Iterable[Tensor], figures: Mapping[str, Tensor], part: Part) -> dict[str, Tensor]:
    """Make gradients, and figures, those of the whole batch where each process has what its part adds to them.

    Args:
        parameters: whose `.grad` is replaced, in the same order everywhere.
        figures: 0-d, at least one.
        part: of the batch.

    Returns:
        The figures.
    """
    if part.is_whole:
        return dict(figures)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    *totals, sums = part.add_up([*gradients, torch.stack(list(figures.values()))], kind="gradients")
    for gradient, total in zip(gradients, totals, strict=True):
        gradient.copy_(total)
    return dict(zip(figures, sums, strict=True))


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()` with the parameters' indices as text, which checkpoint keys are."""
    state = optimizer.state_dict()
    return {**state, "state": {str(index): value for index, value in state["state"].items()}}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take back what `optimizer_state` gave."""
    indexed = {int(index): dict(value) for index, value in state["state"].items()}
    optimizer.load_state_dict({**state, "state": indexed})
