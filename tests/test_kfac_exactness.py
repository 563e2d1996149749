"""K-FAC's blocks against dense Fisher matrices in the cases where they are exact."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from oracles import dense_fisher, example_gradients, fisher_block, relative_error, unit_named
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, Normal

from acktr.kfac import KFAC, EmpiricalFisher, Fisher, GaussNewton, Joint, Metric, mean_kl
from acktr.kfac.kronecker import DampingMode

pytestmark = pytest.mark.usefixtures("float64")


def factors(
    model: nn.Module, inputs: Tensor, metric_of: Callable[[Any], Metric], weights: Tensor | None = None, **options: Any
) -> tuple[KFAC, Metric]:
    optimizer = KFAC(model, **options)
    with optimizer.capture():
        outputs = model(inputs)
    metric = metric_of(outputs)
    optimizer.update_statistics(metric, weights)
    return optimizer, metric


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))


METRICS = {
    "sampled": lambda y: Fisher(distribution=Categorical(logits=y), draw=torch.ones(len(y), dtype=torch.long)),
    "exact": lambda y: Fisher(distribution=Categorical(logits=y), kind="exact"),
    "empirical": lambda y: EmpiricalFisher(example_losses=(y**2).sum(1)),
    "bernoulli": lambda y: Fisher(distribution=Independent(Bernoulli(logits=y), 1), kind="exact"),
    "gauss-newton": lambda y: GaussNewton(values=y, sigma=0.7, kind="exact"),
}


@pytest.mark.parametrize("name", ["sampled", "empirical"])
def test_one_example_is_exact_whatever_the_nonlinearity(name: str) -> None:
    optimizer, metric = factors(mlp(), torch.randn(1, 3), METRICS[name])
    for unit in optimizer.units:
        torch.testing.assert_close(unit.block.to_dense(), fisher_block(unit, metric.losses()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["exact", "bernoulli", "gauss-newton"])
def test_one_example_is_exact_for_type_2(name: str) -> None:
    optimizer, metric = factors(mlp(), torch.randn(1, 3), METRICS[name])
    for unit in optimizer.units:
        torch.testing.assert_close(unit.block.to_dense(), fisher_block(unit, metric.losses()), rtol=1e-10, atol=1e-12)


def test_deep_linear_network_with_gaussian_output_is_exact_for_any_batch() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 2))
    optimizer, metric = factors(model, torch.randn(17, 3), lambda y: GaussNewton(values=y, kind="exact"))
    for unit in optimizer.units:
        torch.testing.assert_close(unit.block.to_dense(), fisher_block(unit, metric.losses()), rtol=1e-10, atol=1e-12)


def test_empirical_fisher_does_not_match_on_a_deep_linear_network() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 2))
    inputs, targets = torch.randn(17, 3), torch.randn(17, 2)
    optimizer, metric = factors(
        model, inputs, lambda y: EmpiricalFisher(example_losses=((y - targets) ** 2).sum(1) / 2)
    )
    errors = [relative_error(unit.block.to_dense(), fisher_block(unit, metric.losses())) for unit in optimizer.units]
    assert min(errors) > 0.05


def test_expand_is_exact_for_losses_at_each_position_of_a_linear_convolution() -> None:
    model = nn.Conv2d(2, 3, 1)
    optimizer, metric = factors(model, torch.randn(6, 2, 3, 3), lambda y: GaussNewton(values=y, kind="exact"))
    unit = optimizer.units[0]
    torch.testing.assert_close(unit.block.to_dense(), fisher_block(unit, metric.losses()), rtol=1e-10, atol=1e-12)


def test_reduce_is_exact_for_a_pooled_output_and_expand_is_not() -> None:
    errors = {}
    for kind in ("reduce", "expand"):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        optimizer, metric = factors(
            model, torch.randn(5, 2, 6, 6), lambda y: GaussNewton(values=y, kind="exact"), conv_factors=kind
        )
        unit = optimizer.units[0]
        errors[kind] = relative_error(unit.block.to_dense(), fisher_block(unit, metric.losses()))
    assert errors["reduce"] < 1e-12
    assert errors["expand"] > 0.3


def test_convolution_with_one_output_position_is_a_linear_layer_on_the_patch() -> None:
    conv, linear = nn.Conv2d(2, 4, 3), nn.Linear(18, 4)
    linear.load_state_dict({"weight": conv.weight.detach().flatten(1), "bias": conv.bias.detach()})
    inputs = torch.randn(7, 2, 3, 3)
    metric = METRICS["exact"]
    one, _ = factors(nn.Sequential(conv, nn.Flatten()), inputs, metric)
    two, _ = factors(nn.Sequential(nn.Flatten(), linear), inputs, metric)
    torch.testing.assert_close(one.units[0].block.to_dense(), two.units[0].block.to_dense())


class GaussianPolicy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(3, 2)
        self.log_std = nn.Parameter(torch.tensor([0.3, -0.7]))

    def forward(self, inputs: Tensor) -> Independent:
        mean = self.mean(inputs)
        return Independent(Normal(mean, self.log_std.exp().expand_as(mean)), 1)


@pytest.mark.parametrize("examples", [1, 50])
def test_log_std_fisher_is_2_for_every_dimension_not_a_square_of_a_mean(examples: int) -> None:
    optimizer, _ = factors(GaussianPolicy(), torch.randn(examples, 3), lambda d: Fisher(distribution=d))
    block = unit_named(optimizer, "log_std").block
    torch.testing.assert_close(block.to_dense(), 2 * torch.eye(2))


@pytest.mark.parametrize("sigma", [1.0, 0.5])
def test_critic_factor_is_one_over_sigma_squared_not_four(sigma: float) -> None:
    model = nn.Linear(3, 1)
    optimizer, _ = factors(model, torch.randn(40_000, 3), lambda y: GaussNewton(values=y.squeeze(-1), sigma=sigma))
    factor = optimizer.units[0].block.outputs.value
    assert float(factor) == pytest.approx(1 / sigma**2, rel=0.03)


def test_joint_samples_average_to_the_sum_of_both_fishers() -> None:
    torch.manual_seed(3)
    trunk = nn.Linear(3, 4)
    policy_head, value_head = nn.Linear(4, 3), nn.Linear(4, 1)
    one = torch.randn(1, 3)
    features = torch.tanh(trunk(one)).expand(60_000, -1)
    policy = Fisher(distribution=Categorical(logits=policy_head(features)))
    value = GaussNewton(values=value_head(features).squeeze(-1), sigma=0.8)
    g = torch.autograd.grad(Joint(policy, value).losses().sum(), features, retain_graph=True)[0]
    sampled = g.T @ g / len(g)
    feature = torch.tanh(trunk(one))
    exact = torch.zeros(4, 4)
    for metric in (
        Fisher(distribution=Categorical(logits=policy_head(feature)), kind="exact"),
        GaussNewton(values=value_head(feature).squeeze(-1), sigma=0.8, kind="exact"),
    ):
        rows = example_gradients(metric.losses(), [trunk.bias])[:, 0] / (1 - feature**2)
        exact += rows.T @ rows
    assert relative_error(sampled, exact) < 0.03


def test_quadratic_form_of_the_exact_fisher_predicts_the_measured_kl() -> None:
    model = mlp()
    inputs = torch.randn(30, 3)
    names = [name for name, _ in model.named_parameters()]
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    direction = {name: torch.randn_like(p) for name, p in parameters.items()}

    def logits(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, values, (inputs,))

    def kl_of(step: float) -> tuple[float, float]:
        change = {name: step * direction[name] for name in names}
        before, tangent = torch.func.jvp(logits, (parameters,), (change,))
        after = logits({name: parameters[name] + change[name] for name in names})
        p = before.softmax(-1)
        curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        quadratic = torch.einsum("ni,nij,nj->n", tangent, curvature, tangent).mean()
        measured = mean_kl(Categorical(logits=before), Categorical(logits=after))
        return float(quadratic) / 2, float(measured)

    predicted, _ = kl_of(1e-4)
    predicted, measured = kl_of(1e-4 * (1e-5 / predicted) ** 0.5)
    assert measured == pytest.approx(1e-5, rel=0.05)
    assert predicted == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("compat", ["none", "baselines"])
def test_kl_predicted_is_the_factored_form_of_the_step_really_applied(compat: Literal["none", "baselines"]) -> None:
    model = mlp()
    inputs = torch.randn(30, 3)
    mode: DampingMode = "exact" if compat == "baselines" else "factored"
    optimizer = KFAC(model, lr=0.3, max_kl=1e-4, damping=1e-3, momentum=0.8, damping_mode=mode, compat=compat)
    for _ in range(4):
        with optimizer.capture():
            logits = model(inputs)
        optimizer.update_statistics(Fisher(distribution=Categorical(logits=logits)))
        optimizer.zero_grad()
        (-torch.log_softmax(logits, -1)[:, 0]).mean().backward()
        before = [[p.detach().clone() for p in unit.parameters] for unit in optimizer.units]
        optimizer.step()
        form = torch.zeros(())
        for unit, old in zip(optimizer.units, before, strict=True):
            step = unit.matrix([p.detach() - o for p, o in zip(unit.parameters, old, strict=True)]).flatten()
            form += step @ unit.block.to_dense() @ step / 2
        assert float(form) > 0
        assert float(optimizer.kl_predicted) == pytest.approx(float(form), rel=1e-9)
        if compat == "none":
            assert float(form) <= 1e-4 * (1 + 1e-9)


def test_exact_factored_and_dense_forms_agree_for_one_linear_layer_and_one_example() -> None:
    model, inputs = nn.Linear(3, 4), torch.randn(1, 3)
    optimizer, metric = factors(model, inputs, METRICS["exact"], damping=0.1, max_kl=1e-5)
    logits = model(inputs)
    torch.log_softmax(logits, -1)[0, 1].neg().backward()
    before = torch.cat([model.weight.detach().flatten(), model.bias.detach()])
    optimizer.step()
    step = torch.cat([model.weight.detach().flatten(), model.bias.detach()]) - before
    exact = float(step @ dense_fisher(metric.losses(), [model.weight, model.bias]) @ step / 2)
    measured = float(mean_kl(Categorical(logits=logits.detach()), Categorical(logits=model(inputs).detach())))
    assert float(optimizer.kl_predicted) == pytest.approx(exact, rel=1e-9)
    assert measured == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("shift", [1e-3, 1e-5])
def test_a_tiny_kl_between_float32_distributions_is_no_rounding(shift: float) -> None:
    logits = torch.randn(50, 6, dtype=torch.float32)
    moved = logits.clone()
    moved[:, 0] += shift
    truth = float(mean_kl(Categorical(logits=logits.double()), Categorical(logits=moved.double())))
    found = mean_kl(Categorical(logits=logits), Categorical(logits=moved))
    # the normalisation in float32 costs 6e-8 per logit, against a shift of 1e-5
    assert float(found) == pytest.approx(truth, rel=0.05)
    mean, scale = torch.randn(50, 3, dtype=torch.float32), torch.full((50, 3), 0.7, dtype=torch.float32)
    before, after = Independent(Normal(mean, scale), 1), Independent(Normal(mean + shift, scale), 1)
    exact = float(((after.mean.double() - before.mean.double()) / 0.7).square().sum(1).mean() / 2)
    assert float(mean_kl(before, after)) == pytest.approx(exact, rel=1e-5)


def test_weighted_statistics_equal_those_of_repeated_rows() -> None:
    model = mlp()
    inputs = torch.randn(4, 3)
    weights = torch.tensor([1.0, 2.0, 0.0, 3.0])
    weighted, _ = factors(model, inputs, METRICS["exact"], weights)
    repeated, _ = factors(model, inputs.repeat_interleave(weights.long(), 0), METRICS["exact"])
    for one, two in zip(weighted.units, repeated.units, strict=True):
        torch.testing.assert_close(one.block.to_dense(), two.block.to_dense())


@pytest.mark.parametrize(
    "make",
    [lambda: nn.LayerNorm(4), lambda: nn.GroupNorm(2, 4), lambda: nn.BatchNorm1d(4).eval()],
    ids=["layer", "group", "batch-eval"],
)
def test_normalisation_layers_get_exact_blocks_of_scale_and_shift(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), make(), nn.Tanh(), nn.Linear(4, 2))
    optimizer, metric = factors(model, torch.randn(9, 3), METRICS["exact"])
    for name in ("1.weight", "1.bias"):
        unit = unit_named(optimizer, name)
        torch.testing.assert_close(unit.block.to_dense(), fisher_block(unit, metric.losses()), rtol=1e-9, atol=1e-11)


def test_separate_bias_blocks_are_exact() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 2))
    optimizer, metric = factors(model, torch.randn(5, 2, 3, 3), METRICS["exact"], bias="separate")
    for name in ("0.bias", "3.bias"):
        unit = unit_named(optimizer, name)
        torch.testing.assert_close(unit.block.to_dense(), fisher_block(unit, metric.losses()))
