"""The games that a run's final policy plays: the same for every contestant, kept as evaluation.json."""

import json
from pathlib import Path

from acktr.agents.run_folder import EVALUATION_FILE
from acktr.agents.settings import EVALUATION_SEED

EPISODES = 30
"""Full games in fresh environments; actions are greedy, on Atari sampled."""

_APART = 1000
"""Between the seeds of two runs' games, more than there are environments to play in."""


def games_seed(seed: int) -> int:
    """The seed of the games of a run's policy: another one for each run.

    The same games for all would move all runs together, and their spread would not show it.

    Args:
        seed: of the run.
    """
    return EVALUATION_SEED + _APART * seed


def evaluated(folder: Path, seed: int, timesteps: float | None) -> float | None:
    """Mean raw return of those games; None where they were not played yet, or others were, or by another policy.

    Args:
        folder: of the run.
        seed: of the run.
        timesteps: at which it ended.
    """
    file = folder / EVALUATION_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        protocol = found["protocol"]
        policy = "stochastic" if protocol["family"] == "atari" else "deterministic"
        played = found["episodes"], protocol["seed"], protocol["policy"], found["timesteps"]
        return float(found["return_mean"]) if played == (EPISODES, games_seed(seed), policy, timesteps) else None
    except (OSError, ValueError, TypeError, KeyError):  # none, or no evaluation of ours
        return None
