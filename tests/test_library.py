"""`acktr.ACKTR(env).learn / predict / save` and `acktr.load`."""

import contextlib
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import TimeLimit, TransformReward
from gymnasium.wrappers.vector import RecordEpisodeStatistics

import acktr
from acktr.agents import play, policy_files, runs
from acktr.agents.metrics_file import read_metrics
from acktr.agents.presets import resolve
from acktr.agents.run_folder import RunFolder
from acktr.agents.settings import Settings
from acktr.errors import UserError

GAMES: dict[str, Any] = {"episodes": 2, "deterministic": True, "seed": 0, "num_envs": None, "device": "cpu"}


def settings_for(env: str, **overrides: Any) -> Settings:
    return resolve({"env": env, "num_threads": 1, **overrides}).settings()


def test_library_learns_cartpole_and_saves_and_loads(tmp_path: Path) -> None:
    agent = acktr.ACKTR("CartPole-v1", seed=0, num_threads=1).learn(120_000)
    assert agent.return_mean is not None
    assert agent.return_mean >= 400
    agent.save(tmp_path / "agent.safetensors")
    loaded = acktr.load(tmp_path / "agent.safetensors")
    observation = np.array([0.01, 0.0, 0.02, 0.0])
    batch = np.stack([observation, -observation])
    assert np.array_equal(agent.predict(batch, deterministic=True), loaded.predict(batch, deterministic=True))
    assert loaded.predict(observation) in (0, 1)
    policy_files.export(tmp_path / "agent.safetensors", tmp_path / "policy.safetensors")
    exported = acktr.load(tmp_path / "policy.safetensors")
    assert np.array_equal(exported.predict(batch, deterministic=True), loaded.predict(batch, deterministic=True))
    with pytest.raises(UserError, match=r"was made for observation_space Box.*that of 'Acrobot-v1' is"):
        acktr.load(tmp_path / "agent.safetensors", "Acrobot-v1")
    before = loaded.timesteps
    assert loaded.learn(500).timesteps >= before + 500


def test_an_agent_with_a_torso_of_its_own_comes_back_with_it(tmp_path: Path) -> None:
    def torso() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())

    agent = acktr.ACKTR("CartPole-v1", torso=torso()).learn(1e3)
    agent.save(tmp_path / "agent.safetensors")
    with pytest.raises(UserError, match="torso="):
        acktr.load(tmp_path / "agent.safetensors")
    with pytest.raises(UserError, match="torso="):
        play.evaluate_file(tmp_path / "agent.safetensors", **GAMES)
    with pytest.raises(UserError, match="not those of the torso given"):
        acktr.load(tmp_path / "agent.safetensors", torso=torch.nn.Linear(4, 9))
    loaded = acktr.load(tmp_path / "agent.safetensors", torso=torso())
    for one, two in zip(agent.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_run_with_a_torso_of_its_own_is_not_resumed_without_it(tmp_path: Path) -> None:
    acktr.ACKTR("CartPole-v1", torso=torch.nn.Linear(4, 8), run_dir=tmp_path / "run").learn(500).close()
    with pytest.raises(UserError, match="torso of one's own"):
        runs.resume(tmp_path / "run", total_timesteps=2000)


def test_a_torso_without_one_row_of_features_per_observation_is_refused() -> None:
    with pytest.raises(UserError, match=r"must give features \(2, F\), it gave \(2, 4, 1\)"):
        acktr.ACKTR("CartPole-v1", torso=torch.nn.Unflatten(1, (4, 1)))
    with pytest.raises(UserError, match=r"does not take observations of shape \(2, 4\)"):
        acktr.ACKTR("CartPole-v1", torso=torch.nn.Linear(5, 8))
    with pytest.raises(UserError, match="it gave a tuple"):
        acktr.ACKTR("CartPole-v1", torso=torch.nn.GRU(4, 8))
    with pytest.raises(UserError, match=r"pass Identity\(\.\.\.\)"):
        acktr.ACKTR("CartPole-v1", torso=torch.nn.Identity)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"takes a torch\.nn\.Module, not a str"):
        acktr.ACKTR("CartPole-v1", torso="wide")  # type: ignore[arg-type]  # what a caller without types may pass


def _scaled() -> gymnasium.Env[Any, Any]:
    return TransformReward(gymnasium.make("CartPole-v1"), lambda reward: reward / 100)


@pytest.mark.parametrize(
    ("make", "own"),
    [
        (lambda: gymnasium.make("CartPole-v1"), False),
        (lambda: gymnasium.make("CartPole-v1", render_mode="rgb_array"), False),
        (lambda: gymnasium.make("FrozenLake-v1", is_slippery=False), True),
        (lambda: gymnasium.make("CartPole-v1", max_episode_steps=50), True),
        (lambda: gymnasium.make("CartPole-v1").unwrapped, True),
        (lambda: TimeLimit(gymnasium.make("CartPole-v1"), 100), True),
        (_scaled, True),
        (SyncVectorEnv([_scaled] * 2), True),
        (gymnasium.make_vec("CartPole-v1", 2), False),
        (RecordEpisodeStatistics(gymnasium.make_vec("CartPole-v1", 2)), True),
    ],
)
def test_an_environment_that_its_id_does_not_make_is_not_replaced_by_that_id(
    make: Any, own: bool, tmp_path: Path
) -> None:
    """Scores in another environment would be taken for this one's."""
    folder = tmp_path / "run"
    agent = acktr.ACKTR(make, num_envs=2, run_dir=folder).learn(100)
    file = tmp_path / "agent.safetensors"
    agent.save(file)
    policy_files.export(file, tmp_path / "policy.safetensors")
    agent.close()
    for again in (
        lambda: acktr.load(file),
        lambda: play.evaluate_file(file, **GAMES),
        lambda: play.evaluate_file(tmp_path / "policy.safetensors", **GAMES),
        lambda: runs.resume(folder, total_timesteps=500),
    ):
        with pytest.raises(UserError, match="of one's own") if own else contextlib.nullcontext():
            again()


def test_an_agent_on_a_function_s_environment_comes_back_with_it(tmp_path: Path) -> None:
    def own() -> gymnasium.Env[Any, Any]:
        return gymnasium.make("CartPole-v1").unwrapped

    def nameless() -> gymnasium.Env[Any, Any]:
        environment = own()
        environment.spec = None
        return environment

    agent = acktr.ACKTR(nameless, num_envs=2).learn(100)
    agent.save(tmp_path / "agent.safetensors")
    with pytest.raises(UserError, match=r"acktr\.load\(file, env=function\)"):
        acktr.load(tmp_path / "agent.safetensors")
    assert acktr.load(tmp_path / "agent.safetensors", nameless).timesteps == agent.timesteps


def test_a_run_folder_loads_as_an_agent(tmp_path: Path) -> None:
    folder = runs.train(settings_for("CartPole-v1", total_timesteps=1000), run_dir=tmp_path / "run")
    assert acktr.load(folder).timesteps >= 1000


@pytest.mark.parametrize(
    ("env", "observation", "reason"),
    [
        ("CartPole-v1", np.zeros(5), r"shape \(4,\)"),
        ("CartPole-v1", 0.0, r"shape \(4,\)"),
        ("CartPole-v1", np.full(4, np.nan), "nan"),
        ("FrozenLake-v1", 99, "99"),
    ],
)
def test_observations_that_are_none_of_the_environments_are_refused(env: str, observation: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        acktr.ACKTR(env).predict(observation)


@pytest.mark.parametrize("timesteps", [0, 1.5, "abc"])
def test_learn_takes_whole_numbers(timesteps: Any) -> None:
    with pytest.raises(UserError, match="whole number"):
        acktr.ACKTR("CartPole-v1").learn(timesteps)


def test_files_that_cannot_be_written_are_a_user_error(tmp_path: Path) -> None:
    agent = acktr.ACKTR("CartPole-v1")
    with pytest.raises(UserError, match="it is a folder"):
        agent.save(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        agent.save(tmp_path / "absent" / "agent.safetensors")


def test_progress_is_shown_towards_the_end_of_this_call(capsys: pytest.CaptureFixture[str]) -> None:
    acktr.ACKTR("CartPole-v1", verbose=True).learn(2000).close()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("steps ")]
    assert lines
    assert all("/2,000 " in line for line in lines)


def test_an_agent_is_evaluated_in_fresh_environments_and_trains_on_undisturbed() -> None:
    one, two = (acktr.ACKTR("CartPole-v1", seed=0, num_threads=1).learn(2000) for _ in range(2))
    result = one.evaluate(17, seed=5)
    assert len(result["returns"]) == 17
    assert result["return_mean"] == np.mean(result["returns"])
    assert result["protocol"]["policy"] == "deterministic"
    assert one.evaluate(17, seed=5) == result
    assert one.evaluate(17, seed=6) != result
    for first, second in zip(one.learn(2000).policy.parameters(), two.learn(2000).policy.parameters(), strict=True):
        assert torch.equal(first, second)


def test_an_agent_is_evaluated_where_its_function_leads_or_elsewhere() -> None:
    agent = acktr.ACKTR(_scaled, num_envs=2).learn(200)
    assert agent.evaluate(4)["return_mean"] < 5 < agent.evaluate(4, env="CartPole-v1")["return_mean"]
    with pytest.raises(UserError, match="that of 'Acrobot-v1' is"):
        agent.evaluate(4, env="Acrobot-v1")
    for strange in (0, "3", 1.5, True):
        with pytest.raises(UserError, match="at least 1 episode"):
            agent.evaluate(strange)  # type: ignore[arg-type]


def test_an_agent_on_a_vector_environment_is_evaluated_in_another_one() -> None:
    agent = acktr.ACKTR(gymnasium.make_vec("CartPole-v1", 2)).learn(200)
    with pytest.raises(UserError, match="pass env="):
        agent.evaluate(4)
    other = gymnasium.make_vec("CartPole-v1", 3)
    assert len(agent.evaluate(4, env=other)["returns"]) == 4
    other.reset()  # still open


def test_learning_without_a_number_goes_to_the_setting() -> None:
    agent = acktr.ACKTR("CartPole-v1", total_timesteps=1000).learn()
    assert 1000 <= agent.timesteps < 2000
    assert repr(agent) == f"ACKTR('CartPole-v1', timesteps={agent.timesteps})"


def test_a_scalar_observation_is_a_vector_of_one() -> None:
    class Scalar(gymnasium.Env[Any, Any]):
        observation_space, action_space = Box(0, 1, ()), Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            return np.float32(0.5), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return np.float32(0.5), 1.0, bool(self.np_random.random() < 0.2), False, {}

    agent = acktr.ACKTR(Scalar, num_envs=2).learn(200)
    assert agent.predict(np.float32(0.2)) in (0, 1)


def test_a_run_of_the_library_leaves_its_curve(tmp_path: Path) -> None:
    acktr.ACKTR("CartPole-v1", run_dir=tmp_path / "run").learn(1000)
    assert (tmp_path / "run" / "curve.png").is_file()


def test_frames_of_floats_are_told_what_frames_are() -> None:
    class Floats(gymnasium.Env[Any, Any]):
        observation_space, action_space = Box(0, 1, (3, 84, 84)), Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            return self.observation_space.sample(), {}

    with pytest.raises(UserError, match="if they are uint8 and the network is nature"):
        acktr.ACKTR(Floats)


def test_pictures_from_0_to_1_are_none_of_an_environment_of_bytes() -> None:
    """They were taken for pictures that are almost black."""

    class Bytes(gymnasium.Env[Any, Any]):
        observation_space, action_space = Box(0, 255, (4, 4, 3), np.uint8), Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            return self.observation_space.sample(), {}

    agent = acktr.ACKTR(Bytes, num_envs=1, network="mlp")
    whole = np.full((4, 4, 3), 200)
    expected = agent.predict(whole.astype(np.uint8), deterministic=True)
    assert agent.predict(whole, deterministic=True) == agent.predict(whole / 1.0, deterministic=True) == expected
    for strange in (whole / 255, whole + 100, -whole):
        with pytest.raises(UserError, match="predict takes observations of Box"):
            agent.predict(strange)
    with pytest.raises(UserError, match="predict takes observations of numbers, got <U"):
        agent.predict(whole.astype(str))


def test_keywords_that_the_others_leave_without_effect_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    acktr.A2C("CartPole-v1", num_envs=1, damping=0.1, conv_features=3, network="mlp", verbose=True)
    shown = " ".join(capsys.readouterr().out.split())
    assert "without effect, as algorithm is a2c: damping" in shown
    assert "without effect, as network is mlp: conv_features" in shown


def test_an_agent_beside_others_of_torchrun_says_that_it_stays_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(UserWarning, match="2 processes were started together"):
        acktr.ACKTR("CartPole-v1", num_envs=1)


def test_one_environment_in_place_of_a_function_is_told_so() -> None:
    with pytest.raises(UserError, match="got an environment, 'CartPole-v1'"):
        acktr.ACKTR(gymnasium.make("CartPole-v1"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="got int for an environment"):
        acktr.ACKTR(3)  # type: ignore[arg-type]


def test_a_wrapped_environment_of_a_known_id_takes_its_familys_preset_and_says_so(
    capfd: pytest.CaptureFixture[str],
) -> None:
    agent = acktr.ACKTR(lambda: gymnasium.wrappers.RescaleAction(gymnasium.make("Pendulum-v1"), -1, 1), verbose=True)
    assert agent.settings.normalize_observations
    assert agent.settings.desired_kl > 0
    agent.close()
    assert "preset classic-control (family of Pendulum-v1)" in capfd.readouterr().out


def test_a_run_with_an_environment_and_a_torso_of_ones_own_goes_on_in_its_folder(tmp_path: Path) -> None:
    """Metrics, checkpoints and schedules as by `acktr resume`, which only makes what files alone make again."""

    def make() -> gymnasium.Env[Any, Any]:
        return gymnasium.make("CartPole-v1", sutton_barto_reward=True)

    def torso() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh())

    run = tmp_path / "run"
    first = acktr.ACKTR(make, torso=torso(), run_dir=run, seed=0, log_interval=1).learn(500)
    first.close()
    left = acktr.load(run, make, torso=torso()).learn(400)
    assert RunFolder.open(run).latest_checkpoint() == run / "checkpoints" / f"step-{first.timesteps}.safetensors"
    again = acktr.load(run, make, torso=torso(), resume=True)
    assert again.timesteps == first.timesteps
    with pytest.raises(UserError, match="another process"):
        acktr.load(run, make, torso=torso(), resume=True)
    again.learn(400)
    again.close()
    assert again.timesteps == left.timesteps
    assert RunFolder.open(run).latest_checkpoint() == run / "checkpoints" / f"step-{again.timesteps}.safetensors"
    steps = [row["timesteps"] for row in read_metrics(run / "metrics.csv")]
    assert steps == sorted(set(steps))
    assert steps[-1] == again.timesteps
    for ours, theirs in zip(again.policy.parameters(), left.policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    with pytest.raises(UserError, match=r"agent\.safetensors: no such folder"):
        acktr.load(tmp_path / "agent.safetensors", resume=True)


def test_a_closed_agent_says_that_it_learns_no_more(tmp_path: Path) -> None:
    agent = acktr.ACKTR("CartPole-v1", seed=0, run_dir=tmp_path / "run").learn(200)
    agent.close()
    assert agent.predict(np.zeros(4)) in (0, 1)
    with pytest.raises(UserError, match="the agent is closed"):
        agent.learn(200)


@pytest.mark.parametrize("part", [torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.1)], ids=["batch norm", "dropout"])
def test_a_torso_whose_rows_hang_on_others_or_on_chance_is_refused(part: torch.nn.Module) -> None:
    torso = torch.nn.Sequential(torch.nn.Linear(4, 8), part)
    with pytest.raises(UserError, match=rf"has a {type(part).__name__} \('1'\)"):
        acktr.ACKTR("CartPole-v1", torso=torso)
