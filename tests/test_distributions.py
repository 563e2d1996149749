"""Policy heads: what they start as, squashed actions, and settings that do not fit the space."""

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from acktr.agents.distributions import (
    LOG_STD_REACH,
    GaussianHead,
    SquashedGaussian,
    at_rows,
    build_head,
    most_probable,
    squashed,
)
from acktr.agents.settings import Settings
from acktr.errors import UserError
from acktr.kfac import Fisher, MultiCategorical, mean_kl, sample


def head(space: gymnasium.Space[Any], **settings: Any) -> Any:
    return build_head(space, 6, Settings(env="x", **settings))


def test_spaces_of_several_numbers_have_one_layer_of_all_logits() -> None:
    multi = head(MultiDiscrete([3, 2, 4]))(torch.randn(5, 6))
    assert isinstance(multi, MultiCategorical)
    assert multi.sizes == (3, 2, 4)
    assert head(MultiDiscrete([3, 2, 4])).logits.weight.shape == (9, 6)
    binary = head(MultiBinary(4))(torch.randn(5, 6))
    draws = sample(binary, torch.Generator().manual_seed(0))
    assert draws.shape == (5, 4)
    assert binary.log_prob(draws).shape == (5,)


@pytest.mark.parametrize("state_dependent", [False, True])
@pytest.mark.parametrize("init", [0.0, -1.3])
def test_the_deviation_starts_as_the_setting_says_everywhere(state_dependent: bool, init: float) -> None:
    built = head(Box(-1, 1, (3,)), log_std_init=init, state_dependent_std=state_dependent, policy_gain=1.0)
    scale = built(10 * torch.randn(50, 6)).base_dist.scale
    torch.testing.assert_close(scale, torch.full((50, 3), math.exp(init)))


@pytest.mark.usefixtures("float64")
def test_a_deviation_that_depends_on_the_state_stays_in_reach_and_learns_from_its_start() -> None:
    built = GaussianHead(6, 3, gain=1.0, log_std_init=-1.0, state_dependent_std=True)
    built(torch.randn(4, 6)).base_dist.scale.log().sum().backward()
    assert isinstance(built.log_std, torch.nn.Linear)
    torch.testing.assert_close(built.log_std.bias.grad, torch.full((3,), 4.0))
    with torch.no_grad():
        built.log_std.weight.copy_(1e6 * torch.randn(3, 6))
    log_std = built(torch.randn(40, 6)).base_dist.scale.log()
    assert float((log_std.detach() + 1).abs().max()) <= LOG_STD_REACH + 1e-9


@pytest.mark.usefixtures("float64")
def test_squashed_density_is_that_of_torchs_transformed_gaussian() -> None:
    normal = Normal(torch.randn(20, 3), torch.rand(20, 3) + 0.1)
    outcomes = normal.sample()
    reference = Independent(TransformedDistribution(normal, [TanhTransform()]), 1)
    torch.testing.assert_close(SquashedGaussian(normal).log_prob(outcomes), reference.log_prob(torch.tanh(outcomes)))


def test_squashed_density_is_finite_where_tanh_rounds_to_1() -> None:
    distribution = SquashedGaussian(Normal(torch.zeros(1, 1), torch.full((1, 1), 20.0)))
    outcome = torch.tensor([[60.0]])
    assert float(torch.tanh(outcome)) == 1.0
    # log N(60; 0, 20) - log(4 exp(-120))
    expected = -4.5 - math.log(20 * math.sqrt(2 * math.pi)) - math.log(4) + 120
    assert float(distribution.log_prob(outcome)) == pytest.approx(expected, rel=1e-6)


def integral(function: Any, low: float, high: float, points: int = 200_001) -> float:
    at = torch.linspace(low, high, points, dtype=torch.float64)
    return float(torch.trapezoid(function(at), at))


@pytest.mark.parametrize("mean", [0.0, 0.7, -3.0])
@pytest.mark.parametrize(("deviation", "error"), [(0.05, 1e-5), (0.5, 1e-4), (1.0, 1e-3), (2.0, 0.02), (5.0, 0.05)])
@pytest.mark.usefixtures("float64")
def test_squashed_entropy_is_the_integral_over_the_actions(mean: float, deviation: float, error: float) -> None:
    normal = Normal(torch.tensor([[mean]]), torch.tensor([[deviation]]))
    distribution = SquashedGaussian(normal)

    def integrand(outcome: Tensor) -> Tensor:  # over u, with the density of u
        rows = outcome.unsqueeze(1)
        density = normal.log_prob(rows).squeeze(1).exp()
        return -density * SquashedGaussian(Normal(normal.loc.expand_as(rows), normal.scale.expand_as(rows))).log_prob(
            rows
        )

    exact = integral(integrand, mean - 12 * deviation, mean + 12 * deviation)
    assert float(distribution.entropy()) == pytest.approx(exact, abs=error)
    assert float(distribution.entropy()) < math.log(2) + error


@pytest.mark.usefixtures("float64")
def test_squashed_entropy_has_the_gradient_of_its_definition() -> None:
    mean = torch.tensor([[0.4, -1.0]], requires_grad=True)
    log_std = torch.tensor([[-0.5, 0.0]], requires_grad=True)
    SquashedGaussian(Normal(mean, log_std.exp())).entropy().sum().backward()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400_000, 2, generator=generator)
    again, again_log_std = mean.detach().clone().requires_grad_(), log_std.detach().clone().requires_grad_()
    outcomes = again + again_log_std.exp() * noise
    rows = SquashedGaussian(Normal(again.expand_as(outcomes), again_log_std.exp().expand_as(outcomes)))
    (-rows.log_prob(outcomes)).mean().backward()
    torch.testing.assert_close(mean.grad, again.grad, atol=5e-3, rtol=0)
    torch.testing.assert_close(log_std.grad, again_log_std.grad, atol=5e-3, rtol=0)


@pytest.mark.usefixtures("float64")
def test_squashing_changes_neither_fisher_nor_kl() -> None:
    mean, scale = torch.randn(7, 2, requires_grad=True), torch.rand(7, 2) + 0.2
    plain, squash = Independent(Normal(mean, scale), 1), SquashedGaussian(Normal(mean, scale))
    other = Normal(mean + 0.3, 1.2 * scale)
    torch.testing.assert_close(mean_kl(squash, SquashedGaussian(other)), mean_kl(plain, Independent(other, 1)))
    draw = plain.sample()
    for kind in ("sampled", "exact"):
        losses = [Fisher(distribution=d, kind=kind, draw=draw).losses() for d in (plain, squash)]  # type: ignore[arg-type]
        gradients = [
            [torch.autograd.grad(row.sum(), mean, retain_graph=True)[0] for row in rows[:2]] for rows in losses
        ]
        torch.testing.assert_close(*gradients)


def test_what_the_environment_gets_of_a_squashed_action_is_its_tanh() -> None:
    distribution = head(Box(-1, 1, (2,)), squash_actions=True, policy_gain=1.0)(torch.randn(5, 6))
    assert isinstance(distribution, SquashedGaussian)
    torch.testing.assert_close(
        squashed(distribution, most_probable(distribution)), torch.tanh(distribution.base_dist.loc)
    )
    plain = head(Box(-1, 1, (2,)))(torch.randn(5, 6))
    outcomes = plain.sample()
    assert squashed(plain, outcomes) is outcomes


def test_even_odds_have_a_mode() -> None:
    """torch's is not a number there, and a policy may start with even odds."""
    logits = torch.tensor([[0.0, 1.0, -1.0, float("nan")]])
    mode = most_probable(Independent(Bernoulli(logits=logits, validate_args=False), 1))
    assert mode[0, :3].tolist() == [0, 1, 0]
    assert mode[0, 3].isnan(), "a policy that has diverged is not hidden"


@pytest.mark.parametrize(
    ("space", "settings", "reason"),
    [
        (Box(-np.inf, 1, (2,)), {"squash_actions": True}, "both bounds"),
        (Discrete(3), {"squash_actions": True}, r"'squash_actions' is for Box actions; .*Discrete\(3\)"),
        (MultiBinary(3), {"state_dependent_std": True}, "'state_dependent_std' is for Box actions"),
        (Box(-1, 1, (2, 2)), {}, "not supported"),
    ],
)
def test_what_does_not_fit_the_action_space_is_refused(
    space: gymnasium.Space[Any], settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        head(space, **settings)


@pytest.mark.parametrize(
    ("space", "settings"),
    [
        (Discrete(3), {}),
        (MultiDiscrete([3, 2]), {}),
        (MultiBinary(4), {}),
        (Box(-1, 1, (2,)), {}),
        (Box(-1, 1, (2,)), {"squash_actions": True, "state_dependent_std": True}),
    ],
    ids=["Categorical", "MultiCategorical", "Bernoulli", "Gaussian", "squashed"],
)
def test_some_rows_of_a_batch_of_distributions_are_those_rows(space: gymnasium.Space[Any], settings: Any) -> None:
    whole = head(space, policy_gain=1.0, **settings)(torch.randn(5, 6))
    rows = torch.tensor([4, 0, 2])
    part = at_rows(whole, rows)
    assert type(part) is type(whole)
    draws = sample(whole, torch.Generator().manual_seed(0)).detach()
    torch.testing.assert_close(part.log_prob(draws[rows]), whole.log_prob(draws)[rows].detach())
    assert not part.log_prob(draws[rows]).requires_grad
    torch.testing.assert_close(part.entropy(), whole.entropy()[rows].detach())
    assert mean_kl(at_rows(whole, rows), part) == 0
