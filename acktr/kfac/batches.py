"""From one captured batch to what every unit has to add up of it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.profiler import record_function

from acktr.kfac.averages import Share
from acktr.kfac.capture import Call, backward_passes, calls_of
from acktr.kfac.chains import ChainUnit
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
    is_whole: bool = True,
) -> list[Sums[None]] | None:
    """What adds a batch to the running estimates of the units that its losses reach, still to be run without a graph.

    Args:
        units: those of a model.
        metric: built from the outputs of the captured forward passes.
        weights: (N,) non-negative, or None for all ones.
        calls: captured; none where no unit takes its statistics from a module.
        share: of the batch in the averages.
        thinning: positions that convolutions' inputs are taken at.
        is_whole: whether all of the batch is here; of a part of no rows the sums over the others are wanted still.

    Returns:
        One computation for each unit; None where there is nothing to add: a metric of no rows has nothing to say.

    Raises:
        TypeError: it is no metric.
        RuntimeError: the metric does not come from what was captured.
        ValueError: a layer was called without an axis of examples.
    """
    losses = checked(metric).losses()
    examples = losses.shape[1]
    if examples == 0 and is_whole:
        return None
    with record_function("kfac::sampled_backward"):
        passes = backward_passes(losses, calls) if calls else []
    if calls and not any(passes):
        raise RuntimeError("the metric depends on no captured output: build it from the forward pass in capture()")
    found: list[Sums[None]] = []
    exact: Tensor | None = None
    for unit in units:
        own = calls_of(unit.modules, passes)
        if isinstance(unit, ChainUnit):
            found.append(unit.update(passes, weights, share, examples=examples))
        elif isinstance(unit, WeightUnit) and own:
            found.append(unit.update(own, weights, share, examples=examples, thinning=thinning))
        elif isinstance(unit, ModuleUnit) and own:
            with torch.no_grad():
                found.append(unit.update(own, weights, share, examples=examples))
        elif isinstance(unit, StandaloneUnit):
            exact = metric.exact_losses() if exact is None else exact
            if (addition := unit.update(exact, weights, share)) is not None:
                found.append(addition)
    return found
