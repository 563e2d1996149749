"""What `throughput.py` compares: each contestant trains in a process of its own and is measured there.

The speed is measured first, without any instrument, and the costs of the phases after it: their clock waits for a GPU
at every label.
"""

import contextlib
import dataclasses
import importlib.metadata
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from gymnasium.vector.utils import batch_space
from phase_clock import Laps, PhaseClock, clocked

from acktr.agents import runs, threads
from acktr.agents.acktr import ACKTRUpdater
from acktr.agents.presets import resolve
from acktr.agents.reporting import Reporter
from acktr.agents.settings import Settings, convert
from acktr.agents.settings_optimizer import OptimizerSettings
from acktr.agents.streams import Streams
from acktr.agents.trainer import Trainer
from acktr.envs.atari import AtariEnvironment
from acktr.envs.make import family

WARMUP_UPDATES = 12
SETTLING_UPDATES = 3
CLOCKED_UPDATES = 20
"""At least: as many as lie between two refreshes of an inverse."""

VARIANTS: dict[str, dict[str, Any]] = {"": {}, "float32": {"precision": "float32"}, "overlap": {"overlap": True}}
"""What sets a contestant of ours apart, by what stands behind its algorithm."""

SETTLED_STEPS = 10_000
"""Steps after which K-FAC's intervals have their full length."""

_OF_KFAC = {field.name for field in dataclasses.fields(OptimizerSettings)} - {"reuse_forward"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a contestant is to be measured on.

    Attributes:
        env: id of the environment.
        num_envs: environments stepped together; None leaves them to the preset.
        num_steps: steps of each between updates; None leaves them to the preset.
        seconds: how long to measure; the clock of the phases runs for half as long again, over ten updates at least.
        device: as the setting of that name.
        changes: settings other than the preset's, "KEY=VALUE". Those of K-FAC apply to ACKTR alone.
    """

    env: str
    num_envs: int | None = None
    num_steps: int | None = None
    seconds: float = 12.0
    device: str = "auto"
    changes: tuple[str, ...] = ()

    def settings(self, algorithm: str = "acktr", **more: Any) -> Settings:
        """Ours: the preset as shipped, but for what the task and `more` say; A2C has ACKTR's batches."""
        batch = {"num_envs": self.num_envs, "num_steps": self.num_steps}
        given = {name: value for name, value in batch.items() if value is not None}
        changes = convert(dict(word.split("=", 1) for word in self.changes), source="--set")
        fixed = {"env": self.env, "device": self.device, "total_timesteps": 10**9}
        settings = resolve({**fixed, **given, **changes, **more, "algorithm": "acktr"}).settings()
        if algorithm == "acktr":
            return settings
        shared = {name: value for name, value in changes.items() if name not in _OF_KFAC}
        batch = {"num_envs": settings.num_envs, "num_steps": settings.num_steps}
        return resolve({**fixed, **shared, **batch, **more, "algorithm": algorithm}).settings()


def measure(contestant: str, task: Task) -> dict[str, Any]:
    """Measure one contestant in this process.

    Args:
        contestant: "emulator", "a2c", "acktr", "a2c-float32", "acktr-float32", "acktr-overlap", "sb3-a2c",
            "sb3-a2c-subproc" or "sb3-ppo".
        task: on what.

    Returns:
        Plain values: the rate in decisions (`steps_per_second`) and in rows of the vector environment
        (`rows_per_second`), which for ours hold resets and forced FIREs too; the `laps`, with all of the update under
        the label "update", what another thread does meanwhile under none; the peak memory in MB; and what it ran with.
    """
    if contestant == "emulator":
        result = _measure_emulator(task)
    elif contestant.startswith("sb3-"):
        result = _measure_sb3(contestant, task)
    else:
        result = _measure_ours(contestant, task)
    return {"contestant": contestant, "torch": torch.__version__, "threads": torch.get_num_threads(), **result}


# --- ours --------------------------------------------------------------------------------------------------------


def _measure_ours(contestant: str, task: Task) -> dict[str, Any]:
    algorithm, _, variant = contestant.partition("-")
    trainer = make_trainer(task.settings(algorithm, **VARIANTS[variant]))
    with contextlib.closing(trainer.environment):
        _warm_up(trainer)
        rate = _rate(trainer, task.seconds)
        laps = _laps(trainer, task.seconds / 2)
        settings = trainer.settings
        return {
            **rate,
            "laps": laps,
            **peak_memory(),
            "precision": settings.precision,
            "device": _device_name(trainer.device),
            "vectorization": settings.vectorization if trainer.environment.vectorization else None,
            "num_envs": settings.num_envs,
            "num_steps": settings.num_steps,
        }


def make_trainer(settings: Settings) -> Trainer:
    """A trainer as `acktr train` makes it, without a run folder."""
    environment = runs.make_environment(settings)
    settings = runs.with_choices(settings, environment)
    threads.set_threads(settings.num_threads, small=not runs.is_convolutional(settings, environment))
    device, _ = runs.choose_device(settings, environment)
    settings, _ = runs.with_precision(settings, environment, device)
    streams = Streams(settings.seed, device)
    streams.seed_globals()
    policy = runs.build_policy(settings, environment, device)
    updater = runs.build_updater(settings, policy, streams)
    reporter = Reporter(None, settings, console=False)
    return Trainer(settings, environment, policy, updater=updater, streams=streams, reporter=reporter, folder=None)


def _warm_up(trainer: Trainer) -> None:
    if isinstance(trainer.updater, ACKTRUpdater):
        _train(trainer, WARMUP_UPDATES)
        # K-FAC renews the inverses of a young network more often. Told that it is an old one, it keeps the pace of
        # the rest of a run at once, without the hundred updates that this would take: every inverse exists by now,
        # and what is in it does not change its cost.
        for learner in (trainer.updater.actor, trainer.updater.critic):
            if learner is not None:
                learner.optimizer.steps = SETTLED_STEPS
    _train(trainer, SETTLING_UPDATES)


def _train(trainer: Trainer, updates: int, seconds: float = 0.0, between: Callable[[], None] = lambda: None) -> None:
    """At least that many updates, for at least so long; `between` is called before, between and after them."""
    end, last = 0.0, trainer.updates + updates

    def stop() -> bool:
        nonlocal end
        between()
        end = end or time.perf_counter() + seconds
        return trainer.updates >= last and time.perf_counter() >= end

    trainer.train(stop=stop)


def _rate(trainer: Trainer, seconds: float) -> dict[str, float]:
    marks: list[tuple[float, int, int]] = []
    synchronize = _synchronizer(trainer.device)
    synchronize()
    _train(trainer, 1, seconds, lambda: marks.append((time.perf_counter(), trainer.timesteps, trainer.updates)))
    synchronize()
    elapsed = time.perf_counter() - marks[0][0]
    rows = (marks[-1][2] - marks[0][2]) * trainer.settings.num_envs * trainer.settings.num_steps
    return {"steps_per_second": (marks[-1][1] - marks[0][1]) / elapsed, "rows_per_second": rows / elapsed}


def _laps(trainer: Trainer, seconds: float) -> Laps:
    clock = PhaseClock(_synchronizer(trainer.device))
    plain = trainer.updater.update

    def update(*args: Any, **options: Any) -> Any:
        with clock("update"):
            return plain(*args, **options)

    started = False

    def between() -> None:
        nonlocal started
        if started:
            clock.lap()
        else:
            clock.start()
        started = True

    trainer.updater.update = update  # type: ignore[method-assign]
    try:
        with clocked(clock):
            _train(trainer, CLOCKED_UPDATES, seconds, between)
    finally:
        del trainer.updater.update
    return clock.laps


def _synchronizer(device: torch.device) -> Callable[[], None]:
    if device.type != "cuda":
        return lambda: None

    def synchronize() -> None:
        if not torch.cuda.is_current_stream_capturing():  # no waiting inside a CUDA graph
            torch.cuda.synchronize()

    return synchronize


# --- the environments alone --------------------------------------------------------------------------------------


def _measure_emulator(task: Task) -> dict[str, Any]:
    """Of Atari ale-py's own vector environment, else ours, under actions drawn at random beforehand."""
    settings = task.settings()
    environment = runs.make_environment(settings)
    with contextlib.closing(environment):
        environment.reset(list(range(settings.num_envs)))
        space = batch_space(environment.action_space, settings.num_envs)
        space.seed(0)
        actions = [space.sample() for _ in range(1000)]
        step: Callable[[Any], Any]
        step = environment._emulator.step if isinstance(environment, AtariEnvironment) else environment.step
        count, first, start = 0, WARMUP_UPDATES * settings.num_steps, time.perf_counter()
        while count <= first or time.perf_counter() - start < task.seconds:
            if count == first:
                start = time.perf_counter()
            step(actions[count % len(actions)])
            count += 1
        rate = (count - first) * settings.num_envs / (time.perf_counter() - start)
        return {
            "steps_per_second": rate,
            "rows_per_second": rate,
            **peak_memory(),
            "vectorization": environment.vectorization,
            "num_envs": settings.num_envs,
            "num_steps": settings.num_steps,
        }


# --- stable-baselines3 -------------------------------------------------------------------------------------------


def _measure_sb3(contestant: str, task: Task) -> dict[str, Any]:
    """Whole iterations of its training loop, with as many threads as ours: on small networks a second one slows it."""
    from stable_baselines3.common.callbacks import BaseCallback

    atari = family(task.env) == "atari"
    threads.set_threads(task.settings().num_threads, small=not atari)
    model = _sb3_atari(contestant, task) if atari else _sb3_vectors(contestant, task)
    warmup = 1 if contestant == "sb3-ppo" else SETTLING_UPDATES
    synchronize = _synchronizer(model.device)

    class Marks(BaseCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.starts: list[float] = []
            self.ends: list[float] = []

        def _on_rollout_start(self) -> None:
            synchronize()
            self.starts.append(time.perf_counter())

        def _on_rollout_end(self) -> None:
            synchronize()
            self.ends.append(time.perf_counter())

        def _on_step(self) -> bool:
            return len(self.starts) < warmup + 2 or self.starts[-1] - self.starts[warmup] < task.seconds

    marks = Marks()
    model.learn(10**9, callback=marks)
    starts, ends = marks.starts[warmup:], marks.ends[warmup:]
    rate = (len(starts) - 1) * model.n_envs * model.n_steps / (starts[-1] - starts[0])
    result = {
        "steps_per_second": rate,
        "rows_per_second": rate,
        "laps": [
            {"": end - start, "update": next_start - end}
            for start, end, next_start in zip(starts, ends, starts[1:], strict=False)
        ],
        **peak_memory(),
        "precision": "float32",
        "device": _device_name(model.device),
        "stable_baselines3": importlib.metadata.version("stable-baselines3"),
        "num_envs": model.n_envs,
        "num_steps": model.n_steps,
    }
    model.get_env().close()
    return result


def _sb3_atari(contestant: str, task: Task) -> Any:
    """On its own Atari wrappers, with our network: convolutions of 32, 64 and 32 channels and 512 features.

    The other settings are those of rl-zoo for Atari.
    """
    from stable_baselines3 import A2C, PPO
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

    class Nature(BaseFeaturesExtractor):  # type: ignore[misc]
        def __init__(self, observation_space: Any) -> None:
            super().__init__(observation_space, 512)
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(observation_space.shape[0], 32, 8, 4),
                torch.nn.ReLU(),
                torch.nn.Conv2d(32, 64, 4, 2),
                torch.nn.ReLU(),
                torch.nn.Conv2d(64, 32, 3, 1),
                torch.nn.ReLU(),
                torch.nn.Flatten(),
                torch.nn.Linear(32 * 7 * 7, 512),
                torch.nn.ReLU(),
            )

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.layers(observations)
            return features

    settings = task.settings()
    kind = SubprocVecEnv if contestant == "sb3-a2c-subproc" else DummyVecEnv
    # `ale_py:` makes the worker processes register the games too; its wrappers skip the frames
    games = make_atari_env(
        f"ale_py:{task.env}", settings.num_envs, seed=0, env_kwargs={"frameskip": 1}, vec_env_cls=kind
    )
    env = VecFrameStack(games, n_stack=4)
    options: dict[str, Any] = {
        "policy_kwargs": {"features_extractor_class": Nature, "net_arch": []},
        "device": task.device,
    }
    if contestant != "sb3-ppo":
        return A2C("CnnPolicy", env, n_steps=settings.num_steps, ent_coef=0.01, vf_coef=0.25, **options)
    tuned: dict[str, Any] = {"n_steps": 128, "batch_size": 256, "n_epochs": 4, "ent_coef": 0.01, "clip_range": 0.1}
    return PPO("CnnPolicy", env, learning_rate=2.5e-4, **tuned, **options)


def _sb3_vectors(contestant: str, task: Task) -> Any:
    """Its MlpPolicy: A2C on 4 environments x 8 steps, PPO as it comes."""
    from stable_baselines3 import A2C, PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import SubprocVecEnv

    device = "cpu" if task.device == "auto" else task.device  # where it wants its MlpPolicy to be
    if contestant == "sb3-ppo":
        return PPO("MlpPolicy", make_vec_env(task.env), device=device)
    kind = SubprocVecEnv if contestant == "sb3-a2c-subproc" else None
    return A2C("MlpPolicy", make_vec_env(task.env, 4, seed=0, vec_env_cls=kind), n_steps=8, device=device)


# --- memory and machine ------------------------------------------------------------------------------------------


def peak_memory() -> dict[str, float]:
    """Peak MB of this process, of its worker processes together (on Linux), and of torch's tensors on the GPU."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    memory = {
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
        "workers_peak_memory_mb": sum(_peak_of(process) for process in _workers()),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        memory["cuda_peak_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return memory


def _workers(process: str = "self") -> Iterator[str]:
    """Processes under that one which still run; getrusage knows of ended ones alone, and counts what forked them."""
    for listing in Path(f"/proc/{process}/task").glob("*/children"):
        for child in listing.read_text().split():
            yield child
            yield from _workers(child)


def _peak_of(process: str) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return sum(int(line.split()[1]) / 2**10 for line in status.splitlines() if line.startswith("VmHWM:"))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
