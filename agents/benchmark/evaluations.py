"""The games that a run's final policy plays: the same for every contestant, kept as evaluation.json."""

import json
from pathlib import Path

from acktr.agents.run_folder import EVALUATION_FILE
from acktr.agents.settings import EVALUATION_SEED

EPISODES = 30
"""Full games in fresh environments; actions are greedy, on Atari sampled."""


def evaluated(folder: Path) -> float | None:
    """Mean raw return of those games; None where they were not played yet, or others were.

    Args:
        folder: of the run.
    """
    file = folder / EVALUATION_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        protocol = found["protocol"]
        policy = "stochastic" if protocol["family"] == "atari" else "deterministic"
        played = found["episodes"], protocol["seed"], protocol["policy"]
        return float(found["return_mean"]) if played == (EPISODES, EVALUATION_SEED, policy) else None
    except (OSError, ValueError, TypeError, KeyError):  # none, or no evaluation of ours
        return None
