"""From one captured batch to what every unit has to add up of it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.profiler import record_function

from acktr.kfac.averages import Share
from acktr.kfac.capture import Call, backward_passes, calls_of, no_call
from acktr.kfac.chains import ChainUnit
from acktr.kfac.layers import without_rows
from acktr.kfac.metrics import Metric, checked
from acktr.kfac.statistics import Thinning
from acktr.kfac.sums import Sums
from acktr.kfac.units import ModuleUnit, StandaloneUnit, Unit, WeightUnit


def additions(
    units: Sequence[Unit],
    metric: Metric,
    weights: Tensor | None,
    calls: Sequence[Call],
    *,
    share: Share,
    thinning: Thinning,
    any_of: Callable[[Sequence[bool]], list[bool]] | None = None,
) -> list[Sums[None]] | None:
    """What adds a batch to the running estimates of the units that its losses reach, still to be run without a graph.

    Of a batch in parts all ranks have the same computations, of whatever any of their parts reaches; a part that does
    not reach a unit adds its examples and nothing else, as they do in a batch that is whole.

    Args:
        units: those of a model.
        metric: built from the outputs of the captured forward passes.
        weights: (N,) non-negative, or None for all ones.
        calls: captured; none where no unit takes its statistics from a module.
        share: of the batch in the averages.
        thinning: positions that convolutions' inputs are taken at.
        any_of: says of each of some flags whether it holds for any part of the batch; None where all of it is here.

    Returns:
        One computation for each unit; None where there is nothing to add: a metric of no rows has nothing to say.

    Raises:
        TypeError: it is no metric.
        RuntimeError: the metric does not come from what was captured.
        ValueError: a layer was called without an axis of examples.
    """
    losses = checked(metric).losses()
    examples = losses.shape[1]
    if examples == 0 and any_of is None:
        return None
    with record_function("kfac::sampled_backward"):
        passes = backward_passes(losses, calls) if calls else []
    exact = metric.exact_losses() if any(isinstance(unit, StandaloneUnit) for unit in units) else None
    own = [calls_of(unit.modules, passes) for unit in units]
    standalone = [unit.gradients(exact) if isinstance(unit, StandaloneUnit) else None for unit in units]
    reached = [bool(found) or rows is not None for found, rows in zip(own, standalone, strict=True)]
    told = any(passes)
    if any_of is not None:
        has_rows, told, *reached = any_of([examples > 0, told, *reached])
        if not has_rows:
            return None
    if calls and not told:
        raise RuntimeError("the metric depends on no captured output: build it from the forward pass in capture()")
    found: list[Sums[None]] = []
    for unit, gradients, rows, is_reached in zip(units, own, standalone, reached, strict=True):
        if not is_reached:
            continue
        if isinstance(unit, ChainUnit):
            if not gradients:
                raise ValueError(f"structure 'block-tridiagonal' needs each rank's losses to reach all of {unit.name}")
            found.append(unit.update(passes, weights, share, examples=examples))
        elif isinstance(unit, WeightUnit):
            passed = gradients or _nothing(unit)
            found.append(unit.update(passed, weights, share, examples=examples, thinning=thinning))
        elif isinstance(unit, ModuleUnit):
            with torch.no_grad():
                found.append(unit.update(gradients or _nothing(unit), weights, share, examples=examples))
        elif isinstance(unit, StandaloneUnit):
            found.append(unit.update(rows, weights, share, examples=examples))
    return found


def _nothing(unit: Unit) -> list[list[tuple[Call, Tensor]]]:
    """A pass that reaches the unit with no rows, for a part of a batch that does not reach it."""
    module = unit.modules[0]
    return [[no_call(module, *without_rows(module, unit.parameters[0].detach()))]]
