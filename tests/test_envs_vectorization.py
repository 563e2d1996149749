"""Environments in this process and in worker processes: the same bytes, clear failures, and nothing left behind."""

import copy
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from acktr.envs import vectorization
from acktr.envs.cpus import usable_cpus
from acktr.envs.group import LocalVectorEnv
from acktr.envs.make import make_vec
from acktr.envs.processes import ProcessVectorEnv
from acktr.errors import RunError, UserError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="worker processes need inherited descriptors")


def counting(*, limit: int = 3, fail_at: int = -1, death: bool = False) -> Any:
    """A function that makes an environment; its class is local, so that workers get it by value."""

    class Counting(gymnasium.Env[Any, Any]):
        observation_space = gymnasium.spaces.Box(-10, 1000, (2,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        steps = 0
        total = 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.steps, self.noise = 0, self.np_random.uniform()
            return np.array([0, self.noise], np.float32), {}

        def step(self, action: Any) -> Any:
            self.steps += 1
            self.total += 1
            if self.total == fail_at:
                if death:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise ValueError("the wheel\nfell off")
            observation = np.array([self.steps, self.noise + action[0]], np.float32)
            return observation, float(action[0]), False, self.steps >= limit, {}

    return Counting


def workers_of(environment: Any) -> list[int]:
    return [process.pid for process in environment._env._processes]


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and _state(pid) != "Z"]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def gone(pids: list[int]) -> bool:
    end = time.monotonic() + 30
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pids)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_workers_give_the_same_bytes_in_every_autoreset_mode(mode: AutoresetMode) -> None:
    trajectories = []
    for how in ("sync", "async"):
        environment = make_vec(counting(), 5, autoreset_mode=mode, vectorization=how)  # type: ignore[arg-type]
        assert environment.vectorization == how
        generator = np.random.default_rng(0)
        arrays = [environment.reset([7, 8, 9, 10, 11])]
        for _ in range(8):
            step = environment.step(generator.uniform(-1, 1, (5, 1)).astype(np.float32))
            arrays += [step.observations, step.rewards, step.terminals, step.truncations, step.valid]
            arrays += [] if step.final_observations is None else [step.final_observations]
        arrays.append(environment.reset(None))
        environment.close()
        trajectories.append([array.tobytes() for array in arrays])
    assert trajectories[0] == trajectories[1]


def test_gymnasiums_own_vector_environment_gives_the_same_bytes() -> None:
    ours = make_vec("Pendulum-v1", 3)
    theirs = make_vec(gymnasium.make_vec("Pendulum-v1", 3, vectorization_mode="sync"), 3)
    np.testing.assert_array_equal(ours.reset([1, 2, 3]), theirs.reset([1, 2, 3]))
    actions = np.linspace(-1, 1, 3, dtype=np.float32)[:, None]
    for _ in range(202):  # past the limit of 200 steps
        one, other = ours.step(actions), theirs.step(actions)
        np.testing.assert_array_equal(one.observations, other.observations)
        np.testing.assert_array_equal(one.rewards, other.rewards)
        np.testing.assert_array_equal(one.valid, other.valid)


@pytest.mark.parametrize("how", ["sync", "async"])
def test_discrete_actions_are_scalars_that_an_environment_can_look_up(how: Any) -> None:
    environment = make_vec("FrozenLake-v1", 2, vectorization=how)
    assert environment.reset([0, 1]).tolist() == [0, 0]
    assert environment.step(np.array([1, 2])).observations.shape == (2,)
    environment.close()


def test_dictionaries_and_tuples_of_arrays_cross_processes() -> None:
    space = gymnasium.spaces.Dict(
        a=gymnasium.spaces.Box(0, 255, (2, 3), np.uint8),
        b=gymnasium.spaces.Tuple((gymnasium.spaces.Discrete(5, start=2), gymnasium.spaces.MultiBinary(3))),
    )

    class Nested(gymnasium.Env[Any, Any]):
        observation_space = space
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.observation_space = copy.deepcopy(space)
            self.observation_space.seed(seed)
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> Any:
            return self.observation_space.sample(), 0.0, False, False, {}

    single = Nested()
    both = [
        LocalVectorEnv(Nested, single, 3, name="Nested", mode=AutoresetMode.NEXT_STEP),
        ProcessVectorEnv(Nested, single, 3, workers=2, name="Nested", mode=AutoresetMode.NEXT_STEP),
    ]
    batches = []
    for envs in both:
        envs.reset(seed=[1, 2, 3])
        batch = envs.step(np.zeros(3, np.int64))[0]
        assert batch in batch_space(space, 3)
        batches.append([batch["a"].tolist(), batch["b"][0].tolist(), batch["b"][1].tolist()])
        envs.close()
    assert batches[0] == batches[1]


@pytest.mark.parametrize("how", ["sync", "async"])
def test_an_environment_that_raises_ends_the_run_in_one_line_that_names_it(how: Any) -> None:
    environment = make_vec(counting(fail_at=2), 3, vectorization=how)
    pids = workers_of(environment) if how == "async" else []
    environment.reset([0, 1, 2])
    environment.step(np.zeros((3, 1), np.float32))
    with pytest.raises(RunError) as caught:
        environment.step(np.zeros((3, 1), np.float32))
    expected = (
        r"environment 0 of 'Counting' failed: ValueError: the wheel fell off \(.*test_envs_vectorization.py:\d+\)"
    )
    assert re.fullmatch(expected, str(caught.value))
    assert how == "sync" or "In worker process 0" in caught.value.__notes__[0]  # the whole trace, for people in Python
    environment.close()
    assert gone(pids)


@pytest.mark.parametrize("how", ["sync", "async"])
def test_an_observation_of_another_shape_is_not_repeated_until_it_fits(how: Any) -> None:
    class Odd(counting()):  # type: ignore[misc]
        def step(self, action: Any) -> Any:
            return np.zeros(1, np.float32), 0.0, False, False, {}

    environment = make_vec(Odd, 2, vectorization=how)
    environment.reset([0, 1])
    with pytest.raises(RunError, match=r"shape \(1,\) where the space has \(2,\)"):
        environment.step(np.zeros((2, 1), np.float32))
    environment.close()


def test_a_worker_that_is_killed_is_named_and_the_others_end() -> None:
    environment = make_vec(counting(fail_at=2, death=True), 2, vectorization="async")
    pids = workers_of(environment)
    environment.reset([0, 1])
    environment.step(np.zeros((2, 1), np.float32))
    with pytest.raises(RunError, match=r"with environments 0 to .* was killed by signal 9; is there enough memory"):
        environment.step(np.zeros((2, 1), np.float32))
    with pytest.raises(RunError, match="failed before"):
        environment.step(np.zeros((2, 1), np.float32))
    environment.close()
    assert gone(pids)


def test_closing_ends_the_workers() -> None:
    environment = make_vec(counting(), 2, vectorization="async")
    pids = workers_of(environment)
    assert len(alive(pids)) == len(pids)
    environment.close()
    assert gone(pids)


def test_what_cannot_be_sent_to_workers_is_said_so() -> None:
    lock = threading.Lock()  # which does not pickle

    def factory() -> Any:
        with lock:
            return counting()()

    with pytest.raises(UserError, match=r"'factory' cannot be sent to worker processes .*: use vectorization sync"):
        make_vec(factory, 2, vectorization="async")


def test_a_factory_that_fails_in_a_worker_alone_is_a_user_error_and_leaves_no_process(monkeypatch: Any) -> None:
    here, make = os.getpid(), counting()
    started: list[int] = []
    popen = subprocess.Popen

    def noted(*args: Any, **kwargs: Any) -> Any:
        process = popen(*args, **kwargs)
        started.append(process.pid)
        return process

    def factory() -> Any:
        if os.getpid() != here:
            raise UserError("not here")
        return make()

    monkeypatch.setattr(subprocess, "Popen", noted)
    with pytest.raises(UserError, match="not here"):
        make_vec(factory, 2, vectorization="async")
    assert started
    assert gone(started)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_a_trainer_that_is_killed_or_interrupted_in_a_step(number: signal.Signals) -> None:
    script = """
        import signal, time, gymnasium, numpy as np
        from acktr.envs.make import make_vec
        signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start what is in the background without it
        class Slow(gymnasium.Env):
            observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
            action_space = gymnasium.spaces.Discrete(2)
            def reset(self, *, seed=None, options=None):
                return np.zeros(1, np.float32), {}
            def step(self, action):
                time.sleep(600)
        environment = make_vec(Slow, 2, vectorization="async")
        environment.reset([0, 1])
        print(*[process.pid for process in environment._env._processes], flush=True)
        environment.step(np.zeros(2, np.int64))
    """  # without a guard of the main module: workers must not run it again
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert pids
    time.sleep(0.2)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert gone(pids)


def test_workers_have_one_thread_and_no_torch() -> None:
    class Spy(counting()):  # type: ignore[misc]
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            torch = "torch" in sys.modules
            return np.array([float(os.environ["OMP_NUM_THREADS"]), torch], np.float32), {}

    environment = make_vec(Spy, 2, vectorization="async")
    np.testing.assert_array_equal(environment.reset([0, 1]), [[1, 0], [1, 0]])
    environment.close()


def test_auto_keeps_cheap_environments_functions_and_single_environments_here() -> None:
    cheap = make_vec("CartPole-v1", 2, vectorization="auto")
    assert cheap.vectorization == "sync"
    assert make_vec(counting(), 2, vectorization="auto").vectorization == "sync"
    alone = make_vec("Pendulum-v1", 1, vectorization="auto")
    assert (alone.vectorization, alone.notes) == ("sync", ())


def test_auto_takes_the_quicker_and_leaves_no_trace_of_its_measurement(monkeypatch: Any) -> None:
    monkeypatch.setattr(vectorization, "usable_cpus", lambda: 2)
    monkeypatch.setattr(vectorization, "_SECONDS", 0.1)

    class Slow(counting()):  # type: ignore[misc]
        def step(self, action: Any) -> Any:
            time.sleep(0.01)
            observation, *rest = super().step(action)
            return np.array([self.total, observation[1]], np.float32), *rest  # counts the steps of its whole life

    envs, chosen, note = vectorization.vectorized(
        Slow, Slow(), 4, how="auto", name="Slow", mode=AutoresetMode.NEXT_STEP
    )
    assert chosen == "async"
    assert "in 2 worker processes" in note
    envs.reset(seed=[0, 1, 2, 3])  # type: ignore[arg-type]
    observations = envs.step(np.zeros((4, 1), np.float32))[0]
    np.testing.assert_array_equal(observations[:, 0], 1)
    envs.close()


def test_the_choice_is_recorded_and_a_resumed_run_keeps_it(tmp_path: Path, monkeypatch: Any) -> None:
    from acktr.agents.runs import resume, train
    from acktr.agents.settings import Settings

    run = tmp_path / "run"
    settings = Settings(env="CartPole-v1", total_timesteps=80, num_envs=2, num_steps=20, num_threads=1)
    train(settings, run_dir=run)
    assert "vectorization: sync\n" in (run / "settings.yaml").read_text()
    monkeypatch.setattr(vectorization, "_time", None)  # measuring again would fail
    resume(run, total_timesteps=120)


def test_an_atari_id_ignores_the_setting() -> None:
    environment = make_vec("PongNoFrameskip-v4", 1, vectorization="async")
    assert environment.vectorization is None
    environment.close()


@pytest.mark.parametrize(("processes", "cores"), [("1", 8), ("2", 4), ("3", 2), ("16", 1)])
def test_processes_of_one_machine_share_its_cores_out(
    processes: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or each of them would make a worker for every core."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert usable_cpus(tmp_path) == cores
