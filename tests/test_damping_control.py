"""Damping follows the ratio of measured and predicted KL."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from gymnasium.spaces import Discrete
from gymnasium.spaces.box import Box
from torch import Tensor

from acktr.agents.acktr import ACKTRUpdater
from acktr.agents.damping_control import MAX_FACTOR, MIN_FACTOR, DampingControl
from acktr.agents.part import Part
from acktr.agents.policy import ActorCritic
from acktr.agents.rollout import Batch
from acktr.agents.settings import Settings
from acktr.errors import UserError
from acktr.kfac import Fisher


def settled(curvature: float, believed: float, *, damping: float = 0.01, updates: int = 500) -> float:
    """λ after many steps g / (believed + λ) whose KL is of another curvature than the one believed in."""
    control = DampingControl(torch.zeros((), dtype=torch.float64))
    for _ in range(updates):
        step = 1 / (believed + damping * control.factor)
        control.observe(curvature * step**2 / 2, (believed + damping * control.factor) * step**2 / 2)
    return damping * float(control.factor)


def test_lambda_rises_until_the_damped_curvature_is_within_a_factor_of_two_of_the_truth() -> None:
    found = settled(curvature=1.0, believed=0.1)
    assert 0.4 <= found + 0.1 <= 0.55


def test_lambda_falls_where_it_hides_the_curvature() -> None:
    assert settled(curvature=1e-3, believed=1e-4, damping=0.1) == pytest.approx(0.1 * MIN_FACTOR, rel=1.0)


def test_a_prediction_within_a_factor_of_two_leaves_lambda_alone() -> None:
    assert settled(curvature=1.0, believed=1.2) == pytest.approx(0.01)


def test_the_factor_keeps_its_range() -> None:
    for measured, bound in ((1e9, MAX_FACTOR), (1e-9, MIN_FACTOR)):
        control = DampingControl(torch.zeros(()))
        for _ in range(200):
            control.observe(torch.tensor(measured), torch.tensor(1.0))
        assert float(control.factor) == pytest.approx(bound)


@pytest.mark.parametrize(
    ("measured", "predicted", "rises"),
    [(torch.nan, 1.0, True), (torch.inf, 1.0, True), (0.0, 1.0, False), (1.0, 0.0, False), (0.0, 0.0, False)],
)
def test_what_is_no_measurement_leaves_the_factor_finite(measured: float, predicted: float, rises: bool) -> None:
    control = DampingControl(torch.zeros(()))
    control.observe(torch.tensor(measured), torch.tensor(predicted))
    assert (float(control.factor) > 1) == rises
    assert float(control.factor) < 1.5


def updater(**changes: Any) -> ACKTRUpdater:
    torch.manual_seed(0)
    settings = Settings(env="CartPole-v1", damping_control="kl-ratio", hidden_sizes=(16,), **changes)
    policy = ActorCritic(Box(-1, 1, (3,)), Discrete(4), settings)
    return ACKTRUpdater(policy, settings, torch.Generator().manual_seed(0))


def update(acktr: ACKTRUpdater, *, times: int, seed: int = 1) -> Mapping[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(times):
        batch = Batch(
            observations=torch.randn(64, 3, generator=generator),
            actions=torch.randint(0, 4, (64,), generator=generator),
            advantages=torch.randn(64, generator=generator),
            returns=torch.randn(64, generator=generator),
            weights=None,
            valid_rows=64,
            part=Part.whole(4),
        )
        found = acktr.update(batch, progress=0.0).figures
    return found


def damping_of(acktr: ACKTRUpdater) -> float:
    return float(acktr.actor.optimizer.param_groups[0]["damping"])


@pytest.mark.parametrize(
    "options",
    [
        {"curvature": "kfac", "damping_mode": "factored"},
        {"curvature": "kfac", "damping_mode": "exact"},
        {"curvature": "ekfac", "damping_mode": "factored"},
        {"curvature": "full"},
        {"curvature": "diagonal"},
        {"structure": "block-tridiagonal"},
    ],
    ids=lambda options: "-".join(options.values()),
)
@pytest.mark.parametrize("shared", [True, False])
def test_lambda_rises_under_every_curvature_that_says_too_little(
    options: dict[str, Any], shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Fisher.losses
    monkeypatch.setattr(Fisher, "losses", lambda self: original(self) * 0.01)
    acktr = updater(shared_trunk=shared, **options)
    update(acktr, times=40)
    assert damping_of(acktr) > 0.05
    assert all(torch.isfinite(parameter).all() for parameter in acktr.policy.parameters())


def test_a_loaded_state_goes_on_with_the_same_lambda() -> None:
    one, other = updater(), updater()
    update(one, times=20)
    other.policy.load_state_dict(one.policy.state_dict())
    other.load_state_dict(one.state_dict())
    for acktr in (one, other):
        update(acktr, times=2, seed=5)
    assert damping_of(one) == damping_of(other) != 0.01


def test_the_damping_of_a_prior_is_not_controlled(monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to the objective: without it the step is no longer towards the posterior's mean."""
    original = Fisher.losses
    monkeypatch.setattr(Fisher, "losses", lambda self: original(self) * 0.01)
    acktr = updater(exploration="noisy-kfac", noise_examples=100, noise_prior=0.1, damping=1e-3)
    prior = damping_of(acktr) - 1e-3
    assert prior == pytest.approx(0.1)
    update(acktr, times=10)
    factor = float(acktr.actor._damping_control.factor)
    assert factor > 1
    update(acktr, times=1)
    assert damping_of(acktr) == pytest.approx(prior + 1e-3 * factor)


@pytest.mark.parametrize(("options", "heads"), [({"damping": 0.0}, "policy"), ({"critic_damping": 0.0}, "value")])
def test_no_damping_cannot_be_controlled(options: dict[str, Any], heads: str) -> None:
    with pytest.raises(UserError, match=f"that of the {heads} is 0: set a damping above 0"):
        updater(shared_trunk=False, **options)


def test_what_the_control_and_the_posterior_do_is_among_the_figures() -> None:
    acktr = updater(exploration="noisy-kfac", noise_examples=1000, kl_interval=1)
    found = update(acktr, times=3)
    assert float(found["damping"]) == pytest.approx(damping_of(acktr) - 1e-3, rel=0.2)
    assert float(found["kl_to_prior"]) > 0
