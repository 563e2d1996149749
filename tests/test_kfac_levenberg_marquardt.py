"""The exact quadratic model, the steps it chooses and the damping that follows it."""

import copy
import math
from typing import Any

import pytest
import torch
from oracles import dense_fisher, flat_parameters
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional

from acktr.kfac import KFAC, Fisher, GaussNewton, LevenbergMarquardt, Metric, NoisyKFAC
from acktr.kfac.quadratic import QuadraticModel, combined, fisher_products, inner_products

pytestmark = pytest.mark.usefixtures("float64")


def classifier() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))
    return model, torch.randn(40, 3), torch.randint(0, 4, (40,))


def of_classifier(model: nn.Module, inputs: Tensor, labels: Tensor) -> Any:
    def objective() -> tuple[Tensor, Metric]:
        logits = model(inputs)
        return functional.cross_entropy(logits, labels), Fisher(distribution=Categorical(logits=logits), kind="exact")

    return objective


def of_regression(model: nn.Module, inputs: Tensor, targets: Tensor) -> Any:
    def objective() -> tuple[Tensor, Metric]:
        values = model(inputs)
        return (values - targets).square().sum(1).mean() / 2, GaussNewton(values=values, kind="exact")

    return objective


def random_direction(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}


def flat(direction: Any) -> Tensor:
    return torch.cat([part.flatten() for part in direction.values()])


def test_products_with_the_fisher_by_jacobian_vector_products_are_the_dense_ones() -> None:
    model, inputs, labels = classifier()
    objective = of_classifier(model, inputs, labels)
    directions = [random_direction(model) for _ in range(3)]
    losses = objective()[1].exact_losses()
    dense = dense_fisher(losses, list(model.parameters()))
    rows = torch.stack([flat(direction) for direction in directions])
    found = fisher_products(model, lambda: objective()[1], directions)
    torch.testing.assert_close(found, rows @ dense @ rows.T, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(inner_products(directions), rows @ rows.T)
    weights = torch.tensor([0.5, -2.0, 0.1])
    torch.testing.assert_close(flat(combined(weights, directions)), weights @ rows)


def test_a_direction_that_leaves_parameters_out_does_not_move_them() -> None:
    model, inputs, labels = classifier()
    objective = of_classifier(model, inputs, labels)
    whole = random_direction(model)
    part = {name: value for name, value in whole.items() if name.startswith("2")}
    padded = {name: value if name in part else torch.zeros_like(value) for name, value in whole.items()}
    found = fisher_products(model, lambda: objective()[1], [part, whole])
    expected = fisher_products(model, lambda: objective()[1], [padded, whole])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(inner_products([part, whole]), inner_products([padded, whole]))


def test_the_minimiser_over_two_directions_is_the_minimum_of_the_model() -> None:
    model = QuadraticModel(curvature=torch.tensor([[2.0, 0.5], [0.5, 1.0]]), slopes=torch.tensor([-1.0, 0.3]))
    best = model.minimiser()
    torch.testing.assert_close(model.change(best), model.slopes @ best / 2)  # 1/2 ∇hᵀ δ
    for _ in range(50):
        assert float(model.change(best + 0.1 * torch.randn(2))) > float(model.change(best))


def test_a_model_that_is_not_finite_has_no_minimiser_and_raises_nothing() -> None:
    for spoilt in (math.nan, math.inf):
        model = QuadraticModel(curvature=torch.tensor([[1.0, spoilt], [spoilt, 1.0]]), slopes=torch.ones(2))
        assert torch.isnan(model.minimiser()).all()


def test_directions_that_lie_on_one_line_are_no_failure() -> None:
    model = QuadraticModel(curvature=torch.tensor([[1.0, 2.0], [2.0, 4.0]]), slopes=torch.tensor([-1.0, -2.0]))
    torch.testing.assert_close(model.change(model.minimiser()), torch.tensor(-0.5))


def linear_regression() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)), torch.randn(30, 4), torch.randn(30, 3)


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_on_a_quadratic_the_ratio_is_one_without_lambda_and_above_with_it(damping: float) -> None:
    layers, inputs, targets = linear_regression()
    model = nn.Sequential(layers[0])  # type: ignore[index]  # one layer: the loss is quadratic in its weights
    steps = LevenbergMarquardt(
        model, KFAC(model, max_kl=None), damping=damping, damping_interval=1, min_damping=0.0, decay=0.999
    )
    steps._set_factor_damping(3.0)  # or the first step is the last
    for _ in range(4):
        steps.damping = damping
        ratio = steps.step(of_regression(model, inputs, targets[:, :2])).ratio
        assert ratio is not None
        assert abs(ratio - 1) < 1e-9 if damping == 0 else ratio > 1.01


def test_one_layer_of_least_squares_is_solved_in_one_step() -> None:
    model, inputs, targets = linear_regression()
    model = nn.Sequential(model[0])  # type: ignore[index]
    steps = LevenbergMarquardt(model, KFAC(model, max_kl=None), damping=0.0, min_damping=0.0)
    steps.step(of_regression(model, inputs, targets[:, :2]))
    extended = torch.cat((inputs, torch.ones(30, 1)), 1)
    expected = torch.linalg.lstsq(extended, targets[:, :2]).solution.T
    found = torch.cat((model[0].weight, model[0].bias[:, None]), 1).detach()
    torch.testing.assert_close(found, expected)


def test_the_step_and_its_prediction_are_those_of_the_dense_model() -> None:
    model, inputs, labels = classifier()
    objective = of_classifier(model, inputs, labels)
    l2, damping = 0.01, 0.4
    optimizer = KFAC(model, max_kl=None)
    steps = LevenbergMarquardt(model, optimizer, damping=damping, l2=l2)
    for turn in range(3):
        loss, metric = objective()
        parameters = list(model.parameters())
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
        before = flat_parameters(model)
        gradient = gradient + l2 * before
        curvature = dense_fisher(metric.exact_losses(), parameters) + (damping + l2) * torch.eye(len(before))
        old = None if turn == 0 else flat(steps._previous)
        report = steps.step(objective)
        steps.damping = damping
        change = flat_parameters(model) - before
        natural = -torch.cat([part.flatten() for part in optimizer.natural_gradient().values()])
        span = torch.stack([natural] if old is None else [natural, old])
        best = torch.linalg.solve(span @ curvature @ span.T, -span @ gradient)
        torch.testing.assert_close(change, best @ span, rtol=1e-8, atol=1e-10)
        predicted = change @ curvature @ change / 2 + gradient @ change
        torch.testing.assert_close(report.predicted, predicted)
        torch.testing.assert_close(report.loss, loss.detach() + l2 / 2 * before.square().sum())
        assert float(report.predicted) < 0


@pytest.mark.parametrize(("ratio", "expected"), [(0.9, 0.95**5), (0.5, 1.0), (0.1, 0.95**-5), (math.nan, 0.95**-5)])
def test_lambda_follows_the_ratio(ratio: float, expected: float) -> None:
    model, inputs, labels = classifier()
    steps = LevenbergMarquardt(model, KFAC(model, max_kl=None), damping=2.0)
    objective = of_classifier(model, inputs, labels)
    before = objective()[0].detach()
    predicted = torch.tensor(-1.0)
    loss = before + ratio * predicted
    steps._adapt_damping(lambda: (loss, objective()[1]), before, predicted)
    assert steps.damping == pytest.approx(2.0 * expected)


def test_gamma_goes_to_the_candidate_whose_step_is_best() -> None:
    model, inputs, labels = classifier()
    objective = of_classifier(model, inputs, labels)
    optimizer = KFAC(model, max_kl=None)
    steps = LevenbergMarquardt(model, optimizer, damping=0.5, factor_interval=4)
    for _ in range(3):
        steps.step(objective)
    gamma, weights = steps.factor_damping, copy.deepcopy(model.state_dict())
    with optimizer.capture():
        loss, metric = objective()
    optimizer.update_statistics(metric)
    optimizer.zero_grad()
    loss.backward()
    values = {}
    for factor in (1.0, 0.95**2, 0.95**-2):
        steps._damp_factors(gamma * factor)
        model_of_step = steps._modelled(objective)[1]
        values[factor] = float(model_of_step.change(model_of_step.minimiser()))
    steps._damp_factors(gamma)
    model.load_state_dict(weights)
    best = min(values, key=lambda factor: values[factor])
    assert len(set(values.values())) == 3
    report = steps.step(objective)
    assert report.factor_damping == pytest.approx(gamma * best)
    assert optimizer.param_groups[0]["damping"] == pytest.approx(report.factor_damping**2)


def test_it_minimises_faster_than_plain_gradient_descent_and_needs_no_learning_rate() -> None:
    model, inputs, labels = classifier()
    objective = of_classifier(model, inputs, labels)
    steps = LevenbergMarquardt(model, KFAC(model, max_kl=None), damping=1.0)
    losses = [float(steps.step(objective).loss) for _ in range(60)]
    plain = copy.deepcopy(model)
    plain.load_state_dict(classifier()[0].state_dict())
    descent = torch.optim.SGD(plain.parameters(), lr=0.5, momentum=0.9)
    for _ in range(60):
        descent.zero_grad()
        loss = functional.cross_entropy(plain(inputs), labels)
        loss.backward()
        descent.step()
    assert losses[-1] < float(loss.detach()) - 0.05
    assert steps.damping < 1.0


def test_a_step_that_leaves_the_range_of_numbers_is_taken_back() -> None:
    model, inputs, labels = classifier()
    objective = of_classifier(model, inputs, labels)
    steps = LevenbergMarquardt(model, KFAC(model, max_kl=None), damping=1.0, damping_interval=1)
    steps.step(objective)
    before, damping, calls = flat_parameters(model), steps.damping, []

    def broken() -> tuple[Tensor, Metric]:
        loss, metric = objective()
        calls.append(1)
        return (loss if torch.is_grad_enabled() else loss * math.nan), metric

    report = steps.step(broken)
    assert math.isnan(report.ratio or 0.0)
    assert torch.equal(flat_parameters(model), before)
    assert steps.damping > damping
    assert math.isfinite(float(steps.step(objective).loss))


def test_the_state_continues_to_the_bit() -> None:
    model, inputs, labels = classifier()
    options: Any = {"damping": 1.0, "damping_interval": 2, "factor_interval": 3}
    optimizer = KFAC(model, max_kl=None)
    steps = LevenbergMarquardt(model, optimizer, **options)
    for _ in range(7):
        steps.step(of_classifier(model, inputs, labels))
    twin = copy.deepcopy(model)
    other = KFAC(twin, max_kl=None)
    resumed = LevenbergMarquardt(twin, other, **options)
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(steps.state_dict())
    for _ in range(7):
        one, two = steps.step(of_classifier(model, inputs, labels)), resumed.step(of_classifier(twin, inputs, labels))
        assert torch.equal(one.loss, two.loss)
        assert (one.damping, one.factor_damping) == (two.damping, two.factor_damping)
    assert torch.equal(flat_parameters(model), flat_parameters(twin))


@pytest.mark.parametrize("options", [{"damping": -1.0}, {"l2": -1.0}, {"decay": 1.0}, {"damping_interval": 0}])
def test_settings_out_of_range_are_refused(options: Any) -> None:
    model = classifier()[0]
    with pytest.raises(ValueError, match=next(iter(options))):
        LevenbergMarquardt(model, KFAC(model), **options)


@pytest.mark.parametrize("interval", [1, 5])
def test_a_batch_that_is_not_finite_moves_nothing_and_leaves_lambda_and_momentum(interval: int) -> None:
    model, inputs, _ = classifier()
    targets = torch.sin(inputs @ torch.randn(3, 4))
    steps = LevenbergMarquardt(model, KFAC(model, max_kl=None), damping_interval=interval)
    for _ in range(2):
        steps.step(of_regression(model, inputs, targets))
    before, momentum = flat_parameters(model), copy.deepcopy(steps.state_dict()["previous"])
    damping = steps.damping
    report = steps.step(of_regression(model, torch.full_like(inputs, math.nan), targets))
    assert torch.equal(flat_parameters(model), before)
    assert report.ratio is None
    assert steps.damping == damping
    assert all(torch.equal(part, momentum[name]) for name, part in steps.state_dict()["previous"].items())
    losses = [float(steps.step(of_regression(model, inputs, targets)).loss) for _ in range(4)]
    assert losses[-1] < losses[0]


def test_lambda_stays_where_the_loss_cannot_fall_any_further() -> None:
    """Rounding looks like a reduction of 0 there: λ rose to 1e21 in a thousand steps, and nothing was learnt after."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    inputs = torch.randn(50, 4)
    targets = inputs @ torch.randn(4, 2) + 0.3 * torch.randn(50, 2)
    steps = LevenbergMarquardt(model, KFAC(model, max_kl=None), damping_interval=1)
    for _ in range(200):
        steps.step(of_regression(model, inputs, targets))
    assert steps.damping < 2
    for _ in range(50):
        report = steps.step(of_regression(model, inputs, targets + 3))
    best = torch.linalg.lstsq(torch.cat((inputs, torch.ones(50, 1)), 1), targets + 3).solution
    remaining = targets + 3 - torch.cat((inputs, torch.ones(50, 1)), 1) @ best
    assert float(report.loss) == pytest.approx(float(remaining.square().sum(1).mean()) / 2, rel=1e-3)


def test_normalisation_by_the_batch_is_refused_with_the_layer_named_and_taken_in_eval_mode() -> None:
    model, inputs, labels = classifier()
    model = nn.Sequential(model[0], nn.BatchNorm1d(6), model[2])  # type: ignore[index]
    steps = LevenbergMarquardt(model, KFAC(model, max_kl=None))
    with pytest.raises(ValueError, match=r"layer 1 normalises by the batch.*eval\(\).*LayerNorm"):
        steps.step(of_classifier(model, inputs, labels))
    model[1].eval()
    steps.step(of_classifier(model, inputs, labels))


def test_optimizers_that_do_not_fit_are_refused() -> None:
    model, _, _ = classifier()
    with pytest.raises(TypeError, match="takes a KFAC of the model, got SGD"):
        LevenbergMarquardt(model, torch.optim.SGD(model.parameters()))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got NoisyKFAC"):
        LevenbergMarquardt(model, NoisyKFAC(model, examples=10))
    with pytest.raises(ValueError, match="other parameters than the model"):
        LevenbergMarquardt(model, KFAC(nn.Linear(2, 2)))
