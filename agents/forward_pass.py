"""The pass forward on a batch: all rows for the loss, and a sample for the curvature and the measure of the step.

Where the rollout's own outputs serve (`acktr.agents.recall`) neither costs much: the whole batch makes one graph for
the loss, the sample another for the curvature. Otherwise the batch goes through the network in two parts, the sample
with K-FAC's capture on and the rest without, so that no row goes through it twice.
"""

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from acktr.agents.distributions import at_rows
from acktr.agents.losses import Policies, Rows, Values
from acktr.agents.part import Part
from acktr.agents.policy import ActorCritic
from acktr.agents.recalled_layers import RowSink
from acktr.agents.rollout import Batch
from acktr.kfac import KFAC, NoisyKFAC

Head = Literal["policy", "value"]

MOST_KEPT = 64
"""Samples whose indices are kept."""

LEAST_MEASURED = 16
"""Rows that KLs are measured on, as far as the sample has them: fewer say little, and may all be dummies."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Which rows of a batch curvature is taken from.

    Attributes:
        rows: of the batch as far as it is here.
        rest: all others; None where the sample is the batch.
        places: of the rows here in the sample of the whole batch; None where everything is here.
        positions: the same, as numbers of the host.
        number: of rows in the sample of the whole batch.
    """

    rows: Rows
    rest: Tensor | None
    places: Tensor | None
    positions: tuple[int, ...] | None
    number: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What the heads gave for some rows; None of a head that is not trained."""

    rows: Rows
    policies: Policies | None
    values: Values | None

    def at(self, positions: Tensor | slice, rows: Tensor) -> "Outputs":
        """Some of these outputs: those at `positions` among them, which are of `rows` of the batch."""
        policies, values = self.policies, self.values
        if policies is not None:
            policies = Policies(rows=rows, distribution=at_rows(policies.distribution, positions))
        if values is not None:
            values = Values(rows=rows, values=values.values[positions])
        return Outputs(rows=rows, policies=policies, values=values)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ForwardPass:
    """Outputs of a batch.

    Attributes:
        parts: cover the batch once together.
        sample: one of them, or outputs of some of the same rows by themselves.
        chosen: the sample's rows.
        measured: of the rows that KLs are measured on.
        is_captured: whether K-FAC has recorded the sample's pass.
    """

    parts: list[Outputs]
    sample: Outputs
    chosen: Sample
    measured: Outputs
    is_captured: bool

    @property
    def policies(self) -> list[Policies]:
        """Of all parts; none of a critic alone."""
        return [part.policies for part in self.parts if part.policies is not None]

    @property
    def values(self) -> list[Values]:
        """Of all parts; none of a policy alone."""
        return [part.values for part in self.parts if part.values is not None]


class ForwardPasses:
    """Makes them, the samples rotating through the batches.

    Args:
        policy: the whole network.
        heads: those that are trained.
        fraction: of the rows that are sampled, above 0 to 1.
        measured_fraction: of the rows that KLs are measured on, likewise; all of the sample where it is the smaller.
        holds_values: give `Values.held`, too.

    Attributes:
        turn: samples captured, which the rotation goes by.
    """

    def __init__(
        self,
        policy: ActorCritic,
        heads: tuple[Head, ...],
        *,
        fraction: float,
        measured_fraction: float,
        holds_values: bool,
    ) -> None:
        self.turn = 0
        self._policy = policy
        self._heads = heads
        self._fraction = fraction
        self._stride = max(1, round(fraction / measured_fraction))
        self._holds_values = holds_values
        self._samples: dict[tuple[int, int, int, int], Sample] = {}
        self._measured: dict[tuple[int, int, int, int], tuple[Tensor, Tensor]] = {}

    def run(self, batch: Batch, optimizer: KFAC) -> ForwardPass:
        """Outputs of the batch, of which the optimizer has captured a sample where it wants one."""
        rows = len(batch.advantages) // batch.part.count * batch.part.num_envs
        parts = max(1, min(rows, round(1 / self._fraction)))
        due = optimizer.statistics_due
        # noise is added to gradients as such, and only they can be added up over processes
        sink = optimizer.rows if batch.part.is_whole and not isinstance(optimizer, NoisyKFAC) else None
        sampled = self._sample(batch, rows, parts)
        chosen, rest = sampled.rows, sampled.rest
        among, measured = self._measured_rows(batch, rows, parts)
        self.turn += due  # else parts and intervals of equal numbers would always meet in the same part
        if batch.forward_is_known or not due:
            whole = self._outputs(batch, slice(None), sink=sink)
            if due:
                with optimizer.capture():
                    sample = self._outputs(batch, chosen, trains=False)
            else:
                sample = whole if isinstance(chosen, slice) else whole.at(chosen, chosen)
            found = [whole]
        else:
            with optimizer.capture():
                sample = self._outputs(batch, chosen)
            found = [sample] if rest is None else [sample, self._outputs(batch, rest)]
        return ForwardPass(
            parts=found,
            sample=sample,
            chosen=sampled,
            measured=sample if measured is None else sample.at(among, measured),
            is_captured=due,
        )

    def _measured_rows(self, batch: Batch, rows: int, parts: int) -> tuple[Tensor | slice, Tensor | None]:
        """Positions in the sample of the rows to measure, which take turns, and these rows; None for the sample."""
        stride = min(self._stride, max(1, rows // parts // LEAST_MEASURED))
        if stride == 1:
            return slice(None), None
        key = (rows, batch.part.num_envs, parts, self.turn % (parts * stride))
        if key not in self._measured:
            device = batch.returns.device
            positions, chosen = part_of_part(rows, batch.part.num_envs, parts, stride, self.turn)
            if not batch.part.is_whole:
                sample = self._sample(batch, rows, parts).rows
                _, chosen = batch.part.among(chosen)
                positions = chosen if isinstance(sample, slice) else torch.searchsorted(sample.cpu(), chosen)
            _make_room(self._measured)
            self._measured[key] = positions.to(device), chosen.to(device)
        return self._measured[key]

    def _sample(self, batch: Batch, rows: int, parts: int) -> Sample:
        part = batch.part
        key = (rows, part.num_envs, parts, self.turn % parts)
        if key not in self._samples:  # made and moved to the device once
            _make_room(self._samples)
            self._samples[key] = _drawn_sample(part, rows, parts, self.turn, batch.returns.device)
        return self._samples[key]

    def _outputs(self, batch: Batch, rows: Rows, *, trains: bool = True, sink: RowSink | None = None) -> Outputs:
        observations = batch.observed(rows)
        policies: Policies | None = None
        values: Values | None = None
        with batch.replaying(rows, trains=trains, sink=sink):
            if self._heads == ("policy",):
                policies = Policies(rows=rows, distribution=self._policy.distribution(observations))
            elif self._heads == ("value",):
                predicted, held = self._policy.values_and_held(observations)
                values = Values(rows=rows, values=predicted, held=held if self._holds_values else None)
            else:
                distribution, predicted, held = self._policy.evaluate(observations)
                policies = Policies(rows=rows, distribution=distribution)
                values = Values(rows=rows, values=predicted, held=held if self._holds_values else None)
        return Outputs(rows=rows, policies=policies, values=values)


def _drawn_sample(part: Part, rows: int, parts: int, turn: int, device: torch.device) -> Sample:
    """The part of a batch of so many rows whose turn it is, as far as it is here."""
    if parts == 1:
        whole, rest = torch.arange(rows), None
    else:
        whole, rest = rotating_part(rows, part.num_envs, parts, turn)
    if part.is_whole:
        here = slice(None) if rest is None else whole.to(device)
        return Sample(
            rows=here, rest=None if rest is None else rest.to(device), places=None, positions=None, number=len(whole)
        )
    places, chosen = part.among(whole)
    return Sample(
        rows=slice(None) if rest is None else chosen.to(device),
        rest=None if rest is None else part.among(rest)[1].to(device),
        places=places.to(device),
        positions=tuple(places.tolist()),
        number=len(whole),
    )


def _make_room(kept: dict[tuple[int, int, int, int], Any]) -> None:
    """Forget the oldest of too many: a batch divided into its rows has as many samples, each with all other rows."""
    if len(kept) >= MOST_KEPT:
        del kept[next(iter(kept))]


def rotating_part(rows: int, num_envs: int, parts: int, turn: int) -> tuple[Tensor, Tensor]:
    """Which rows a sample consists of: every environment's, at every so many of its steps.

    Neighbouring frames say much the same, so the rows of a part lie on diagonals of (steps, environments).

    Args:
        rows: M, a multiple of `num_envs`, time-major.
        num_envs: N.
        parts: into how many the batch is divided, at most M; none of them is empty.
        turn: the part wanted, modulo `parts`.

    Returns:
        Indices of the part's rows and of all others, on the CPU.
    """
    index = torch.arange(rows)
    diagonal = index % num_envs + index // num_envs
    if parts > num_envs + rows // num_envs - 1:  # fewer diagonals than parts
        diagonal = index
    taken = diagonal % parts == turn % parts
    return index[taken], index[~taken]


def part_of_part(rows: int, num_envs: int, parts: int, stride: int, turn: int) -> tuple[Tensor, Tensor]:
    """Which rows of a sample are measured: one in `stride`, at least one, of every environment as far as they reach.

    Args:
        rows: M.
        num_envs: N.
        parts: as of `rotating_part`, whose part of that turn is meant.
        stride: into how many the part is divided.
        turn: which of those it is changes once all parts had theirs.

    Returns:
        Positions among the part's rows, and the rows' indices, on the CPU.
    """
    part, _ = rotating_part(rows, num_envs, parts, turn)
    positions = torch.arange(len(part))
    wanted = turn // parts % stride
    if parts * stride > num_envs + rows // num_envs - 1:  # fewer diagonals than that
        number = min(stride, len(part))
        positions = positions[positions % number == wanted % number]
    else:
        diagonal = part % num_envs + part // num_envs
        positions = positions[diagonal // parts % stride == wanted]
    return positions, part[positions]
