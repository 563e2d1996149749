"""EKFAC: its scales, its distance from the exact block, its damping and its changes of basis."""

import math
from typing import cast

import pytest
import torch
from family_networks import NETWORKS, WEIGHTS, network, observe, settled, weight_units
from oracles import fisher_block, relative_error
from torch import Tensor

from acktr.kfac import KFAC, moments
from acktr.kfac.corrected import CorrectedBlock
from acktr.kfac.curvatures import Curvature

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("curvature", ["ekfac", "ekfoc"])
@pytest.mark.parametrize("name", NETWORKS)
def test_scales_are_the_diagonal_of_the_exact_block_in_the_basis_in_use(
    name: str, curvature: Curvature, weights: str | None
) -> None:
    optimizer, metric, examples = settled(name, curvature, weights)
    for unit in weight_units(optimizer):
        block = cast(CorrectedBlock, unit.block)
        exact = fisher_block(unit, metric.losses(), examples)
        state = block.state_dict()
        basis = optimal_kronecker(state["left"], state["right"])
        diagonal = (basis.T @ exact @ basis).diagonal()
        torch.testing.assert_close(state["scales"]["value"].flatten(), diagonal, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(block.to_dense().trace(), exact.trace(), rtol=1e-9, atol=1e-12)


def optimal_kronecker(left: Tensor, right: Tensor) -> Tensor:
    return torch.block_diag(*[torch.kron(one, other) for one, other in zip(left, right, strict=True)])


@pytest.mark.parametrize("plain", ["kfac", "kfoc"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_correction_is_never_farther_from_the_block_than_what_it_corrects(name: str, plain: Curvature) -> None:
    errors = []
    for curvature in (plain, f"e{plain}"):
        optimizer, metric, _ = settled(name, cast(Curvature, curvature), kfoc_steps=30)
        errors.append(
            [
                relative_error(unit.block.to_dense(), fisher_block(unit, metric.losses()))
                for unit in weight_units(optimizer)
            ]
        )
    for before, after in zip(*errors, strict=True):
        assert after <= before * (1 + 1e-9)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_squares_by_pairs_of_positions_and_by_gradients_are_the_same(
    name: str, weights: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for cheaper in (True, False):
        monkeypatch.setattr(moments, "_pairs_are_cheaper", lambda *_, turned, cheaper=cheaper: cheaper)
        optimizer, _, _ = settled(name, "ekfac", weights)
        found.append([cast(CorrectedBlock, unit.block).scales.value for unit in weight_units(optimizer)])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-13)


def test_the_first_refresh_starts_from_the_eigenvalues_of_k_fac() -> None:
    model, inputs = network("mlp")
    plain, corrected = (KFAC(model, curvature=curvature) for curvature in ("kfac", "ekfac"))
    for optimizer in (plain, corrected):
        observe(model, optimizer, inputs)
        for unit in optimizer.units:
            unit.block.refresh(0.01)
    for one, two in zip(plain.units, corrected.units, strict=True):
        torch.testing.assert_close(two.block.to_dense(), one.block.to_dense())


def test_a_new_basis_keeps_the_trace_and_a_diagonal_block() -> None:
    """Scales that were left as they were would speak of other directions."""
    model, inputs = network("mlp")
    optimizer = KFAC(model, curvature="ekfac", stat_decay=0.5)
    unit = weight_units(optimizer)[0]
    block = cast(CorrectedBlock, unit.block)
    observe(model, optimizer, inputs)
    block.refresh(0.01)
    optimizer.steps += 1
    observe(model, optimizer, inputs[:6] * 2)
    before, dense = block.state_dict(), block.to_dense()
    block.refresh(0.01)
    after = block.state_dict()
    assert relative_error(after["left"], before["left"]) > 1e-3
    torch.testing.assert_close(block.to_dense().trace(), dense.trace())
    basis = optimal_kronecker(after["left"], after["right"])
    expected = (basis.T @ dense @ basis).diagonal()
    torch.testing.assert_close(after["scales"]["value"].flatten(), expected)


def test_exact_damping_divides_by_the_scales_and_lambda() -> None:
    optimizer, _, _ = settled("convolutional", "ekfac", damping_mode="exact")
    for unit in weight_units(optimizer):
        gradient = torch.randn(unit.map.matrix_shape)
        dense = unit.block.to_dense()
        expected = torch.linalg.solve(dense + 0.03 * torch.eye(len(dense)), gradient.flatten())
        torch.testing.assert_close(unit.block.precondition(gradient, 0.03).flatten(), expected)
        torch.testing.assert_close(unit.block.multiply(gradient).flatten(), dense @ gradient.flatten())


def test_factored_damping_adds_to_the_scales_what_it_adds_to_k_fac() -> None:
    optimizer, _, _ = settled("mlp", "ekfac", damping_mode="factored")
    for unit in weight_units(optimizer):
        block = cast(CorrectedBlock, unit.block)
        A, G = cast(Tensor, block.inputs.value)[0], cast(Tensor, block.outputs.value)[0]
        pi = math.sqrt(float(A.trace() / len(A)) / float(G.trace() / len(G)))
        left, right = torch.eye(len(G)), torch.eye(len(A))
        added = torch.kron(G, right) * pi * 0.1 + torch.kron(left, A) * 0.1 / pi
        dense = block.to_dense() + added + 0.01 * torch.eye(len(added))
        gradient = torch.randn(unit.map.matrix_shape)
        expected = torch.linalg.solve(dense, gradient.flatten())
        torch.testing.assert_close(block.precondition(gradient, 0.01).flatten(), expected)
