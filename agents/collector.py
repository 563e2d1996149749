"""Rollouts: the policy acts, the environments step, and what came of it becomes a batch."""

import contextlib
import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch._C._autograd import _profiler_enabled as labels_are_read
from torch.profiler import record_function

from acktr.agents.normalization import RewardScale
from acktr.agents.part import Part
from acktr.agents.policy import ActorCritic
from acktr.agents.rollout import Batch, Rollout
from acktr.agents.settings import Settings
from acktr.agents.streams import Streams
from acktr.envs.batches import ObservationBatch
from acktr.envs.vector import VectorEnvironment


class Episode(NamedTuple):
    """An episode that ended in a rollout."""

    step: int
    """Of the rollout, from 0."""
    raw_return: float
    length: int
    """In environment steps."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What one rollout gave.

    Attributes:
        batch: to learn from.
        episodes: those that ended, in the order of their ends.
    """

    batch: Batch
    episodes: list[Episode]


class Collector:
    """Lets a policy act in N environments, T steps at a time.

    Args:
        settings: the run's settings, resolved.
        environment: the part's environments.
        part: which of the run's they are.
        streams: the run's random streams, of which the environments' seeds and the actions are drawn.
        device: the policy's.
        recalls: keep what the policy's layers give, too, for `Batch.replaying`.
        buffers: rollouts kept; a batch shares memory with its rollout, and holds until that many more are begun.

    Attributes:
        values_later: whether the values of a rollout are computed in one pass at its end, not step by step.
    """

    def __init__(
        self,
        settings: Settings,
        environment: VectorEnvironment,
        part: Part,
        streams: Streams,
        *,
        device: torch.device,
        recalls: bool,
        values_later: bool,
        buffers: int = 1,
    ) -> None:
        self.settings = settings
        self.environment = environment
        self.part = part
        self.values_later = values_later
        self._streams = streams
        self._rollouts = [
            Rollout(
                num_steps=settings.num_steps,
                part=part,
                observation_space=environment.observation_space,
                device=device,
                recalls=recalls,
            )
            for _ in range(buffers)
        ]
        self._turn = 0
        scaled = settings.scale_rewards
        self._reward_scale = RewardScale(part=part, gamma=settings.gamma) if scaled else None
        self._fresh: ObservationBatch | None = None

    def restart(self) -> None:
        """Begin a fresh episode in every environment."""
        if self._reward_scale is not None:
            self._reward_scale.restart()
        first, number = self.part.first, self.part.count
        seeds = self._streams.environment_seeds(self.part.num_envs)
        self._fresh = self.environment.reset(seeds[first : first + number])

    def collect(self, policy: ActorCritic) -> Collected:
        """Make a rollout; the policy must not change meanwhile.

        Raises:
            RunError: an environment failed, or was given an action that is not finite.
        """
        with policy.unchanging():
            return self._roll_out(policy)

    def _roll_out(self, policy: ActorCritic) -> Collected:
        settings, last = self.settings, self._rollouts[self._turn]
        self._turn = (self._turn + 1) % len(self._rollouts)
        rollout = self._rollouts[self._turn]
        rollout.start(last if self._fresh is None else self._fresh)
        self._fresh = None
        episodes: list[Episode] = []
        here = slice(self.part.first, self.part.first + self.part.count)
        draws = self.part.draws(self._streams.actions, here, self.part.num_envs)
        for index in range(settings.num_steps):
            with _labelled("acktr::act"), rollout.acting(index):
                actions, outcomes, values = policy.act_and_value(
                    rollout.observed(index), generator=draws, valued=not self.values_later
                )
                host_actions = actions.cpu().numpy()
            with _labelled("acktr::environment"):
                step = self.environment.step(host_actions)
            rewards: NDArray[Any] = np.sign(step.rewards) if settings.reward_clip == "sign" else step.rewards
            rollout.store(index, actions=outcomes, values=values, rewards=rewards, step=step)
            if step.episode_returns.size:
                ends = zip(step.episode_returns.tolist(), step.episode_lengths.tolist(), strict=True)
                episodes.extend(Episode(index, raw_return, length) for raw_return, length in ends)
        if self._reward_scale is not None:
            rollout.scale_rewards(self._reward_scale)
        batch = rollout.finish(policy, gamma=settings.gamma, gae_lambda=settings.gae_lambda)
        return Collected(batch=batch, episodes=episodes)

    def strange(self) -> str | None:
        """What no network can learn from in the rollouts that are kept; see `Rollout.strange`."""
        return next((found for rollout in self._rollouts if (found := rollout.strange()) is not None), None)

    def state_dict(self) -> dict[str, float] | None:
        """The scale of the rewards, where they are scaled; episodes in progress are not kept."""
        return None if self._reward_scale is None else self._reward_scale.state_dict()

    def load_state_dict(self, state: dict[str, float] | None) -> None:
        """Take back what `state_dict` gave."""
        if self._reward_scale is not None and state is not None:
            self._reward_scale.load_state_dict(state)


def _labelled(name: str) -> contextlib.AbstractContextManager[Any]:
    """Torch's label where somebody reads it: each takes 5 microseconds, at every step of a rollout."""
    return record_function(name) if labels_are_read() else contextlib.nullcontext()
