"""The step size follows the measured KL, even where the curvature is wrong."""

from typing import Any

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from acktr.agents.acktr import ACKTRUpdater
from acktr.agents.divergence import Divergence
from acktr.agents.part import Part
from acktr.agents.policy import ActorCritic
from acktr.agents.rollout import Batch
from acktr.agents.settings import Settings
from acktr.agents.step_control import MAX_FACTOR, MIN_FACTOR, StepControl, backtrack
from acktr.kfac import Fisher, mean_kl

DESIRED = 1e-3


def settle(stiffness: float, *, updates: int = 400) -> StepControl:
    """Let a controller act on a world whose KL is `stiffness · factor²` nats."""
    control = StepControl(torch.zeros(()))
    for _ in range(updates):
        control.observe(stiffness * control.factor.square(), DESIRED)
    return control


@pytest.mark.parametrize("stiffness", [1e-4, 1e-3, 1e-2, 1.0])
def test_the_factor_settles_where_the_measured_kl_is_the_desired_one(stiffness: float) -> None:
    factor = settle(stiffness).factor
    assert float(stiffness * factor**2) == pytest.approx(DESIRED, rel=0.02)


def test_the_factor_keeps_its_range() -> None:
    assert float(settle(1e-12).factor) == MAX_FACTOR
    assert float(settle(1e9).factor) == pytest.approx(MIN_FACTOR)


def test_a_rare_long_step_does_not_shorten_those_that_follow() -> None:
    control = StepControl(torch.zeros(()))
    for update in range(400):
        spike = 1e4 if update % 20 == 0 else 1.0
        control.observe(spike * 1e-3 * control.factor.square(), DESIRED)
    assert float(control.factor) > 0.9


@pytest.mark.parametrize(("measured", "shrinks"), [(torch.nan, True), (torch.inf, True), (0.0, False)])
def test_what_is_no_measurement_leaves_the_factor_finite(measured: float, shrinks: bool) -> None:
    control = StepControl(torch.zeros(()))
    control.observe(torch.tensor(measured), DESIRED)
    assert (float(control.factor) < 1) == shrinks
    assert float(control.factor) > 0.9


def random_batch(generator: torch.Generator) -> Batch:
    return Batch(
        observations=torch.randn(64, 3, generator=generator),
        actions=torch.randint(0, 4, (64,), generator=generator),
        advantages=torch.randn(64, generator=generator),
        returns=torch.randn(64, generator=generator),
        weights=None,
        valid_rows=64,
        part=Part.whole(4),
    )


def measured_kls(updates: int, **options: Any) -> tuple[Tensor, ACKTRUpdater]:
    """The policy's KL of each update, measured from outside."""
    torch.manual_seed(0)
    settings = Settings(
        env="CartPole-v1", lr_schedule="constant", max_kl=0, momentum=0, policy_gain=1.0, value_coef=0.0, **options
    )
    policy = ActorCritic(Box(-1, 1, (3,)), Discrete(4), settings)
    updater = ACKTRUpdater(policy, settings, torch.Generator().manual_seed(0))
    generator, kls = torch.Generator().manual_seed(1), []
    for _ in range(updates):
        batch = random_batch(generator)
        with torch.no_grad():
            before = policy(batch.observations)[0]
        updater.update(batch, progress=0.0)
        with torch.no_grad():
            kls.append(mean_kl(before, policy(batch.observations)[0]))
    return torch.stack(kls), updater


@pytest.mark.parametrize("wrong", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("shared", [True, False])
def test_steps_reach_the_desired_kl_though_the_curvature_is_wrong(
    wrong: float, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributions.Categorical, "log_prob", _scaled_log_prob(wrong))
    kls, _ = measured_kls(200, desired_kl=DESIRED, lr=0.5, shared_trunk=shared, hidden_sizes=(16,))
    assert DESIRED / 2 < float(kls[120:].log().mean().exp()) < 2 * DESIRED


def _scaled_log_prob(wrong: float) -> Any:
    """Log-probabilities whose gradients, and with them Fisher and loss, are wrong by a factor."""
    original = torch.distributions.Categorical.log_prob
    return lambda self, value: original(self, value) * wrong


def test_without_a_desired_kl_the_learning_rate_stays() -> None:
    _, updater = measured_kls(3, lr=0.1)
    assert updater.learning_rate() == 0.1


def test_a_loaded_state_goes_on_with_the_same_factor() -> None:
    _, updater = measured_kls(30, desired_kl=DESIRED, lr=0.1)
    _, other = measured_kls(1, desired_kl=DESIRED, lr=0.1)
    assert other.learning_rate() != updater.learning_rate()
    other.load_state_dict(updater.state_dict())
    for each in (updater, other):
        each.update(random_batch(torch.Generator().manual_seed(5)), progress=0.0)
    assert other.learning_rate() == updater.learning_rate()


@pytest.mark.parametrize("wrong", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("shared", [True, False])
def test_the_line_search_keeps_the_limit_though_the_curvature_is_wrong(
    wrong: float, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Fisher.losses
    monkeypatch.setattr(Fisher, "losses", lambda self: original(self) * wrong)
    options: dict[str, Any] = {"lr": 100.0, "shared_trunk": shared, "hidden_sizes": (16,)}
    free, _ = measured_kls(5, **options)
    kls, updater = measured_kls(30, line_search=20, max_measured_kl=DESIRED, **options)
    assert float(kls.max()) < 1.1 * DESIRED
    assert float(kls.median()) > DESIRED / 4 or wrong == 100.0
    assert updater.counters()["skipped_batches"] == 0
    assert float(free.median()) > 10 * DESIRED or wrong == 100.0


def world(stiffness: float, slope: float, bend: float) -> tuple[list[float], Any, Any]:
    """A step whose KL is `stiffness · f²` and whose surrogate grows by `slope · f - bend · f²`."""
    kept = [1.0]

    def measured() -> Divergence:
        factor, zero = torch.tensor(kept[-1]), torch.zeros(())
        gain = slope * factor - bend * factor**2
        return Divergence(policy=stiffness * factor**2, value=zero, extreme=zero, gain=gain)

    def contract(factor: Tensor) -> None:
        kept.append(kept[-1] * float(factor))

    return kept, measured, contract


def test_a_step_within_the_limit_that_improves_the_surrogate_is_left_alone() -> None:
    kept, measured, contract = world(1e-4, 1.0, 0.5)
    _, good = backtrack(measured(), measured, contract, (DESIRED, None), most=10)
    assert good
    assert kept == [1.0]


def test_backtracking_reaches_the_limit_and_no_less() -> None:
    kept, measured, contract = world(1.0, 1.0, 0.0)
    moved, good = backtrack(measured(), measured, contract, (DESIRED, None), most=10)
    assert good
    assert float(moved.policy) == pytest.approx(DESIRED, rel=0.05)
    assert len(kept) <= 4


def test_a_step_that_makes_the_surrogate_worse_is_shortened_until_it_does_not() -> None:
    kept, measured, contract = world(1e-9, 1.0, 5.0)
    moved, good = backtrack(measured(), measured, contract, (DESIRED, None), most=10)
    assert good
    assert kept[-1] == 0.125
    assert float(moved.gain) > 0


@pytest.mark.parametrize(("stiffness", "slope"), [(1e-9, -1.0), (torch.nan, 1.0), (torch.inf, 1.0)])
def test_a_step_that_no_backtrack_mends_is_not_good(stiffness: float, slope: float) -> None:
    kept, measured, contract = world(stiffness, slope, 0.0)
    _, good = backtrack(measured(), measured, contract, (DESIRED, None), most=5)
    assert not good
    assert len(kept) == 6


@pytest.mark.parametrize("shared", [True, False])
def test_a_step_that_the_search_gives_up_on_is_taken_back_and_no_sign_of_divergence(shared: bool) -> None:
    """Ten rejected steps in a row ended a healthy run as diverged."""
    kls, updater = measured_kls(12, line_search=1, lr=100.0, max_measured_kl=1e-9, shared_trunk=shared)
    counters = updater.counters()
    assert counters["skipped_batches"] == 0
    assert counters["rejected_steps"] == int((kls == 0).sum()) > 6


@pytest.mark.parametrize("stat_fraction", [0.125, 1.0])
def test_the_search_looks_at_the_whole_batch(stat_fraction: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an eighth of the rows alone, every third step was taken back though it made the whole batch better."""
    gains = []
    original = ACKTRUpdater.update

    def watched(self: ACKTRUpdater, batch: Batch, *, progress: float) -> Any:
        before = self.policy(batch.observations)[0].log_prob(batch.actions).detach()
        report = original(self, batch, progress=progress)
        after = self.policy(batch.observations)[0].log_prob(batch.actions).detach()
        gains.append(((torch.exp(after - before) - 1) * batch.advantages).mean())
        return report

    monkeypatch.setattr(ACKTRUpdater, "update", watched)
    _, updater = measured_kls(40, line_search=10, max_measured_kl=DESIRED, lr=1.0, stat_fraction=stat_fraction)
    assert float(torch.stack(gains).min()) > -1e-6
    assert updater.counters()["rejected_steps"] <= 2
