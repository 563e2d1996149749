"""Several choices at once, as one distribution: outcomes, KL and every block of K-FAC against dense matrices."""

import pytest
import torch
from oracles import dense_fisher, example_gradients, fisher_block, relative_error, unit_named
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal, kl_divergence

from acktr.kfac import KFAC, Fisher, MultiCategorical, mean_kl, sample

pytestmark = pytest.mark.usefixtures("float64")

SIZES = (3, 2, 4)


def outcomes() -> Tensor:
    """All 24 outcomes (24, 3)."""
    return torch.cartesian_prod(*[torch.arange(size) for size in SIZES])


def log_probs(distribution: MultiCategorical) -> Tensor:
    """(24, N) log-probabilities of every outcome."""
    rows = distribution.batch_shape[0]
    return torch.stack([distribution.log_prob(outcome.expand(rows, -1)) for outcome in outcomes()])


def test_probabilities_of_all_outcomes_are_products_and_give_entropy_mode_and_kl() -> None:
    one, two = (MultiCategorical(2 * torch.randn(5, 9), SIZES) for _ in range(2))
    own, other = log_probs(one), log_probs(two)
    torch.testing.assert_close(own.exp().sum(0), torch.ones(5))
    torch.testing.assert_close(one.entropy(), -(own.exp() * own).sum(0))
    assert torch.equal(one.mode, outcomes()[own.argmax(0)])
    divergence = (own.exp() * (own - other)).sum(0)
    torch.testing.assert_close(kl_divergence(one, two), divergence)
    torch.testing.assert_close(mean_kl(one, two), divergence.mean())
    assert one.sample((7,)).shape == (7, 5, 3)


def test_wrong_sizes_are_refused() -> None:
    for sizes in ((3, 2), ()):
        with pytest.raises(ValueError, match="logits"):
            MultiCategorical(torch.zeros(5, 9), sizes)


def test_draws_from_a_generator_have_the_probabilities_and_repeat() -> None:
    distribution = MultiCategorical(torch.randn(9).expand(100_000, -1), SIZES)
    draws = sample(distribution, torch.Generator().manual_seed(1))
    assert draws.dtype == torch.int64
    assert torch.equal(draws, sample(distribution, torch.Generator().manual_seed(1)))
    for index, part in enumerate(distribution.parts):
        found = torch.bincount(draws[:, index], minlength=SIZES[index]) / len(draws)
        torch.testing.assert_close(found, part.probs[0], atol=0.01, rtol=0)
    joint = ((draws[:, 0] == 0) & (draws[:, 1] == 1)).double().mean()
    torch.testing.assert_close(
        joint, distribution.parts[0].probs[0, 0] * distribution.parts[1].probs[0, 1], atol=0.01, rtol=0
    )


class Policy(nn.Module):
    """A linear layer and a head of each sort."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = nn.Linear(2, {"multi": 9, "binary": 3}.get(kind, 2))
        self.log_std = nn.Linear(2, 2) if kind == "state" else nn.Parameter(torch.tensor([0.3, -0.7]))

    def forward(self, inputs: Tensor) -> Distribution:
        outputs = self.layer(inputs)
        if self.kind == "multi":
            return MultiCategorical(outputs, SIZES)
        if self.kind == "binary":
            return Independent(Bernoulli(logits=outputs), 1)
        log_std = self.log_std(inputs) if isinstance(self.log_std, nn.Linear) else self.log_std.expand_as(outputs)
        return Independent(Normal(outputs, log_std.exp()), 1)


def true_fisher(distribution: Distribution, parameters: list[Tensor]) -> Tensor:
    """Mean over examples of the Fisher by its definition, the sum over all outcomes of p g gᵀ."""
    if isinstance(distribution, MultiCategorical):
        values = log_probs(distribution)
    else:
        bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
        rows = distribution.batch_shape[0]
        values = torch.stack([distribution.log_prob(row.expand(rows, -1)) for row in bits])
    gradients = example_gradients(values, parameters)
    return torch.einsum("cn,cni,cnj->ij", values.detach().exp(), gradients, gradients) / values.shape[1]


@pytest.mark.parametrize("kind", ["multi", "binary"])
def test_exact_fisher_is_the_definitions_sum_over_all_outcomes(kind: str) -> None:
    policy, inputs = Policy(kind), torch.randn(4, 2)
    parameters = list(policy.layer.parameters())
    distribution = policy(inputs)
    exact = dense_fisher(Fisher(distribution=distribution, kind="exact").losses(), parameters)
    torch.testing.assert_close(exact, true_fisher(distribution, parameters), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["free", "state"])
def test_exact_fisher_of_a_gaussian_is_the_curvature_of_its_kl(kind: str) -> None:
    policy, inputs = Policy(kind), torch.randn(4, 2)
    parameters = dict(policy.named_parameters())
    sizes = [parameter.numel() for parameter in parameters.values()]

    def divergence(flat: Tensor) -> Tensor:
        parts = [part.reshape(p.shape) for part, p in zip(flat.split(sizes), parameters.values(), strict=True)]
        after = torch.func.functional_call(policy, dict(zip(parameters, parts, strict=True)), (inputs,))
        return kl_divergence(policy(inputs), after).mean()

    point = torch.cat([parameter.detach().flatten() for parameter in parameters.values()])
    curvature = torch.autograd.functional.hessian(divergence, point)
    exact = dense_fisher(Fisher(distribution=policy(inputs), kind="exact").losses(), list(parameters.values()))
    torch.testing.assert_close(exact, curvature, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["multi", "binary", "free", "state"])
def test_each_block_of_kfac_is_exact_on_one_example(kind: str) -> None:
    policy = Policy(kind)
    optimizer = KFAC(policy)
    with optimizer.capture():
        distribution = policy(torch.randn(1, 2))
    metric = Fisher(distribution=distribution, kind="exact")
    optimizer.update_statistics(metric)
    reached = [unit for unit in optimizer.units if kind in ("free", "state") or unit.name == "layer"]
    assert len(reached) == (2 if kind in ("free", "state") else 1)
    for unit in reached:
        torch.testing.assert_close(unit.block.to_dense(), fisher_block(unit, metric.losses()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["multi", "binary", "free", "state"])
def test_sampled_fisher_averages_to_the_exact_one(kind: str) -> None:
    policy, inputs = Policy(kind), torch.randn(1, 2)
    optimizer = KFAC(policy)
    with optimizer.capture():
        distribution = policy(inputs.expand(40_000, -1))
    optimizer.update_statistics(Fisher(distribution=distribution, generator=torch.Generator().manual_seed(0)))
    exact = Fisher(distribution=policy(inputs), kind="exact").losses()
    for name in ["layer", "log_std"] if kind in ("free", "state") else ["layer"]:
        unit = unit_named(optimizer, name)
        assert relative_error(unit.block.to_dense(), fisher_block(unit, exact)) < 0.04


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (Bernoulli(logits=torch.tensor([[200.0]])), Bernoulli(logits=torch.tensor([[-800.0]])), 800.0),
        (
            Bernoulli(logits=torch.tensor([[0.0]])),
            Bernoulli(logits=torch.tensor([[2000.0]])),
            1000.0 - 0.6931471805599453,
        ),
        (
            Categorical(logits=torch.tensor([[0.0, 0.0]])),
            Categorical(logits=torch.tensor([[0.0, -2000.0]])),
            999.3068528194400547,
        ),
    ],
)
def test_kl_stays_finite_where_probabilities_underflow(
    before: Distribution, after: Distribution, expected: float
) -> None:
    assert float(mean_kl(before, after)) == pytest.approx(expected)


def test_bernoulli_kl_is_torchs_in_the_middle() -> None:
    one, two = (Independent(Bernoulli(logits=torch.randn(6, 3)), 1) for _ in range(2))
    weights = torch.tensor([1.0, 0, 1, 1, 0, 1])
    expected = kl_divergence(one, two)[weights > 0].mean()
    torch.testing.assert_close(mean_kl(one, two, weights), expected)


def test_small_kls_of_single_precision_outputs_do_not_drown() -> None:
    logits = torch.randn(50, 9, dtype=torch.float32)
    moved = logits + 1e-5 * torch.randn(50, 9, dtype=torch.float32)
    found = mean_kl(MultiCategorical(logits, SIZES), MultiCategorical(moved, SIZES))
    exact = kl_divergence(MultiCategorical(logits.double(), SIZES), MultiCategorical(moved.double(), SIZES)).mean()
    assert float(found) == pytest.approx(float(exact), rel=1e-6)
    assert float(found) > 0
