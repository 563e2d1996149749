"""Inputs at the edge: what once crashed, stalled or silently misled K-FAC."""

import copy
import math
import warnings
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Beta, Categorical
from torch.nn import functional

from acktr.kfac import KFAC, Fisher, GaussNewton, Joint, mean_kl
from acktr.kfac.small_blocks import IdentityBlock
from acktr.kfac.solvers import damped_inverse, settled
from acktr.kfac.step import AppliedStep
from acktr.kfac.units import Unit

COMPATS: list[dict[str, Any]] = [{}, {"damping_mode": "exact"}, {"damping_mode": "exact", "compat": "baselines"}]


def policy() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 4))


def learn(
    model: nn.Module, optimizer: KFAC, inputs: Tensor, *, weights: Tensor | None = None, spike: float | None = None
) -> None:
    with optimizer.capture():
        logits = model(inputs)
    optimizer.update_statistics(Fisher(distribution=Categorical(logits=logits), kind="exact"), weights)
    optimizer.zero_grad()
    functional.cross_entropy(logits, torch.arange(len(inputs)) % logits.shape[1]).backward()
    if spike is not None:
        next(model.parameters()).grad[0, 0] = spike  # type: ignore[index]
    optimizer.step()


@pytest.mark.parametrize("matrix", [torch.zeros(1, 3, 3), torch.diag(torch.tensor([1.0, -1e-3, 0.0]))[None]])
def test_a_zero_pivot_is_a_failed_rung_and_no_exception(matrix: Tensor) -> None:
    ((inverse, retries),) = settled([damped_inverse(matrix, torch.zeros(1))])
    assert retries >= 1
    assert inverse is None or bool(torch.isfinite(inverse).all())


def test_factored_damping_of_zero_with_a_dead_layer_keeps_training() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))
    nn.init.constant_(model[0].bias, -100.0)  # type: ignore[arg-type]
    optimizer = KFAC(model, damping=0.0)
    for _ in range(3):
        learn(model, optimizer, torch.randn(8, 3))
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


@pytest.mark.parametrize("poison", ["no rows", "nan"])
@pytest.mark.parametrize("options", COMPATS)
def test_an_unusable_first_batch_of_statistics_does_not_lift_the_trust_region(
    poison: str, options: dict[str, Any]
) -> None:
    model = policy()
    optimizer = KFAC(model, lr=0.25, max_kl=1e-3, stat_interval=2, **options)
    inputs = torch.randn(64, 3)
    bad = torch.full_like(inputs, torch.nan) if poison == "nan" else inputs
    with optimizer.capture():
        captured = model(bad)
    metric = Fisher(distribution=Categorical(logits=captured, validate_args=False), kind="exact")
    optimizer.update_statistics(metric, torch.zeros(64) if poison == "no rows" else None)
    logits = model(inputs)
    functional.cross_entropy(logits, torch.arange(64) % 4).backward()
    optimizer.step()
    moved = mean_kl(Categorical(logits=logits.detach()), Categorical(logits=model(inputs).detach()))
    assert 0 < float(moved) < 0.01


@pytest.mark.parametrize("options", COMPATS)
@pytest.mark.parametrize("spike", [3e37, 1e25, 1e21])
def test_a_huge_finite_gradient_costs_its_own_step_only(options: dict[str, Any], spike: float) -> None:
    model = policy()
    optimizer = KFAC(model, **options)
    for step in range(8):
        learn(model, optimizer, torch.randn(32, 3), spike=spike if step == 3 else None)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    learn(model, optimizer, torch.randn(32, 3))
    assert float(optimizer.skipped) == 1
    assert float(optimizer.scale) > 0
    for old, new in zip(before, model.parameters(), strict=True):
        assert bool(torch.isfinite(new).all())
        assert not torch.equal(old, new)


def test_mean_kl_of_rows_without_weight_is_zero() -> None:
    rows = Categorical(logits=torch.randn(4, 3)), Categorical(logits=torch.randn(4, 3))
    assert float(mean_kl(*rows, torch.zeros(4))) == 0.0


def test_joint_of_exact_metrics_with_one_output_each_has_no_cross_terms() -> None:
    torch.manual_seed(0)
    trunk, first, second = (nn.Linear(3, 4).double(), nn.Linear(4, 1).double(), nn.Linear(4, 1).double())
    model = nn.ModuleList([trunk, first, second])
    optimizer = KFAC(model)
    with optimizer.capture():
        features = trunk(torch.randn(10, 3).double())
        values = first(features).squeeze(-1), second(features).squeeze(-1)
    optimizer.update_statistics(Joint(*(GaussNewton(values=value, kind="exact") for value in values)))
    found = optimizer.units[0].block.outputs.value[0]  # type: ignore[attr-defined]
    torch.testing.assert_close(found, first.weight.T @ first.weight + second.weight.T @ second.weight)


def test_reduced_convolution_factors_do_not_depend_on_the_stride_of_positions() -> None:
    torch.manual_seed(0)
    inputs, factors = torch.randn(16, 2, 8, 8), []
    for stride in (1, 2):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(192, 2))
        optimizer = KFAC(model, conv_factors="reduce", position_stride=stride)
        with optimizer.capture():
            logits = model(inputs)
        optimizer.update_statistics(Fisher(distribution=Categorical(logits=logits), kind="exact"))
        factors.append(optimizer.units[0].block.inputs.value)  # type: ignore[attr-defined]
    torch.testing.assert_close(factors[0], factors[1])


def test_a_state_of_the_other_damping_mode_is_refused() -> None:
    model = policy()
    exact, factored = KFAC(model, damping_mode="exact"), KFAC(model)
    learn(model, exact, torch.randn(8, 3))
    learn(model, factored, torch.randn(8, 3))
    for source, target in ((exact, factored), (factored, exact)):
        state = source.state_dict()
        state["param_groups"][0]["lr"] = 7.0
        with pytest.raises(ValueError, match="damping_mode"):
            target.load_state_dict(state)
        assert target.param_groups[0]["lr"] == 0.25  # refused before anything was taken


def test_a_state_of_single_precision_continues_in_double() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    optimizer = KFAC(model)
    learn(model, optimizer, torch.randn(8, 3))
    state = optimizer.state_dict()
    model.double()
    doubled = KFAC(model)
    doubled.load_state_dict(state)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    learn(model, doubled, torch.randn(8, 3, dtype=torch.float64))
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("gap", [5.0, 700.0, 800.0, 1e4])
def test_mean_kl_of_far_apart_policies_is_finite_and_exact(gap: float) -> None:
    before, after = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[0.0, 0.0, -gap]], dtype=torch.float64)
    kl = mean_kl(Categorical(logits=before), Categorical(logits=after))
    expected = -math.log(3) + math.log(2 + math.exp(-gap)) + gap / 3
    assert float(kl) == pytest.approx(expected, rel=1e-12)


def test_mean_kl_to_a_policy_that_excludes_a_possible_action_is_infinite() -> None:
    possible, excluded = torch.zeros(1, 2), torch.tensor([[0.0, -torch.inf]])
    assert float(mean_kl(Categorical(logits=possible), Categorical(logits=excluded))) == torch.inf
    assert float(mean_kl(Categorical(logits=excluded), Categorical(logits=possible))) == pytest.approx(math.log(2))


def test_a_state_of_other_widths_is_refused() -> None:
    wide = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer = KFAC(wide)
    learn(wide, optimizer, torch.randn(8, 3))
    with pytest.raises(ValueError, match="32"):
        KFAC(policy()).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_half_precision_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="float32 or float64"):
        KFAC(policy().to(dtype))


@pytest.mark.parametrize("bias", ["joint", "separate"])
def test_autocast_around_everything_changes_the_forward_pass_only(bias: Literal["joint", "separate"]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = KFAC(model, bias=bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            learn(model, optimizer, torch.randn(32, 3))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    for unit in optimizer.units:
        assert unit.block.to_dense().dtype == torch.float32
    assert float(optimizer.scale) > 0


def test_a_parametrised_weight_gets_its_plain_gradient_and_is_named() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(12, 8)), nn.Tanh(), nn.Linear(8, 4))
    with pytest.warns(UserWarning, match="original1"):
        optimizer = KFAC(model)
    learn(model, optimizer, torch.randn(32, 12))
    assert float(optimizer.scale) > 0


def test_a_parameter_with_a_second_name_is_treated_once() -> None:
    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)
            self.alias = self.layer.bias

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(inputs)  # type: ignore[no-any-return]

    model = Alias()
    learn(model, KFAC(model, bias="separate"), torch.randn(8, 3))


def test_a_distribution_without_a_closed_form_samples_standalone_parameters_too() -> None:
    class Shape(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)
            self.scale = nn.Parameter(torch.zeros(1))

    model = Shape()
    optimizer = KFAC(model)
    with optimizer.capture():
        shape = model.layer(torch.randn(16, 3)).squeeze(-1).exp()
    metric = Fisher(distribution=Beta(shape * model.scale.exp(), shape))
    optimizer.update_statistics(metric)
    assert float(optimizer.units[1].block.to_dense()) > 0


def test_a_call_without_an_axis_of_examples_names_the_layer() -> None:
    model = policy()
    optimizer = KFAC(model)
    with optimizer.capture():
        logits = model(torch.randn(3))
    with pytest.raises(ValueError, match=r"Linear\(in_features=3.* single example"):
        optimizer.update_statistics(Fisher(distribution=Categorical(logits=logits[None])))


def test_an_empty_batch_leaves_the_statistics_alone() -> None:
    model = policy()
    optimizer = KFAC(model)
    with optimizer.capture():
        values = model(torch.randn(0, 3))
    optimizer.update_statistics(GaussNewton(values=values))
    with pytest.raises(RuntimeError, match="no statistics yet"):
        optimizer.units[0].block.to_dense()


def test_what_is_no_model_and_no_state_is_refused() -> None:
    model = policy()
    with pytest.raises(TypeError, match="the model itself"):
        KFAC(model.parameters())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no state of KFAC"):
        KFAC(model).load_state_dict(torch.optim.Adam(model.parameters()).state_dict())


def test_a_first_step_without_any_curvature_is_warned_of_once() -> None:
    model = policy()
    optimizer = KFAC(model)
    model(torch.randn(2, 3)).sum().backward()
    with pytest.warns(UserWarning, match="before any update_statistics") as caught:
        optimizer.step()
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


def test_copying_says_how_to_copy() -> None:
    with pytest.raises(TypeError, match="load this one's state_dict"):
        copy.deepcopy(KFAC(policy()))


def test_a_missing_bias_gradient_neither_moves_nor_counts() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    optimizer = KFAC(model, lr=1e3, max_kl=1e-3, momentum=0.0)
    inputs = torch.randn(16, 3)
    learn(model, optimizer, inputs)
    logits = model(inputs)
    optimizer.zero_grad()
    functional.cross_entropy(logits, torch.arange(16) % 4).backward()
    layer = model[0]
    assert isinstance(layer, nn.Linear)
    layer.bias.grad = None
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer.step()
    torch.testing.assert_close(layer.bias.detach(), bias, rtol=0, atol=0)
    change = torch.cat((layer.weight.detach() - weight, torch.zeros(4, 1)), dim=1).flatten()
    applied = change @ optimizer.units[0].block.to_dense() @ change / 2
    torch.testing.assert_close(optimizer.kl_predicted, applied)
    torch.testing.assert_close(applied, torch.tensor(1e-3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("options", COMPATS)
def test_contractions_multiply_and_one_to_zero_restores_every_bit(options: dict[str, Any]) -> None:
    model = policy()
    optimizer = KFAC(model, lr=1e5, max_kl=None, momentum=0.0, **options)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    learn(model, optimizer, torch.randn(8, 3))
    after = [parameter.detach().clone() for parameter in model.parameters()]
    kl = float(optimizer.kl_predicted)
    optimizer.contract(torch.tensor(0.5))
    optimizer.contract(torch.tensor(0.5))
    for old, full, now in zip(before, after, model.parameters(), strict=True):
        torch.testing.assert_close(now.detach(), old + (full - old) / 4)
    assert float(optimizer.kl_predicted) == pytest.approx(kl / 16, rel=1e-5)
    optimizer.contract(torch.tensor(0.0))
    assert float(optimizer.kl_predicted) == 0.0
    for old, now in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, now)


@pytest.mark.parametrize("options", COMPATS)
@pytest.mark.parametrize("factor", [0.25, 0.0])
def test_the_momentum_is_shortened_with_the_step(options: dict[str, Any], factor: float) -> None:
    """Otherwise one step that came out far too long sets the direction of the next ten."""
    changes = []
    for contraction in (1.0, factor):
        model = policy()
        optimizer = KFAC(model, lr=0.1, max_kl=None, momentum=0.9, **options)
        learn(model, optimizer, torch.arange(24.0).reshape(8, 3) / 24)
        optimizer.contract(torch.tensor(contraction))
        before = [parameter.detach().clone() for parameter in model.parameters()]
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        changes.append([now.detach() - old for old, now in zip(before, model.parameters(), strict=True)])
    for full, short in zip(*changes, strict=True):
        assert full.abs().max() > 0
        torch.testing.assert_close(short, factor * full)


def test_nothing_is_left_of_a_non_finite_step_that_is_taken_back() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    parameter.grad = torch.ones(2)
    unit = Unit(name="plain", parameters=(parameter,), block=IdentityBlock())
    step = AppliedStep(torch.zeros(()))
    with torch.no_grad():
        step.move(unit, [torch.tensor([float("inf"), 1.0])], [1.0])
        step.contract(torch.tensor(0.0))
    assert parameter.tolist() == [1.0, 2.0]


def test_foreign_parameters_are_refused_as_a_group() -> None:
    optimizer = KFAC(policy())
    with pytest.raises(ValueError, match="parameters of its model"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    assert len(optimizer.param_groups) == 1


def test_groups_keep_their_learning_rates_in_baselines_mode() -> None:
    model = policy()
    optimizer = KFAC(model, damping_mode="exact", compat="baselines")
    head = optimizer.param_groups[0]["params"][2:]
    del optimizer.param_groups[0]["params"][2:]
    optimizer.add_param_group({"params": head, "lr": 0.0})
    before = [parameter.detach().clone() for parameter in model.parameters()]
    learn(model, optimizer, torch.randn(8, 3))
    moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert moved == [True, True, False, False]


def test_a_nested_capture_is_refused_and_an_aborted_one_forgotten() -> None:
    model = policy()
    optimizer = KFAC(model)
    with pytest.raises(RuntimeError, match="open already"), optimizer.capture(), optimizer.capture():
        pass
    model.append(nn.Unflatten(1, (3, 3)))  # the forward pass breaks off after both layers
    with pytest.raises(RuntimeError, match="unflatten"), optimizer.capture():
        model(torch.randn(2, 3))
    del model[-1]
    with pytest.raises(RuntimeError, match="nothing was captured"):
        optimizer.update_statistics(Fisher(distribution=Categorical(logits=model(torch.randn(2, 3)))))
    learn(model, optimizer, torch.randn(8, 3))


def test_a_metric_of_another_forward_pass_is_refused() -> None:
    model = policy()
    optimizer = KFAC(model)
    with optimizer.capture():
        model(torch.randn(2, 3))
    with pytest.raises(RuntimeError, match="no captured output"):
        optimizer.update_statistics(Fisher(distribution=Categorical(logits=model(torch.randn(2, 3)))))


def test_a_metric_without_a_graph_says_so() -> None:
    model = policy()
    optimizer = KFAC(model)
    with optimizer.capture():
        logits = model(torch.randn(2, 3))
    with pytest.raises(RuntimeError, match="gradients enabled"):
        optimizer.update_statistics(Fisher(distribution=Categorical(logits=logits.detach())))


def test_a_parameter_whose_first_gradient_comes_late_takes_a_whole_step() -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)])
    optimizer = KFAC(model, lr=1e-3, max_kl=None, momentum=0.9)
    for step in range(31):
        used = model[1] if step == 30 else model[0]
        before = model[1].weight.detach().clone()  # type: ignore[union-attr, operator]
        learn(used, optimizer, torch.randn(8, 3))
    fresh = KFAC(model[1], lr=1e-3, max_kl=None, momentum=0.0)
    fresh.units[0].block.load_state_dict(optimizer.units[1].block.state_dict())
    direction = fresh.units[0].block.precondition(
        fresh.units[0].matrix([parameter.grad for parameter in model[1].parameters()]),  # type: ignore[misc]
        0.01,
    )
    change = before - model[1].weight.detach()  # type: ignore[operator, union-attr]
    torch.testing.assert_close(change, 1e-3 * direction[0, :, :-1], rtol=1e-3, atol=1e-7)


def test_a_draw_of_the_wrong_shape_is_refused() -> None:
    distribution = Categorical(logits=torch.randn(5, 3))
    with pytest.raises(ValueError, match=r"\(5,\), got \(5, 1\)"):
        Fisher(distribution=distribution, draw=torch.zeros(5, 1, dtype=torch.int64)).losses()


@pytest.mark.parametrize("options", [{"damping_mode": "x"}, {"bias": "x"}, {"conv_factors": "x"}, {"compat": "x"}])
def test_unknown_choices_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} takes one of .*, got 'x'"):
        KFAC(policy(), **options)


@pytest.mark.parametrize("number", ["0.1", None, True, -0.1, float("nan")])
@pytest.mark.parametrize("name", ["lr", "damping"])
def test_what_is_no_number_is_refused_by_name(name: str, number: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} takes a number of at least 0, got {number!r}"):
        KFAC(policy(), **{name: number})


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_a_sigma_that_is_no_deviation_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma takes a number above 0"):
        GaussNewton(values=torch.zeros(3), sigma=sigma)


def test_a_held_state_is_not_changed_by_later_steps() -> None:
    model = policy()
    optimizer = KFAC(model)
    learn(model, optimizer, torch.randn(8, 3))
    held = optimizer.state_dict()
    kept = copy.deepcopy(held)
    learn(model, optimizer, torch.randn(8, 3))
    inputs = held["curvature"]["blocks"]["0"]["inputs"]
    torch.testing.assert_close(inputs["value"], kept["curvature"]["blocks"]["0"]["inputs"]["value"], rtol=0, atol=0)
    torch.testing.assert_close(held["state"][0]["momentum_buffer"], kept["state"][0]["momentum_buffer"], rtol=0, atol=0)
