"""Gradients of linear layers that K-FAC is given as rows lead to the steps that their product leads to."""

import copy
from typing import Any

import pytest
import torch
from oracles import flat_parameters
from torch import Tensor, nn
from torch.distributions import Categorical

from acktr.kfac import KFAC, Fisher

pytestmark = pytest.mark.usefixtures("float64")


def informed(**options: Any) -> tuple[nn.Sequential, KFAC]:
    """A wide layer behind a narrow one, with curvature and inverses."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 20, bias=options.pop("has_bias", True)))
    optimizer = KFAC(model, lr=0.1, max_kl=1e-3, **options)
    with optimizer.capture():
        logits = model(torch.randn(40, 4))
    optimizer.update_statistics(Fisher(distribution=Categorical(logits=logits), kind="exact"))
    optimizer.refresh()
    return model, optimizer


def rows(number: int = 5) -> tuple[Tensor, Tensor]:
    """Gradients at the outputs of the second layer, and its inputs."""
    torch.manual_seed(1)
    return torch.randn(number, 20), torch.randn(number, 30)


def give(model: nn.Sequential, optimizer: KFAC, *, as_rows: bool) -> None:
    """Five rows in two portions, and a gradient of the first layer."""
    gradients, inputs = rows()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    if as_rows:
        optimizer.rows.add(model[2].weight, gradients[:2], inputs[:2])
        optimizer.rows.add(model[2].weight, gradients[2:], inputs[2:])
    else:
        model[2].weight.grad = gradients.mT @ inputs
        if model[2].bias is not None:
            model[2].bias.grad = gradients.sum(0)


@pytest.mark.parametrize("has_bias", [True, False])
def test_steps_equal_those_of_the_product(has_bias: bool) -> None:
    model, optimizer = informed(has_bias=has_bias)
    assert optimizer.rows.wants(model[2].weight, model[2].bias, 5)
    twin, other = copy.deepcopy(model), None
    other = KFAC(twin, lr=0.1, max_kl=1e-3)
    other.load_state_dict(optimizer.state_dict())
    for _ in range(2):  # the second one with momentum
        optimizer.zero_grad()
        other.zero_grad()
        give(model, optimizer, as_rows=True)
        give(twin, other, as_rows=False)
        directions = optimizer.natural_gradient()
        wanted = list(other.natural_gradient().values())
        assert len(directions) == len(wanted)
        for direction, plain in zip(directions.values(), wanted, strict=True):
            torch.testing.assert_close(direction, plain, rtol=1e-9, atol=1e-12)
        optimizer.step()
        other.step()
        torch.testing.assert_close(flat_parameters(model), flat_parameters(twin), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(optimizer.kl_predicted, other.kl_predicted)
    assert model[2].weight.grad is None
    before = flat_parameters(model)
    optimizer.zero_grad()
    optimizer.step()  # nothing is left of the rows
    assert torch.equal(flat_parameters(model), before)


def test_rows_of_half_precision_are_summed_in_the_weights() -> None:
    model, optimizer = informed()
    gradients, inputs = (part.bfloat16() for part in rows())
    optimizer.rows.add(model[2].weight, gradients, inputs)
    found = optimizer.natural_gradient()[model[2].weight]
    optimizer.zero_grad()
    model[2].weight.grad = gradients.double().mT @ inputs.double()
    model[2].bias.grad = gradients.double().sum(0)
    torch.testing.assert_close(found, optimizer.natural_gradient()[model[2].weight], rtol=1e-9, atol=1e-12)


def test_rows_that_are_not_finite_move_nothing() -> None:
    model, optimizer = informed()
    gradients, inputs = rows()
    gradients[3, 2] = torch.nan
    optimizer.rows.add(model[2].weight, gradients, inputs)
    before = flat_parameters(model)
    optimizer.step()
    assert torch.equal(flat_parameters(model), before)
    assert float(optimizer.skipped) == 1


@pytest.mark.parametrize("number", [1, 28, 29, 400])
def test_rows_are_wanted_while_they_are_less_work_than_the_gradient(number: int) -> None:
    model, optimizer = informed()
    outputs, inputs = 20, 31
    by_rows = number * (outputs**2 + inputs**2) + number * outputs * inputs
    by_gradient = number * outputs * inputs + outputs * inputs * (outputs + inputs)
    assert optimizer.rows.wants(model[2].weight, model[2].bias, number) == (by_rows < by_gradient)


@pytest.mark.parametrize(
    "options",
    [{"damping_mode": "exact"}, {"curvature": "ekfac"}, {"curvature": "diagonal"}, {"bias": "separate"}],
    ids=str,
)
def test_other_curvatures_get_gradients(options: dict[str, Any]) -> None:
    model, optimizer = informed(**options)
    assert not optimizer.rows.wants(model[2].weight, model[2].bias, 5)


def test_gradients_are_wanted_before_the_first_inverse_and_where_there_is_one_already() -> None:
    model = nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 20))
    assert not KFAC(model).rows.wants(model[2].weight, model[2].bias, 5)
    model, optimizer = informed()
    model[2].weight.grad = torch.ones_like(model[2].weight)
    assert not optimizer.rows.wants(model[2].weight, model[2].bias, 5)
    assert not optimizer.rows.wants(torch.ones(20, 30), None, 5)  # of no unit


@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_a_layer_with_a_part_that_is_not_trained_gets_its_gradient(parameter: str) -> None:
    """A bias that was frozen later moved with the rows."""
    model, optimizer = informed()
    getattr(model[2], parameter).requires_grad_(False)
    assert not optimizer.rows.wants(model[2].weight, model[2].bias, 5)


@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_a_gradient_that_comes_after_rows_counts_too(parameter: str) -> None:
    """Of a further micro-batch, or a penalty on the weights."""
    model, optimizer = informed()
    gradients, inputs = rows()
    later = {"weight": torch.randn(20, 30), "bias": torch.randn(20)}[parameter]
    optimizer.rows.add(model[2].weight, gradients, inputs)
    getattr(model[2], parameter).grad = later
    found = optimizer.natural_gradient()
    optimizer.zero_grad()
    model[2].weight.grad, model[2].bias.grad = gradients.mT @ inputs, gradients.sum(0)
    getattr(model[2], parameter).grad += later
    for key, wanted in optimizer.natural_gradient().items():
        torch.testing.assert_close(found[key], wanted, rtol=1e-9, atol=1e-12)


def test_rows_are_not_wanted_where_the_bias_has_a_gradient_already() -> None:
    model, optimizer = informed()
    model[2].bias.grad = torch.ones_like(model[2].bias)
    assert not optimizer.rows.wants(model[2].weight, model[2].bias, 5)
