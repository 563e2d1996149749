"""The loop: act, step, store, update, log, checkpoint."""

import dataclasses
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acktr.agents.collector import Collector, Episode
from acktr.agents.overlap import OverlappedCollector
from acktr.agents.policy import ActorCritic
from acktr.agents.recall import recallable
from acktr.agents.reporting import Reporter
from acktr.agents.rollout import Batch
from acktr.agents.run_folder import RunFolder
from acktr.agents.settings import Settings
from acktr.agents.spaces import space_to_dict
from acktr.agents.streams import Streams
from acktr.agents.updates import Updater
from acktr.agents.world import World
from acktr.envs.vector import VectorEnvironment
from acktr.errors import RunError

RETURN_WINDOW = 100
"""Episodes that `return_mean` is taken over."""


class Trainer:
    """Trains one policy on one vector of environments.

    Args:
        settings: the run's settings, resolved.
        environment: the environments of this process.
        policy: the network to train, on its device.
        updater: the algorithm that changes its parameters.
        streams: the run's random streams.
        reporter: where progress goes.
        folder: where checkpoints go; None keeps none.
        world: the processes that train together; None for this one alone.
    """

    def __init__(
        self,
        settings: Settings,
        environment: VectorEnvironment,
        policy: ActorCritic,
        *,
        updater: Updater,
        streams: Streams,
        reporter: Reporter,
        folder: RunFolder | None,
        world: World | None = None,
    ) -> None:
        self.world = World() if world is None else world
        self.settings = settings
        self.environment = environment
        self.policy = policy
        self.streams = streams
        self.reporter = reporter
        self.folder = folder
        self.device = next(policy.parameters()).device
        self.updater = updater
        # what older parameters gave serves no update, nor what others than those that learn did
        recalls = settings.reuse_forward and recallable(policy.torso) and not settings.overlap
        recalls = recalls and settings.exploration == "none"
        self.collector = Collector(
            settings,
            environment,
            self.world.part(settings.num_envs),
            streams,
            device=self.device,
            recalls=recalls,
            # a critic of its own judges the whole rollout in one pass
            values_later=policy.value_torso is not None,
            buffers=2 if settings.overlap else 1,
        )
        self._overlapped = OverlappedCollector(self.collector, policy) if settings.overlap else None
        self.timesteps = 0
        self.updates = 0
        self.episodes = 0
        self.wall_time = 0.0
        self.best_return = -math.inf
        self.returns: deque[float] = deque(maxlen=RETURN_WINDOW)
        self.lengths: deque[int] = deque(maxlen=RETURN_WINDOW)
        self._interval = Interval()
        self._checkpoint_at = 0
        self._schedule = (0, 0.0)

    def train(self, *, stop: Callable[[], bool] = lambda: False) -> bool:
        """Run until `total_timesteps`, or until `stop()` says so between two updates.

        Returns:
            Whether the run is complete.

        Raises:
            RunError: training diverged, or a checkpoint could not be written; the last good checkpoint is kept.
        """
        settings = self.settings
        if self.timesteps >= settings.total_timesteps:
            return True
        self.collector.restart()
        started = time.perf_counter() - self.wall_time
        self._interval.start(self.timesteps, self.wall_time)
        self._checkpoint_at = self._next_checkpoint()
        try:
            while self.timesteps < settings.total_timesteps and not any(self.world.gather(stop())):
                self._iterate(started)
        finally:
            if self._overlapped is not None:
                self._overlapped.discard()
        complete = self.timesteps >= settings.total_timesteps
        if complete or not settings.exact_resume:  # exact resume goes on from a barrier, which an interruption is not
            self.checkpoint(is_final=complete)
        return complete

    def _iterate(self, started: float) -> None:
        settings = self.settings
        batch = self._collect()
        report = self.updater.update(batch, progress=self.progress)
        # after the update: actions are drawn and learnt from under the same moments
        self.policy.encoder.observe(batch.observations, batch.weights, batch.part)
        self._interval.add(report.figures)
        self.timesteps += batch.valid_rows
        self.updates += 1
        self.wall_time = time.perf_counter() - started
        complete = self.timesteps >= settings.total_timesteps
        if self.updates % settings.log_interval == 0 or complete:
            self._log()
        self.reporter.status(
            timesteps=self.timesteps, steps_per_second=self._interval.rate(self.timesteps, self.wall_time)
        )
        if self.timesteps >= self._checkpoint_at and not complete:
            self.checkpoint()
            self._checkpoint_at = self._next_checkpoint()
            if settings.exact_resume:
                self.collector.restart()

    def extend(self, timesteps: int) -> None:
        """Set the end that many timesteps ahead; schedules start anew and run until there."""
        self._schedule = (self.timesteps, 0.0)
        self.settings = dataclasses.replace(self.settings, total_timesteps=self.timesteps + timesteps)
        self.reporter.expect(self.settings.total_timesteps)

    def stretch(self, total_timesteps: int) -> None:
        """Set another end; schedules go on from their present value and reach theirs there."""
        self._schedule = (self.timesteps, self.progress)
        self.settings = dataclasses.replace(self.settings, total_timesteps=total_timesteps)
        self.reporter.expect(total_timesteps)

    @property
    def progress(self) -> float:
        """Share of the schedules that is over, 0 to 1."""
        since, before = self._schedule
        return before + (1 - before) * (self.timesteps - since) / max(1, self.settings.total_timesteps - since)

    def _collect(self) -> Batch:
        try:
            if self._overlapped is not None:
                collected = self._overlapped.next()
            else:
                with self.updater.exploring():
                    collected = self.collector.collect(self.policy)
        except RunError as error:
            if (strange := self.collector.strange()) is None:
                raise RunError(f"{error}; {self._kept()}") from error
            raise RunError(
                f"training stopped at {self.timesteps} timesteps: the environment gave {strange}; {self._kept()}; mend "
                "the environment"
            ) from error
        ended = itertools.chain.from_iterable(self.world.gather(collected.episodes))
        for episode in sorted(ended, key=_step):  # ranks have their environments in order
            self.returns.append(episode.raw_return)
            self.lengths.append(episode.length)
            self.episodes += 1
        return collected.batch

    def _next_checkpoint(self) -> int:
        interval = self.settings.checkpoint_interval
        return (self.timesteps // interval + 1) * interval

    def _log(self) -> None:
        figures = self._interval.means()
        counters = self.updater.counters()
        row: dict[str, float | int | None] = {
            "timesteps": self.timesteps,
            "updates": self.updates,
            "wall_time": self.wall_time,
            "steps_per_second": self._interval.rate(self.timesteps, self.wall_time),
            "episodes": self.episodes,
            "learning_rate": self.updater.learning_rate(),
            **figures,
            **counters,
        }
        if self.returns:
            row["return_mean"] = float(np.mean(self.returns))
            row["return_std"] = float(np.std(self.returns))
            row["length_mean"] = float(np.mean(self.lengths))
        self.reporter.row(row)
        self._check_divergence(figures, counters)
        self._interval.start(self.timesteps, self.wall_time)
        self._interval.skipped = counters["skipped_batches"]

    def _check_divergence(self, figures: Mapping[str, float], counters: Mapping[str, int]) -> None:
        skipped = counters["skipped_batches"] - self._interval.skipped
        if skipped < self._interval.updates and all(math.isfinite(value) for value in self.returns):
            return
        reason = (
            f"each of the last {skipped} batches gave a gradient or a step that is not finite"
            if skipped >= self._interval.updates
            else "an episode's return is not finite"
        )
        advice = "try a smaller max_kl or lr, or reward_clip sign"
        if (strange := self.collector.strange()) is not None:
            reason, advice = f"the environment gave {strange}", "mend the environment"
        self.reporter.message(f"last losses: policy {figures['policy_loss']:.4g}, value {figures['value_loss']:.4g}")
        raise RunError(f"training diverged at {self.timesteps} timesteps: {reason}; {self._kept()}; {advice}")

    def _kept(self) -> str:
        if self.folder is not None and (last := self.folder.latest_checkpoint()) is not None:
            return f"the last good checkpoint is {last}"
        return "no checkpoint was written yet"

    # --- persistence -------------------------------------------------------------------------------------------

    def checkpoint(self, *, is_final: bool = False) -> None:
        """Write a checkpoint, marked best when the mean return never was higher over a full window."""
        if self.folder is None and self.world.is_alone:
            return
        if self._overlapped is not None:
            self._overlapped.settle()
        is_best = False
        if len(self.returns) == RETURN_WINDOW or is_final:
            mean = float(np.mean(self.returns)) if self.returns else -math.inf
            is_best = mean > self.best_return
            self.best_return = max(mean, self.best_return)
        state = self.state_dict()  # of all processes, some of which may hold inverses that the others have not
        self.world.led(lambda: self._write_checkpoint(state, is_best=is_best, is_final=is_final))
        if self.folder is not None:
            self.reporter.conditions(self.updater.conditions(), timesteps=self.timesteps)

    def _write_checkpoint(self, state: Mapping[str, Any], *, is_best: bool, is_final: bool) -> None:
        if self.folder is not None:
            self.folder.write_checkpoint(state, timesteps=self.timesteps, is_best=is_best, is_final=is_final)

    def state_dict(self) -> dict[str, Any]:
        """Everything a checkpoint holds (docs/architecture.md)."""
        return {
            **self.policy_state(),
            "training": {
                "updater": self.updater.state_dict(),
                "streams": self.streams.state_dict(),
                "schedule": list(self._schedule),
                "updates": self.updates,
                "episodes": self.episodes,
                "returns": list(self.returns),
                "lengths": list(self.lengths),
                "best_return": self.best_return,
                "reward_scale": self.collector.state_dict(),
                "wall_time": self.wall_time,
            },
        }

    def policy_state(self) -> dict[str, Any]:
        """What using the policy takes, without what training it further takes."""
        return {
            "settings": self.settings.to_dict(),
            "observation_space": space_to_dict(self.environment.observation_space),
            "action_space": space_to_dict(self.environment.action_space),
            "protocol": dict(self.environment.protocol),
            "timesteps": self.timesteps,
            "return_mean": float(np.mean(self.returns)) if self.returns else None,
            "own_torso": self.policy.own_torso,
            "policy": self.policy.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; the environments start fresh episodes at the next `train`."""
        self.policy.load_state_dict(dict(state["policy"]))
        training = state["training"]
        self.updater.load_state_dict(training["updater"])
        self.streams.load_state_dict(training["streams"])
        self.timesteps = state["timesteps"]
        self._schedule = (training["schedule"][0], training["schedule"][1])
        self.updates = training["updates"]
        self.episodes = training["episodes"]
        self.collector.load_state_dict(training["reward_scale"])
        self.returns.extend(training["returns"])
        self.lengths.extend(training["lengths"])
        self.best_return = training["best_return"]
        self.wall_time = training["wall_time"]
        self._interval.skipped = self.updater.counters()["skipped_batches"]


def _step(episode: Episode) -> int:
    return episode.step


class Interval:
    """Figures gathered between two rows of metrics.csv, kept on the device until the row is written."""

    def __init__(self) -> None:
        self.updates = 0
        self.skipped = 0
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._timesteps = 0
        self._wall_time = 0.0

    def start(self, timesteps: int, wall_time: float) -> None:
        """Begin a new interval."""
        self.updates = 0
        self._sums = {}
        self._timesteps = timesteps
        self._wall_time = wall_time

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Add one update's figures."""
        self.updates += 1
        for name, value in figures.items():
            total, count = self._sums.get(name, (torch.zeros_like(value), 0))
            self._sums[name] = (total + value, count + 1)

    def means(self) -> dict[str, float]:
        """Mean of each figure over the updates that reported it, read from the device at once."""
        if not self._sums:
            return {}
        stacked = torch.stack([total.float() / count for total, count in self._sums.values()])
        return dict(zip(self._sums, stacked.tolist(), strict=True))

    def rate(self, timesteps: int, wall_time: float) -> float:
        """Steps per second since the interval began."""
        elapsed = wall_time - self._wall_time
        return (timesteps - self._timesteps) / elapsed if elapsed > 0 else 0.0
