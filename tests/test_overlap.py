"""Acting one update behind: exactly one, whatever the timing, and it learns."""

import copy
import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from oracles import flat_parameters
from torch.distributions import Categorical

import acktr
from acktr.agents import runs
from acktr.agents.collector import Collected
from acktr.agents.forward_pass import Outputs
from acktr.agents.losses import Policies
from acktr.agents.metrics_file import read_metrics
from acktr.agents.presets import resolve
from acktr.agents.run_folder import RunFolder
from acktr.agents.trainer import Trainer
from acktr.errors import RunError, UserError
from acktr.kfac import Fisher

FRAMES = {"num_envs": 3, "num_steps": 6, "conv_channels": (4, 6, 3), "conv_features": 32, "num_threads": 1}
VECTORS = {"num_envs": 2, "num_steps": 32, "hidden_sizes": (8, 8), "num_threads": 1}


def trainer_of(env: Any, **options: Any) -> Trainer:
    trainer = acktr.ACKTR(env, overlap=True, seed=4, **options)._trainer
    trainer.collector.restart()
    return trainer


class OneBehind:
    """The definition, in one thread: collect with the parameters as they are before the update that comes next."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._ready = self._collect()

    def _collect(self) -> Collected:
        collected = self._trainer.collector.collect(copy.deepcopy(self._trainer.policy))
        return dataclasses.replace(collected, batch=dataclasses.replace(collected.batch, is_on_policy=False))

    def next(self) -> Collected:
        found, self._ready = self._ready, self._collect()
        return found


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("BreakoutNoFrameskip-v4", FRAMES),
        ("Pendulum-v1", {**VECTORS, "normalize_observations": True, "scale_rewards": True}),
        ("CartPole-v1", VECTORS),
    ],
    ids=["frames", "two torsos and running scales", "vectors"],
)
@pytest.mark.parametrize("slow", ["learning", "acting"])
def test_each_batch_is_made_exactly_one_update_before_it_is_learnt_from(
    env: str, options: dict[str, Any], slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlapped, plain = trainer_of(env, **options), trainer_of(env, **options)
    reference = OneBehind(plain)
    collect = overlapped.collector.collect
    pause = 0.05 if slow == "acting" else 0.0
    monkeypatch.setattr(overlapped.collector, "collect", lambda policy: (time.sleep(pause), collect(policy))[1])
    assert overlapped._overlapped is not None
    for _ in range(5):
        mine, theirs = overlapped._overlapped.next().batch, reference.next().batch
        assert torch.equal(mine.actions, theirs.actions)
        assert torch.equal(mine.returns, theirs.returns)
        for trainer, batch in ((overlapped, mine), (plain, theirs)):
            if trainer is overlapped and slow == "learning":
                time.sleep(0.05)
            trainer.updater.update(batch, progress=0.1)
            trainer.policy.encoder.observe(batch.observations, batch.weights, batch.part)
        assert torch.equal(flat_parameters(overlapped.policy), flat_parameters(plain.policy))
    overlapped._overlapped.discard()


def test_the_next_batch_is_collected_while_the_last_one_is_learnt_from() -> None:
    learning = threading.Event()

    class Waiting(gymnasium.Wrapper[Any, Any, Any, Any]):
        """From the second rollout on it goes on only once an update is under way."""

        steps = 0

        def step(self, action: Any) -> Any:
            self.steps += 1
            if self.steps == VECTORS["num_steps"] + 1:
                assert learning.wait(60), "nothing is learnt while this is collected"
            return super().step(action)

    trainer = trainer_of(lambda: Waiting(gymnasium.make("CartPole-v1")), **VECTORS)
    batch = trainer._collect()
    learning.set()
    trainer.updater.update(batch, progress=0.0)
    assert not torch.equal(trainer._collect().observations, batch.observations)  # type: ignore[arg-type]
    assert trainer._overlapped is not None
    trainer._overlapped.discard()


def test_older_actions_are_no_draws_from_the_policy_that_learns() -> None:
    learner = acktr.ACKTR("CartPole-v1", **VECTORS)._trainer.updater.actor  # type: ignore[attr-defined]
    trainer = trainer_of("CartPole-v1", **VECTORS)
    batch = trainer._collect()
    assert not batch.is_on_policy
    assert batch.recall is None
    part = Policies(rows=slice(None), distribution=Categorical(logits=torch.zeros(len(batch.actions), 2)))
    outputs = Outputs(rows=slice(None), policies=part, values=None)
    assert outputs.policies is not None
    fresh = learner._policy_metric(outputs.policies, batch, learner._generator)
    reused = learner._policy_metric(outputs.policies, dataclasses.replace(batch, is_on_policy=True), learner._generator)
    assert isinstance(fresh, Fisher)
    assert fresh.draw is None
    assert fresh.generator is learner._generator
    assert torch.equal(reused.draw, batch.actions)
    assert trainer._overlapped is not None
    trainer._overlapped.discard()


def test_a_failing_environment_ends_the_run_with_its_reason() -> None:
    class Failing(gymnasium.Wrapper[Any, Any, Any, Any]):
        steps = 0

        def step(self, action: Any) -> Any:
            self.steps += 1
            if self.steps > 100:
                raise ValueError("the motor is hot")
            return super().step(action)

    agent = acktr.ACKTR(lambda: Failing(gymnasium.make("CartPole-v1")), overlap=True, **VECTORS)
    with pytest.raises(RunError, match=r"the motor is hot.*no checkpoint was written yet"):
        agent.learn(1000)
    agent.close()


def test_training_leaves_no_rollout_running_and_goes_on_when_called_again() -> None:
    agent = acktr.ACKTR("CartPole-v1", overlap=True, **VECTORS).learn(500)
    overlapped = agent._trainer._overlapped
    assert overlapped is not None
    assert overlapped._pending is None
    before = flat_parameters(agent.policy)
    agent.learn(500)
    assert agent.timesteps >= 1000
    assert not torch.equal(before, flat_parameters(agent.policy))
    agent.close()


def test_a_run_is_resumed_from_a_checkpoint_made_while_it_was_collecting(tmp_path: Path) -> None:
    options = {"env": "CartPole-v1", "overlap": True, "total_timesteps": 2000, "checkpoint_interval": 300, **VECTORS}
    folder = runs.train(resolve(options).settings(), run_dir=tmp_path / "run")
    assert len(list((folder / "checkpoints").glob("*.safetensors"))) > 1
    runs.resume(folder, total_timesteps=4000)
    rows = read_metrics(folder / "metrics.csv")
    assert (rows[-1]["timesteps"] or 0) >= 4000
    assert RunFolder.open(folder).settings.overlap


def test_it_learns_cartpole() -> None:
    agent = acktr.ACKTR("CartPole-v1", overlap=True, num_threads=1, seed=0).learn(100_000)
    assert agent.return_mean is not None
    assert agent.return_mean > 450
    agent.close()


@pytest.mark.parametrize(
    "other", [{"exact_resume": True}, {"exploration": "noisy-kfac"}, {"pixels": True, "vectorization": "sync"}]
)
def test_what_it_excludes_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="exclude each other"):
        acktr.ACKTR("CartPole-v1", overlap=True, **other)
