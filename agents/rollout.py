"""The on-policy buffer: T steps of N environments, preallocated, turned into one batch."""

import contextlib
import dataclasses
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acktr.agents.encoders import is_image
from acktr.agents.normalization import RewardScale
from acktr.agents.observations import Observations, take_rows, to_tensors
from acktr.agents.part import Part, weighted_sum
from acktr.agents.policy import ActorCritic
from acktr.agents.recall import Recall
from acktr.agents.recalled_layers import RowSink
from acktr.agents.returns import gae
from acktr.envs.batches import ObservationBatch, leaf_spaces, leaves, map_leaves
from acktr.envs.vector import Step
from acktr.kfac import weighted_mean


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """M = T · N rows, time-major, on the policy's device; of a batch in parts, those of the environments here.

    Attributes:
        observations: (M, *space), raw; for a Dict a dictionary of them.
        actions: (M,) int64 or (M, d): outcomes of the policy's distributions.
        advantages: (M,).
        returns: (M,) value targets.
        weights: (M,) with 0 for rows that are no real transition, or None when all rows are real.
        valid_rows: number of real transitions, those of all parts.
        part: which of the environments are here.
        is_on_policy: whether the actions were drawn by the parameters that learn from them.
        recall: what the layers gave while acting, or None.
    """

    observations: Observations
    actions: Tensor
    advantages: Tensor
    returns: Tensor
    weights: Tensor | None
    valid_rows: int
    part: Part
    is_on_policy: bool = True
    recall: Recall | None = None

    @property
    def forward_is_known(self) -> bool:
        """Whether `replaying` spares the forward pass: the weights are those that acted."""
        return self.recall is not None and self.recall.is_valid

    def replaying(
        self, rows: Tensor | slice, *, trains: bool = True, sink: RowSink | None = None
    ) -> contextlib.AbstractContextManager[Any]:
        """For a forward pass of these rows: its layers' outputs are taken from the rollout's where that is possible.

        The arguments are those of `Recall.replaying`, and change nothing where it is not.
        """
        if self.recall is None or not self.recall.is_valid:
            return contextlib.nullcontext()
        return self.recall.replaying(rows, trains=trains, sink=sink)

    def mean_share(self, values: Tensor, weights: Tensor | None) -> Tensor:
        """What this part adds to a mean over all valid rows, 0-d with its graph; the mean itself of a whole batch.

        Args:
            values: (m,) of the rows here, in any order.
            weights: (m,) theirs, or None.
        """
        if self.part.is_whole:
            return weighted_mean(values, weights)
        return weighted_sum(values, weights) / max(1, self.valid_rows)

    def observed(self, rows: Tensor | slice) -> Observations:
        """Observations of some rows."""
        return take_rows(self.observations, rows)


class Rollout:
    """Storage for one rollout. Frames stay uint8 and are copied to the device once.

    Args:
        num_steps: T.
        part: whose N environments.
        observation_space: of one environment.
        device: where the batch lives.
        recalls: keep what the policy's layers give, too, for `Batch.replaying`.
    """

    def __init__(
        self,
        *,
        num_steps: int,
        part: Part,
        observation_space: gymnasium.Space[object],
        device: torch.device,
        recalls: bool = False,
    ) -> None:
        num_envs = part.count

        def storage(space: gymnasium.Space[object]) -> Tensor:
            shape = [num_steps + 1, num_envs, *(space.shape or ())]
            if not is_image(space):
                return torch.zeros(shape, dtype=_observation_dtype(space), device=device)
            # channels last in memory, as the encoder wants them: put in that order once, not at every use
            channels = shape.pop(2)
            return torch.zeros((*shape, channels), dtype=torch.uint8, device=device).permute(0, 1, 4, 2, 3)

        self.num_steps = num_steps
        self._part = part
        self._recall = Recall(num_steps=num_steps, num_envs=num_envs) if recalls else None
        inner = leaf_spaces(observation_space)
        nested = isinstance(observation_space, gymnasium.spaces.Dict)
        self.observations: Observations = map_leaves(storage, inner if nested else observation_space)
        self.values = torch.zeros((num_steps + 1, num_envs), device=device)
        self._is_valued = True
        self._actions: list[Tensor] = []
        self._rewards = np.zeros((num_steps, num_envs))
        self._terminals = np.zeros((num_steps, num_envs), dtype=np.bool_)
        self._truncations = np.zeros((num_steps, num_envs), dtype=np.bool_)
        self._valid = np.ones((num_steps, num_envs), dtype=np.bool_)
        self._finals: list[tuple[int, NDArray[np.intp], ObservationBatch]] = []

    def start(self, at: "ObservationBatch | Rollout") -> None:
        """Begin a rollout at fresh observations, or where another one, or this one itself, has ended."""
        if isinstance(at, Rollout):
            map_leaves(lambda kept, last: kept[0].copy_(last[-1]), self.observations, at.observations)
        else:
            self._keep(0, at)
        self._actions.clear()
        self._finals.clear()

    def acting(self, index: int) -> contextlib.AbstractContextManager[None]:
        """For the forward pass that step `index` acts by."""
        return contextlib.nullcontext() if self._recall is None else self._recall.recording(index)

    def store(
        self, index: int, *, actions: Tensor, values: Tensor | None, rewards: NDArray[np.floating], step: Step
    ) -> None:
        """Keep step `index`: what was done and what came of it.

        Args:
            index: 0 to T - 1.
            actions: (N,) or (N, d) outcomes of the policy's distributions, on the device.
            values: (N,) of the observations acted on; None, at every step, leaves them to `finish`.
            rewards: (N,) as learnt from (clipped where the settings say so).
            step: what the environment returned.
        """
        self._keep(index + 1, step.observations)
        self._is_valued = values is not None
        if values is not None:
            self.values[index] = values
        self._actions.append(actions)
        self._rewards[index] = rewards
        self._terminals[index] = step.terminals
        self._truncations[index] = step.truncations
        self._valid[index] = step.valid
        if step.final_observations is not None and step.truncations.any():
            rows = np.flatnonzero(step.truncations)
            self._finals.append((index, rows, map_leaves(lambda leaf: leaf[rows], step.final_observations)))

    def scale_rewards(self, scale: RewardScale) -> None:
        """Replace the rewards of all steps by scaled ones."""
        ended = self._terminals | self._truncations
        self._rewards[:] = scale(self._rewards, ended=ended, valid=self._valid)

    def _keep(self, index: int, observations: ObservationBatch) -> None:
        map_leaves(lambda kept, new: kept[index].copy_(torch.from_numpy(new)), self.observations, observations)

    def strange(self) -> str | None:
        """What the environment returned in this rollout that no network can learn from; reads the device."""
        strange = ~np.isfinite(self._rewards) & self._valid
        if strange.any():
            return f"a reward that is not finite, in environment {np.argwhere(strange)[0, 1]}"
        named = self.observations if isinstance(self.observations, dict) else {"": self.observations}
        for name, leaf in named.items():
            finite = torch.isfinite(leaf.reshape(*leaf.shape[:2], -1)).all(2)  # a scalar's rows have no further axis
            if leaf.is_floating_point() and len(rows := (~finite).nonzero()):
                where = f" under '{name}'" if name else ""
                return f"an observation that is not finite{where}, in environment {rows[0, 1]}"
        return None

    def observed(self, index: int) -> Observations:
        """Observations (N, *space) that step `index` acts on."""
        return take_rows(self.observations, index)

    @torch.no_grad()
    def finish(self, policy: ActorCritic, *, gamma: float, gae_lambda: float) -> Batch:
        """Bootstrap, and return the batch.

        Truncated episodes bootstrap from their true final observation: the next stored one where the environment
        returned it there (NEXT_STEP), else one batched forward pass over the final observations set aside.
        """
        device = self.values.device
        if self._is_valued:
            self.values[self.num_steps] = policy.values(self.observed(self.num_steps))
        else:
            everything = map_leaves(lambda leaf: leaf.flatten(0, 1), self.observations)
            self.values.copy_(policy.values(everything).view_as(self.values))
        next_values = self.values[1:].clone()
        if self._finals:
            finals = map_leaves(lambda *parts: np.concatenate(parts), *[final for _, _, final in self._finals])
            steps = np.concatenate([np.full(len(rows), index) for index, rows, _ in self._finals])
            columns = np.concatenate([rows for _, rows, _ in self._finals])
            final_values = policy.values(to_tensors(finals, device))
            next_values[torch.from_numpy(steps).to(device), torch.from_numpy(columns).to(device)] = final_values
        terminals = torch.from_numpy(self._terminals).to(device)
        advantages = gae(
            rewards=torch.from_numpy(self._rewards).to(self.values),
            values=self.values[:-1],
            next_values=next_values,
            terminals=terminals,
            truncations=torch.from_numpy(self._truncations).to(device),
            gamma=gamma,
            gae_lambda=gae_lambda,
        )
        batch = Batch(
            observations=map_leaves(lambda leaf: leaf[:-1].flatten(0, 1), self.observations),
            actions=torch.stack(self._actions).flatten(0, 1),
            advantages=advantages.flatten(),
            returns=(advantages + self.values[:-1]).flatten(),
            weights=None,
            valid_rows=self._total(int(self._valid.sum())),
            part=self._part,
            recall=self._recall,
        )
        if self._valid.all():
            return batch
        return _without_invalid_rows(batch, torch.from_numpy(self._valid).to(device).flatten())

    def _total(self, number: int) -> int:
        """The sum over all processes of a number of each."""
        if self._part.hosts is None:
            return number
        (total,) = self._part.hosts.add_up([torch.tensor(number)], kind="rollouts")
        return int(total)


def _without_invalid_rows(batch: Batch, valid: Tensor) -> Batch:
    """The batch with weights; what rows of weight 0 hold becomes 0, since 0 times a NaN is one in a backward pass."""

    def cleared(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            return leaf
        return torch.where(valid.reshape(-1, *[1] * (leaf.dim() - 1)), leaf, 0.0)

    return dataclasses.replace(
        batch,
        observations=map_leaves(cleared, batch.observations),
        actions=cleared(batch.actions),
        advantages=torch.where(valid, batch.advantages, 0.0),
        returns=torch.where(valid, batch.returns, 0.0),
        weights=valid.to(batch.advantages),
        # what the layers made of a NaN is not cleared
        recall=None if any(leaf.is_floating_point() for leaf in leaves(batch.observations)) else batch.recall,
    )


def _observation_dtype(space: gymnasium.Space[object]) -> torch.dtype:
    if space.dtype == np.uint8:
        return torch.uint8
    if isinstance(space, gymnasium.spaces.MultiBinary):
        return torch.int8
    whole = isinstance(space, gymnasium.spaces.Discrete | gymnasium.spaces.MultiDiscrete)
    return torch.int64 if whole else torch.float32
