"""From one captured batch to the statistics of every unit."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.profiler import record_function

from acktr.kfac.averages import Share
from acktr.kfac.capture import Call, backward_passes, calls_of
from acktr.kfac.chains import ChainUnit
from acktr.kfac.metrics import Metric, checked
from acktr.kfac.statistics import Thinning
from acktr.kfac.units import ModuleUnit, StandaloneUnit, Unit, WeightUnit


def add_batch(
    units: Sequence[Unit],
    metric: Metric,
    weights: Tensor | None,
    calls: Sequence[Call],
    *,
    share: Share,
    thinning: Thinning,
) -> bool:
    """Add a batch to the running estimates of the units that its losses reach.

    Args:
        units: those of a model.
        metric: built from the outputs of the captured forward passes.
        weights: (N,) non-negative, or None for all ones.
        calls: captured; none where no unit takes its statistics from a module.
        share: of the batch in the averages.
        thinning: positions that convolutions' inputs are taken at.

    Returns:
        Whether there was anything to add: a metric of no rows has nothing to say.

    Raises:
        TypeError: it is no metric.
        RuntimeError: the metric does not come from what was captured.
        ValueError: a layer was called without an axis of examples.
    """
    losses = checked(metric).losses()
    if losses.shape[1] == 0:
        return False
    with record_function("kfac::sampled_backward"):
        passes = backward_passes(losses, calls) if calls else []
    if calls and not any(passes):
        raise RuntimeError("the metric depends on no captured output: build it from the forward pass in capture()")
    with torch.no_grad(), record_function("kfac::factors"):
        for unit in units:
            if isinstance(unit, WeightUnit):
                own = calls_of(unit.modules, passes)
                unit.update(own, weights, share, examples=losses.shape[1], thinning=thinning)
            elif isinstance(unit, ChainUnit):
                unit.update(passes, weights, share, examples=losses.shape[1])
            elif isinstance(unit, ModuleUnit):
                unit.update(calls_of(unit.modules, passes), weights, share, examples=losses.shape[1])
    standalone = [unit for unit in units if isinstance(unit, StandaloneUnit)]
    if standalone:
        exact = metric.exact_losses()
        for exact_unit in standalone:
            exact_unit.update(exact, weights, share)
    return True
