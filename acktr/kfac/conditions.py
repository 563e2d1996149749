"""How well conditioned the factors are that are to be inverted: what a rising retry count announces itself by."""

import math
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from acktr.kfac.averages import RunningAverage
from acktr.kfac.kronecker import factored_damping
from acktr.kfac.units import Unit


@runtime_checkable
class _Factored(Protocol):
    """A block of a product A ⊗ G, or of one for each link of a chain."""

    @property
    def inputs(self) -> RunningAverage | list[RunningAverage]: ...

    @property
    def outputs(self) -> RunningAverage | list[RunningAverage]: ...


@torch.no_grad()
def condition_numbers(units: Sequence[Unit], damping: float) -> dict[str, float]:
    """Condition numbers of the damped running factors of all Kronecker-factored units.

    Takes an eigendecomposition of each factor and reads the host: for now and then, not for every update.

    Args:
        units: of a `KFAC`.
        damping: lambda on the blocks, split over the factors by the trace norm (Martens & Grosse 2015, section 6.3)
            whichever damping mode is in use; 0 leaves the factors as they are.

    Returns:
        (largest eigenvalue + damping) / (smallest + damping), of several groups the largest, by "NAME/A" and "NAME/G",
        "NAME/0/A", "NAME/0/G" and so on for the links of a chain; infinite where a factor is singular or defies its
        decomposition; nothing of units without statistics or whose factors are not finite.
    """
    found = {}
    for unit in units:
        for name, inputs, outputs in _factors(unit):
            if inputs.value is None or outputs.value is None:
                continue
            A, G = inputs.value.double(), outputs.value.double()
            if not (A.isfinite().all() and G.isfinite().all()):
                continue
            for letter, factor, added in zip("AG", (A, G), factored_damping(A, G, damping), strict=True):
                found[f"{name}/{letter}"] = _condition(factor, added)
    return found


def _factors(unit: Unit) -> Iterator[tuple[str, RunningAverage, RunningAverage]]:
    block = unit.block
    if not isinstance(block, _Factored):
        return
    if isinstance(block.inputs, list) and isinstance(block.outputs, list):
        for link, (inputs, outputs) in enumerate(zip(block.inputs, block.outputs, strict=True)):
            yield f"{unit.name}/{link}", inputs, outputs
    elif isinstance(block.inputs, RunningAverage) and isinstance(block.outputs, RunningAverage):
        yield unit.name, block.inputs, block.outputs


def _condition(factor: Tensor, damping: Tensor) -> float:
    try:
        eigenvalues = torch.linalg.eigvalsh(factor)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch's stubs leave it out
        return math.inf  # a figure to look at must not end a run
    eigenvalues = eigenvalues.clamp(min=0) + damping[:, None]
    return float((eigenvalues[:, -1] / eigenvalues[:, 0]).nan_to_num(math.inf).max())  # 0 / 0 is of a factor of zeros
