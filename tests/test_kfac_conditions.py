"""Condition numbers of the factors, against numpy's."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from acktr.kfac import KFAC, Fisher
from acktr.kfac.conditions import condition_numbers
from acktr.kfac.kronecker import factored_damping


def trained(curvature: str = "kfac") -> KFAC:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).double()
    optimizer = KFAC(model, lr=0.1, curvature=curvature)  # type: ignore[arg-type]
    with optimizer.capture():
        logits = model(torch.randn(64, 2, 5, 5, dtype=torch.float64))
    optimizer.update_statistics(Fisher(distribution=torch.distributions.Categorical(logits=logits)))
    optimizer.estimate.settle()
    return optimizer


@pytest.mark.parametrize("curvature", ["kfac", "ekfac", "kfoc"])
def test_condition_numbers_are_those_of_the_damped_factors(curvature: str) -> None:
    optimizer = trained(curvature)
    found = condition_numbers(optimizer.units, 0.01)
    assert set(found) == {"0/A", "0/G", "3/A", "3/G"}
    block = optimizer.units[0].block
    A, G = block.inputs.value, block.outputs.value  # type: ignore[attr-defined]
    for letter, factor, damping in zip("AG", (A, G), factored_damping(A, G, 0.01), strict=True):
        dense = factor + damping[:, None, None] * torch.eye(factor.shape[-1], dtype=factor.dtype)
        expected = max(np.linalg.cond(group.numpy()) for group in dense)
        assert found[f"0/{letter}"] == pytest.approx(expected, rel=1e-8)


def test_without_damping_a_singular_factor_is_as_badly_conditioned_as_can_be() -> None:
    """The logits of a softmax sum to a constant, so that one direction of G has no curvature at all."""
    assert condition_numbers(trained().units, 0.0)["3/G"] > 1e12


def test_a_chain_of_layers_has_those_of_each_of_its_links() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    optimizer = KFAC(model, lr=0.1, structure="block-tridiagonal")
    with optimizer.capture():
        logits = model(torch.randn(64, 5, dtype=torch.float64))
    optimizer.update_statistics(Fisher(distribution=torch.distributions.Categorical(logits=logits)))
    optimizer.estimate.settle()
    (unit,) = optimizer.units
    found = condition_numbers(optimizer.units, 0.01)
    assert list(found) == [f"0 - 2/{link}/{letter}" for link in (0, 1) for letter in "AG"]
    A, G = unit.block.inputs[0].value, unit.block.outputs[0].value  # type: ignore[attr-defined]
    damping = factored_damping(A, G, 0.01)[0]
    dense = A[0] + damping * torch.eye(A.shape[-1], dtype=A.dtype)
    assert found["0 - 2/0/A"] == pytest.approx(np.linalg.cond(dense.numpy()), rel=1e-8)


def test_a_factor_of_zeros_is_singular() -> None:
    optimizer = trained()
    optimizer.units[1].block.inputs.value.zero_()  # type: ignore[attr-defined]
    assert condition_numbers(optimizer.units, 0.0)["3/A"] == math.inf


def test_nothing_is_said_of_units_without_factors() -> None:
    assert condition_numbers(trained("diagonal").units, 0.01) == {}
    fresh = KFAC(nn.Linear(2, 2), lr=0.1)
    assert condition_numbers(fresh.units, 0.01) == {}


def test_a_factor_that_is_not_finite_ends_no_run() -> None:
    optimizer = trained()
    optimizer.units[1].block.inputs.value.fill_(math.nan)  # type: ignore[attr-defined]
    assert set(condition_numbers(optimizer.units, 0.01)) == {"0/A", "0/G"}
