"""Two more habits of Martens & Grosse 2015 for supervised learning: averaged iterates and growing batches."""

import math
from collections.abc import Callable

from torch import Tensor

from acktr.kfac.checks import check_count, check_range


def iterate_average(decay: float = 0.99) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """How `torch.optim.swa_utils.AveragedModel` is to average the iterates (Martens & Grosse 2015, section 13).

        average = AveragedModel(model, avg_fn=iterate_average())
        ...
        average.update_parameters(model)  # after each step; evaluate `average` in place of `model`

    An exponential average that is the plain mean while it is young, so that the start is soon forgotten: the weight of
    the past is `min(1 - 1/k, decay)` at the k-th iterate.

    Args:
        decay: ξ (0.95 to 0.999; 0.99 in the paper).

    Returns:
        `avg_fn` of AveragedModel: from the average, a parameter and the number of iterates averaged to a new average.

    Raises:
        ValueError: decay outside [0, 1).
    """
    check_range("decay", decay, 0.0, 1.0, high_open=True)

    def average(averaged: Tensor, parameter: Tensor, count: Tensor | int) -> Tensor:
        kept = min(1 - 1 / (int(count) + 1), decay)
        return averaged * kept + parameter * (1 - kept)

    return average


def batch_size(step: int, *, first: int, full: int, reached: int = 500) -> int:
    """Batches that grow exponentially from `first` to `full` (Martens & Grosse 2015, section 13).

    Args:
        step: from 0 on.
        first: size of the first batch, at least 1 (1,000 in the paper).
        full: size at `reached` and after, at least `first`; that of the training set in the paper.
        reached: step at which it is full, at least 1 (500 in the paper).

    Raises:
        ValueError: an argument out of range.
    """
    check_count("step", step, 0)
    check_count("first", first, 1)
    check_count("full", full, first)
    check_count("reached", reached, 1)
    if step >= reached:
        return full
    return min(full, round(first * math.exp(step / reached * math.log(full / first))))
