"""Curvatures by their settings: those that fit train and survive a checkpoint; the others are refused in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

import acktr
from acktr import cli
from acktr.agents import checkpoint
from acktr.agents.acktr import ACKTRUpdater
from acktr.agents.part import Part
from acktr.agents.policy import ActorCritic
from acktr.agents.rollout import Batch
from acktr.agents.settings import Settings
from acktr.errors import UserError

FAMILY: list[dict[str, Any]] = [
    {"curvature": "ekfac"},
    {"curvature": "ekfac", "damping_mode": "exact"},
    {"curvature": "kfoc"},
    {"curvature": "kfoc", "kfoc_aggregation": "approx", "kfoc_steps": 2},
    {"curvature": "ekfoc"},
    {"curvature": "diagonal"},
    {"curvature": "full"},
    {"structure": "block-tridiagonal"},
    {"exploration": "noisy-kfac"},
    {"exploration": "noisy-kfac", "curvature": "ekfac"},
]


def updater(**changes: Any) -> ACKTRUpdater:
    torch.manual_seed(0)
    settings = Settings(env="CartPole-v1", hidden_sizes=(16, 8), **changes)
    policy = ActorCritic(Box(-1, 1, (3,)), Discrete(4), settings)
    return ACKTRUpdater(policy, settings, torch.Generator().manual_seed(0))


def update(each: ACKTRUpdater, *, times: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(times):
        batch = Batch(
            observations=torch.randn(64, 3, generator=generator),
            actions=torch.randint(0, 4, (64,), generator=generator),
            advantages=torch.randn(64, generator=generator),
            returns=torch.randn(64, generator=generator),
            weights=(torch.rand(64, generator=generator) > 0.1).float(),
            valid_rows=60,
            part=Part.whole(4),
        )
        with each.exploring():
            pass  # a rollout
        each.update(batch, progress=0.0)


@pytest.mark.parametrize("options", FAMILY, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("shared", [True, False])
def test_a_checkpoint_holds_all_that_the_next_step_needs(options: dict[str, Any], shared: bool, tmp_path: Path) -> None:
    one, other = (updater(shared_trunk=shared, stat_fraction=0.5, **options) for _ in range(2))
    update(one, times=13, seed=1)
    checkpoint.save(tmp_path / "state.safetensors", one.state_dict(), kind="checkpoint")
    other.load_state_dict(checkpoint.load(tmp_path / "state.safetensors").state)
    other.policy.load_state_dict(one.policy.state_dict())
    for each in (one, other):
        for learner in each._learners().values():
            learner._generator.manual_seed(3)
        update(each, times=13, seed=2)
    for first, second in zip(one.policy.parameters(), other.policy.parameters(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("options", FAMILY, ids=lambda options: "-".join(map(str, options.values())))
def test_every_curvature_learns_to_balance_a_little(options: dict[str, Any]) -> None:
    agent = acktr.ACKTR("CartPole-v1", seed=0, num_threads=1, hidden_sizes=(32,), **options).learn(20_000)
    assert agent.return_mean is not None
    assert agent.return_mean > 60  # 22 at random


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 8)

    def forward(self, observations: Tensor) -> Tensor:
        features = torch.tanh(self.first(observations))
        return features + torch.tanh(self.second(features))


def test_a_torso_that_is_no_chain_is_refused_before_any_training_step() -> None:
    agent = acktr.ACKTR("CartPole-v1", torso=Residual(), structure="block-tridiagonal", shared_trunk=True)
    before = [parameter.detach().clone() for parameter in agent.policy.parameters()]
    with pytest.raises(UserError, match=r"takes its input from layers .*first and .*second; use structure 'block-diag"):
        agent.learn(1000)
    for one, two in zip(before, agent.policy.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--curvature", "full", "--hidden-sizes", "100", "100"], "has 10100 parameters, and curvature 'full' keeps"),
        (["--structure", "block-tridiagonal", "--curvature", "ekfac"], "needs curvature 'kfac', got 'ekfac'"),
        (["--structure", "block-tridiagonal", "--exploration", "noisy-kfac"], "needs the structure 'block-diagonal'"),
        (["--structure", "block-tridiagonal", "--damping-mode", "exact"], "needs damping_mode 'factored', got 'exact'"),
    ],
)
def test_settings_that_exclude_each_other_are_one_line_and_exit_code_2(
    flags: list[str], reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = cli.main(["train", "--env", "CartPole-v1", "--run-dir", str(tmp_path / "run"), *flags])
    error = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert len(error) == 1
    assert reason in error[0]
    assert "a2c" not in error[0]
