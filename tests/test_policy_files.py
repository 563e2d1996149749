"""Policies from files, exports, and spaces as plain values."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text

from acktr.agents import checkpoint
from acktr.agents.policy import ActorCritic
from acktr.agents.policy_files import export, load_policy
from acktr.agents.run_folder import RunFolder
from acktr.agents.settings import Settings
from acktr.agents.spaces import space_from_dict, space_to_dict
from acktr.errors import UserError

CPU = torch.device("cpu")
OBSERVATIONS = Box(-np.inf, np.inf, (3,))
ACTIONS = Discrete(4)
SETTINGS = Settings(env="CartPole-v1", hidden_sizes=(8, 4))


def policy(settings: Settings = SETTINGS) -> ActorCritic:
    torch.manual_seed(0)
    return ActorCritic(OBSERVATIONS, ACTIONS, settings)


def state(**changes: Any) -> dict[str, Any]:
    return {
        "settings": SETTINGS.to_dict(),
        "observation_space": space_to_dict(OBSERVATIONS),
        "action_space": space_to_dict(ACTIONS),
        "protocol": {"id": "CartPole-v1"},
        "timesteps": 1234,
        "return_mean": 55.5,
        "policy": policy().state_dict(),
        "training": {"momentum": torch.ones(1000)},
        **changes,
    }


@pytest.mark.parametrize(
    "space",
    [
        Discrete(18),
        Discrete(3, start=-1),
        Box(0, 255, (4, 84, 84), np.uint8),
        Box(-np.inf, np.inf, (17,), np.float32),
        Box(np.array([-1, -2], np.float32), np.array([1, np.inf], np.float32)),
        Box(-1.0, 1.0, (), np.float32),
        Box(0, 1, (0,), np.float32),
        Box(-5, 5, (2, 2), np.int64),
        MultiDiscrete([3, 2, 5]),
        MultiDiscrete([[3, 2], [5, 4]], start=[[1, 0], [0, -2]]),
        MultiBinary(7),
        MultiBinary([2, 3]),
        Dict({"b": Box(-1, 1, (3,)), "a": Discrete(4), "a/b": MultiBinary(2)}),
    ],
)
def test_spaces_come_back_equal_through_a_file(space: gymnasium.Space[Any], tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "f", {"space": space_to_dict(space)}, kind="policy")
    back = space_from_dict(checkpoint.load(tmp_path / "f").state["space"])
    assert back == space
    assert back.dtype == space.dtype
    assert (tmp_path / "f").stat().st_size < 1000, "equal bounds are written once"


def test_spaces_that_no_policy_takes_are_refused() -> None:
    with pytest.raises(UserError, match="cannot be saved"):
        space_to_dict(Dict({"a": Text(4)}))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"type": "Tuple"},
        {"type": "Discrete", "n": 0, "start": 0},
        {"type": "Discrete", "n": "many", "start": 0},
        {"type": "MultiDiscrete", "shape": [2], "nvec": [2, 3, 4], "start": 0},
        {"type": "MultiDiscrete", "shape": [2], "nvec": [2, 10**30], "start": 0},
        {"type": "MultiBinary", "n": -3},
        {"type": "Dict", "spaces": [1, 2]},
        {"type": "Dict", "spaces": {"a": {"type": "Discrete"}}},
        {"type": "Box", "shape": [2], "dtype": "float32", "low": [0.0], "high": [1.0, 2.0, 3.0]},
        {"type": "Box", "shape": [2], "dtype": "object", "low": 0.0, "high": 1.0},
        {"type": "Box", "shape": [10**6, 10**9], "dtype": "uint8", "low": 0, "high": 1},
    ],
)
def test_forged_spaces_are_a_user_error(values: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        space_from_dict(values)


def test_a_checkpoint_and_its_export_give_the_same_policy(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", state(), kind="checkpoint")
    export(tmp_path / "c", tmp_path / "p")
    original = policy()
    observations = torch.randn(5, 3)
    for file, kind in (("c", "checkpoint"), ("p", "policy")):
        loaded = load_policy(tmp_path / file, CPU)
        assert loaded.kind == kind
        assert (loaded.settings, loaded.observation_space, loaded.action_space) == (SETTINGS, OBSERVATIONS, ACTIONS)
        assert loaded.timesteps == 1234
        assert not loaded.policy.training
        assert torch.equal(loaded.policy(observations)[0].logits, original(observations)[0].logits)
    assert "training" not in checkpoint.load(tmp_path / "p").state
    assert (tmp_path / "p").stat().st_size < (tmp_path / "c").stat().st_size - 3900


def test_an_export_of_a_run_takes_its_final_checkpoint_and_can_be_exported_again(tmp_path: Path) -> None:
    folder = RunFolder.create(SETTINGS, tmp_path / "run")
    folder.write_checkpoint(state(timesteps=100), timesteps=100)
    folder.write_checkpoint(state(timesteps=200), timesteps=200, is_final=True)
    export(folder.path, tmp_path / "p.safetensors")
    assert load_policy(tmp_path / "p.safetensors", CPU).timesteps == 200
    export(tmp_path / "p.safetensors", tmp_path / "q.safetensors")
    assert (tmp_path / "p.safetensors").read_bytes() == (tmp_path / "q.safetensors").read_bytes()


def test_an_export_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", state(), kind="checkpoint")
    with pytest.raises(UserError, match="cannot be written: there is no folder"):
        export(tmp_path / "c", tmp_path / "absent" / "p")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"policy": None}, "policy of another type"),
        ({"timesteps": "many"}, "timesteps of another type"),
        ({"policy": {}}, "names differ"),
        ({"policy": {**policy().state_dict(), "extra": torch.ones(1)}}, "names differ: extra"),
        ({"policy": dict.fromkeys(policy().state_dict(), 1.0)}, "is no tensor"),
        ({"policy": {k: v.double() for k, v in policy().state_dict().items()}}, "float64"),
        ({"settings": Settings(env="x", hidden_sizes=(8, 5)).to_dict()}, "network has"),
        ({"settings": Settings(env="x", hidden_sizes=(10**6, 10**6, 10**6)).to_dict()}, "names differ"),
        ({"settings": Settings(env="x", hidden_sizes=(10**6, 10**6)).to_dict()}, "network has"),
        ({"settings": {"env": "x", "gamma": 7}}, "gamma"),
        ({"action_space": {"type": "Text"}}, "upgrade"),
    ],
)
def test_what_does_not_fit_together_is_a_user_error_before_memory_is_taken(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    checkpoint.save(tmp_path / "c", state(**changes), kind="checkpoint")
    with pytest.raises(UserError, match=reason):
        load_policy(tmp_path / "c", CPU)


def test_a_file_without_a_policy_says_so(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", {"weights": torch.ones(2)}, kind="checkpoint")
    for action in (lambda: load_policy(tmp_path / "c", CPU), lambda: export(tmp_path / "c", tmp_path / "p")):
        with pytest.raises(UserError, match=r"holds no policy \(settings, "):
            action()
