"""The whole loop: determinism, resume, learning, divergence."""

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

import acktr
from acktr.agents import checkpoint, runs
from acktr.agents.metrics_file import read_metrics
from acktr.agents.presets import resolve
from acktr.agents.run_folder import RunFolder
from acktr.agents.settings import Settings
from acktr.errors import RunError, UserError


def settings_for(env: str, **overrides: Any) -> Settings:
    return resolve({"env": env, "num_threads": 1, **overrides}).settings()


SMALL_ATARI: dict[str, Any] = {
    "num_envs": 4,
    "num_steps": 5,
    "conv_channels": (4, 8, 4),
    "conv_features": 32,
    "log_interval": 2,
    "checkpoint_interval": 100,
}


def tensors_of(file: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def walk(value: Any, where: str) -> None:
        if isinstance(value, torch.Tensor):
            found[where] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{where}/{key}")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                walk(item, f"{where}/{index}")

    walk(checkpoint.load(file).state, "")
    return found


def assert_equal_tensors(one: Path, two: Path) -> None:
    first, second = tensors_of(one), tensors_of(two)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("CartPole-v1", {"total_timesteps": 3000}),
        ("CartPole-v1", {"total_timesteps": 3000, "algorithm": "a2c"}),
        ("BreakoutNoFrameskip-v4", {"total_timesteps": 300, **SMALL_ATARI}),
    ],
)
def test_same_seed_twice_gives_the_same_bytes(env: str, options: dict[str, Any], tmp_path: Path) -> None:
    settings = settings_for(env, seed=3, **options)
    finals = [
        runs.train(settings, run_dir=tmp_path / name) / "checkpoints" / "final.safetensors" for name in ("one", "two")
    ]
    assert_equal_tensors(*finals)


class Interrupter:
    """Ends training the way a first Ctrl-C does, after some updates."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
        original = runs.Trainer.train

        def train(trainer: Any, *, stop: Any = None) -> bool:
            return original(trainer, stop=lambda: trainer.updates >= updates)

        monkeypatch.setattr(runs.Trainer, "train", train)


def interrupted(settings: Settings, folder: Path, updates: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Interrupter(patch, updates)
        with pytest.raises(KeyboardInterrupt):
            runs.train(settings, run_dir=folder)


@pytest.mark.parametrize(
    ("env", "options", "updates"),
    [
        ("CartPole-v1", {"total_timesteps": 4000, "checkpoint_interval": 800}, 12),
        ("BreakoutNoFrameskip-v4", {"total_timesteps": 400, **SMALL_ATARI}, 12),
    ],
)
def test_exact_resume_of_an_interrupted_run_equals_an_uninterrupted_one(
    env: str, options: dict[str, Any], updates: int, tmp_path: Path
) -> None:
    settings = settings_for(env, seed=1, exact_resume=True, **options)
    straight = runs.train(settings, run_dir=tmp_path / "straight")
    broken = tmp_path / "broken"
    interrupted(settings, broken, updates)
    runs.resume(broken)
    assert_equal_tensors(straight / "checkpoints" / "final.safetensors", broken / "checkpoints" / "final.safetensors")
    assert [row["timesteps"] for row in read_metrics(straight / "metrics.csv")] == [
        row["timesteps"] for row in read_metrics(broken / "metrics.csv")
    ]


def test_two_resumes_of_one_checkpoint_are_equal(tmp_path: Path) -> None:
    import shutil

    settings = settings_for("CartPole-v1", total_timesteps=4000)
    interrupted(settings, tmp_path / "one", 9)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for name in ("one", "two"):
        runs.resume(tmp_path / name)
    assert_equal_tensors(*[tmp_path / name / "checkpoints" / "final.safetensors" for name in ("one", "two")])


def test_resume_with_a_longer_total_stretches_the_schedule_from_where_it_stands(tmp_path: Path) -> None:
    settings = settings_for("CartPole-v1", total_timesteps=4000, log_interval=1)
    interrupted(settings, tmp_path / "run", 12)
    before = read_metrics(tmp_path / "run" / "metrics.csv")[-1]
    runs.resume(tmp_path / "run", total_timesteps=8000)
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    after = next(row for row in rows if (row["timesteps"] or 0) > (before["timesteps"] or 0))
    assert after["learning_rate"] == pytest.approx(settings.lr * (1 - (before["timesteps"] or 0) / 4000))
    rates = [row["learning_rate"] or 0.0 for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert RunFolder.open(tmp_path / "run").settings.total_timesteps == 8000


def test_a_finished_run_that_is_prolonged_goes_on_learning(tmp_path: Path) -> None:
    settings = settings_for("CartPole-v1", total_timesteps=1000, log_interval=1)
    folder = runs.train(settings, run_dir=tmp_path / "run")
    before = tensors_of(folder / "checkpoints" / "final.safetensors")
    rows_before = len(read_metrics(folder / "metrics.csv"))
    runs.resume(folder, total_timesteps=3000)
    after = tensors_of(folder / "checkpoints" / "final.safetensors")
    assert all(not torch.equal(after[name], value) for name, value in before.items() if name.startswith("/policy/"))
    rates = [row["learning_rate"] or 0.0 for row in read_metrics(folder / "metrics.csv")[rows_before:]]
    assert rates[0] == settings.lr
    assert rates[-1] < 0.3 * settings.lr


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    settings = settings_for("CartPole-v1", total_timesteps=4000)
    interrupted(settings, tmp_path / "run", 3)
    with RunFolder.open(tmp_path / "run").lock(), pytest.raises(UserError, match="another process is training"):
        runs.resume(tmp_path / "run")
    runs.resume(tmp_path / "run")


def test_settings_edited_so_that_the_checkpoint_does_not_fit_are_a_user_error(tmp_path: Path) -> None:
    interrupted(settings_for("CartPole-v1", total_timesteps=4000), tmp_path / "run", 3)
    file = tmp_path / "run" / "settings.yaml"
    file.write_text(file.read_text().replace("- 64", "- 32"))
    with pytest.raises(UserError, match=r"does not fit settings\.yaml"):
        runs.resume(tmp_path / "run")


def test_a_finished_run_says_so_and_an_existing_folder_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_for("CartPole-v1", total_timesteps=500)
    folder = runs.train(settings, run_dir=tmp_path / "run")
    stamp = (folder / "checkpoints" / "final.safetensors").read_bytes()
    runs.resume(folder)
    assert "nothing is left to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="acktr resume"):
        runs.train(settings, run_dir=folder)
    assert (folder / "checkpoints" / "final.safetensors").read_bytes() == stamp


def test_run_folder_holds_what_the_documentation_names(tmp_path: Path) -> None:
    folder = runs.train(settings_for("CartPole-v1", total_timesteps=2000), run_dir=tmp_path / "run")
    names = {file.name for file in folder.iterdir()}
    assert {"settings.yaml", "command.txt", "versions.json", "metrics.csv", "checkpoints", "curve.png"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert str(tmp_path) not in (folder / "settings.yaml").read_text()


class Broken(gymnasium.Env[Any, Any]):
    """Gives rewards that are not finite after a while."""

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self) -> None:
        self.count = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        return np.zeros(2, np.float32), float("nan") if self.count > 100 else 1.0, False, False, {}


@pytest.mark.parametrize("agent", [acktr.ACKTR, acktr.A2C])
def test_diverging_training_stops_with_the_reason_and_finite_weights(agent: Any, tmp_path: Path) -> None:
    trained = agent(Broken, num_envs=2, num_steps=10, run_dir=tmp_path / "run", checkpoint_interval=50)
    with pytest.raises(
        RunError, match=r"a reward that is not finite, in environment 0; .*last good checkpoint.*mend the environment"
    ):
        trained.learn(5000)
    assert all(torch.isfinite(p).all() for p in trained.policy.parameters())
    for file in (tmp_path / "run" / "checkpoints").glob("*.safetensors"):
        assert all(torch.isfinite(value).all() for name, value in tensors_of(file).items() if "/policy/" in name)


class Blind(Broken):
    """Gives observations that are not finite after a while, to a policy of continuous actions."""

    action_space = Box(-1, 1, (1,), np.float32)

    def step(self, action: Any) -> Any:
        self.count += 1
        return np.full(2, np.nan if self.count > 100 else 0.0, np.float32), 1.0, False, False, {}


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("agent", [acktr.ACKTR, acktr.A2C])
def test_an_observation_that_is_not_finite_is_not_blamed_on_the_policy(
    agent: Any, overlap: bool, tmp_path: Path
) -> None:
    trained = agent(Blind, num_envs=2, num_steps=10, run_dir=tmp_path / "run", checkpoint_interval=50, overlap=overlap)
    reason = (
        r"environment gave an observation that is not finite, in environment 0; the last good checkpoint is .*; mend "
        "the environment"
    )
    with pytest.raises(RunError, match=reason):
        trained.learn(5000)
    assert all(torch.isfinite(p).all() for p in trained.policy.parameters())


class BlindScalar(Blind):
    """Likewise, with observations that are single numbers."""

    observation_space = Box(-np.inf, np.inf, (), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.float32(0), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        return np.float32(np.nan if self.count > 100 else 0.0), 1.0, False, False, {}


def test_a_scalar_observation_that_is_not_finite_is_named_too() -> None:
    with pytest.raises(RunError, match="an observation that is not finite, in environment 0"):
        acktr.ACKTR(BlindScalar, num_envs=2, num_steps=10).learn(5000)


class StrangeEnd(gymnasium.Env[Any, Any]):
    """Its last observation is not finite, which nothing is learnt from: the episode is over."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, action_space: gymnasium.Space[Any]) -> None:
        self.action_space = action_space
        self.count = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.count = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        over = self.count == 7
        return np.full(2, np.nan if over else self.count / 7, np.float32), 1.0, over, False, {}


@pytest.mark.parametrize("action_space", [Box(-1, 1, (2,), np.float32), Discrete(3)], ids=["Box", "Discrete"])
@pytest.mark.parametrize("agent", [acktr.ACKTR, acktr.A2C])
def test_a_terminal_observation_that_is_not_finite_teaches_and_harms_nothing(agent: Any, action_space: Any) -> None:
    """With Box actions the action of the row that a reset ignores ended the run."""
    trained = agent(lambda: StrangeEnd(action_space), num_envs=3, num_steps=10, seed=0).learn(600)
    assert trained._trainer.updater.counters()["skipped_batches"] == 0
    assert all(torch.isfinite(parameter).all() for parameter in trained.policy.parameters())
    assert trained.return_mean == 7.0


def test_dummy_rows_are_not_counted_as_timesteps() -> None:
    agent = acktr.ACKTR("CartPole-v1", num_envs=4, num_steps=50, log_interval=1).learn(1000)
    trainer = agent._trainer
    assert trainer.episodes > 0
    assert trainer.updates * 4 * 50 - trainer.timesteps == pytest.approx(trainer.episodes, abs=4)


def test_schedules_reach_zero_at_the_end() -> None:
    settings = settings_for("CartPole-v1", total_timesteps=2000, log_interval=1, kl_schedule="linear")
    agent = acktr.ACKTR(
        "CartPole-v1", **{k: v for k, v in dataclasses.asdict(settings).items() if k not in ("env", "algorithm")}
    )
    agent.learn(2000)
    assert agent._trainer.updater.learning_rate() < 0.1 * settings.lr
