"""What an environment's id can get wrong before anything runs: one line each, never a traceback."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from acktr.envs.make import describe, make_vec
from acktr.envs.registry import family, find_spec
from acktr.envs.single import make_single
from acktr.errors import RunError, UserError


@pytest.mark.parametrize(
    ("id", "told"),
    [
        (
            "no_such_module:Id-v0",
            "No module named 'no_such_module'; name the folder of its file in PYTHONPATH, or install it",
        ),
        (".relative:Id-v0", "importing .relative raised TypeError"),
        ("Nowhere-v0", "no environment is called 'Nowhere-v0'"),
    ],
)
def test_an_id_that_leads_nowhere_is_told_in_one_line(id: str, told: str) -> None:
    with pytest.raises(UserError) as raised:
        find_spec(id)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_module_that_wants_another_one_is_to_be_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wants_more.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="No module named 'no_such_module'; install or mend the module"):
        find_spec("wants_more:Id-v0")


def test_a_module_that_breaks_while_it_is_imported_is_named_with_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "breaks_on_import.py").write_text("\n\nraise ValueError('out of cheese')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"ValueError: out of cheese \(.*breaks_on_import.py:3\)"):
        find_spec("breaks_on_import:Id-v0")


def test_a_renderer_that_mujoco_does_not_have_is_one_line() -> None:
    command = [sys.executable, "-P", "-m", "acktr", "train", "--env", "InvertedPendulum-v5", "--total-timesteps", "100"]
    done = subprocess.run(
        command, env={**os.environ, "MUJOCO_GL": "bogus"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("acktr: error: mujoco cannot be loaded")
    assert "MUJOCO_GL is 'bogus'" in line


class Bare(gymnasium.Env[int, int]):
    """Neither spaces nor pictures."""


class Blind(gymnasium.Env[int, int]):
    """Without a render_mode, as environments of one's own often are."""

    observation_space = gymnasium.spaces.Discrete(2)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self) -> None:
        pass


def test_an_environment_without_spaces_or_pictures_is_told_what_it_lacks() -> None:
    gymnasium.register("Bare-v0", entry_point=Bare)
    gymnasium.register("Blind-v0", entry_point=Blind)
    try:
        with pytest.raises(UserError, match=r"'Bare-v0': .*no attribute 'observation_space'; give the class"):
            family("Bare-v0")
        with pytest.raises(UserError, match="'Blind-v0' gives no picture: its class takes no render_mode; give it one"):
            make_single(find_spec("Blind-v0"), render=True)
        with pytest.raises(UserError, match="no environment is called 'Blinds-v0'; nearest: Blind-v0"):
            find_spec("Blinds-v0")
    finally:
        del gymnasium.registry["Bare-v0"], gymnasium.registry["Blind-v0"]


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda number: gymnasium.make("CartPole-v1"), "called without arguments; '<lambda>': missing .* 'number'"),
        (lambda: 3, "'<lambda>' makes int, not a gymnasium.Env"),
        (lambda: gymnasium.make_vec("CartPole-v1", 2), "'<lambda>' makes a vector environment; pass what it makes"),
    ],
)
def test_a_function_that_makes_no_environment_is_told_what_it_makes(function: Callable[..., Any], told: str) -> None:
    for use in (describe, lambda function: make_vec(function, 1)):
        with pytest.raises(UserError, match=told):
            use(function)


class Old(gymnasium.Env[int, int]):
    """With the interface of before gymnasium 0.26."""

    observation_space = gymnasium.spaces.Discrete(2)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, *, old_reset: bool) -> None:
        self._old_reset = old_reset

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return (0, 0, 0) if self._old_reset else (0, {})

    def step(self, action: int) -> Any:
        return 0, 0.0, False, {}


@pytest.mark.parametrize("old_reset", [False, True])
def test_the_interface_of_old_is_told_which_one_is_asked_for(old_reset: bool) -> None:
    environment = make_vec(lambda: Old(old_reset=old_reset), 1)
    told = r"step \(observation, reward, terminated, truncated, info\): .* to unpack .*; change the class"

    def play() -> None:
        environment.reset([0])
        environment.step(np.zeros(1, dtype=np.int64))

    with pytest.raises(RunError, match=told):
        play()
