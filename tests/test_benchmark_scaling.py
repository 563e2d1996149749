"""The model of an update's time on several processes gives back what it was made of."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scaling_model import Load, Model, fit

TRUE = Model(
    rollout={"one": (2e-3, 3e-4), "other": (1e-3, 1e-5)},
    rows={"one": (3e-2, 2e-4), "other": (2e-2, 0.0)},
    inverses=(1e-4, 3e-11),
    messages=(2e-4, 1e-9),
    sharing={"one": (0.2, 0.1, 0.0), "other": (-0.1, 0.5, 1.5)},
)


def load(task: str, processes: int, environments: int, **more: Any) -> Load:
    whole = {"cores": 2, "steps": 20, "refreshes": 0.3, "cubes": 2e8, "sums": 11.0, "sum_bytes": 5e6}
    whole |= {"broadcasts": 0.3, "broadcast_bytes": 4e5}
    if task == "other":
        whole |= {"refreshes": 9.5, "cubes": 3e6, "sums": 32.0, "sum_bytes": 5e5}
    return Load(task=task, processes=processes, environments=environments, **(whole | more))


RUNS = [
    load(task, processes, environments)
    for task in ("one", "other")
    for processes, environments in ((1, 16), (1, 64), (2, 8), (2, 32))
]


def fitted(runs: list[Load], model: Model) -> Model:
    return fit([(run, model.predict(run)) for run in runs])


@given(
    st.integers(1, 64),
    st.integers(1, 4),
    st.integers(1, 256),
    st.sampled_from(["one", "other"]),
    st.floats(0, 100),
    st.floats(0, 1e8),
)
def test_a_model_fitted_to_its_own_times_predicts_others(
    processes: int, cores: int, environments: int, task: str, broadcasts: float, broadcast_bytes: float
) -> None:
    asked = load(task, processes, environments, cores=cores)
    asked = dataclasses.replace(asked, broadcasts=broadcasts, broadcast_bytes=broadcast_bytes)
    found, true = fitted(RUNS, TRUE).predict(asked), TRUE.predict(asked)
    for part, seconds in true.items():
        assert found[part] == pytest.approx(seconds, rel=1e-6)


def test_no_term_is_negative_where_times_fall_with_size() -> None:
    times = [(run, {**TRUE.predict(run), "rollout": 1.0 / run.environments}) for run in RUNS]
    assert all(term >= 0 for terms in fit(times).rollout.values() for term in terms)


def test_one_process_sends_nothing_and_messages_of_many_go_round_the_ring() -> None:
    assert TRUE.predict(load("one", 1, 16))["messages"] == 0
    eight = load("one", 8, 16)
    assert eight.hops == 11 * 14 + 0.3 * 3
    assert eight.bytes_moved == pytest.approx(5e6 * 14 / 8 + 4e5 * 3)


def test_processes_that_share_cores_take_turns() -> None:
    two, four = (TRUE.predict(load("one", processes, 16)) for processes in (2, 4))
    assert four["rows"] == pytest.approx(2 * two["rows"])
    assert four["inverses"] == two["inverses"]


@pytest.mark.parametrize("kept", [1, 2])
def test_too_few_runs_are_refused(kept: int) -> None:
    with pytest.raises(ValueError, match="two runs of one process at least, and one of several"):
        fitted([run for run in RUNS if run.processes == kept], TRUE)
