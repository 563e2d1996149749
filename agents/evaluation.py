"""Raw returns of full games: the same quantity as the training curve's."""

from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from acktr.agents.human_scores import human_normalised
from acktr.agents.policy import ActorCritic
from acktr.envs.vector import VectorEnvironment
from acktr.errors import RunError, UserError

FORMAT = 1
"""Version of the object that `evaluate` returns."""

_RESAMPLES = 10_000


@torch.no_grad()
def evaluate(
    policy: ActorCritic,
    environment: VectorEnvironment,
    *,
    episodes: int,
    deterministic: bool,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Play full games and sum up their raw returns.

    Every environment plays equally many games, and its first ones count: taking whatever ends first would favour
    short games.

    Args:
        policy: on `device`.
        environment: its number must divide `episodes`.
        episodes: games in all.
        deterministic: take the most probable action instead of a draw.
        seed: of the games and of the draws.
        device: where the policy is.

    Returns:
        Plain values, ready for JSON: format, env, episodes, return_mean, return_std, return_median, return_ci95 (95 %
        bootstrap interval of the mean), length_mean, human_normalised, truncated, stalled, protocol.

    Raises:
        UserError: `episodes` cannot be shared out equally.
        RunError: a game's return is not finite.
    """
    if episodes % environment.num_envs:
        raise UserError(
            f"{episodes} episodes cannot be shared equally by {environment.num_envs} environments; "
            f"use a multiple of {environment.num_envs}"
        )
    quota = episodes // environment.num_envs
    sequence = np.random.SeedSequence(seed)
    generator = torch.Generator(device).manual_seed(int(sequence.generate_state(1)[0]))
    seeds = [int(child.generate_state(1)[0] >> 1) for child in sequence.spawn(environment.num_envs)]
    observations = environment.reset(seeds)
    played = np.zeros(environment.num_envs, dtype=np.int64)
    idle = np.zeros(environment.num_envs, dtype=np.int64)  # steps since the last reward
    returns: list[float] = []
    lengths: list[int] = []
    truncated = stalled = 0
    while len(returns) < episodes:
        actions = policy.act(
            torch.from_numpy(observations).to(device), generator=generator, deterministic=deterministic
        )
        step = environment.step(actions.cpu().numpy())
        idle = np.where(step.rewards != 0, 0, idle + 1)
        for index, env in enumerate(step.episode_envs):
            if played[env] < quota:
                played[env] += 1
                returns.append(float(step.episode_returns[index]))
                lengths.append(int(step.episode_lengths[index]))
                if step.episode_truncated[index]:
                    truncated += 1
                    stalled += bool(idle[env] > step.episode_lengths[index] / 2)
        idle[step.episode_envs] = 0
        observations = step.observations
    scores = np.asarray(returns)
    if not np.isfinite(scores).all():
        raise RunError(f"'{environment.id}' gave a game whose return is not finite: {scores[~np.isfinite(scores)][0]}")
    mean = float(scores.mean())
    low, high = bootstrap_interval(scores, seed=seed)
    return {
        "format": FORMAT,
        "env": environment.id,
        "episodes": episodes,
        "return_mean": mean,
        "return_std": float(scores.std(ddof=1)) if episodes > 1 else 0.0,
        "return_median": float(np.median(scores)),
        "return_ci95": [low, high],
        "length_mean": float(np.mean(lengths)),
        "human_normalised": human_normalised(str(environment.protocol.get("game", "")), mean),
        "truncated": truncated,
        "stalled": stalled,
        "protocol": {
            **environment.protocol,
            "policy": "deterministic" if deterministic else "stochastic",
            "episodes_per_environment": quota,
            "num_envs": environment.num_envs,
            "seed": seed,
            "versions": {name: version(name) for name in ("acktr", "torch", "gymnasium", "ale-py")},
        },
    }


def bootstrap_interval(scores: NDArray[np.float64], *, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean.

    Args:
        scores: (n,).
        seed: of the resampling.
    """
    generator = np.random.default_rng(seed)
    means = scores[generator.integers(0, scores.size, (_RESAMPLES, scores.size))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
