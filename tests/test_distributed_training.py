"""Training over several processes of torch.distributed against one process with the whole batch."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import parallel_agents
import pytest
import torch
from parallel import run_in_parallel
from torch import Tensor

from acktr.agents import checkpoint
from acktr.agents.world import World
from acktr.kfac import estimate
from acktr.kfac.blocks import Decomposed, RefreshReport
from acktr.kfac.decomposers import DampingOf, Here
from acktr.kfac.units import Unit

pytestmark = pytest.mark.timeout(900)  # all cases of a size run side by side, up to four processes on two cores

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
BRIEFLY: dict[str, Any] = {**CARTPOLE, "updates": 20}
CASES: dict[str, dict[str, Any]] = {
    "CartPole, kfac": CARTPOLE,
    "CartPole, ekfac": {**CARTPOLE, "curvature": "ekfac"},
    "CartPole, kfoc": {**CARTPOLE, "curvature": "kfoc"},
    "CartPole, a2c": {**BRIEFLY, "algorithm": "a2c"},
    "CartPole, a torso for each head": {**BRIEFLY, **OWN_TORSOS},
    "CartPole, a quarter of the rows": {**BRIEFLY, "stat_fraction": 0.25, "kl_fraction": 0.125, "overlap": True},
    "CartPole, fewer rows in a sample than ranks": {**BRIEFLY, "num_steps": 8, "stat_fraction": 0.02},
    "Pendulum, fewer rows in a sample than ranks": {
        **BRIEFLY,
        "env": "Pendulum-v1",
        "num_steps": 8,
        "stat_fraction": 0.02,
    },
    "CartPole, noisy": {**BRIEFLY, "exploration": "noisy-kfac"},
    "Pendulum": {**BRIEFLY, **OWN_TORSOS, "env": "Pendulum-v1"},
    "CartPole, float32, kfac": {**CARTPOLE, "dtype": "float32", "lr": 0.05},
    "Nature CNN, float32, ekfac": {**NATURE, "curvature": "ekfac", "dtype": "float32", "lr": 0.05},
    "Nature CNN, float32, kfac": {**NATURE, "dtype": "float32", "lr": 0.05},
    "Nature CNN, float32, kfoc": {**NATURE, "curvature": "kfoc", "dtype": "float32", "lr": 0.05},
    "Nature CNN, kfac": NATURE,
    "Nature CNN, ekfac": {**NATURE, "curvature": "ekfac"},
    "Nature CNN, kfoc": {**NATURE, "curvature": "kfoc"},
}


OF_FOUR = ("CartPole, kfac", "CartPole, kfoc", "Pendulum, fewer rows in a sample than ranks", "Nature CNN, ekfac")


def of_size(size: int) -> list[str]:
    """Cases by their name: with four ranks some of those that are shared out otherwise than among two."""
    return list(CASES) if size == 2 else list(OF_FOUR)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[list[dict[str, Any]]]]:
    """What came out, by number of ranks, rank and case."""

    def of(size: int) -> list[list[dict[str, Any]]]:
        folder = tmp_path_factory.mktemp("ranks")
        run_in_parallel(
            size, Path(parallel_agents.__file__), str(folder), json.dumps([CASES[case] for case in of_size(size)]), "-1"
        )
        return [torch.load(folder / f"rank{rank}.pt") for rank in range(size)]

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
        if "float32" in case:  # thirty times what one unit in the last place of each parameter at the start makes
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


class Late(Here):
    """Decomposes at once, and takes what came out into use some steps later: a server without a process."""

    def __init__(self, lag: int) -> None:
        self.lag = lag
        self.waiting: list[tuple[int, list[tuple[Any, list[Tensor]]]]] = []

    def refresh(self, units: Sequence[Unit], damping_of: DampingOf, step: int) -> list[RefreshReport]:
        while self.waiting and self.waiting[0][0] + self.lag <= step:
            self.adopt()
        blocks = [unit.block for unit in units if isinstance(unit.block, Decomposed)]
        before = [block.decomposition() for block in blocks]
        reports = super().refresh(units, damping_of, step)
        after = [block.decomposition() for block in blocks]
        for block, old in zip(blocks, before, strict=True):
            if old is not None:
                block.adopt(old)
        self.waiting.append((step, [(block, new) for block, new in zip(blocks, after, strict=True) if new is not None]))
        if None in before:
            while self.waiting:
                self.adopt()
        return reports

    def gather(self, units: Sequence[Unit]) -> None:
        while self.waiting:
            self.adopt()

    def adopt(self) -> None:
        for block, parts in self.waiting.pop(0)[1]:
            block.adopt(parts)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("changes", [{"inverse_interval": 6}, {**OWN_TORSOS, "inverse_interval": 4}], ids=["", "two"])
def test_inverses_made_by_a_process_of_their_own_are_used_a_fixed_number_of_steps_later(
    changes: dict[str, Any], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = {**CARTPOLE, **changes, "curvature_ranks": 1}
    run_in_parallel(size, Path(parallel_agents.__file__), str(tmp_path), json.dumps([case]), "-1")
    monkeypatch.setattr(estimate, "Here", lambda: Late(changes["inverse_interval"] // 2))
    whole = parallel_agents.run(case, World())
    for rank in range(size - 1):
        (found,) = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(found["parameters"], whole["parameters"], rtol=0, atol=1e-9)
    monkeypatch.undo()
    assert not torch.equal(parallel_agents.run(case, World())["parameters"], whole["parameters"])
