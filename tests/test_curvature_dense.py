"""The matrices and errors of `acktr curvature` against autograd."""

import dataclasses
from typing import cast

import numpy as np
import pytest
import torch
from curvature_networks import ALL_NETWORKS, autograd_matrix, networks, small_convolutional
from torch import Tensor, nn

from acktr.agents import curvature_dense
from acktr.agents.curvature_capture import Captured
from acktr.agents.curvature_dense import (
    block_averages,
    choose_parts,
    dense_fisher,
    inverses,
    tridiagonal_inverse,
)
from acktr.agents.curvature_states import FisherKind
from acktr.errors import UserError
from acktr.kfac import KFAC, block_errors
from acktr.kfac.errors import block_size, weight_errors
from acktr.kfac.layers import Affine
from acktr.kfac.units import WeightUnit

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ALL_NETWORKS)
def test_the_exact_fisher_is_that_of_autograd(name: str) -> None:
    network = ALL_NETWORKS[name]()
    dense = dense_fisher(Captured(network, "exact"), choose_parts(network.layers, 100))
    torch.testing.assert_close(dense.exact, autograd_matrix(network).detach(), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", ["joint", "convolutional"])
def test_taking_units_takes_rows_and_columns_of_the_whole(name: str) -> None:
    network = ALL_NETWORKS[name]()
    captured = Captured(network, "exact")
    whole = dense_fisher(captured, choose_parts(network.layers, 100))
    part = dense_fisher(captured, choose_parts(network.layers, 3))
    at: list[Tensor] = []
    start = 0
    for large, small in zip(whole.parts, part.parts, strict=True):
        assert len(small.rows) == min(3, len(large.rows))
        columns = torch.cat((small.columns, torch.tensor([large.width - 1])))
        at.append((start + small.rows[:, None] * large.width + columns).flatten())
        start += large.size
    order = torch.cat(at)
    torch.testing.assert_close(part.exact, whole.exact[order][:, order], rtol=1e-12, atol=1e-16)
    torch.testing.assert_close(part.factored(), whole.factored()[order][:, order], rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("name", ALL_NETWORKS)
def test_diagonal_blocks_of_the_factored_matrix_are_those_of_kfac(name: str) -> None:
    network = ALL_NETWORKS[name]()
    dense = dense_fisher(Captured(network, "exact"), choose_parts(network.layers, 100))
    optimizer = KFAC(nn.ModuleList(network.layers.values()), conv_factors="reduce")
    with optimizer.capture():
        metric = network.metric("exact")
    optimizer.update_statistics(metric)
    start = 0
    for unit, size in zip(optimizer.units, dense.sizes, strict=True):
        block = dense.factored()[start : start + size, start : start + size]
        start += size
        torch.testing.assert_close(block, cast(WeightUnit, unit).block.to_dense(), rtol=1e-9, atol=1e-14)


def test_blocks_between_layers_are_products_of_moments_between_layers() -> None:
    network = networks()[0]
    dense = dense_fisher(Captured(network, "exact"), choose_parts(network.layers, 100))
    first, second, head = network.layers.values()
    seen: list[Tensor] = []
    for layer in (first, second, head):
        layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    losses = network.metric("exact").losses()
    inputs = [torch.cat((part, torch.ones(len(part), 1)), dim=1).detach() for part in seen]
    # at the output of a layer with a bias the gradient of an example is its gradient by that bias
    gradients = [
        torch.stack(
            [
                torch.stack([torch.autograd.grad(loss, layer.bias, retain_graph=True)[0] for loss in row])
                for row in losses
            ]
        )
        for layer in (first, second, head)
    ]
    starts = np.cumsum([0, *dense.sizes])
    for one in range(3):
        for other in range(3):
            A = torch.einsum("ni,nj->ij", inputs[one], inputs[other]) / 12
            G = torch.einsum("cno,cnp->op", gradients[one], gradients[other]) / 12
            block = dense.factored()[starts[one] : starts[one + 1], starts[other] : starts[other + 1]]
            torch.testing.assert_close(block, torch.kron(G, A), rtol=1e-9, atol=1e-14)


def test_policy_and_value_share_no_curvature_between_their_heads() -> None:
    network = networks(shared=True)[0]
    dense = dense_fisher(Captured(network, "exact"), choose_parts(network.layers, 100))
    assert [part.layer for part in dense.parts][-2:] == ["policy_head.logits", "value_head"]
    policy, value = dense.sizes[-2:]
    assert not dense.exact[-policy - value : -value, -value:].any()
    assert dense.factored()[-value:, -value:].norm() > 0


@pytest.mark.parametrize("name", ["joint", "policy-of-two-heads", "critic", "convolutional"])
def test_the_tridiagonal_inverse_couples_neighbours_alone(name: str) -> None:
    """What it is the inverse of equals the damped factored matrix on neighbouring blocks, two heads being one."""
    network = ALL_NETWORKS[name]()
    dense = dense_fisher(Captured(network, "exact"), choose_parts(network.layers, 100))
    assert network.chain is not None
    found = inverses(dense, 0.05, network.chain)["block-tridiagonal"]
    expected = dense.factored(0.05)
    own = {part.layer: part.size for part in dense.parts}
    sizes = [sum(own[layer] for layer in link) for link in network.chain]
    at = [slice(int(end) - size, int(end)) for end, size in zip(np.cumsum(sizes), sizes, strict=True)]
    implied = torch.linalg.inv(found)
    for one, rows in enumerate(at):
        for other, columns in enumerate(at):
            if abs(one - other) <= 1:
                torch.testing.assert_close(implied[rows, columns], expected[rows, columns], rtol=1e-7, atol=1e-11)
            else:
                assert not found[rows, columns].any()
    assert torch.linalg.eigvalsh(found).min() > 0


@pytest.mark.parametrize("name", ["policy", "critic", "convolutional"])
def test_the_tridiagonal_inverse_is_that_of_kfac(name: str) -> None:
    network = ALL_NETWORKS[name]()
    dense = dense_fisher(Captured(network, "exact"), choose_parts(network.layers, 100))
    optimizer = KFAC(nn.ModuleList(network.layers.values()), structure="block-tridiagonal")
    with optimizer.capture():
        metric = network.metric("exact")
    optimizer.update_statistics(metric)
    (unit,) = optimizer.units
    unit.block.refresh(0.05)
    direction = torch.randn(len(dense.exact), dtype=torch.float64)
    expected = inverses(dense, 0.05, network.chain)["block-tridiagonal"] @ direction
    torch.testing.assert_close(unit.block.precondition(direction, 0.05), expected, rtol=1e-7, atol=1e-10)


def test_inverses_are_of_what_they_say() -> None:
    network = networks(shared=True)[0]
    dense = dense_fisher(Captured(network, "exact"), choose_parts(network.layers, 100))
    found = inverses(dense, 0.05, None)
    assert list(found) == ["exact", "factored", "block-diagonal"]
    identity = torch.eye(len(dense.exact), dtype=torch.float64)
    torch.testing.assert_close(found["exact"] @ (dense.exact + 0.05 * identity), identity, rtol=0, atol=1e-9)
    torch.testing.assert_close(found["factored"] @ dense.factored(0.05), identity, rtol=0, atol=1e-9)
    start = 0
    for size in dense.sizes:
        part = slice(start, start + size)
        start += size
        inverse = found["block-diagonal"][part, part]
        torch.testing.assert_close(inverse @ dense.factored(0.05)[part, part], identity[part, part], rtol=0, atol=1e-9)
    assert int((found["block-diagonal"] != 0).sum()) <= sum(size**2 for size in dense.sizes)


def test_a_matrix_that_has_a_tridiagonal_inverse_is_inverted_exactly() -> None:
    torch.manual_seed(0)
    precision = torch.zeros(9, 9, dtype=torch.float64)
    for low, high in ((0, 5), (2, 9)):
        root = torch.randn(high - low, high - low, dtype=torch.float64)
        precision[low:high, low:high] += root @ root.T + torch.eye(high - low, dtype=torch.float64)
    assert not precision[:2, 5:].any()
    torch.testing.assert_close(tridiagonal_inverse(precision.inverse(), [2, 3, 4]), precision, rtol=1e-8, atol=1e-9)


def test_block_averages_are_of_absolute_values() -> None:
    matrix = torch.tensor([[1.0, -1.0, 3.0], [1.0, -1.0, -3.0], [0.0, 2.0, -7.0]])
    assert block_averages(matrix, [2, 1]).tolist() == [[1, 3], [1, 7]]


def test_as_many_units_are_taken_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    layers: dict[str, Affine] = {str(number): nn.Linear(50, 50) for number in range(4)}
    assert {len(part.rows) for part in choose_parts(layers, None)} == {20}
    monkeypatch.setattr(curvature_dense, "LARGEST", 4 * 7 * 8)
    parts = choose_parts(layers, None)
    assert {(len(part.rows), part.width) for part in parts} == {(7, 8)}
    assert parts[0].rows.tolist() == parts[1].columns.tolist(), "what is taken of a layer is an input of the next"
    with pytest.raises(UserError, match=r"--units 8 would make matrices of 288 parameters, above the 224 .* 7$"):
        choose_parts(layers, 8)


@pytest.mark.parametrize("kind", ["exact", "sampled"])
@pytest.mark.parametrize("name", ["joint", "policy-of-two-heads", "convolutional"])
def test_batches_of_named_layers_are_those_of_a_whole_model(name: str, kind: FisherKind) -> None:
    network = ALL_NETWORKS[name]()
    model = nn.ModuleList(network.layers.values())
    expected = block_errors(model, lambda: network.metric(kind), conv_factors=["expand", "reduce"])
    found = [
        dataclasses.replace(error, layer=str(number))
        for number, (_, batch) in enumerate(Captured(network, kind).batches(network.layers))
        for error in weight_errors(batch, ["expand", "reduce"])
    ]
    assert found == expected


def test_the_size_of_a_block_is_that_of_the_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces too: gradients come a few examples at a time, and inner products in rows."""
    from acktr.kfac import errors, statistics

    monkeypatch.setattr(statistics, "_CHUNK_ELEMENTS", 600)
    monkeypatch.setattr(errors, "_ROWS", 4)
    network = small_convolutional()
    start = 0
    whole = autograd_matrix(network)
    for (_, batch), layer in zip(
        Captured(network, "exact").batches(network.layers), network.layers.values(), strict=True
    ):
        size = sum(parameter.numel() for parameter in layer.parameters())
        block = whole[start : start + size, start : start + size]
        start += size
        assert block_size(batch) == pytest.approx((float(block.square().sum()), float(block.trace())), rel=1e-9)
