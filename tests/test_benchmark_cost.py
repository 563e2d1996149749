"""The benchmark of growing cost: its exponents, its verdict, and that it still fits the code that it measures."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import cost
import multiplications
import pytest
import torch


def point(size: int, milliseconds: float, count: float) -> dict[str, Any]:
    return {"size": size, "ms": {"ACKTR": {"median": milliseconds}}, "multiplications": {"ACKTR": count}}


def test_exponents_are_those_of_power_laws() -> None:
    sizes = (160, 320, 1280)
    assert cost.exponents(sizes, [0.3 * size**1.7 for size in sizes]) == pytest.approx([1.7, 1.7])
    assert cost.exponents((1, 2, 8), (5, 10, 640)) == pytest.approx([1, 3])


@pytest.mark.parametrize(("power", "faster"), [(1.1, False), (1.4, False), (1.6, True), (2.5, True)])
def test_a_time_grows_faster_where_its_exponent_exceeds_that_of_the_multiplications(power: float, faster: bool) -> None:
    middle = 1e9  # a jump between the ends decides nothing
    points = [point(10, 10**power, 10**1.4), point(20, middle, 20**1.4), point(80, 80**power, 80**1.4)]
    found = cost.growth(points)["ACKTR"]
    assert found["measured_between_ends"] == pytest.approx(power)
    assert found["of_multiplications_between_ends"] == pytest.approx(1.4)
    assert found["of_multiplications"] == pytest.approx([1.4, 1.4])
    assert found["grows_faster"] is faster


def test_multiplications_are_counted_where_torch_knows_none_and_the_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    matrix = torch.eye(6) * 2
    with multiplications.Multiplications() as counted:
        assert torch.get_num_threads() == 1
        factor = torch.linalg.cholesky_ex(matrix)[0]
        torch.cholesky_inverse(factor)
        matrix @ torch.ones(6, 5)
    assert torch.get_num_threads() == before
    assert counted.count == 6**3 // 6 + 6**3 // 3 + 6 * 6 * 5


@pytest.mark.usefixtures("one_thread")
def test_a_small_run_gives_figures_a_commit_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"conv_channels": (4, 4, 4), "inverse_interval": 2, "stat_interval": 2, "kl_interval": 2}
    batch, width, environments = cost.SWEEPS
    tiny = (
        dataclasses.replace(
            batch, sizes=(8, 16), rows=4, fixed={"num_envs": 4, "conv_features": 8, "stat_fraction": 0.5, **small}
        ),
        dataclasses.replace(width, sizes=(8, 32), fixed={"num_envs": 2, "num_steps": 2, **small}),
        dataclasses.replace(environments, sizes=(2, 4), fixed={"num_steps": 4, "conv_features": 8, **small}),
    )
    monkeypatch.setattr(cost, "SWEEPS", tiny)
    monkeypatch.setattr(cost.threads, "set_threads", lambda num_threads: None)
    kept, picture = tmp_path / "cost.json", tmp_path / "cost.png"
    words = ["cost.py", "--rounds", "2", "--precision", "float32", "--json", str(kept), "--plot", str(picture)]
    monkeypatch.setattr(sys, "argv", words)
    cost.main()
    content = json.loads(kept.read_text())
    assert {"commit", "modified", "machine", "threads", "torch"} <= set(content)
    assert content["precision"] == "float32"
    assert [sweep["name"] for sweep in content["sweeps"]] == ["batch", "width", "environments"]
    for sweep in content["sweeps"]:
        for found in sweep["points"]:
            for name in ("forward + backward", "A2C", "ACKTR"):
                figures = (*found["ms"][name].values(), *found["update_ms"][name].values())
                assert all(math.isfinite(figure) and figure > 0 for figure in figures)
                assert found["multiplications"][name] > 0
            assert all(ratio["median"] > 0 for ratio in found["ratios"].values())
            acts = sweep["name"] == "environments"
            assert (found["ms"]["ACKTR"]["lowest"] > found["update_ms"]["ACKTR"]["lowest"]) is acts
    by_batch, by_width, by_environments = (sweep["points"] for sweep in content["sweeps"])
    assert [(one["num_envs"], one["num_steps"]) for one in by_batch] == [(4, 2), (4, 4)]
    assert [one["conv_features"] for one in by_width] == [8, 32]
    # the rows are as many, and what acting multiplies is what the plain pass has more than A2C's update
    many, acted = by_batch[1]["multiplications"], by_environments[1]["multiplications"]
    assert acted["forward + backward"] == many["forward + backward"]
    assert acted["A2C"] == many["forward + backward"] > many["A2C"]
    assert content["sweeps"][0]["growth"]["A2C"]["of_multiplications_between_ends"] == pytest.approx(1)
    assert picture.stat().st_size > 0
    assert "exponent, 8 to 16" in capsys.readouterr().out
