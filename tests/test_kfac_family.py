"""Diagonal and full blocks against the exact Fisher by autograd, and what holds of every curvature."""

import copy
import math
from typing import Any, cast

import pytest
import torch
from family_networks import NETWORKS, WEIGHTS, mlp, network, observe, settled, weight_units
from oracles import fisher_block
from torch import Tensor, nn
from torch.distributions import Categorical

from acktr.kfac import KFAC, Fisher
from acktr.kfac.corrected import CorrectedBlock
from acktr.kfac.curvatures import Curvature
from acktr.kfac.optimal_factors import OptimalFactors

pytestmark = pytest.mark.usefixtures("float64")


# --- diagonal and full ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_full_is_the_exact_block_and_diagonal_its_diagonal(name: str, weights: str | None) -> None:
    full, metric, examples = settled(name, "full", weights)
    diagonal, _, _ = settled(name, "diagonal", weights)
    for one, two in zip(weight_units(full), weight_units(diagonal), strict=True):
        exact = fisher_block(one, metric.losses(), examples, between_groups=True)
        torch.testing.assert_close(one.block.to_dense(), exact, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(two.block.to_dense(), torch.diag(exact.diagonal()), rtol=1e-9, atol=1e-12)
        gradient = torch.randn(one.map.matrix_shape)
        for unit in (one, two):
            unit.block.refresh(0.05)
            dense = unit.block.to_dense()
            solved = torch.linalg.solve(dense + 0.05 * torch.eye(len(dense)), gradient.flatten())
            torch.testing.assert_close(unit.block.precondition(gradient, 0.05).flatten(), solved)
            torch.testing.assert_close(unit.block.multiply(gradient).flatten(), dense @ gradient.flatten())


def test_full_is_refused_above_5000_parameters_with_the_layer_named() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(100, 60))
    with pytest.raises(ValueError, match=r"layer 1 has 6060 parameters.*use 'ekfac' or 'kfac'"):
        KFAC(model, curvature="full")


@pytest.mark.parametrize("curvature", ["ekfac", "ekfoc", "full", "diagonal"])
def test_reduce_approximates_factors_and_no_gradient(curvature: Curvature) -> None:
    """What keeps second moments of the gradients themselves keeps those of the exact ones, in whichever basis."""
    optimizer, metric, _ = settled("convolutional", curvature, conv_factors="reduce")
    for unit in weight_units(optimizer):
        exact, found = fisher_block(unit, metric.losses()), unit.block.to_dense()
        if curvature == "full":
            torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.trace(), exact.trace(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close((found * exact).sum(), found.square().sum(), rtol=1e-9, atol=1e-12)  # a projection


# --- all of them ---------------------------------------------------------------------------------------------------

FAMILY: list[Curvature] = ["kfac", "ekfac", "kfoc", "ekfoc", "diagonal", "full"]


def train(model: nn.Module, optimizer: KFAC, inputs: Tensor, steps: int, weights: Tensor | None = None) -> float:
    loss = torch.zeros(())
    for _ in range(steps):
        with optimizer.capture():
            logits = model(inputs)
        optimizer.update_statistics(
            Fisher(distribution=Categorical(logits=logits, validate_args=False), kind="exact"), weights
        )
        optimizer.zero_grad()
        losses = -torch.log_softmax(logits, -1)[:, 0]
        loss = (losses if weights is None else torch.where(weights > 0, losses, 0.0) * weights).mean()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("mode", ["factored", "exact"])
@pytest.mark.parametrize("curvature", FAMILY)
@pytest.mark.parametrize("name", ["mlp", "convolutional"])
def test_every_curvature_trains_and_resumes_to_the_bit(name: str, curvature: Curvature, mode: Any) -> None:
    model, inputs = network(name)
    options: Any = {"curvature": curvature, "damping_mode": mode, "max_kl": 1e-2, "inverse_interval": 3}
    optimizer = KFAC(model, **options)
    first = train(model, optimizer, inputs, 1)
    assert train(model, optimizer, inputs, 15) < first / 2
    twin = copy.deepcopy(model)
    resumed = KFAC(twin, **options)
    resumed.load_state_dict(optimizer.state_dict())
    for one, two in ((model, optimizer), (twin, resumed)):
        train(one, two, inputs, 4)
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("curvature", FAMILY)
@pytest.mark.parametrize("name", ["mlp", "sequence", "convolutional"])
def test_rows_of_weight_0_have_no_influence_whatever_they_hold(name: str, curvature: Curvature) -> None:
    found = []
    for filling in (math.nan, 7.0):
        model, inputs = network(name)
        inputs[3:5] = filling
        weights = torch.ones(len(inputs))
        weights[3:5] = 0
        optimizer = KFAC(model, curvature=curvature)
        for _ in range(3):
            observe(model, optimizer, inputs, weights)
            optimizer.steps += 1
            for unit in optimizer.units:
                unit.block.refresh(0.01)
        found.append([unit.block.to_dense() for unit in optimizer.units])
    for one, two in zip(*found, strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, two)


@pytest.mark.parametrize("curvature", FAMILY)
@pytest.mark.parametrize("spoilt", ["nan", "weightless", "no gradient"])
def test_a_batch_that_says_nothing_leaves_a_usable_curvature(curvature: Curvature, spoilt: str) -> None:
    model, inputs = network("mlp")
    optimizer = KFAC(model, curvature=curvature)
    train(model, optimizer, inputs, 2)
    before = [unit.block.to_dense().clone() for unit in optimizer.units]
    weights = torch.zeros(len(inputs)) if spoilt == "weightless" else None
    with optimizer.capture():
        logits = model(inputs * math.nan if spoilt == "nan" else inputs)
    if spoilt == "no gradient":
        logits = logits * 0
    optimizer.update_statistics(
        Fisher(distribution=Categorical(logits=logits, validate_args=False), kind="exact"), weights
    )
    for unit, old in zip(optimizer.units, before, strict=True):
        found = unit.block.to_dense()
        assert torch.isfinite(found).all()
        if spoilt != "no gradient":
            assert torch.equal(found, old)
    train(model, optimizer, inputs, 5)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("curvature", FAMILY)
def test_no_gradient_from_the_first_batch_on_is_survived(curvature: Curvature) -> None:
    model, inputs = network("mlp")
    optimizer = KFAC(model, curvature=curvature)
    for _ in range(3):
        with optimizer.capture():
            logits = model(inputs)
        optimizer.update_statistics(Fisher(distribution=Categorical(logits=logits * 0), kind="exact"))
        optimizer.zero_grad()
        (-torch.log_softmax(logits, -1)[:, 0]).mean().backward()
        optimizer.step()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("other", FAMILY[1:])
def test_a_state_of_another_curvature_is_refused_in_one_line(other: Curvature) -> None:
    model, inputs = network("mlp")
    optimizer = KFAC(model, curvature=other)
    train(model, optimizer, inputs, 1)
    with pytest.raises(ValueError, match=f"made with curvature '{other}', this optimizer has 'kfac'"):
        KFAC(model).load_state_dict(optimizer.state_dict())


def test_an_empty_first_batch_leaves_the_identity() -> None:
    model, inputs = network("mlp")
    optimizer = KFAC(model, curvature="kfoc")
    observe(model, optimizer, inputs, torch.zeros(len(inputs)))
    factors = cast(CorrectedBlock, weight_units(optimizer)[0].block).factors
    assert isinstance(factors, OptimalFactors)
    assert torch.equal(cast(Tensor, factors.inputs.value)[0], torch.eye(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("curvature", ["kfac", "ekfac", "kfoc", "ekfoc"])
def test_without_damping_the_shift_of_all_logits_is_no_curvature_to_divide_by(
    curvature: Curvature, dtype: torch.dtype
) -> None:
    """Rounding left eigenvalues of 1e-17 there, and a step of any length along them has no KL to be limited by."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).to(dtype)
    inputs = torch.randn(300, 3, dtype=dtype)
    optimizer = KFAC(model, curvature=curvature, damping=0.0, damping_mode="exact", inverse_interval=1)
    train(model, optimizer, inputs, 4)
    assert all(float(parameter.detach().abs().max()) < 3 for parameter in model.parameters())


# --- arguments -------------------------------------------------------------------------------------------------------


def test_statistics_of_what_is_no_metric_are_refused_by_name() -> None:
    model, inputs = mlp()
    optimizer = KFAC(model)
    with optimizer.capture():
        logits = model(inputs)
    with pytest.raises(TypeError, match=r"a metric is wanted, such as Fisher\(distribution=...\), got Tensor"):
        optimizer.update_statistics(logits)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, 1.5, True, "2"])
@pytest.mark.parametrize("name", ["kfoc_steps", "inverse_interval", "stat_interval", "position_stride"])
def test_counts_are_whole_numbers(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} takes a whole number of at least 1, got {value!r}"):
        KFAC(nn.Linear(2, 2), **{name: value})


# --- the trust region ------------------------------------------------------------------------------------------------


def test_a_predicted_kl_is_never_negative_and_so_never_lifts_the_trust_region() -> None:
    """In single precision sᵀFs of inputs of a million came out as -5e3, which let a step of length 86 pass."""
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).float()
    optimizer = KFAC(model, damping_mode="exact", damping=1e-6, lr=0.1, max_kl=1e-3, inverse_interval=3)
    for _ in range(25):
        inputs = 1e6 * torch.randn(32, 8, dtype=torch.float32)
        with optimizer.capture():
            logits = model(inputs)
        optimizer.update_statistics(Fisher(distribution=Categorical(logits=logits), kind="exact"))
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, (inputs.sum(1) > 0).long()).backward()
        optimizer.step()
        assert 0 <= float(optimizer.kl_predicted) <= 1.001e-3


def test_a_state_saved_between_two_parts_of_a_batch_goes_on_to_the_bit() -> None:
    def trained(*, saved: bool) -> Tensor:
        torch.manual_seed(0)
        model, parts = nn.Linear(4, 3), torch.randn(6, 8, 4)
        optimizer = KFAC(model, stat_decay=0.9)
        for number in range(6):
            observe(model, optimizer, parts[number], None)
            model(parts[number]).square().sum().backward()
            if saved and number == 2:
                state = optimizer.state_dict()
                optimizer = KFAC(model, stat_decay=0.9)
                optimizer.load_state_dict(state)
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()
        return model.weight.detach()

    assert torch.equal(trained(saved=True), trained(saved=False))
