"""K-FOC: the nearest Kronecker product against the singular value decomposition, and what it survives."""

import copy
from typing import Any, cast

import pytest
import torch
from family_networks import NETWORKS, WEIGHTS, mlp, network, observe, settled, weight_units
from oracles import fisher_block, relative_error, unit_named
from torch import Tensor, nn
from torch.distributions import Categorical

from acktr.kfac import KFAC, Fisher, GaussNewton, optimal_factors
from acktr.kfac.corrected import CorrectedBlock
from acktr.kfac.curvatures import Curvature
from acktr.kfac.optimal_factors import in_gauge, nearest_to_two

pytestmark = pytest.mark.usefixtures("float64")


def rearranged(block: Tensor, rows: int, columns: int) -> Tensor:
    """(o², i²): vec(G) vec(A)ᵀ where the block is G ⊗ A (Van Loan & Pitsianis 1993)."""
    return block.reshape(rows, columns, rows, columns).permute(0, 2, 1, 3).reshape(rows**2, columns**2)


def best_product(block: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The nearest Kronecker product to each group's part of a block, by SVD."""
    groups, rows, columns = shape
    size = rows * columns
    parts = []
    for group in range(groups):
        part = slice(group * size, (group + 1) * size)
        u, s, v = torch.linalg.svd(rearranged(block[part, part], rows, columns), full_matrices=False)
        parts.append(torch.kron(u[:, 0].reshape(rows, rows) * s[0], v[0].reshape(columns, columns)))
    return torch.block_diag(*parts)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_k_foc_is_the_top_singular_pair_of_the_rearranged_fisher(name: str, weights: str | None) -> None:
    optimizer, metric, examples = settled(name, "kfoc", weights, kfoc_steps=300)
    for unit in weight_units(optimizer):
        exact = fisher_block(unit, metric.losses(), examples)
        found = unit.block.to_dense()
        torch.testing.assert_close(found, best_product(exact, unit.map.matrix_shape), rtol=1e-9, atol=1e-11)
        factors = cast(CorrectedBlock, unit.block)
        for factor in (factors.inputs.value, factors.outputs.value):
            assert float(torch.linalg.eigvalsh(cast(Tensor, factor)).min()) > -1e-12
            torch.testing.assert_close(factor, cast(Tensor, factor).mT, rtol=0, atol=0)


def test_the_residual_of_k_foc_is_stationary_in_both_factors() -> None:
    optimizer, metric, _ = settled("convolutional", "kfoc", kfoc_steps=300)
    for unit in weight_units(optimizer):
        block = cast(CorrectedBlock, unit.block)
        exact = fisher_block(unit, metric.losses())
        A = cast(Tensor, block.inputs.value)[0].clone().requires_grad_()
        G = cast(Tensor, block.outputs.value)[0].clone().requires_grad_()
        residual = (torch.kron(G, A) - exact).square().sum()
        scale = float(exact.square().sum())
        for gradient, factor in zip(torch.autograd.grad(residual, (A, G)), (A, G), strict=True):
            assert float((gradient.norm() * factor.norm()).detach()) < 1e-9 * scale


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", NETWORKS)
def test_from_the_factor_of_k_fac_no_step_is_worse_than_k_fac(name: str, steps: int) -> None:
    plain, metric, _ = settled(name, "kfac")
    errors: dict[str, list[float]] = {"kfac": [], "kfoc": []}
    optimal, _, _ = settled(name, "kfoc", kfoc_steps=steps, kfoc_aggregation="approx")
    for one, two in zip(weight_units(plain), weight_units(optimal), strict=True):
        block = cast(CorrectedBlock, two.block)
        block.inputs.value = cast(Tensor, cast(CorrectedBlock, one.block).inputs.value).clone()
    model, inputs = network(name)
    optimizer = KFAC(model, curvature="kfoc", kfoc_steps=steps, stat_decay=0.0, kfoc_aggregation="approx")
    for one, two in zip(weight_units(optimal), weight_units(optimizer), strict=True):
        two.block.load_state_dict(one.block.state_dict())
    observe(model, optimizer, inputs)
    for one, two in zip(weight_units(plain), weight_units(optimizer), strict=True):
        exact = fisher_block(one, metric.losses())
        errors["kfac"].append(relative_error(one.block.to_dense(), exact))
        errors["kfoc"].append(relative_error(two.block.to_dense(), exact))
    for before, after in zip(errors["kfac"], errors["kfoc"], strict=True):
        assert after <= before * (1 + 1e-9)


def test_k_foc_of_one_example_of_an_mlp_is_exact() -> None:
    model, inputs = network("mlp")
    optimizer = KFAC(model, curvature="kfoc")
    with optimizer.capture():
        logits = model(inputs[:1])
    metric = Fisher(distribution=Categorical(logits=logits), draw=torch.ones(1, dtype=torch.long))
    optimizer.update_statistics(metric)
    for unit in optimizer.units:
        torch.testing.assert_close(unit.block.to_dense(), fisher_block(unit, metric.losses()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_forms_by_pairs_and_by_gradients_are_the_same_product(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for form in ("pairs", "gradients"):
        monkeypatch.setattr(
            optimal_factors,
            "_terms",
            lambda batch, half_steps, form=form: (
                optimal_factors._ByPairs(list(batch.extended_pairs()))
                if form == "pairs"
                else optimal_factors._ByGradients(optimal_factors._Anew(batch.gradients))
            ),
        )
        optimizer, _, _ = settled(name, "kfoc", "weighted")
        found.append([unit.block.to_dense() for unit in optimizer.units])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-13)


def semidefinite(size: int, groups: int = 2) -> Tensor:
    root = torch.randn(groups, size, size // 2 + 1)
    return root @ root.mT


@pytest.mark.parametrize("scale", [1.0, 1e-6, 0.0])
def test_the_merge_of_two_products_is_the_singular_pair_of_their_sum(scale: float) -> None:
    torch.manual_seed(1)
    one, other = (semidefinite(4), semidefinite(3)), (semidefinite(4), semidefinite(3) * scale)
    A, G = nearest_to_two(one, other)
    for group in range(2):
        total = torch.kron(one[1][group], one[0][group]) + torch.kron(other[1][group], other[0][group])
        expected = best_product(total, (1, 3, 4))
        torch.testing.assert_close(torch.kron(G[group], A[group]), expected, rtol=1e-11, atol=1e-12)
        assert float(torch.linalg.eigvalsh(A[group]).min()) > -1e-12
        assert float(torch.linalg.eigvalsh(G[group]).min()) > -1e-12
        torch.testing.assert_close(A[group].trace() / 4, G[group].trace() / 3)


def test_merging_nothing_with_nothing_gives_nothing() -> None:
    zero = (torch.zeros(1, 4, 4), torch.zeros(1, 3, 3))
    A, G = nearest_to_two(zero, zero)
    assert float(A.abs().sum() + G.abs().sum()) == 0


@pytest.mark.parametrize("name", ["mlp", "convolutional"])
def test_running_aggregation_is_the_merge_of_the_products_of_the_batches(name: str) -> None:
    model, inputs = network(name)
    halves = inputs.chunk(2)
    alone = []
    for half in halves:
        optimizer = KFAC(model, curvature="kfoc", kfoc_steps=300)
        observe(model, optimizer, half)
        alone.append(optimizer)
    running = KFAC(model, curvature="kfoc", kfoc_steps=300, stat_decay=0.75)
    observe(model, running, halves[0])
    running.steps += 1
    observe(model, running, halves[1])
    for unit, one, two in zip(weight_units(running), *map(weight_units, alone), strict=True):
        first, second = unit_named(alone[0], one.name).block.to_dense(), unit_named(alone[1], two.name).block.to_dense()
        share = 0.75 / 1.75  # masses 0.25 and 0.75 · 0.25
        total = first * share + second * (1 - share)
        expected = best_product(total, unit.map.matrix_shape)
        torch.testing.assert_close(unit.block.to_dense(), expected, rtol=1e-7, atol=1e-10)


def test_approx_aggregation_averages_each_factor_in_its_gauge() -> None:
    model, inputs = network("mlp")
    halves = inputs.chunk(2)
    factors = []
    for half in halves:
        optimizer = KFAC(model, curvature="kfoc", kfoc_steps=300)
        observe(model, optimizer, half)
        factors.append([(unit.block.inputs.value, unit.block.outputs.value) for unit in optimizer.units])  # type: ignore[attr-defined]
    running = KFAC(
        model, curvature="kfoc", kfoc_aggregation="approx", kfoc_steps=300, stat_window=1.0, stat_decay=0.999999
    )
    for half in halves:
        observe(model, running, half)
        running.steps += 1
    for unit, one, two in zip(weight_units(running), *factors, strict=True):
        block = cast(CorrectedBlock, unit.block)
        for average, first, second in zip((block.inputs, block.outputs), one, two, strict=True):
            torch.testing.assert_close(average.value, (first + second) / 2, rtol=1e-5, atol=1e-8)


def test_the_gauge_keeps_the_product_and_makes_pi_one() -> None:
    A, G = semidefinite(4) * 1e8, semidefinite(3) * 1e-9
    one, two = in_gauge(A, G)
    torch.testing.assert_close(torch.kron(two[0], one[0]), torch.kron(G[0], A[0]))
    torch.testing.assert_close(one[0].trace() / 4, two[0].trace() / 3)
    dead = in_gauge(A, torch.zeros_like(G))
    assert torch.equal(dead[0], A)


# --- K-FOC's factors where they would not come back ------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["running", "approx"])
@pytest.mark.parametrize("curvature", ["kfoc", "ekfoc"])
def test_a_first_batch_without_gradient_does_not_keep_kfoc_at_zero(curvature: Curvature, aggregation: Any) -> None:
    """A head of zeros, as is usual, gives the layers before it no gradient on the first batch."""
    model, inputs = mlp()
    head = cast(nn.Linear, cast(nn.Sequential, model)[4])
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = KFAC(model, curvature=curvature, kfoc_aggregation=aggregation, stat_decay=0.9, max_kl=None, lr=0.0)
    observe(model, optimizer, inputs, None)
    unit = weight_units(optimizer)[0]
    assert not unit.block.to_dense().any()
    nn.init.normal_(head.weight)
    for _ in range(3):
        optimizer.step()
        metric = observe(model, optimizer, inputs, None)
    optimizer.refresh()
    observe(model, optimizer, inputs, None)
    # the old batch still weighs in the average, so that the trace is short of the exact one
    assert float(unit.block.to_dense().trace()) > 0.1 * float(fisher_block(unit, metric.losses()).trace())


def test_inputs_that_no_earlier_batch_had_enter_kfoc() -> None:
    model = nn.Linear(4, 3, bias=False)
    optimizer = KFAC(model, curvature="kfoc", stat_decay=0.5, max_kl=None, lr=0.0)
    states = torch.eye(4)
    for number in range(20):
        observe(model, optimizer, states[[0, 1] * 8 if number == 0 else [2, 3] * 8], None)
        optimizer.step()
    unit = weight_units(optimizer)[0]
    diagonal = cast(Tensor, unit.block.factors.inputs.value)[0].diagonal()  # type: ignore[attr-defined]
    assert float(diagonal[:2].max()) < 1e-3 * float(diagonal[2:].min())


@pytest.mark.parametrize("size", [1e-10, 1e-3, 1e4, 1e9, 1e15])
def test_the_nearest_to_two_products_keeps_its_digits_in_single_precision(size: float) -> None:
    """Squares of a block's norm leave the range of float32 from 1e9 on."""
    pairs = []
    for _ in range(2):
        roots = torch.randn(1, 5, 5), torch.randn(1, 3, 3)
        A, G = (root @ root.mT for root in roots)
        pairs.append((A, G * size))
    exact = nearest_to_two(*pairs)
    found = nearest_to_two(*((A.float(), G.float()) for A, G in pairs))
    expected = torch.kron(exact[1][0], exact[0][0])
    assert relative_error(torch.kron(found[1][0].double(), found[0][0].double()), expected) < 1e-6


def test_a_batch_whose_product_leaves_single_precision_leaves_the_running_one() -> None:
    model = nn.Linear(3, 2).float()
    optimizer = KFAC(model, curvature="kfoc", max_kl=None, lr=0.0)
    states = []
    for size in (1.0, 1e25, 1e15):
        with optimizer.capture():
            values = model(size * torch.randn(10, 3, dtype=torch.float32))
        optimizer.update_statistics(GaussNewton(values=values, kind="exact"))
        states.append(copy.deepcopy(weight_units(optimizer)[0].block.state_dict()))
    for side in ("inputs", "outputs"):
        assert torch.equal(states[0][side]["value"], states[1][side]["value"])
        assert torch.equal(states[0][side]["mass"], states[1][side]["mass"])
        assert torch.isfinite(states[2][side]["value"]).all()
        assert float(states[2][side]["mass"]) > float(states[1][side]["mass"])


def test_reduced_k_foc_of_a_pooled_linear_convolution_is_that_of_its_summed_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    optimizer = KFAC(model, curvature="kfoc", conv_factors="reduce", kfoc_steps=200)
    metric = observe(model, optimizer, torch.randn(6, 2, 4, 4))
    unit = weight_units(optimizer)[0]
    exact = fisher_block(unit, metric.losses())
    torch.testing.assert_close(unit.block.to_dense(), best_product(exact, unit.map.matrix_shape), rtol=1e-8, atol=1e-10)
