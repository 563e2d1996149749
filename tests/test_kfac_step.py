"""One step: learning rates, momentum, trust region, contraction, batches that move nothing."""

import copy
from collections.abc import Callable

import pytest
import torch
from oracles import flat_parameters
from small_models import backward, classifier, train_step

from acktr.kfac import KFAC

pytestmark = pytest.mark.usefixtures("float64")


def test_learning_rate_scheduler_changes_the_step() -> None:
    steps = []
    for factor in (1.0, 0.1):
        model = classifier()
        optimizer = KFAC(model, lr=1e-3, max_kl=None, momentum=0.0)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _, factor=factor: factor)
        before = flat_parameters(model)
        torch.manual_seed(1)
        train_step(model, optimizer, torch.randn(9, 3))
        scheduler.step()
        steps.append(flat_parameters(model) - before)
    torch.testing.assert_close(steps[1], 0.1 * steps[0])


def test_parameter_groups_keep_their_own_learning_rates() -> None:
    model = classifier()
    optimizer = KFAC(model, lr=0.1, max_kl=None, momentum=0.0)
    first = list(model[0].parameters())
    group = optimizer.param_groups[0]
    group["params"] = [p for p in group["params"] if all(p is not q for q in first)]
    optimizer.add_param_group({"params": first, "lr": 0.0})
    before = flat_parameters(model)
    train_step(model, optimizer, torch.randn(9, 3))
    moved = (flat_parameters(model) - before).abs()
    assert moved[:24].max() == 0
    assert moved[24:].max() > 0


@pytest.mark.parametrize("max_kl", [1e-6, 1e-4, 1e-2])
def test_predicted_kl_never_exceeds_the_trust_region_with_momentum(max_kl: float) -> None:
    model = classifier()
    optimizer = KFAC(model, lr=10.0, max_kl=max_kl, momentum=0.9, damping=1e-4)
    for _ in range(12):
        train_step(model, optimizer, torch.randn(20, 3))
        assert float(optimizer.kl_predicted) <= max_kl * (1 + 1e-9)


def test_momentum_is_debiased_so_the_first_step_is_not_shortened() -> None:
    results = []
    for momentum in (0.0, 0.9):
        model = classifier()
        optimizer = KFAC(model, lr=0.01, max_kl=None, momentum=momentum)
        torch.manual_seed(2)
        train_step(model, optimizer, torch.randn(9, 3))
        results.append(flat_parameters(model))
    torch.testing.assert_close(results[0], results[1])


def test_contract_leaves_that_part_of_the_step() -> None:
    model = classifier()
    optimizer = KFAC(model, lr=1.0, max_kl=1e-3)
    before = flat_parameters(model)
    train_step(model, optimizer, torch.randn(9, 3))
    full, kl, scale = flat_parameters(model) - before, optimizer.kl_predicted.clone(), optimizer.scale.clone()
    optimizer.contract(torch.tensor(0.25))
    torch.testing.assert_close(flat_parameters(model) - before, 0.25 * full)
    torch.testing.assert_close(optimizer.kl_predicted, kl / 16)
    torch.testing.assert_close(optimizer.scale, scale / 4)


def test_baselines_mode_rescales_by_the_damped_product_and_averages_afterwards() -> None:
    model = classifier()
    lr, clip, momentum = 0.25, 1e-3, 0.9
    optimizer = KFAC(
        model, lr=lr, max_kl=clip, momentum=momentum, damping_mode="exact", compat="baselines", inverse_interval=1
    )
    velocity = torch.zeros_like(flat_parameters(model))
    for _ in range(3):
        backward(model, optimizer, torch.randn(9, 3))
        probe = copy.deepcopy(optimizer.state_dict())
        before = flat_parameters(model)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        optimizer.step()
        direction = torch.cat(
            [
                part.flatten()
                for unit in optimizer.units
                for part in unit.split(
                    unit.block.precondition(unit.matrix([p.grad for p in unit.parameters if p.grad is not None]), 0.01)
                )
            ]
        )
        nu = min(1.0, (clip / (lr**2 * float(direction @ gradient))) ** 0.5)
        velocity = momentum * velocity + nu * direction
        torch.testing.assert_close(flat_parameters(model), before - lr * (1 - momentum) * velocity)
        assert float(optimizer.scale) == pytest.approx(nu)
        assert probe["curvature"]["steps"] == optimizer.steps - 1


def test_non_finite_batch_is_skipped_and_counted_and_changes_nothing() -> None:
    model = classifier()
    optimizer = KFAC(model, lr=0.1)
    for _ in range(7):
        train_step(model, optimizer, torch.randn(9, 3))
    before = flat_parameters(model)
    factors = [unit.block.to_dense().clone() for unit in optimizer.units]
    momenta = [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    bad = torch.randn(9, 3)
    bad[0, 0] = float("nan")
    train_step(model, optimizer, bad)
    assert float(optimizer.skipped) == 1
    assert torch.equal(flat_parameters(model), before)
    assert all(torch.equal(unit.block.to_dense(), old) for unit, old in zip(optimizer.units, factors, strict=True))
    assert all(
        torch.equal(optimizer.state[p]["momentum_buffer"], old)
        for p, old in zip(model.parameters(), momenta, strict=True)
    )
    train_step(model, optimizer, torch.randn(9, 3))
    assert float(optimizer.skipped) == 1
    assert not torch.equal(flat_parameters(model), before)


def test_closure_is_called_with_gradients_enabled() -> None:
    model = classifier()
    optimizer = KFAC(model, lr=0.1)

    def closure() -> float:
        backward(model, optimizer, torch.ones(2, 3))
        return 1.5

    run: Callable[[Callable[[], float]], float | None] = optimizer.step
    assert run(closure) == 1.5


def test_contract_by_a_number_that_is_none_takes_the_step_back_and_counts_it() -> None:
    model = classifier()
    optimizer = KFAC(model, lr=0.5)
    before = flat_parameters(model)
    train_step(model, optimizer, torch.randn(9, 3))
    optimizer.contract(torch.tensor(torch.nan))
    assert torch.equal(flat_parameters(model), before)
    assert int(optimizer.skipped) == 1
    for _ in range(2):
        train_step(model, optimizer, torch.randn(9, 3))
    assert torch.isfinite(flat_parameters(model)).all()
    assert not torch.equal(flat_parameters(model), before)
    assert int(optimizer.skipped) == 1


def test_contract_shortens_the_momentum_of_a_unit_s_parameters_without_gradient_too() -> None:
    model = classifier()
    optimizer = KFAC(model, lr=0.5)
    train_step(model, optimizer, torch.randn(9, 3))
    bias = model[0].bias
    backward(model, optimizer, torch.randn(9, 3))
    bias.grad = None
    optimizer.step()
    optimizer.contract(torch.tensor(0.0))
    assert all(
        float(optimizer.state[parameter]["momentum_buffer"].abs().max()) == 0 for parameter in model.parameters()
    )


def test_a_loaded_state_does_not_contract_the_step_made_before_it() -> None:
    model = classifier()
    optimizer = KFAC(model, lr=0.5)
    saved = optimizer.state_dict()
    train_step(model, optimizer, torch.randn(9, 3))
    optimizer.load_state_dict(saved)
    before = flat_parameters(model)
    optimizer.contract(torch.tensor(0.5))
    assert torch.equal(flat_parameters(model), before)
    assert float(optimizer.kl_predicted) == 0
