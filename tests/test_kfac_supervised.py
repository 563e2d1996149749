"""Averaged iterates and growing batches."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from acktr.kfac import batch_size, iterate_average


def averages_of(values: list[float], decay: float) -> list[float]:
    model = nn.Linear(1, 1, bias=False).double()
    average = AveragedModel(model, avg_fn=iterate_average(decay))
    found = []
    for value in values:
        with torch.no_grad():
            model.weight.fill_(value)
        average.update_parameters(model)
        found.append(float(average.module.weight.detach()))
    return found


def test_young_averages_are_plain_means() -> None:
    assert averages_of([3.0, 5.0, 1.0, 7.0], 0.99) == pytest.approx([3.0, 4.0, 3.0, 4.0])


def test_old_averages_are_exponential() -> None:
    values = [float(value) for value in range(20)]
    expected, found = [values[0]], averages_of(values, 0.5)
    for value in values[1:]:
        expected.append(0.5 * expected[-1] + 0.5 * value)
    assert found == pytest.approx(expected)


def test_batches_grow_exponentially_to_the_full_size_and_stay() -> None:
    sizes = [batch_size(step, first=100, full=10_000, reached=50) for step in range(80)]
    assert (sizes[0], sizes[25], sizes[50], sizes[79]) == (100, 1000, 10_000, 10_000)
    assert sizes == sorted(sizes)
    assert batch_size(3, first=7, full=7) == 7
    assert batch_size(10**9, first=100, full=10_000) == 10_000  # the growth alone would leave the range of numbers


@pytest.mark.parametrize("options", [{"first": 0}, {"full": 5}, {"reached": 0}, {"step": -1}])
def test_arguments_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        batch_size(**{"step": 1, "first": 10, "full": 20, "reached": 5, **options})
    with pytest.raises(ValueError, match="decay"):
        iterate_average(1.0)
