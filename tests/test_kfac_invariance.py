"""The function after an update, in other parameters of the same function: where it is the same, and where not.

A layer's weights W, bias included, become Φ⁻¹ (W - [0 τ]) Ω̄⁻¹ where its inputs and outputs are mapped affinely; its
gradient becomes Φᵀ ∇W Ω̄ᵀ, its factors Ω̄ A Ω̄ᵀ and Φᵀ G Φ (Martens & Grosse 2015, section 10; Grosse & Martens 2016).
So (A ⊗ G)⁻¹ gives the same change of the function, as does the whole block, which transforms likewise. What is nearest
in the Frobenius norm, or an eigenvector, is so in one set of coordinates and in those turned against it: EKFAC and
K-FOC keep the function under orthogonal maps (and any multiple of Φ) alone. A diagonal follows coordinates that are
scaled and permuted, the plain gradient orthogonal maps. The τ of an activation's argument is a shift of the
parameters and changes nothing for any of them; the γ of its value shears weights against biases.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import pytest
import torch
from oracles import relative_error
from theory_models import (
    AffineMap,
    Chain,
    Change,
    Kind,
    Layer,
    chain,
    compensated,
    random_changes,
    reparametrised,
    whitening,
)
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional

from acktr.kfac import KFAC, EmpiricalFisher, Fisher, GaussNewton, Metric, optimal_factors
from acktr.kfac.step import quadratic_form

pytestmark = pytest.mark.usefixtures("float64")

SAME = 1e-10
"""Of the change of the outputs: rounding, times the condition of the factors."""
DIFFERENT = 0.01

EXAMPLES = 300
CURVATURES = ["kfac", "full", "ekfac", "kfoc", "ekfoc", "diagonal"]

KINDS: tuple[Kind, ...] = get_args(Kind)
INVARIANT: dict[str, set[Kind]] = {
    "kfac": set(KINDS),
    "full": set(KINDS),
    "ekfac": {"shift", "rotation", "similarity"},
    "kfoc": {"shift", "rotation", "similarity"},
    "ekfoc": {"shift", "rotation", "similarity"},
    "diagonal": {"shift", "coordinates"},
    "gradient": {"shift", "rotation"},
}


def mlp() -> tuple[Chain, Tensor]:
    return chain([nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 2)]), torch.randn(EXAMPLES, 3)


def convolutional() -> tuple[Chain, Tensor]:
    layers: list[Layer] = [nn.Conv2d(2, 3, 2), nn.Conv2d(3, 4, 2, stride=2), nn.Linear(16, 2)]
    return chain(layers), torch.randn(EXAMPLES, 2, 5, 5)


NETWORKS = {"mlp": mlp, "convolutional": convolutional}


def network(name: str) -> tuple[Chain, Tensor]:
    torch.manual_seed(1)
    model, inputs = NETWORKS[name]()
    with torch.no_grad():
        for layer in model.layers:
            layer.weight.mul_(2.5)  # with nearly linear units A ⊗ G is nearly exact
    return model, 1.5 * inputs + 0.3  # neither centred nor of unit variance


def three_logits(outputs: Tensor) -> Tensor:
    """Two outputs and a 0 beside them: with all three free the last layer's G would have no inverse."""
    return torch.cat((outputs, outputs.new_zeros(len(outputs), 1)), dim=1)


def labels() -> Tensor:
    return torch.arange(EXAMPLES).remainder(7).remainder(3)


def cross_entropies(outputs: Tensor) -> Tensor:
    return functional.cross_entropy(three_logits(outputs), labels(), reduction="none")


def drawn(outputs: Tensor) -> Metric:
    generator = torch.Generator().manual_seed(5)  # the same draws in all parameters
    return Fisher(distribution=Categorical(logits=three_logits(outputs)), generator=generator)


METRICS: dict[str, Callable[[Tensor], Metric]] = {
    "exact": lambda y: Fisher(distribution=Categorical(logits=three_logits(y)), kind="exact"),
    "sampled": drawn,
    "empirical": lambda y: EmpiricalFisher(example_losses=cross_entropies(y)),
    "gauss-newton": lambda y: GaussNewton(values=y, sigma=0.7, kind="exact"),
}


def train(
    model: nn.Module, inputs: Tensor, *, curvature: Any, metric: str = "exact", rounds: int = 1, **options: Any
) -> KFAC:
    """So many updates behind one that moves nothing: EKFAC's scales are measured in the basis that this one made."""
    settings: dict[str, Any] = {"damping": 0.0, "damping_mode": "exact", "momentum": 0.0, "max_kl": None}
    settings |= {"stat_decay": 0.0, "inverse_interval": 1, "lr": 0.3}
    settings |= options
    optimizer = KFAC(model, curvature=curvature, **settings)
    for rate in (0.0, *[settings["lr"]] * rounds):
        optimizer.param_groups[0]["lr"] = rate
        with optimizer.capture():
            outputs = model(inputs)
        optimizer.update_statistics(METRICS[metric](outputs))
        optimizer.zero_grad()
        cross_entropies(outputs).mean().backward()
        optimizer.step()
    assert optimizer.estimate.retry_count == 0  # every factor has an inverse
    return optimizer


def descend(model: nn.Module, inputs: Tensor, *, lr: float = 0.3) -> None:
    """One step along the plain gradient."""
    model.zero_grad()
    cross_entropies(model(inputs)).mean().backward()
    torch.optim.SGD(model.parameters(), lr=lr).step()


def step_of(curvature: str, inputs: Tensor, **options: Any) -> Callable[[nn.Module], Any]:
    if curvature == "gradient":
        return lambda model: descend(model, inputs)
    return lambda model: train(model, inputs, curvature=curvature, **options)


def deviation(
    model: nn.Module,
    other: nn.Module,
    inputs: Tensor,
    step: Callable[[nn.Module], Any],
    other_step: Callable[[nn.Module], Any] | None = None,
) -> float:
    """Make the same step with both; how far their outputs on fresh inputs are apart, relative to their change."""
    fresh = torch.randn(50, *inputs.shape[1:])
    with torch.no_grad():
        before = model(fresh)
        torch.testing.assert_close(other(fresh), before, rtol=1e-10, atol=1e-10)
    step(model)
    (other_step or step)(other)
    with torch.no_grad():
        after = model(fresh)
        assert float((after - before).norm() / before.norm()) > 1e-3
        return float((other(fresh) - after).norm() / (after - before).norm())


# --- maps of every layer's inputs and outputs ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("curvature", INVARIANT)
@pytest.mark.parametrize("name", NETWORKS)
def test_function_after_an_update_depends_on_the_parameters_chosen_only_as_the_curvature_says(
    name: str, curvature: str, kind: Kind
) -> None:
    model, inputs = network(name)
    other = reparametrised(model, random_changes(model, kind))
    found = deviation(model, other, inputs, step_of(curvature, inputs))
    if kind in INVARIANT[curvature]:
        assert found < SAME
    else:
        assert found > DIFFERENT


VARIANTS: dict[str, dict[str, Any]] = {
    "sampled": {"metric": "sampled"},
    "empirical": {"metric": "empirical"},
    "gauss-newton": {"metric": "gauss-newton"},
    "cholesky": {"damping_mode": "factored"},
    "published code": {"compat": "baselines", "max_kl": 1e-3},
    "reduce": {"conv_factors": "reduce"},
    "thinned": {"position_stride": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_k_fac_is_invariant_whatever_its_statistics_and_its_way_to_invert(name: str, variant: str) -> None:
    model, inputs = network(name)
    other = reparametrised(model, random_changes(model, "affine"))
    assert deviation(model, other, inputs, step_of("kfac", inputs, **VARIANTS[variant])) < SAME


def test_k_foc_keeps_orthogonal_maps_though_its_power_method_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The identity that it starts from is the same in turned coordinates, and so is each of its steps."""
    monkeypatch.setattr(optimal_factors, "COLD_STEPS", 1)
    model, inputs = network("mlp")
    other = reparametrised(model, random_changes(model, "similarity"))
    assert deviation(model, other, inputs, step_of("kfoc", inputs)) < SAME


@pytest.mark.parametrize(
    ("curvature", "kind"),
    [
        ("kfac", "affine"),
        ("full", "affine"),
        ("ekfac", "similarity"),
        ("kfoc", "similarity"),
        ("ekfoc", "similarity"),
        ("diagonal", "coordinates"),
    ],
)
def test_whole_trainings_with_momentum_averages_and_trust_region_are_invariant(curvature: str, kind: Kind) -> None:
    model, inputs = network("mlp")
    other = reparametrised(model, random_changes(model, kind))
    settings = {"momentum": 0.9, "stat_decay": 0.9, "max_kl": 1e-3, "inverse_interval": 3, "rounds": 8}
    assert deviation(model, other, inputs, step_of(curvature, inputs, **settings)) < SAME


@pytest.mark.parametrize("curvature", CURVATURES)
def test_the_quadratic_form_of_a_change_of_the_function_is_invariant_as_the_update_is(curvature: str) -> None:
    model, inputs = network("mlp")
    changes = random_changes(model, "affine")
    moved = [copy.deepcopy(model) for _ in range(5)]
    with torch.no_grad():
        for parameter in itertools.chain.from_iterable(one.parameters() for one in moved):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    forms = quadratic_forms(model, moved, inputs, curvature)
    others = [reparametrised(one, changes) for one in moved]
    found = relative_error(quadratic_forms(reparametrised(model, changes), others, inputs, curvature), forms)
    if "affine" in INVARIANT[curvature]:
        assert found < SAME
    else:
        assert found > DIFFERENT


def quadratic_forms(model: Chain, moved: Sequence[Chain], inputs: Tensor, curvature: str) -> Tensor:
    """Of the ways from the model to each of the others."""
    optimizer = train(model, inputs, curvature=curvature, lr=0.0)
    forms = []
    for one in moved:
        pairs = zip(model.parameters(), one.parameters(), strict=True)
        change = {id(before): after.detach() - before.detach() for before, after in pairs}
        parts = [quadratic_form(unit, [change[id(p)] for p in unit.parameters]) for unit in optimizer.units]
        forms.append(torch.stack(parts).sum())
    return torch.stack(forms)


@pytest.mark.parametrize("curvature", ["kfac", "full"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_trust_region_shortens_the_step_alike_in_all_parameters(name: str, curvature: str) -> None:
    model, inputs = network(name)
    other = reparametrised(model, random_changes(model, "affine"))
    made: list[KFAC] = []

    def step(one: nn.Module) -> None:
        made.append(train(one, inputs, curvature=curvature, max_kl=1e-3))

    assert deviation(model, other, inputs, step) < SAME
    scale, other_scale = (float(optimizer.scale) for optimizer in made)
    assert scale < 0.9
    assert other_scale == pytest.approx(scale, rel=SAME)
    for optimizer in made:
        assert float(optimizer.kl_predicted) == pytest.approx(1e-3, rel=SAME)


# --- special maps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", INVARIANT)
@pytest.mark.parametrize("name", NETWORKS)
def test_tanh_and_logistic_units_are_one_network_to_k_fac_and_two_to_the_others(name: str, curvature: str) -> None:
    """With tanh(s) = 2 logistic(2 s) - 1, Φ and Ω are halves of the identity, and γ is a half."""
    model, inputs = network(name)
    logistic = []
    for index, (layer, change) in enumerate(zip(model.layers, model.changes, strict=True)):
        before, after = change.before, change.after
        if index > 0:
            before = AffineMap(matrix=before.matrix / 2, shift=torch.full_like(before.shift, 0.5))
        if index < len(model.layers) - 1:
            after = AffineMap(matrix=after.matrix / 2, shift=after.shift)
        logistic.append(compensated(layer, Change(before=before, after=after)))
    found = deviation(model, chain(logistic, torch.sigmoid), inputs, step_of(curvature, inputs))
    if curvature in ("kfac", "full"):
        assert found < SAME
    else:
        assert found > DIFFERENT


@pytest.mark.parametrize("curvature", INVARIANT)
@pytest.mark.parametrize("name", NETWORKS)
def test_centred_and_whitened_inputs_change_nothing_for_k_fac(name: str, curvature: str) -> None:
    model, inputs = network(name)
    channels = inputs.transpose(0, 1).flatten(1)
    mixing = torch.eye(len(channels)) + 0.8 * torch.ones(len(channels), len(channels)).triu(1)
    inputs = AffineMap(matrix=mixing, shift=torch.ones(len(channels)))(inputs)
    rows = torch.cat((inputs.transpose(0, 1).flatten(1), torch.ones(1, channels.shape[1])))
    white = whitening(rows @ rows.T / rows.shape[1])
    assert float((white(inputs).transpose(0, 1).flatten(1).cov(correction=0) - torch.eye(len(channels))).norm()) < 1e-12
    changes = [Change(before=white, after=model.changes[0].after), *model.changes[1:]]
    found = deviation(model, reparametrised(model, changes), inputs, step_of(curvature, inputs))
    if curvature in ("kfac", "full"):
        assert found < SAME
    else:
        assert found > DIFFERENT


def test_k_fac_is_gradient_descent_where_activations_and_gradients_are_centred_and_white() -> None:
    """Martens & Grosse 2015, section 10: with Ω̄ A Ω̄ᵀ = I and Φᵀ G Φ = I nothing is left to precondition."""
    model, inputs = network("mlp")
    changes = []
    for unit in train(copy.deepcopy(model), inputs, curvature="kfac", rounds=0).units:
        state = unit.block.state_dict()
        values, vectors = torch.linalg.eigh(state["outputs"]["value"][0])
        root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
        after = AffineMap(matrix=root, shift=torch.zeros(len(root)))
        changes.append(Change(before=whitening(state["inputs"]["value"][0]), after=after))
    white = reparametrised(model, changes)
    for unit in train(copy.deepcopy(white), inputs, curvature="kfac", rounds=0).units:
        dense = unit.block.to_dense()
        torch.testing.assert_close(dense, torch.eye(len(dense)), rtol=0, atol=1e-10)
    found = deviation(model, white, inputs, step_of("kfac", inputs), step_of("gradient", inputs))
    assert found < SAME


@pytest.mark.parametrize("curvature", CURVATURES)
def test_where_the_block_is_a_kronecker_product_all_but_the_diagonal_are_invariant(curvature: str) -> None:
    """A deep linear network with Gaussian outputs: every one of them is then the block itself."""
    torch.manual_seed(2)
    model = chain([nn.Linear(4, 2), nn.Linear(2, 2), nn.Linear(2, 2)], nn.Identity())
    inputs = torch.randn(EXAMPLES, 4) + 0.5
    other = reparametrised(model, random_changes(model, "affine"))
    found = deviation(model, other, inputs, step_of(curvature, inputs, metric="gauss-newton"))
    if curvature == "diagonal":
        assert found > DIFFERENT
    else:
        assert found < SAME


# --- where K-FAC is not invariant ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["factored", "exact"])
@pytest.mark.parametrize("name", NETWORKS)
def test_damping_leaves_orthogonal_maps_alone(name: str, mode: str) -> None:
    """λ I is the same matrix in turned coordinates, and a shorter one in longer ones."""
    found = {}
    for kind in ("rotation", "linear", "affine"):
        model, inputs = network(name)
        other = reparametrised(model, random_changes(model, kind))
        found[kind] = deviation(model, other, inputs, step_of("kfac", inputs, damping=0.01, damping_mode=mode))
    assert found["rotation"] < SAME
    assert found["linear"] > DIFFERENT
    assert found["affine"] > DIFFERENT


@pytest.mark.parametrize("name", NETWORKS)
def test_a_bias_with_a_block_of_its_own_is_invariant_under_linear_maps_alone(name: str) -> None:
    """An offset of the activations makes a part of the weights' gradient of the bias's, and their blocks are two."""
    found = {}
    for kind in ("linear", "offset"):
        model, inputs = network(name)
        other = reparametrised(model, random_changes(model, kind))
        found[kind] = deviation(model, other, inputs, step_of("kfac", inputs, bias="separate"))
    assert found["linear"] < SAME
    assert found["offset"] > DIFFERENT


PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


def padded(mode: PaddingMode = "zeros") -> tuple[Chain, Tensor]:
    torch.manual_seed(4)
    sizes = ((2, 3), (3, 4))
    convolutions = [nn.Conv2d(i, o, 3, stride=2, padding=1, padding_mode=mode) for i, o in sizes]
    return chain([*convolutions, nn.Linear(16, 2)]), torch.randn(EXAMPLES, 2, 5, 5) + 0.3


def test_zero_padding_allows_linear_maps_and_no_offset() -> None:
    model, inputs = padded()
    other = reparametrised(model, random_changes(model, "linear"))
    assert deviation(model, other, inputs, step_of("kfac", inputs)) < SAME
    shifted = reparametrised(model, random_changes(model, "offset"))
    with torch.no_grad():  # no weights make up for a border that is no longer what an activation of 0 is
        difference = shifted(inputs) - model(inputs)
    assert float(difference.norm() / model(inputs).detach().norm()) > DIFFERENT


@pytest.mark.parametrize("mode", ["replicate", "reflect", "circular"])
def test_padding_by_what_is_there_allows_any_channelwise_map(mode: PaddingMode) -> None:
    model, inputs = padded(mode)
    other = reparametrised(model, random_changes(model, "affine"))
    assert deviation(model, other, inputs, step_of("kfac", inputs)) < SAME


def test_a_border_of_mapped_zeros_allows_any_channelwise_map() -> None:
    model, inputs = padded()
    changes = random_changes(model, "affine")
    unpadded: list[Layer] = []
    for layer in reparametrised(model, changes).layers:
        if isinstance(layer, nn.Conv2d):
            bare = nn.Conv2d(layer.in_channels, layer.out_channels, 3, stride=2)
            bare.load_state_dict(layer.state_dict())
            unpadded.append(bare)
        else:
            unpadded.append(layer)
    other = Chain(unpadded, torch.tanh, changes, border=1)
    assert deviation(model, other, inputs, step_of("kfac", inputs)) < SAME
