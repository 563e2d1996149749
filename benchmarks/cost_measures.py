"""What `cost.py` measures: updates on random frames, one size of one sweep at a time.

Within a round the contestants take turns, and everything of a size is made for it and given back after it.
"""

import argparse
import dataclasses
import gc
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from contestants import SETTLED_STEPS
from gymnasium import spaces
from multiplications import Multiplications
from throughput import spread

from acktr.agents.a2c import A2CUpdater
from acktr.agents.acktr import ACKTRUpdater
from acktr.agents.part import Part
from acktr.agents.policy import ActorCritic
from acktr.agents.precision import choose_precision
from acktr.agents.presets import resolve
from acktr.agents.recall import Recall
from acktr.agents.rollout import Batch
from acktr.agents.settings import Settings
from acktr.agents.updates import Updater

PLAIN, A2C, ACKTR = "forward + backward", "A2C", "ACKTR"

WARMUP_UPDATES = 2
"""Of every contestant in every round, before it is timed."""

OTHERS_EVERY = 5
"""After how many of ACKTR's updates the others, all of whose updates are alike, have a turn."""

ROWS_AT_ONCE = 640
"""Of a forward pass that is not timed, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """One size at growing values, all else as in the preset but for `fixed`.

    Attributes:
        name: of what grows.
        label: of the axis.
        title: what is timed, and at what.
        setting: the one that grows.
        sizes: as shown, ascending.
        rows: of the batch for each unit of the setting, where the size shown is the batch; else 1.
        fixed: settings other than the preset's.
        acts: whether the forward passes of acting, `num_envs` rows at a time, are timed with the update.
    """

    name: str
    label: str
    title: str
    setting: str
    sizes: tuple[int, ...]
    rows: int = 1
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    acts: bool = False


def settings_of(sweep: Sweep, name: str, args: argparse.Namespace, size: int) -> Settings:
    """The preset's, with the batch and network of one point; A2C has ACKTR's."""
    asked = {**sweep.fixed, sweep.setting: size // sweep.rows, "precision": args.precision, "device": args.device}
    algorithm = "acktr" if name == ACKTR else "a2c"
    return resolve({"env": "BreakoutNoFrameskip-v4", **asked, "algorithm": algorithm}).settings()


class Frames:
    """Random frames, which all contestants of a point share."""

    def __init__(self, rows: int, device: torch.device) -> None:
        frames = torch.randint(0, 256, (rows, 84, 84, 4), dtype=torch.uint8, device=device)
        self.frames = frames.permute(0, 3, 1, 2)  # channels last in memory, as the rollout keeps them
        self.actions = torch.randint(0, 4, (rows,), device=device)
        self.advantages, self.returns = torch.randn(2, rows, device=device)


class Plain:
    """One pass forward and backward of the same network in float32, without an optimizer."""

    def __init__(self, settings: Settings, frames: Frames, device: torch.device) -> None:
        self._policy = _policy(settings, device)
        self._frames = frames

    def act(self) -> None:
        """Nothing: its forward pass is in the update."""

    def update(self) -> None:
        """Gradients of the objective, its entropy left out."""
        given = self._frames
        self._policy.zero_grad()
        distribution, values = self._policy(given.frames)
        loss = (values - given.returns).square() / 2 - distribution.log_prob(given.actions) * given.advantages
        torch.autograd.backward(loss.mean())


class Learner:
    """A2C or ACKTR.

    Args:
        settings: of the point.
        frames: its batch.
        device: where everything is.
        acting_rows: of each forward pass of acting.
    """

    def __init__(self, settings: Settings, frames: Frames, device: torch.device, *, acting_rows: int) -> None:
        self._policy = _policy(settings, device)
        self._policy.use_precision(choose_precision(settings, device, convolutional=True)[0])
        self._frames = frames
        self._rows = acting_rows
        self._generator = torch.Generator(device).manual_seed(0)
        self._recall = Recall(num_steps=len(frames.frames) // acting_rows, num_envs=acting_rows)
        self._num_envs = settings.num_envs
        self._actions: list[torch.Tensor] = []
        self._updater: Updater = A2CUpdater(self._policy, settings)
        if settings.algorithm == "acktr":
            updater = ACKTRUpdater(self._policy, settings, self._generator)
            self._updater = updater
            self.act()
            self.update()
            updater.actor.optimizer.steps = SETTLED_STEPS

    def act(self) -> None:
        """The forward passes of a rollout, kept for the update."""
        self._actions = []
        with self._policy.unchanging():
            for step, frames in enumerate(self._frames.frames.split(self._rows)):
                with self._recall.recording(step):
                    actions, outcomes, _ = self._policy.act_and_value(frames, generator=self._generator)
                    actions.cpu()  # where an environment would take them from
                self._actions.append(outcomes)

    def update(self) -> None:
        """Learn from what `act` left."""
        given = self._frames
        batch = Batch(
            observations=given.frames,
            actions=torch.cat(self._actions),
            advantages=given.advantages,
            returns=given.returns,
            weights=None,
            valid_rows=len(given.frames),
            part=Part.whole(self._num_envs),
            recall=self._recall,
        )
        assert batch.forward_is_known
        self._updater.update(batch, progress=0.1)


def _policy(settings: Settings, device: torch.device) -> ActorCritic:
    torch.manual_seed(0)
    return ActorCritic(spaces.Box(0, 255, (4, 84, 84), "uint8"), spaces.Discrete(4), settings).to(device)


def sweep_points(sweep: Sweep, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All points of a sweep.

    Returns:
        Plain values of each point: by contestant the milliseconds of what the sweep times and of the update alone,
        spread over the rounds, and the multiplications of the former; and ratios taken within each round.
    """
    sizes = sweep.sizes[: args.points]
    counts: dict[int, dict[str, float]] = {}
    rounds: dict[int, list[dict[str, tuple[float, float]]]] = {size: [] for size in sizes}
    loads: dict[int, list[float]] = {size: [] for size in sizes}
    for number in range(args.rounds):
        for size in sizes:
            loads[size].append(os.getloadavg()[0])
            found, counted = measure(sweep, size, args, counts=number == 0)
            rounds[size].append(found)
            counts[size] = counts.get(size, counted)
            print(f"round {number + 1}: {sweep.name} {size}: {found[ACKTR][0]:.1f} ms", file=sys.stderr)
            gc.collect()
            if args.device == "cuda":
                torch.cuda.empty_cache()
    points = []
    for size, taken in rounds.items():
        settings = settings_of(sweep, ACKTR, args, size)
        update = "update / (forward + backward)"
        points.append(
            {
                "size": size,
                **{name: getattr(settings, name) for name in ("num_envs", "num_steps", "conv_features")},
                "load_before": loads[size],
                "ms": {name: spread([found[name][0] for found in taken]) for name in taken[0]},
                "update_ms": {name: spread([found[name][1] for found in taken]) for name in taken[0]},
                "multiplications": counts[size],
                "ratios": {
                    "ACKTR / A2C": spread([found[ACKTR][0] / found[A2C][0] for found in taken]),
                    f"ACKTR's {update}": spread([found[ACKTR][1] / found[PLAIN][1] for found in taken]),
                },
            }
        )
    return points


def measure(
    sweep: Sweep, size: int, args: argparse.Namespace, *, counts: bool
) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    """One round of one point.

    Returns:
        Of each contestant the mean milliseconds of what is timed and of its update alone; and the mean number of
        multiplications of what is timed, nothing unless `counts`.
    """
    device = torch.device(args.device)
    settings = settings_of(sweep, ACKTR, args, size)
    rows = settings.num_envs * settings.num_steps
    interval = math.lcm(settings.inverse_interval, settings.stat_interval, settings.kl_interval)
    acting_rows = settings.num_envs if sweep.acts else math.gcd(rows, ROWS_AT_ONCE)
    torch.manual_seed(0)
    frames = Frames(rows, device)
    contestants: dict[str, Plain | Learner] = {PLAIN: Plain(settings, frames, device)}
    for name in (A2C, ACKTR):
        own = settings_of(sweep, name, args, size)
        contestants[name] = Learner(own, frames, device, acting_rows=acting_rows)
    counted = {}
    for name, contestant in contestants.items():
        if counts:
            counted[name] = _counted(contestant, interval if name == ACKTR else 1, acts=sweep.acts)
        for _ in range(WARMUP_UPDATES):
            contestant.act()
            contestant.update()
    return _round(contestants, interval, sweep.acts, device), counted


def _counted(contestant: Plain | Learner, updates: int, *, acts: bool) -> float:
    """Mean number of multiplications of what is timed."""
    total = 0
    for _ in range(updates):
        with Multiplications() as acting:
            contestant.act()
        with Multiplications() as updating:
            contestant.update()
        total += updating.count + (acting.count if acts else 0)
    return total / updates


def _round(
    contestants: Mapping[str, Plain | Learner], interval: int, acts: bool, device: torch.device
) -> dict[str, tuple[float, float]]:
    """Of each contestant the mean milliseconds of what is timed, and of its update alone."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for number in range(interval):
        for name, contestant in contestants.items():
            if name == ACKTR or number % OTHERS_EVERY == 0:
                acting, updating = _clocked(contestant.act, device), _clocked(contestant.update, device)
                times[name].append((updating + (acting if acts else 0.0), updating))
    return {
        name: (statistics.fmean(both for both, _ in found), statistics.fmean(update for _, update in found))
        for name, found in times.items()
    }


def _clocked(function: Callable[[], None], device: torch.device) -> float:
    """Milliseconds, a GPU's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - started)
