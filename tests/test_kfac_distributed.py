"""K-FAC over several processes of torch.distributed against one process with the whole batch."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import parallel_training
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parallel import run_in_parallel
from torch import Tensor

from acktr.kfac.distributed import owners, packed_entries

CASES: dict[str, dict[str, Any]] = {
    "kfac": {"position_stride": 2},
    "exact damping, separate biases": {"damping_mode": "exact", "bias": "separate"},
    "reduce": {"conv_factors": "reduce"},
    "ekfac": {"curvature": "ekfac"},
    "kfoc": {"curvature": "kfoc"},
    "kfac, inverses where they are made": {"inverse_placement": "owner", "bias": "separate"},
    "kfac, all inverses at once": {"stagger_inverses": False},
    "kfoc, inverses where they are made": {"inverse_placement": "owner", "curvature": "kfoc"},
    "kfoc, approx": {"curvature": "kfoc", "kfoc_aggregation": "approx", "kfoc_steps": 2},
    "ekfoc": {"curvature": "ekfoc"},
    "diagonal": {"curvature": "diagonal"},
    "full": {"curvature": "full"},
    "experts": {"experts": True},
    "experts, ekfac": {"experts": True, "curvature": "ekfac"},
    "experts, kfoc": {"experts": True, "curvature": "kfoc", "inverse_placement": "owner"},
    "experts, diagonal": {"experts": True, "curvature": "diagonal"},
    "two parts a step": {"parts": 2, "position_stride": 2},
    "a state loaded with sums on their way": {"reload": True},
    "two precisions, ekfac": {"mixed": True, "curvature": "ekfac"},
    "two precisions, owner": {"mixed": True, "inverse_placement": "owner"},
    "block-tridiagonal": {"structure": "block-tridiagonal"},
}
OF_FOUR = ("kfac", "ekfac", "kfoc", "kfac, inverses where they are made", "experts", "block-tridiagonal")
"""Cases for four processes, too: each way of sharing out. The other settings are shared out by one of these."""


def of_size(size: int) -> list[str]:
    return [case for case in CASES if size == 2 or case in OF_FOUR]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[list[Tensor]]]:
    """Parameters at the end by number of ranks, rank and case."""

    def of(size: int) -> list[list[Tensor]]:
        folder = tmp_path_factory.mktemp("ranks")
        run_in_parallel(
            size, Path(parallel_training.__file__), str(folder), json.dumps([CASES[case] for case in of_size(size)])
        )
        return [torch.load(folder / f"rank{rank}.pt") for rank in range(size)]

    return {size: of(size) for size in (2, 4)}


@functools.cache
def alone(case: str) -> Tensor:
    try:
        return parallel_training.train(CASES[case])
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("case", "size"), [(case, size) for size in (2, 4) for case in of_size(size)])
def test_ranks_with_parts_of_a_batch_make_the_steps_of_one_process_with_all_of_it(
    case: str, size: int, ends: dict[int, list[list[Tensor]]]
) -> None:
    index = of_size(size).index(case)
    whole = alone(case)
    for found in ends[size]:
        torch.testing.assert_close(found[index], whole, rtol=0, atol=1e-4 if "precisions" in case else 1e-9)


def test_the_loop_of_the_documentation_trains_the_same_model_on_one_process_and_on_two(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "distributed.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    script = tmp_path / "loop.py"
    script.write_text(code + f"torch.save(model.state_dict(), f'{tmp_path}/{{ranks.size}}-{{ranks.rank}}.pt')\n")
    for size in (1, 2):
        run_in_parallel(size, script)
    alone, *ranks = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for rank in ranks:
        for name, value in alone.items():
            torch.testing.assert_close(rank[name], value, rtol=0, atol=1e-4)


@given(
    costs=st.lists(st.floats(0.0, 1e9), max_size=30),
    ranks=st.integers(1, 8),
)
def test_no_rank_has_more_to_do_than_its_share_and_one_piece(costs: list[float], ranks: int) -> None:
    """Of any order (Graham 1966): the last piece went to the rank that had least to do."""
    found = owners(costs, ranks)
    loads = [sum(cost for cost, owner in zip(costs, found, strict=True) if owner == rank) for rank in range(ranks)]
    assert max(loads) <= sum(costs) / ranks + (1 - 1 / ranks) * max(costs, default=0.0) + 1e-3


def test_the_longest_work_goes_first() -> None:
    assert owners([1, 1, 2, 4], 2) == [1, 1, 1, 0]


@pytest.mark.parametrize(("width", "entries"), [(1, 1), (64, 4096), (65, 64 * 65 + 1), (1569, None)])
def test_little_more_than_a_triangle_travels(width: int, entries: int | None) -> None:
    assert entries is None or packed_entries(1, width) == entries
    assert packed_entries(2, width) <= 2 * (width * (width + 1) // 2 + 32 * width)
