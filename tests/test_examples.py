"""The programs in examples/ do what they say, shortened by their own flags where they take longer."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import acktr

FOLDER = Path(__file__).parents[1] / "examples"


def run(example: str, *arguments: str, folder: Path, without: tuple[str, ...] = ()) -> str:
    """What a program prints; `without` names modules that are not to be had."""
    command = [str(FOLDER / example), *arguments]
    if without:
        hidden = "".join(f"sys.modules[{name!r}] = None; " for name in without)
        program = (
            f"import runpy, sys; {hidden}sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        command = ["-c", program, *command]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def numbers(text: str) -> list[float]:
    return [float(word) for word in re.findall(r"-?\d+\.\d+", text)]


def test_every_program_is_run_here_and_described() -> None:
    programs = sorted(file.name for file in FOLDER.glob("*.py"))
    described = (FOLDER / "README.md").read_text(encoding="utf-8")
    here = Path(__file__).read_text(encoding="utf-8")
    for program in programs:
        assert f"python {program}" in described
        assert f'run("{program}"' in here.replace("\n", "").replace("run(        ", "run(")


def test_the_loop_of_ones_own_learns(tmp_path: Path) -> None:
    returns = numbers(run("custom_loop.py", "--timesteps", "48000", folder=tmp_path).splitlines()[-1])
    assert returns[-1] > 150


def test_the_environment_of_ones_own_is_learnt(tmp_path: Path) -> None:
    at_random, trained = run("custom_environment.py", "--timesteps", "30000", folder=tmp_path).splitlines()[:2]
    assert numbers(trained)[0] > numbers(at_random)[0] + 0.2


def test_a_reused_policy_is_ahead_of_one_from_scratch(tmp_path: Path) -> None:
    found = run("transfer.py", "--source-timesteps", "20000", "--timesteps", "3000", folder=tmp_path)
    scores = {line[2:30].strip(): numbers(line)[0] for line in found.splitlines() if line.startswith("  ")}
    assert scores["the old policy, learning on"] > scores["from scratch"]


def test_kfac_is_ahead_of_adam_after_as_many_steps(tmp_path: Path) -> None:
    lines = run("supervised.py", "--steps", "150", folder=tmp_path).splitlines()[1:]
    losses = {line[:20].strip(): numbers(line[20:])[1] for line in lines}
    best = min(loss for name, loss in losses.items() if name.startswith("Adam"))
    assert losses["K-FAC"] < best
    assert losses["LevenbergMarquardt"] < best


@pytest.mark.parametrize("name", ["halfcheetah", "pong"])
def test_a_policy_acts_the_same_without_the_package(name: str, tmp_path: Path) -> None:
    file = FOLDER / "policies" / f"{name}.safetensors"
    agent = acktr.load(file)
    space = agent.policy.encoder.space_shape
    draws = np.random.default_rng(1)
    observations = draws.integers(0, 256, (4, *space), np.uint8) if name == "pong" else draws.normal(size=(4, *space))
    np.save(tmp_path / "batch.npy", observations)
    expected = agent.predict(observations, deterministic=True)
    agent.close()
    arguments = (str(file), "--observations", "batch.npy")
    found = run("policy_without_acktr.py", *arguments, folder=tmp_path, without=("acktr", "gymnasium"))
    assert np.asarray(json.loads(found)) == pytest.approx(expected, abs=1e-5)


def test_a_policy_without_a_file_is_the_shipped_one(tmp_path: Path) -> None:
    actions = np.asarray(json.loads(run("policy_without_acktr.py", folder=tmp_path)))
    assert actions.shape == (3, 6)
    assert (abs(actions) <= 1).all()
