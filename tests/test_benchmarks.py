"""The benchmark of speed: its clock, its ratios, and that it still fits the code that it measures."""

import contextlib
import math
import threading
from typing import Any

import contestants
import phase_clock
import pytest
import throughput
import torch

from acktr.agents import collector as collector_module


class Watch:
    """A clock that somebody else moves."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_times_of_nested_labels_exclude_one_another_and_add_up_to_the_lap() -> None:
    watch = Watch()
    clock = phase_clock.PhaseClock(now=watch)
    clock.start()
    for scale in (1.0, 2.0):
        watch.time += 1 * scale
        with clock("update"):
            watch.time += 2 * scale
            with clock("kfac::step"):
                watch.time += 4 * scale
                with clock("kfac::inverses"):
                    watch.time += 8 * scale
                watch.time += 16 * scale
            with clock("kfac::step"):
                watch.time += 32 * scale
        watch.time += 64 * scale
        clock.lap()
    first, second = clock.laps
    assert first == {"": 65, "update": 2, "update/kfac::step": 52, "update/kfac::step/kfac::inverses": 8}
    assert second == {path: 2 * seconds for path, seconds in first.items()}


def test_a_label_ends_with_its_block_even_where_that_raises() -> None:
    watch = Watch()
    clock = phase_clock.PhaseClock(now=watch)
    clock.start()
    with contextlib.suppress(KeyError), clock("outer"):
        watch.time += 1
        raise KeyError
    watch.time += 2
    clock.lap()
    assert clock.laps == [{"": 2, "outer": 1}]


def test_labels_of_other_threads_are_not_heard() -> None:
    watch = Watch()
    clock = phase_clock.PhaseClock(now=watch)

    def elsewhere() -> None:
        with clock("elsewhere"):
            watch.time += 1

    clock.start()
    with clock("here"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        watch.time += 2
    clock.lap()
    assert clock.laps == [{"": 0, "here": 3}]


def test_the_clock_takes_the_place_of_the_labels_and_gives_it_back() -> None:
    clock = phase_clock.PhaseClock()
    with phase_clock.clocked(clock):
        assert vars(collector_module)["record_function"] is clock
        assert collector_module.labels_are_read()
    assert not collector_module.labels_are_read()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert collector_module.labels_are_read()
    assert vars(collector_module)["record_function"] is torch.profiler.record_function


def test_phases_add_up_to_the_rollout_and_the_update() -> None:
    laps = [
        {"": 1.0, "acktr::act": 2.0, "update": 3.0, "update/kfac::step": 4.0, "update/kfac::step/kfac::inverses": 5.0},
        {"": 1.0, "acktr::act": 4.0, "update": 3.0, "update/kfac::step": 6.0},
        {"": 1.0, "acktr::act": 3.0, "update": 3.0, "update/kfac::step": 5.0, "update/acktr::loss_backward": 1.0},
    ]
    found = throughput.by_phase(laps)
    assert found["rollout_ms"] == {"median": 4000.0, "mean": pytest.approx(4000.0)}
    assert found["update_ms"] == {"median": 9000.0, "mean": pytest.approx(10_000.0)}
    assert found["phases_ms"] == {
        "rollout": pytest.approx({"everything else": 1000.0, "act": 3000.0}),
        "update": pytest.approx(
            {"everything else": 3000.0, "apply": 5000.0, "inverses": 5000 / 3, "loss backward": 1000 / 3}
        ),
    }


def rounds(*rates: float, rows: float = 1.0, updates: tuple[float, ...] = (1.0, 1.0, 1.0)) -> list[dict[str, Any]]:
    """What rounds of these speeds give, with so many rows a step."""
    return [
        {"steps_per_second": rate, "rows_per_second": rate * rows, "update_ms": {"median": update, "mean": 2 * update}}
        for rate, update in zip(rates, updates, strict=True)
    ]


def test_ratios_are_taken_within_each_round() -> None:
    results = {
        "emulator": rounds(1000.0, 2000.0, 4000.0),
        "acktr": rounds(100.0, 300.0, 800.0, rows=2.0, updates=(3.0, 4.0, 5.0)),
        "a2c": rounds(200.0, 400.0, 800.0, updates=(2.0, 2.0, 2.0)),
    }
    assert throughput.ratios(results) == {  # the median of the ratios, not the ratio of the medians
        "acktr / a2c": {"median": 0.75, "lowest": 0.5, "highest": 1.0},
        "acktr / emulator": {"median": 0.3, "lowest": 0.2, "highest": 0.4},
    }
    assert throughput.wall_time_ratios(results) == {
        "step, acktr / a2c": {"median": pytest.approx(4 / 3), "lowest": 1.0, "highest": 2.0},
        "median update, acktr / a2c": {"median": 2.0, "lowest": 1.5, "highest": 2.5},
        "mean update, acktr / a2c": {"median": 2.0, "lowest": 1.5, "highest": 2.5},
    }


def test_stable_baselines3_is_left_out_where_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(throughput.importlib.util, "find_spec", lambda name: None)
    assert throughput.present(("acktr", "sb3-a2c", "sb3-ppo")) == ("acktr",)
    assert "sb3-a2c, sb3-ppo" in capsys.readouterr().err


def test_a_change_of_kfac_leaves_a2c_alone_and_its_batches_are_those_of_acktr() -> None:
    task = contestants.Task(env="CartPole-v1", num_steps=4, changes=("max_kl=0.5", "gamma=0.5", "lr=0.125"))
    acktr, a2c = task.settings(), task.settings("a2c", precision="float32")
    assert (acktr.max_kl, acktr.lr, acktr.gamma) == (0.5, 0.125, 0.5)
    assert (a2c.max_kl, a2c.lr, a2c.gamma) != (0.5, 0.125, 0.5)
    assert a2c.gamma == 0.5
    assert a2c.max_kl != 0.5
    assert a2c.lr != 0.125
    assert (a2c.num_envs, a2c.num_steps) == (acktr.num_envs, 4)
    assert (a2c.algorithm, a2c.precision) == ("a2c", "float32")


@pytest.mark.usefixtures("one_thread")
def test_measuring_acktr_gives_every_phase() -> None:
    task = contestants.Task(env="CartPole-v1", num_envs=2, num_steps=4, seconds=0.2)
    result = contestants.measure("acktr", task)
    assert result["steps_per_second"] > 0
    assert result["rows_per_second"] >= result["steps_per_second"]
    assert result["peak_memory_mb"] > 0
    assert (result["num_envs"], result["num_steps"], result["precision"]) == (2, 4, "float32")
    figures = throughput.by_phase(result["laps"])
    assert set(figures["phases_ms"]["rollout"]) == {"act", "environment", "everything else"}
    assert set(figures["phases_ms"]["update"]) >= {
        *("forward", "sampled backward", "factors", "loss backward", "inverses", "apply", "everything else"),
    }
    for part in ("rollout", "update"):
        times = figures["phases_ms"][part].values()
        assert all(math.isfinite(time) and time > 0 for time in times)
        assert sum(times) == pytest.approx(figures[f"{part}_ms"]["mean"])


@pytest.mark.usefixtures("one_thread")
def test_measuring_overlap_times_the_update_by_itself() -> None:
    task = contestants.Task(env="CartPole-v1", num_envs=2, num_steps=4, seconds=0.2)
    figures = throughput.by_phase(contestants.measure("acktr-overlap", task)["laps"])
    assert set(figures["phases_ms"]["rollout"]) == {"everything else"}
    assert "forward" in figures["phases_ms"]["update"]
