"""Noisy K-FAC: its covariances, draws, KL and bound against closed forms, and the mean's way through a draw."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from oracles import block_order, flat_parameters, unit_named
from torch import Tensor, nn
from torch.distributions import Categorical, MultivariateNormal, kl_divergence

from acktr.agents import checkpoint
from acktr.agents.updates import load_optimizer_state, optimizer_state
from acktr.kfac import Fisher, GaussNewton
from acktr.kfac.kronecker import KroneckerBlock
from acktr.kfac.noisy import NoisyKFAC
from acktr.kfac.small_blocks import FullBlock
from acktr.kfac.units import Unit

pytestmark = pytest.mark.usefixtures("float64")

DRAWS = 2000
FORMS = [
    ("kfac", "factored"),
    ("kfac", "exact"),
    ("kfoc", "factored"),
    ("ekfac", "exact"),
    ("ekfoc", "factored"),
    ("diagonal", "exact"),
    ("full", "exact"),
]


class Mixed(nn.Module):
    """Grouped convolution, normalisation, a linear layer, a small standalone parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 2, groups=2)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(16, 3)
        self.log_temperature = nn.Parameter(torch.full((1,), 0.3))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.conv(inputs))).flatten(1)
        return self.head(hidden) * self.log_temperature.exp()  # type: ignore[no-any-return]


def mixed(**options: Any) -> tuple[Mixed, NoisyKFAC]:
    """The network after three noisy steps."""
    torch.manual_seed(1)
    model = Mixed()
    settings = {"examples": 40, "prior_variance": 0.5, "lr": 0.1, "inverse_interval": 1, "stat_decay": 0.5, **options}
    optimizer = NoisyKFAC(model, generator=torch.Generator().manual_seed(2), **settings)
    for _ in range(3):
        noisy_step(model, optimizer)
    return model, optimizer


def accumulate(model: nn.Module, optimizer: NoisyKFAC, inputs: Tensor) -> None:
    """Statistics and gradient of one batch at the parameters as they are."""
    with optimizer.capture():
        logits = model(inputs)
    optimizer.update_statistics(Fisher(distribution=Categorical(logits=logits, validate_args=False), kind="exact"))
    (-torch.log_softmax(logits, -1)[:, 0]).mean().backward()


def noisy_step(model: nn.Module, optimizer: NoisyKFAC) -> None:
    inputs = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(optimizer.steps))
    optimizer.zero_grad()
    with optimizer.sampled():
        accumulate(model, optimizer, inputs)
    optimizer.step()


# --- covariances and draws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["kfac", "kfoc"])
def test_the_factored_covariance_is_the_matrix_variate_one(curvature: str) -> None:
    _, optimizer = mixed(curvature=curvature, damping_mode="factored", kl_weight=0.7)
    c = 0.7 / 40
    d = math.sqrt(c / 0.5)
    for name in ("conv", "head"):
        unit = unit_named(optimizer, name)
        block = cast(KroneckerBlock, unit.block)
        dense, damped = [], []
        for A, G in zip(cast(Tensor, block.inputs.value), cast(Tensor, block.outputs.value), strict=True):
            pi = math.sqrt(float(A.trace() / len(A)) / float(G.trace() / len(G)))
            eye_a, eye_g = torch.eye(len(A)), torch.eye(len(G))
            U = math.sqrt(c) * torch.linalg.inv(A / pi + d * eye_a)
            S = math.sqrt(c) * torch.linalg.inv(pi * G + d * eye_g)
            dense.append(torch.kron(S, U))  # over the row-major flattening
            damped.append(torch.kron(G + d / pi * eye_g, A + pi * d * eye_a))
        covariance = optimizer.covariance(unit)
        torch.testing.assert_close(covariance.to_dense(), torch.block_diag(*dense), rtol=1e-10, atol=1e-13)
        product = covariance.to_dense() @ torch.block_diag(*damped) / c
        torch.testing.assert_close(product, torch.eye(len(product)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("curvature", "mode"), FORMS)
def test_other_covariances_are_the_inverse_damped_exactly(curvature: str, mode: str) -> None:
    _, optimizer = mixed(curvature=curvature, damping_mode=mode, extrinsic_damping=0.3)
    c = 1 / 40
    for unit in optimizer.units:
        if isinstance(unit.block, KroneckerBlock) and mode == "factored":
            continue
        F = unit.block.to_dense()
        expected = c * torch.linalg.inv(F + c / 0.5 * torch.eye(len(F)))
        torch.testing.assert_close(optimizer.covariance(unit).to_dense(), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("curvature", "mode"), FORMS)
def test_the_root_that_draws_use_times_its_transpose_is_the_covariance(curvature: str, mode: str) -> None:
    _, optimizer = mixed(curvature=curvature, damping_mode=mode)
    for unit in optimizer.units:
        covariance = optimizer.covariance(unit)
        shape = unit.matrix(unit.parameters).shape
        root = torch.stack([covariance.colour(e.reshape(shape)).flatten() for e in torch.eye(shape.numel())], dim=1)
        torch.testing.assert_close(root @ root.T, covariance.to_dense(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("curvature", "mode"), FORMS)
def test_draws_have_the_mean_and_covariance_of_the_formula(curvature: str, mode: str) -> None:
    _, optimizer = mixed(curvature=curvature, damping_mode=mode)
    draws: dict[str, list[Tensor]] = {unit.name: [] for unit in optimizer.units}
    for _ in range(DRAWS):
        with optimizer.sampled():
            for unit in optimizer.units:
                draws[unit.name].append(torch.cat([p.detach().flatten() for p in unit.parameters]))
    entries = 0
    for unit in optimizer.units:
        order = block_order(unit)
        off = (torch.stack(draws[unit.name]) - torch.cat([p.detach().flatten() for p in unit.parameters]))[:, order]
        expected = optimizer.covariance(unit).to_dense()
        variances = expected.diagonal()
        assert float((off.mean(0) / (variances / DRAWS).sqrt()).abs().max()) < 4.5
        errors = ((variances[:, None] * variances + expected**2) / DRAWS).sqrt()
        assert float(((off.T @ off / DRAWS - expected) / errors).abs().max()) < 5.0
        entries += expected.numel()
    assert entries > 2000  # so 5 standard errors is about what the largest of that many normals needs


def test_before_curvature_is_known_a_draw_is_narrower_than_the_prior_and_than_one_example() -> None:
    for variance in (0.01, 1.0, 100.0):
        model = nn.Linear(20, 20)
        optimizer = NoisyKFAC(model, examples=50, prior_variance=variance)
        c = 1 / 50
        dense = optimizer.covariance(optimizer.units[0]).to_dense()
        torch.testing.assert_close(dense, torch.eye(420) * c / (1 + c / variance))
        assert float(dense.max()) < min(variance, c)
        before = model.weight.detach().clone()
        with optimizer.sampled():
            spread = float((model.weight.detach() - before).std())
        assert spread == pytest.approx(float(dense[0, 0]) ** 0.5, rel=0.15)


def test_roots_change_at_a_refresh_only() -> None:
    model, optimizer = mixed(curvature="ekfac", inverse_interval=4)
    while optimizer.steps < 80:  # the interval has grown to its full length
        noisy_step(model, optimizer)
    changes = []
    for _ in range(8):
        before = dict(optimizer.posterior)
        noisy_step(model, optimizer)
        changes.append([name for name, covariance in optimizer.posterior.items() if covariance is not before[name]])
    names = sorted(name for step in changes for name in step)
    assert names == sorted(2 * [unit.name for unit in optimizer.units])
    assert max(map(len, changes)) < len(optimizer.units)


def test_a_parameter_that_cannot_be_factored_is_a_point_estimate_that_the_prior_pulls() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(30, 4), nn.Linear(4, 2)

    model = Embedded()
    with pytest.warns(UserWarning, match=r"table\.weight"):
        optimizer = NoisyKFAC(model, examples=10, lr=0.1, max_kl=None, momentum=0.0)
    table = model.table.weight.detach().clone()
    with optimizer.sampled():
        assert torch.equal(model.table.weight, table)
    with pytest.raises(ValueError, match=r"table\.weight is a point estimate"):
        optimizer.covariance(unit_named(optimizer, "table.weight"))
    before = optimizer.kl_to_prior()
    model.table.weight.grad = torch.zeros_like(table)
    with pytest.warns(UserWarning, match="before any update_statistics"):
        optimizer.step()
    torch.testing.assert_close(model.table.weight.detach(), table * (1 - 0.1 * 0.1))
    assert torch.equal(optimizer.kl_to_prior(), before)


# --- KL and the evidence lower bound -------------------------------------------------------------------------------


@pytest.mark.parametrize(("curvature", "mode"), FORMS)
def test_kl_is_that_of_the_dense_gaussians(curvature: str, mode: str) -> None:
    _, optimizer = mixed(curvature=curvature, damping_mode=mode, kl_weight=0.3)
    expected = torch.zeros(())
    for unit in optimizer.units:
        posterior = dense_posterior(optimizer, unit)
        prior = MultivariateNormal(torch.zeros_like(posterior.mean), 0.5 * torch.eye(len(posterior.mean)))
        expected += kl_divergence(posterior, prior)
    found = optimizer.kl_to_prior()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    with optimizer.sampled():
        assert torch.equal(optimizer.kl_to_prior(), found)


def dense_posterior(optimizer: NoisyKFAC, unit: Unit) -> MultivariateNormal:
    mean = unit.matrix(unit.parameters).detach().flatten()
    covariance = optimizer.covariance(unit).to_dense()
    return MultivariateNormal(mean, (covariance + covariance.T) / 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression:
    """Bayesian linear regression, a bias included: y = [x, 1] Wᵀ + noise of known deviations (N, K), W ~ N(0, η)."""

    inputs: Tensor
    targets: Tensor
    sigma: Tensor
    prior_variance: float
    bias: bool

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Means (K, i) and covariances (K, i, i) of the independent outputs."""
        X = self._features()
        precision = torch.einsum("nk,ni,nj->kij", self.sigma**-2, X, X) + torch.eye(X.shape[1]) / self.prior_variance
        covariance = torch.linalg.inv(precision)
        return torch.einsum("kij,nk,nj->ki", covariance, self.targets / self.sigma**2, X), covariance

    def log_evidence(self) -> float:
        X = self._features()
        signal = self.prior_variance * X @ X.T
        return sum(
            float(MultivariateNormal(torch.zeros_like(y), signal + torch.diag(s**2)).log_prob(y))
            for y, s in zip(self.targets.T, self.sigma.T, strict=True)
        )

    def elbo(self, optimizer: NoisyKFAC, mean: Tensor, covariance: Tensor) -> float:
        """Of N(mean, covariance), (K, i) and over its row-major flattening; the KL is the optimizer's."""
        X = self._features()
        outputs, width = mean.shape
        squares = (self.targets - X @ mean.T) ** 2
        for k in range(outputs):
            part = covariance[k * width : (k + 1) * width, k * width : (k + 1) * width]
            squares[:, k] += torch.einsum("ni,ij,nj->n", X, part, X)
        log_likelihood = -0.5 * (squares / self.sigma**2 + (2 * torch.pi * self.sigma**2).log()).sum()
        return float(log_likelihood - optimizer.kl_to_prior())

    def solve(self, steps: int, **options: Any) -> tuple[NoisyKFAC, Tensor, Tensor]:
        """Full-batch noisy K-FAC from a random start; each step takes a draw and its mirror image at the mean.

        The mean's expected step vanishes at the posterior's mean alone, whatever the draws; over a mirrored pair it
        has its expectation, since the gradient is linear in the weights.
        """
        model = nn.Linear(self.inputs.shape[1], self.targets.shape[1], bias=self.bias)
        settings = {"lr": 1.0, "momentum": 0.0, "max_kl": None, "inverse_interval": 1, "stat_decay": 0.0, **options}
        optimizer = NoisyKFAC(model, examples=len(self.inputs), prior_variance=self.prior_variance, **settings)
        for _ in range(steps):
            means = [parameter.detach().clone() for parameter in model.parameters()]
            optimizer.zero_grad()
            with optimizer.sampled():
                for image in range(2):
                    if image:
                        with torch.no_grad():
                            for parameter, mean in zip(model.parameters(), means, strict=True):
                                parameter.copy_(2 * mean - parameter)
                    with optimizer.capture():
                        values = model(self.inputs) / self.sigma
                    optimizer.update_statistics(GaussNewton(values=values, kind="exact"))
                    (0.5 * (values - self.targets / self.sigma) ** 2).sum(1).mean().div(2).backward()
            optimizer.step()
        (unit,) = optimizer.units
        return optimizer, unit.matrix(unit.parameters).detach()[0], optimizer.covariance(unit).to_dense()

    def _features(self) -> Tensor:
        return torch.cat((self.inputs, torch.ones(len(self.inputs), 1)), 1) if self.bias else self.inputs


def correlated() -> Regression:
    """Equal noise in two outputs: the Fisher is a Kronecker product."""
    torch.manual_seed(4)
    inputs = torch.randn(30, 4) @ torch.randn(4, 4) + 1
    targets = inputs @ torch.randn(4, 2) + 0.7 * torch.randn(30, 2)
    return Regression(inputs=inputs, targets=targets, sigma=torch.full((30, 2), 0.7), prior_variance=0.8, bias=True)


def unequal() -> Regression:
    """One input at a time, noise of its own in each output of each example: diagonal Fisher, but no product."""
    torch.manual_seed(5)
    inputs = torch.eye(4).repeat(5, 1) * torch.tensor([0.5, 1.0, 1.5, 2.0])
    sigma = 0.3 + torch.rand(20, 3) ** 3
    targets = inputs @ torch.randn(4, 3) + sigma * torch.randn(20, 3)
    return Regression(inputs=inputs, targets=targets, sigma=sigma, prior_variance=1.3, bias=False)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("problem", "curvature"),
    [
        (correlated, "kfac"),
        (correlated, "ekfac"),
        (correlated, "ekfoc"),
        (correlated, "full"),
        (unequal, "ekfac"),
        (unequal, "full"),
        (unequal, "diagonal"),
    ],
)
def test_the_fixed_point_is_the_posterior_and_its_bound_the_evidence(
    problem: Callable[[], Regression], curvature: str
) -> None:
    regression = problem()
    optimizer, mean, covariance = regression.solve(4, curvature=curvature, damping_mode="exact")
    exact_mean, exact_covariance = regression.posterior()
    assert relative(mean, exact_mean) < 1e-9
    assert relative(covariance, torch.block_diag(*exact_covariance)) < 1e-9
    assert regression.elbo(optimizer, mean, covariance) == pytest.approx(regression.log_evidence(), abs=1e-8)


@pytest.mark.parametrize(
    ("problem", "curvature", "mode", "lr", "gap", "short"),
    [
        (correlated, "kfac", "factored", 1.0, 0.540, 0.286),
        (correlated, "diagonal", "exact", 0.35, 0.779, 1.704),
        (unequal, "kfac", "factored", 1.0, 0.532, 0.622),
        (unequal, "kfac", "exact", 1.0, 0.281, 0.317),
    ],
)
def test_other_forms_find_the_mean_and_stay_below_the_evidence(
    problem: Callable[[], Regression], curvature: str, mode: str, lr: float, gap: float, short: float
) -> None:
    """By how much is a property of the form: `gap` of the covariance, relative, and `short` of the bound, in nats."""
    regression = problem()
    optimizer, mean, covariance = regression.solve(300, curvature=curvature, damping_mode=mode, lr=lr)
    exact_mean, exact_covariance = regression.posterior()
    assert relative(mean, exact_mean) < 1e-6
    assert relative(covariance, torch.block_diag(*exact_covariance)) == pytest.approx(gap, abs=1e-3)
    loss = regression.log_evidence() - regression.elbo(optimizer, mean, covariance)
    assert loss == pytest.approx(short, abs=1e-3)


# --- the mean, the gradient and the step ---------------------------------------------------------------------------


def test_the_mean_comes_back_to_the_bit_also_after_an_exception() -> None:
    model, optimizer = mixed()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with optimizer.sampled():
        inside = flat_parameters(model)
    with pytest.raises(ZeroDivisionError), optimizer.sampled():
        raise ZeroDivisionError
    assert not torch.equal(inside, torch.cat([mean.flatten() for mean in before]))
    for parameter, mean in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, mean)
    with optimizer.sampled():  # an exception leaves it usable
        pass


def test_gradients_are_those_at_the_draws_and_add_up() -> None:
    model, optimizer = mixed()
    inputs = torch.randn(8, 2, 3, 3)
    optimizer.zero_grad()
    expected = torch.zeros_like(flat_parameters(model))
    for _ in range(2):
        with optimizer.sampled():
            draw = Mixed()
            draw.load_state_dict(model.state_dict())
            accumulate(model, optimizer, inputs)
        (-torch.log_softmax(draw(inputs), -1)[:, 0]).mean().backward()
        expected += torch.cat([cast(Tensor, p.grad).flatten() for p in draw.parameters()])
    found = torch.cat([cast(Tensor, parameter.grad).flatten() for parameter in model.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_backward_pass_outside_of_the_draw_is_refused_by_autograd() -> None:
    model, optimizer = mixed()
    with optimizer.sampled():
        loss = model(torch.randn(8, 2, 3, 3)).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("extrinsic", [0.0, 0.2])
def test_the_step_goes_along_the_gradient_and_the_prior_and_leaves_the_gradient(extrinsic: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = NoisyKFAC(
        model,
        examples=20,
        kl_weight=0.5,
        prior_variance=0.1,
        extrinsic_damping=extrinsic,
        lr=0.3,
        momentum=0.0,
        max_kl=None,
        damping_mode="exact",
    )
    inputs = torch.randn(7, 3)
    with optimizer.sampled():
        with optimizer.capture():
            values = model(inputs)
        optimizer.update_statistics(GaussNewton(values=values, kind="exact"))
        values.square().sum(1).mean().backward()
    unit = optimizer.units[0]
    mean = unit.matrix(unit.parameters).detach().flatten()
    gradients = [cast(Tensor, parameter.grad).clone() for parameter in unit.parameters]
    optimizer.step()
    F, prior = unit.block.to_dense(), 0.5 / 20 / 0.1
    pulled = unit.matrix(gradients).flatten() + prior * mean
    expected = mean - 0.3 * torch.linalg.solve(F + (prior + extrinsic) * torch.eye(len(F)), pulled)
    torch.testing.assert_close(unit.matrix(unit.parameters).detach().flatten(), expected, rtol=1e-10, atol=1e-12)
    for parameter, gradient in zip(unit.parameters, gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


def test_what_would_move_the_mean_is_refused_inside_a_draw() -> None:
    model, optimizer = mixed()
    state = optimizer.state_dict()
    before = flat_parameters(model)
    calls: list[Callable[[], object]] = [
        optimizer.step,
        lambda: optimizer.contract(torch.zeros(())),
        lambda: optimizer.load_state_dict(state),
        lambda: optimizer.sampled().__enter__(),
    ]
    for call in calls:
        with optimizer.sampled(), pytest.raises(RuntimeError, match=r"inside sampled\(\)"):
            call()
    assert torch.equal(flat_parameters(model), before)


# --- state and settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("curvature", "mode"), FORMS)
def test_a_restored_state_draws_and_steps_to_the_bit(curvature: str, mode: str, tmp_path: Path) -> None:
    options = {"curvature": curvature, "damping_mode": mode, "inverse_interval": 4}
    model, optimizer = mixed(**options)
    for _ in range(40):  # past the first inverses, so that those in use are older than the factors
        noisy_step(model, optimizer)
    file = tmp_path / "state.safetensors"
    checkpoint.save(file, {"optimizer": optimizer_state(optimizer), "model": model.state_dict()}, kind="checkpoint")
    state = checkpoint.load(file).state
    other = Mixed()
    other.load_state_dict(state["model"])
    generator = torch.Generator()
    restored = NoisyKFAC(other, examples=40, prior_variance=0.5, stat_decay=0.5, generator=generator, **options)
    load_optimizer_state(restored, state["optimizer"])
    generator.set_state(cast(torch.Generator, optimizer.generator).get_state())
    assert torch.equal(restored.kl_to_prior(), optimizer.kl_to_prior())
    for _ in range(5):
        draws = []
        for network, kfac in ((model, optimizer), (other, restored)):
            with kfac.sampled():
                draws.append(flat_parameters(network))
            noisy_step(network, kfac)
        assert torch.equal(*draws)
        assert torch.equal(flat_parameters(model), flat_parameters(other))


def test_a_state_is_a_copy() -> None:
    _, optimizer = mixed(curvature="full")
    before = optimizer.kl_to_prior()
    for covariance in optimizer.state_dict()["posterior"]["covariances"].values():
        covariance["deviations"].zero_()
    assert torch.equal(optimizer.kl_to_prior(), before)


def test_states_of_other_optimizers_are_refused() -> None:
    model, optimizer = mixed()
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match="made with examples 40, this optimizer has 41"):
        NoisyKFAC(model, examples=41, prior_variance=0.5).load_state_dict(state)
    with pytest.raises(ValueError, match="made with prior_variance"):
        NoisyKFAC(model, examples=40).load_state_dict(state)
    del state["posterior"]
    with pytest.raises(ValueError, match="holds no posterior"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"examples": 0}, "examples takes"),
        ({"examples": 2.5}, "examples takes"),
        ({"examples": True}, "examples takes"),
        ({"examples": 10, "kl_weight": 0.0}, "kl_weight takes"),
        ({"examples": 10, "kl_weight": float("nan")}, "kl_weight takes"),
        ({"examples": 10, "prior_variance": float("inf")}, "prior_variance takes"),
        ({"examples": 10, "extrinsic_damping": -1.0}, "extrinsic_damping takes"),
        ({"examples": 10, "damping": 0.1}, "use extrinsic_damping"),
        ({"examples": 10, "structure": "block-tridiagonal"}, "block-diagonal"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        NoisyKFAC(nn.Linear(2, 2), **settings)
    assert "\n" not in str(caught.value)


def test_a_failed_decomposition_keeps_the_last_covariance_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = mixed()
    before, stale = dict(optimizer.posterior), optimizer.estimate.stale_count
    monkeypatch.setattr("acktr.kfac.posterior.eigenbasis", lambda matrix: (None, 4))
    noisy_step(model, optimizer)
    assert optimizer.posterior == before
    assert optimizer.estimate.stale_count == stale + len(optimizer.units)
    assert all(isinstance(unit.block, KroneckerBlock | FullBlock) for unit in optimizer.units)
