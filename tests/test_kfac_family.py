"""EKFAC, K-FOC, diagonal and full blocks against the exact Fisher block by autograd."""

import copy
import math
from typing import Any, cast

import pytest
import torch
from oracles import fisher_block, relative_error, unit_named
from torch import Tensor, nn
from torch.distributions import Categorical

from acktr.kfac import KFAC, Fisher, GaussNewton, Metric, block_errors, moments, optimal_factors
from acktr.kfac.corrected import CorrectedBlock
from acktr.kfac.curvatures import Curvature
from acktr.kfac.errors import APPROXIMATIONS
from acktr.kfac.optimal_factors import OptimalFactors, in_gauge, nearest_to_two
from acktr.kfac.statistics import FactorKind
from acktr.kfac.units import WeightUnit

pytestmark = pytest.mark.usefixtures("float64")


class Twice(nn.Module):
    """One layer at two positions of its input, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.shared(inputs) + self.shared(inputs.flip(1))))  # type: ignore[no-any-return]


def mlp() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(20, 3)


def sequence() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(15, 3)), torch.randn(12, 3, 4)


def convolutional() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 3, 2, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    return model, torch.randn(9, 2, 4, 4)


def grouped() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    return model, torch.randn(9, 2, 3, 3)


NETWORKS = {
    "mlp": mlp,
    "sequence": sequence,
    "convolutional": convolutional,
    "grouped": grouped,
    "twice": lambda: (Twice(), torch.randn(10, 3)),
}
WEIGHTS = [None, "weighted"]


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    return NETWORKS[name]()


def observe(model: nn.Module, optimizer: KFAC, inputs: Tensor, weights: Tensor | None = None) -> Metric:
    with optimizer.capture():
        logits = model(inputs)
    metric = Fisher(distribution=Categorical(logits=logits, validate_args=False), kind="exact")
    optimizer.update_statistics(metric, weights)
    return metric


def example_weights(inputs: Tensor, kind: str | None) -> Tensor | None:
    return None if kind is None else torch.arange(len(inputs)).remainder(3).double()


def settled(name: str, curvature: Curvature, weights: str | None = None, **options: Any) -> tuple[KFAC, Metric, Any]:
    """Two rounds of one batch with no memory: the second is seen in the basis that the first one made."""
    model, inputs = network(name)
    optimizer = KFAC(model, curvature=curvature, stat_decay=0.0, max_kl=None, lr=0.0, **options)
    examples = example_weights(inputs, weights)
    observe(model, optimizer, inputs, examples)
    for unit in optimizer.units:
        unit.block.refresh(0.01)
    optimizer.steps += 1
    metric = observe(model, optimizer, inputs, examples)
    return optimizer, metric, examples


def weight_units(optimizer: KFAC) -> list[WeightUnit]:
    return [unit for unit in optimizer.units if isinstance(unit, WeightUnit)]


# --- EKFAC ---------------------------------------------------------------------------------------------------------


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


# --- K-FOC ---------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("conv_factors", ["expand", "reduce"])
@pytest.mark.parametrize("name", NETWORKS)
def test_errors_without_forming_a_block_are_those_of_the_dense_ones(name: str, conv_factors: FactorKind) -> None:
    model, inputs = network(name)

    def forward() -> Metric:
        return Fisher(distribution=Categorical(logits=model(inputs), validate_args=False), kind="exact")

    found = block_errors(model, forward, conv_factors=[conv_factors])
    layers: list[str] = []
    expected = {}
    for curvature in APPROXIMATIONS:
        optimizer, metric, _ = settled(name, curvature, kfoc_steps=60, conv_factors=conv_factors)
        layers = [unit.name for unit in weight_units(optimizer)]
        for unit in weight_units(optimizer):
            exact = fisher_block(unit, metric.losses(), between_groups=True)
            block = unit.block.to_dense()
            expected[unit.name, curvature] = (relative_error(block, exact), float(block.trace() / exact.trace()))
    assert [(error.layer, error.curvature, error.conv_factors) for error in found] == [
        (layer, curvature, conv_factors) for layer in layers for curvature in APPROXIMATIONS
    ]
    for error in found:
        relative, trace = expected[error.layer, error.curvature]
        # K-FOC is the end of an iteration; few means over positions span no basis, and rounding chooses the rest of it
        near = 1e-4 if error.curvature in ("kfoc", "ekfoc") else 1e-9
        if conv_factors == "reduce" and error.curvature in ("ekfac", "ekfoc"):
            near = 0.01
        assert error.relative == pytest.approx(relative, rel=near, abs=1e-7)
        assert error.trace == pytest.approx(trace, rel=near)


def test_what_is_the_same_under_both_factors_is_there_once() -> None:
    model, inputs = network("convolutional")
    found = block_errors(
        model,
        lambda: Fisher(distribution=Categorical(logits=model(inputs), validate_args=False), kind="exact"),
        conv_factors=["expand", "reduce"],
    )
    kinds = {(error.layer, error.conv_factors) for error in found}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            assert {(name, "expand"), (name, "reduce")} <= kinds
            assert sum((error.layer, error.curvature) == (name, "diagonal") for error in found) == 1
        if isinstance(layer, nn.Linear):
            assert (name, "expand") in kinds
            assert (name, "reduce") not in kinds


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


def test_reduced_k_foc_of_a_pooled_linear_convolution_is_that_of_its_summed_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    optimizer = KFAC(model, curvature="kfoc", conv_factors="reduce", kfoc_steps=200)
    metric = observe(model, optimizer, torch.randn(6, 2, 4, 4))
    unit = weight_units(optimizer)[0]
    exact = fisher_block(unit, metric.losses())
    torch.testing.assert_close(unit.block.to_dense(), best_product(exact, unit.map.matrix_shape), rtol=1e-8, atol=1e-10)


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


# --- arguments -------------------------------------------------------------------------------------------------------


def test_block_errors_refuses_what_it_would_misread() -> None:
    model, inputs = mlp()

    def forward() -> Metric:
        return Fisher(distribution=Categorical(logits=model(inputs)), kind="exact")

    assert block_errors(model, forward) == block_errors(model, forward, conv_factors=("expand",))
    with pytest.raises(ValueError, match="conv_factors takes one of expand, reduce, got 'both'"):
        block_errors(model, forward, conv_factors="both")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"a metric is wanted.*got Tensor"):
        block_errors(model, lambda: model(inputs))


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
