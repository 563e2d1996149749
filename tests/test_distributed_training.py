"""Training over several processes of torch.distributed against one process with the whole batch."""

import functools
import json
from pathlib import Path
from typing import Any

import parallel_agents
import pytest
import torch
from parallel import run_in_parallel

from acktr.agents import checkpoint
from acktr.agents.world import World

CARTPOLE: dict[str, Any] = {"env": "CartPole-v1", "num_envs": 6, "num_steps": 16}
NATURE: dict[str, Any] = {
    "env": "BreakoutNoFrameskip-v4",
    "num_envs": 8,
    "num_steps": 2,
    "conv_channels": [4, 8, 4],
    "conv_features": 16,
    "network": "nature",
}
OWN_TORSOS: dict[str, Any] = {
    "shared_trunk": False,
    "normalize_observations": True,
    "scale_rewards": True,
    "normalize_advantages": True,
    "critic_iterations": 2,
    "line_search": 3,
}
CASES: dict[str, dict[str, Any]] = {
    "CartPole, kfac": CARTPOLE,
    "CartPole, ekfac": {**CARTPOLE, "curvature": "ekfac"},
    "CartPole, kfoc": {**CARTPOLE, "curvature": "kfoc"},
    "CartPole, a2c": {**CARTPOLE, "algorithm": "a2c"},
    "CartPole, a torso for each head": {**CARTPOLE, **OWN_TORSOS},
    "CartPole, a quarter of the rows": {**CARTPOLE, "stat_fraction": 0.25, "kl_fraction": 0.125, "overlap": True},
    "CartPole, fewer rows in a sample than ranks": {**CARTPOLE, "num_steps": 8, "stat_fraction": 0.02},
    "CartPole, noisy": {**CARTPOLE, "exploration": "noisy-kfac"},
    "Pendulum": {**CARTPOLE, **OWN_TORSOS, "env": "Pendulum-v1"},
    "CartPole, float32, kfac": {**CARTPOLE, "dtype": "float32", "lr": 0.05},
    "Nature CNN, float32, ekfac": {**NATURE, "curvature": "ekfac", "dtype": "float32", "lr": 0.05},
    "Nature CNN, float32, kfac": {**NATURE, "dtype": "float32", "lr": 0.05},
    "Nature CNN, float32, kfoc": {**NATURE, "curvature": "kfoc", "dtype": "float32", "lr": 0.05},
    "Nature CNN, kfac": NATURE,
    "Nature CNN, ekfac": {**NATURE, "curvature": "ekfac"},
    "Nature CNN, kfoc": {**NATURE, "curvature": "kfoc"},
}


def of_size(size: int) -> list[str]:
    """Cases by their name: with four ranks those of the three curvatures alone, and one with fewer rows than ranks."""
    return [name for name in CASES if size == 2 or name.endswith(("kfac", "kfoc", "than ranks"))]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[list[dict[str, Any]]]]:
    """What came out, by number of ranks, rank and case."""

    def of(size: int) -> list[list[dict[str, Any]]]:
        folder = tmp_path_factory.mktemp("ranks")
        run_in_parallel(
            size, Path(parallel_agents.__file__), str(folder), json.dumps([CASES[case] for case in of_size(size)]), "-1"
        )
        return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(size)]

    return {size: of(size) for size in (2, 4)}


@functools.cache
def alone(case: str) -> dict[str, Any]:
    return parallel_agents.run(CASES[case], World())


@pytest.mark.parametrize(("size", "case"), [(size, case) for size in (2, 4) for case in of_size(size)])
def test_environments_spread_over_processes_train_as_in_one(
    case: str, size: int, ends: dict[int, list[list[dict[str, Any]]]]
) -> None:
    whole = alone(case)
    for rank in ends[size]:
        found = rank[of_size(size).index(case)]
        difference = found["parameters"] - whole["parameters"]
        if (
            "float32" in case
        ):  # what one unit in the last place of each parameter at the start makes, and thirty times it
            assert difference.norm() < 1e-4 * whole.get("moved", whole["parameters"]).norm()
            continue
        assert difference.abs().max() < 1e-9
        if "returns" in whole:
            assert found["returns"] == whole["returns"]
            assert found["figures"] == pytest.approx(whole["figures"], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    "changes",
    [{"curvature": "ekfac"}, {"inverse_placement": "owner"}],
    ids=["ekfac", "kfac with owners"],
)
def test_a_checkpoint_goes_on_with_another_number_of_processes(changes: dict[str, str], tmp_path: Path) -> None:
    case = {**CARTPOLE, **changes}
    changing, steady = tmp_path / "changing", tmp_path / "steady"
    for folder in (changing, steady):
        folder.mkdir()
    for number, size in enumerate((2, 1, 4)):
        run_in_parallel(size, Path(parallel_agents.__file__), str(changing), json.dumps([case]), str(number))
        parallel_agents.leg(case, World(), steady, number)
    last = [checkpoint.load(folder / "leg2.safetensors").state["policy"] for folder in (changing, steady)]
    for name in last[1]:
        torch.testing.assert_close(last[0][name], last[1][name], rtol=0, atol=1e-9)
