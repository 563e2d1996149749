"""The optimizer: damping, statistics, refreshes, guards, state."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import block_order, flat_parameters, unit_named
from small_models import backward, classifier, train_step
from torch import Tensor, nn
from torch.distributions import Categorical

from acktr.agents import checkpoint
from acktr.agents.updates import load_optimizer_state, optimizer_state
from acktr.kfac import KFAC, Fisher, GaussNewton
from acktr.kfac.kronecker import factored_damping
from acktr.kfac.solvers import damped_inverse, eigenbasis, settled

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("mode", ["exact", "factored"])
def test_preconditioner_is_the_inverse_of_the_dense_damped_block(mode: Any) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    optimizer = KFAC(model, lr=1.0, max_kl=None, momentum=0.0, damping=0.03, damping_mode=mode)
    backward(model, optimizer, torch.randn(8, 2, 3, 3))
    before = {unit.name: [p.detach().clone() for p in unit.parameters] for unit in optimizer.units}
    optimizer.step()
    for unit in optimizer.units:
        order = block_order(unit)
        gradient = torch.cat([p.grad.flatten() for p in unit.parameters if p.grad is not None])[order]
        moved = torch.cat([(o - p.detach()).flatten() for p, o in zip(unit.parameters, before[unit.name], strict=True)])
        if mode == "exact":
            damped = unit.block.to_dense() + 0.03 * torch.eye(len(order))
        else:
            A, G = unit.block.inputs.value, unit.block.outputs.value  # type: ignore[attr-defined]  # a Kronecker block
            extra_a, extra_g = factored_damping(A, G, 0.03)
            pairs = [
                torch.kron(g + dg * torch.eye(len(g)), a + da * torch.eye(len(a)))
                for a, g, da, dg in zip(A, G, extra_a, extra_g, strict=True)
            ]
            damped = torch.block_diag(*pairs)
        torch.testing.assert_close(moved[order], torch.linalg.solve(damped, gradient), rtol=1e-8, atol=1e-10)


def test_least_squares_is_solved_in_one_undamped_step() -> None:
    model = nn.Linear(5, 2)
    inputs, targets = torch.randn(40, 5), torch.randn(40, 2)
    optimizer = KFAC(model, lr=1.0, max_kl=None, momentum=0.0, damping=0.0)
    with optimizer.capture():
        outputs = model(inputs)
    optimizer.update_statistics(GaussNewton(values=outputs, kind="exact"))
    ((outputs - targets) ** 2).sum(1).div(2).mean().backward()
    optimizer.step()
    homogeneous = torch.cat((inputs, torch.ones(40, 1)), 1)
    solution = torch.linalg.lstsq(homogeneous, targets).solution.T
    torch.testing.assert_close(torch.cat((model.weight, model.bias[:, None]), 1).detach(), solution)


def test_updated_function_is_invariant_to_affine_reparametrisation_of_activations() -> None:
    inputs = torch.randn(50, 3)
    mixing, shift = torch.randn(3, 3) + 2 * torch.eye(3), torch.randn(3)
    plain, mixed = nn.Linear(3, 3), nn.Linear(3, 3)
    plain2, mixed2 = nn.Linear(3, 2), nn.Linear(3, 2)
    with torch.no_grad():  # mixed(x @ mixing + shift) is the same function as plain(x)
        mixed.weight.copy_(plain.weight @ torch.linalg.inv(mixing).T)
        mixed.bias.copy_(plain.bias - mixed.weight @ shift)
        mixed2.load_state_dict(plain2.state_dict())
    results = []
    for first, second, data in ((plain, plain2, inputs), (mixed, mixed2, inputs @ mixing + shift)):
        model = nn.Sequential(first, nn.Tanh(), second)
        optimizer = KFAC(model, lr=0.5, max_kl=None, momentum=0.0, damping=0.0)
        with optimizer.capture():
            outputs = model(data)
        optimizer.update_statistics(GaussNewton(values=outputs, kind="exact"))
        ((outputs - 1) ** 2).sum(1).mean().backward()
        optimizer.step()
        results.append(model(data).detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-7, atol=1e-9)


def test_first_average_is_the_batch_and_later_ones_are_unbiased() -> None:
    model = nn.Linear(2, 1, bias=False)
    optimizer = KFAC(model, stat_decay=0.9, max_kl=None)
    batches = [torch.randn(30, 2) for _ in range(3)]
    weights = []
    for index, batch in enumerate(batches):
        with optimizer.capture():
            outputs = model(batch)
        optimizer.update_statistics(GaussNewton(values=outputs, kind="exact"))
        weights = [0.9 * weight for weight in weights] + [1.0]
        expected = sum(w * b.T @ b / 30 for w, b in zip(weights, batches[: index + 1], strict=True)) / sum(weights)
        torch.testing.assert_close(optimizer.units[0].block.inputs.value[0], expected)  # type: ignore[attr-defined]
        optimizer.steps += 1


def test_young_averages_reach_back_over_the_window_only() -> None:
    model = nn.Linear(2, 1, bias=False)
    optimizer = KFAC(model, stat_decay=0.9, stat_window=0.25, max_kl=None)
    average = torch.zeros(2, 2)
    for update in range(1, 61):
        batch = torch.randn(30, 2)
        train_step(model, optimizer, batch)
        # the newest of 4 updates is all of it at first; a tenth is reached when the window holds 10
        share = min(1.0, max(0.1, 1 / (0.25 * update)))
        average = (1 - share) * average + share * batch.T @ batch / 30
        torch.testing.assert_close(optimizer.units[0].block.inputs.value[0], average)  # type: ignore[attr-defined]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_rows_of_weight_zero_change_no_byte(poison: float) -> None:
    states = []
    for junk in (0.0, poison):
        model = classifier()
        optimizer = KFAC(model, lr=0.1)
        torch.manual_seed(5)
        inputs = torch.randn(6, 3)
        weights = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
        inputs[weights == 0] = junk
        with optimizer.capture():
            logits = model(inputs)
        optimizer.update_statistics(
            Fisher(distribution=Categorical(logits=logits, validate_args=False), kind="exact"), weights
        )
        states.append([unit.block.to_dense() for unit in optimizer.units])
    for one, two in zip(*states, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("mode", ["factored", "exact"])
def test_failing_decompositions_keep_the_last_good_inverse_and_are_counted(
    mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = classifier()
    optimizer = KFAC(model, lr=0.1, damping_mode=mode, inverse_interval=1)
    train_step(model, optimizer, torch.randn(9, 3))
    inverses = [unit.block.state_dict()["left"].clone() for unit in optimizer.units]

    def fail(matrix: Tensor) -> tuple[Tensor, Tensor]:
        raise torch.linalg.LinAlgError("injected")  # type: ignore[attr-defined]  # left out of torch's stubs

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    monkeypatch.setattr(
        torch.linalg, "cholesky_ex", lambda m: (torch.full_like(m, float("nan")), torch.ones(len(m), dtype=torch.int))
    )
    before = flat_parameters(model)
    train_step(model, optimizer, torch.randn(9, 3))
    assert optimizer.estimate.stale_count == 2
    assert optimizer.estimate.retry_count >= 2
    assert not torch.equal(flat_parameters(model), before)
    for unit, old in zip(optimizer.units, inverses, strict=True):
        assert torch.equal(unit.block.state_dict()["left"], old)


def test_one_failing_rung_is_mended_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = torch.linalg.eigh, []

    def flaky(matrix: Tensor) -> Any:
        calls.append(matrix.dtype)
        if len(calls) == 1:
            raise torch.linalg.LinAlgError("injected")  # type: ignore[attr-defined]  # left out of torch's stubs
        return original(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", flaky)
    basis, retries = eigenbasis(torch.eye(3)[None] * 2)
    assert retries == 1
    assert basis is not None
    torch.testing.assert_close(basis[0], torch.full((1, 3), 2.0), rtol=1e-5, atol=0)


def test_float32_failure_is_retried_in_float64_before_decomposing(monkeypatch: pytest.MonkeyPatch) -> None:
    original, seen = torch.linalg.cholesky_ex, []

    def only_double(matrix: Tensor) -> Any:
        seen.append(matrix.dtype)
        factor, info = original(matrix)
        return factor, info if matrix.dtype == torch.float64 else torch.ones_like(info)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", only_double)
    attempt = damped_inverse(torch.eye(3, dtype=torch.float32)[None], torch.full((1,), 1.0))
    ((inverse, retries),) = settled([attempt])
    assert seen[-1] == torch.float64
    assert retries == 3
    assert inverse is not None
    assert inverse.dtype == torch.float32


def test_zero_trace_leaves_the_damping_split_evenly() -> None:
    extra_a, extra_g = factored_damping(torch.zeros(1, 3, 3), torch.eye(2)[None], 0.04)
    torch.testing.assert_close((extra_a, extra_g), (torch.tensor([0.2]), torch.tensor([0.2])))


@pytest.mark.parametrize("mode", ["factored", "exact"])
def test_state_round_trip_through_a_file_gives_a_bit_equal_next_step(mode: Any, tmp_path: Path) -> None:
    model = classifier()
    optimizer = KFAC(model, lr=0.1, damping_mode=mode, inverse_interval=4)
    for _ in range(7):
        train_step(model, optimizer, torch.randn(9, 3))
    file = tmp_path / "state.safetensors"
    checkpoint.save(file, {"optimizer": optimizer_state(optimizer), "model": model.state_dict()}, kind="checkpoint")
    other = classifier()
    state = checkpoint.load(file).state
    other.load_state_dict(state["model"])
    restored = KFAC(other, lr=0.5, damping_mode=mode, inverse_interval=4)
    load_optimizer_state(restored, state["optimizer"])
    for seed in range(6):
        for network, kfac in ((model, optimizer), (other, restored)):
            torch.manual_seed(seed)
            train_step(network, kfac, torch.randn(9, 3))
        assert torch.equal(flat_parameters(model), flat_parameters(other))


def test_state_of_another_model_is_refused() -> None:
    state = KFAC(classifier()).state_dict()
    with pytest.raises(ValueError, match="blocks"):
        KFAC(nn.Sequential(nn.Linear(3, 4))).load_state_dict(state)


@pytest.mark.parametrize(("staggered", "later"), [(True, [1, 1, 1, 1, 1]), (False, [5, 0, 0, 0, 0])])
def test_inverses_are_refreshed_at_once_at_first_and_later_in_turn_or_at_the_same_step(
    staggered: bool, later: list[int]
) -> None:
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(5)])
    optimizer = KFAC(model, inverse_interval=5, stagger_inverses=staggered)
    counts = []
    for _ in range(60):
        before = optimizer.estimate.refresh_count
        train_step(model, optimizer, torch.randn(9, 3))
        counts.append(optimizer.estimate.refresh_count - before)
    assert counts[:20] == [5] * 20
    assert sum(counts[20:40]) == 50  # every second step
    assert counts[50:] == 2 * later


@pytest.mark.parametrize("interval", [2, 7, 10, 20, 40])
@pytest.mark.parametrize("layers", [1, 6])
def test_no_inverse_waits_much_longer_than_the_interval(interval: int, layers: int) -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(layers)])
    optimizer = KFAC(model, inverse_interval=interval)
    waited, longest = [0] * layers, 0
    for _ in range(15 * interval):
        inverses = [unit.block.state_dict()["left"] for unit in optimizer.units]
        train_step(model, optimizer, torch.randn(4, 2))
        for index, (unit, old) in enumerate(zip(optimizer.units, inverses, strict=True)):
            waited[index] = waited[index] + 1 if unit.block.state_dict()["left"] is old else 0
            longest = max(longest, waited[index])
    assert longest <= 1.5 * interval


def test_statistics_are_taken_every_stat_interval_steps() -> None:
    model = classifier()
    optimizer = KFAC(model, stat_interval=3)
    masses = []
    for _ in range(6):
        train_step(model, optimizer, torch.randn(9, 3))
        masses.append(float(optimizer.units[0].block.inputs.mass))  # type: ignore[attr-defined]  # a Kronecker block
    assert masses[0] == masses[1] == masses[2] < masses[3] == masses[4] == masses[5]


def test_parameters_that_cannot_be_factored_are_named_once_and_get_their_plain_gradient() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(10, 10))
            self.head = nn.Linear(10, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(torch.tanh(inputs @ self.table))  # type: ignore[no-any-return]

    model = Odd()
    with pytest.warns(UserWarning, match="table") as caught:
        optimizer = KFAC(model, lr=0.1, max_kl=None, momentum=0.0)
    assert len(caught) == 1
    before = model.table.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_step(model, optimizer, torch.randn(9, 10))
    torch.testing.assert_close(model.table.detach(), before - 0.1 * model.table.grad)  # type: ignore[operator]


@pytest.mark.parametrize(
    "options",
    [{"lr": -1.0}, {"momentum": 1.0}, {"damping": -0.1}, {"stat_decay": 1.0}, {"max_kl": 0.0}, {"stat_interval": 0}],
)
def test_settings_out_of_range_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        KFAC(classifier(), **options)


@pytest.mark.parametrize("layer", [nn.Linear(16384, 2), nn.Linear(2, 16385)])
def test_a_layer_too_wide_to_factor_is_refused_before_memory_is_taken(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match="layer 0 would need a curvature factor of 16385 x 16385"):
        KFAC(nn.Sequential(layer))


def test_the_width_of_a_frozen_layer_does_not_matter() -> None:
    KFAC(nn.Sequential(nn.Linear(16384, 2).requires_grad_(False), nn.Linear(2, 2)))


def test_statistics_without_a_captured_forward_pass_are_an_error() -> None:
    model = classifier()
    optimizer = KFAC(model)
    logits = model(torch.randn(2, 3))
    with pytest.raises(RuntimeError, match="capture"):
        optimizer.update_statistics(Fisher(distribution=Categorical(logits=logits)))


def test_kfac_works_on_a_deep_copy_without_touching_the_original() -> None:
    model = classifier()
    twin = copy.deepcopy(model)
    before = flat_parameters(model)
    train_step(twin, KFAC(twin, lr=0.1), torch.randn(9, 3))
    assert torch.equal(flat_parameters(model), before)
    assert not any(module._forward_hooks for module in twin.modules())


def test_frozen_parameters_stay_and_the_rest_moves() -> None:
    model = classifier()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.detach().clone()
    bias = model[0].bias.detach().clone()
    optimizer = KFAC(model, lr=0.1)
    train_step(model, optimizer, torch.randn(9, 3))
    assert torch.equal(model[0].weight, frozen)
    assert not torch.equal(model[0].bias, bias)
    assert unit_named(optimizer, "0.bias").block.to_dense().shape == (6, 6)


def test_head_that_a_batch_does_not_reach_keeps_its_statistics_and_weights() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(5, 4)

        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            features = torch.tanh(self.body(inputs))
            return self.first(features), self.second(features)

    model = TwoHeads()
    optimizer = KFAC(model, lr=0.1)

    def use(head: int) -> None:
        with optimizer.capture():
            logits = model(torch.randn(9, 3))[head]
        optimizer.update_statistics(Fisher(distribution=Categorical(logits=logits), kind="exact"))
        optimizer.zero_grad()
        (-torch.log_softmax(logits, -1)[:, 0]).mean().backward()
        optimizer.step()

    use(0)
    use(1)
    kept, weights = unit_named(optimizer, "first").block.to_dense().clone(), model.first.weight.detach().clone()
    use(1)
    assert torch.equal(unit_named(optimizer, "first").block.to_dense(), kept)
    assert torch.equal(model.first.weight, weights)
