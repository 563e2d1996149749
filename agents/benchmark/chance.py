"""Uniformly random play, as a run of one row: where the scale of normalised scores has its 0.

python -P -m acktr.agents.benchmark.chance ENV SEED FOLDER
"""

import contextlib
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from gymnasium.vector.utils import batch_space

from acktr.agents.evaluation import playing_settings
from acktr.agents.files import write_text_atomically
from acktr.agents.metrics_file import MetricsFile
from acktr.agents.presets import resolve
from acktr.agents.run_folder import COMMAND_FILE, METRICS_FILE, SETTINGS_FILE
from acktr.agents.runs import make_environment
from acktr.agents.settings import convert

EPISODES = 200
"""Full games; as many to each environment, since the first to end would be short ones."""

ENVIRONMENTS = 8


def play(env: str, seed: int, folder: Path) -> None:
    """Play full games at random.

    Args:
        env: the environment's id.
        seed: of games and actions.
        folder: for settings.yaml, command.txt and metrics.csv of one row.
    """
    start = time.perf_counter()
    settings = resolve(convert({"env": env, "seed": seed, "vectorization": "sync"}, source="chance")).settings()
    environment = make_environment(playing_settings(settings, ENVIRONMENTS, "cpu"))
    returns: list[list[float]] = [[] for _ in range(ENVIRONMENTS)]
    lengths: list[list[float]] = [[] for _ in range(ENVIRONMENTS)]
    steps = 0
    with contextlib.closing(environment):
        space = batch_space(environment.action_space, ENVIRONMENTS)
        space.seed(seed)
        environment.reset([int(child.generate_state(1)[0] >> 1) for child in np.random.SeedSequence(seed).spawn(8)])
        while min(map(len, returns)) < EPISODES // ENVIRONMENTS:
            step = environment.step(np.asarray(space.sample()))
            steps += ENVIRONMENTS
            for index, number in enumerate(step.episode_envs):
                returns[number].append(float(step.episode_returns[index]))
                lengths[number].append(float(step.episode_lengths[index]))
    # of each environment as many: the first games to end are the short ones
    scores, counts = (np.array([own[: EPISODES // ENVIRONMENTS] for own in part]) for part in (returns, lengths))
    elapsed = time.perf_counter() - start
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / SETTINGS_FILE, yaml.safe_dump({"algorithm": "random", "env": env, "seed": seed}))
    write_text_atomically(
        folder / COMMAND_FILE, f"python -P -m acktr.agents.benchmark.chance {env} {seed} {folder.name}\n"
    )
    with MetricsFile(folder / METRICS_FILE) as metrics:
        metrics.write(
            {
                "timesteps": steps,
                "wall_time": elapsed,
                "steps_per_second": steps / elapsed,
                "return_mean": scores.mean(),
                "return_std": scores.std(),
                "length_mean": counts.mean(),
                "episodes": scores.size,
            }
        )


def main() -> None:
    """Play on the environment that the arguments name."""
    env, seed, folder = sys.argv[1:]
    play(env, int(seed), Path(folder))


if __name__ == "__main__":
    main()
