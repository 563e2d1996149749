"""Published settings of peers; imports neither torch nor the peers."""

import importlib.resources
import importlib.util
from collections.abc import Mapping
from typing import Any

import yaml

from acktr.errors import UserError


def check_installed() -> None:
    """Refuse where the peers' packages are missing.

    Raises:
        UserError: one of them is.
    """
    missing = [name for name in ("stable_baselines3", "sb3_contrib") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"peers need {' and '.join(missing)}, not installed here: pip install stable-baselines3 sb3-contrib"
        )


def published(algorithm: str, env: str) -> dict[str, Any]:
    """The published settings of a peer on an environment, whatever the version of its id.

    Raises:
        UserError: nothing is published for it.
    """
    text = importlib.resources.files("acktr.agents.benchmark").joinpath("peers.yaml").read_text(encoding="utf-8")
    known: Mapping[str, Mapping[str, Any]] = yaml.safe_load(text)[algorithm]
    name = env.rpartition(":")[2].rpartition("-")[0]
    for key, values in known.items():
        if key == name or (key == "NoFrameskip" and name.endswith(key)):
            return dict(values)
    raise UserError(f"no settings of {algorithm} are published for {env}; known are {', '.join(known)}")


def peer_record(algorithm: str, env: str, seed: int, total_timesteps: int) -> dict[str, Any]:
    """What the settings.yaml of a peer's run says.

    Raises:
        UserError: as `published`.
    """
    asked = {"algorithm": algorithm, "env": env, "seed": seed, "total_timesteps": total_timesteps}
    return {**asked, **published(algorithm, env)}
