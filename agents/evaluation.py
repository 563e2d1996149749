"""Raw returns of full games: the same quantity as the training curve's."""

import dataclasses
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from acktr.agents.human_scores import human_normalised
from acktr.agents.intervals import mean_interval
from acktr.agents.observations import to_tensors
from acktr.agents.policy import ActorCritic
from acktr.agents.settings import Settings
from acktr.envs.vector import VectorEnvironment
from acktr.errors import RunError, UserError

FORMAT = 1
"""Version of the object that `evaluate` returns."""

MOST_ENVS = 16
"""Environments that games are played in unless told."""

_LONGEST_GAME = 50_000
"""Decisions; the emulator itself ends Atari games at 27,000."""


@torch.no_grad()
def evaluate(
    policy: ActorCritic,
    environment: VectorEnvironment,
    *,
    episodes: int,
    deterministic: bool,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Play full games and sum up their raw returns.

    How many games each environment plays is settled before, and its first ones count: taking whatever ends first would
    favour short games.

    Args:
        policy: on `device`.
        environment: at most `episodes` of them; the first ones play one game more where the shares are not equal.
        episodes: games in all.
        deterministic: take the most probable action instead of a draw.
        seed: of the games and of the draws.
        device: where the policy is.
        progress: called with the games that are over and their number in all.

    Returns:
        Plain values, ready for JSON: format, env, episodes, return_mean, return_std, return_median, return_ci95 (95 % t
        interval of the mean; this and return_std are None for a single game), length_mean,
        human_normalised, truncated, stalled, returns (of every game, in the order in which they ended), protocol.

    Raises:
        UserError: more environments than episodes, or a game does not end.
        RunError: a game's return is not finite.
    """
    if episodes < environment.num_envs:
        raise UserError(f"{environment.num_envs} environments are more than {episodes} games; use fewer")
    quota = episodes // environment.num_envs + (np.arange(environment.num_envs) < episodes % environment.num_envs)
    sequence = np.random.SeedSequence(seed)
    generator = torch.Generator(device).manual_seed(int(sequence.generate_state(1)[0]))
    seeds = [int(child.generate_state(1)[0] >> 1) for child in sequence.spawn(environment.num_envs)]
    observations = environment.reset(seeds)
    played = np.zeros(environment.num_envs, dtype=np.int64)
    idle = np.zeros(environment.num_envs, dtype=np.int64)  # steps since the last reward
    returns: list[float] = []
    lengths: list[int] = []
    truncated = stalled = 0
    running = np.zeros(environment.num_envs, dtype=np.int64)  # decisions of the game in progress
    while len(returns) < episodes:
        actions = policy.act(to_tensors(observations, device), generator=generator, deterministic=deterministic)
        step = environment.step(actions.cpu().numpy())
        idle = np.where(step.rewards != 0, 0, idle + 1)
        running += 1
        if running[played < quota].max(initial=0) > _LONGEST_GAME:
            raise UserError(
                f"a game of '{environment.id}' did not end in {_LONGEST_GAME:,} decisions, and the environment sets no "
                f"limit; evaluate with {'--no-deterministic' if deterministic else 'a policy that ends its games'}, "
                "or register it with max_episode_steps"
            )
        for index, env in enumerate(step.episode_envs):
            if played[env] < quota[env]:
                played[env] += 1
                returns.append(float(step.episode_returns[index]))
                lengths.append(int(step.episode_lengths[index]))
                if step.episode_truncated[index]:
                    truncated += 1
                    stalled += bool(idle[env] > step.episode_lengths[index] / 2)
        idle[step.episode_envs] = 0
        running[step.episode_envs] = 0
        if step.episode_envs.size and progress is not None:
            progress(len(returns), episodes)
        observations = step.observations
    scores = np.asarray(returns)
    if not np.isfinite(scores).all():
        raise RunError(f"'{environment.id}' gave a game whose return is not finite: {scores[~np.isfinite(scores)][0]}")
    mean = float(scores.mean())
    interval = mean_interval(scores)
    return {
        "format": FORMAT,
        "env": environment.id,
        "episodes": episodes,
        "return_mean": mean,
        "return_std": float(scores.std(ddof=1)) if episodes > 1 else None,
        "return_median": float(np.median(scores)),
        "return_ci95": None if interval is None else list(interval),
        "length_mean": float(np.mean(lengths)),
        "human_normalised": human_normalised(str(environment.protocol.get("game", "")), mean),
        "truncated": truncated,
        "stalled": stalled,
        "returns": returns,
        "protocol": {
            **environment.protocol,
            "policy": "deterministic" if deterministic else "stochastic",
            "num_envs": environment.num_envs,
            "seed": seed,
            "versions": {name: version(name) for name in ("acktr", "torch", "gymnasium", *_engines(environment))},
        },
    }


def customary(environment: VectorEnvironment) -> bool:
    """Whether policies are customarily evaluated greedily in an environment: everywhere but on Atari."""
    return environment.protocol.get("family") != "atari"


def playing_settings(settings: Settings, num_envs: int, device: str) -> Settings:
    """Settings under which whole games are played, whatever training took for an end."""
    return dataclasses.replace(settings, num_envs=num_envs, device=device, terminal_on_life_loss=False)


def _engines(environment: VectorEnvironment) -> tuple[str, ...]:
    """The package whose version decides what the environment does, where there is one."""
    return {"atari": ("ale-py",), "mujoco": ("mujoco",)}.get(str(environment.protocol.get("family")), ())
