"""A policy alone: loading it from a checkpoint or an exported file, and exporting it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import torch
from torch import Tensor

from acktr.agents import checkpoint
from acktr.agents.policy import ActorCritic
from acktr.agents.run_folder import RunFolder
from acktr.agents.settings import Settings
from acktr.agents.spaces import space_from_dict
from acktr.errors import UserError

_NEEDED: dict[str, type | tuple[type, ...]] = {
    "settings": dict,
    "observation_space": dict,
    "action_space": dict,
    "protocol": dict,
    "timesteps": int,
    "return_mean": (float, int, type(None)),
    "policy": dict,
}
_OPTIONAL = ("own_torso",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedPolicy:
    """A policy with what is known of it.

    Attributes:
        policy: the network, on the device asked for.
        settings: of the run that trained it.
        observation_space: of one environment.
        action_space: of one environment.
        protocol: how its environment was run in training.
        timesteps: that it was trained for.
        kind: "checkpoint" or "policy".
    """

    policy: ActorCritic
    settings: Settings
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    protocol: Mapping[str, Any]
    timesteps: int
    kind: str


def load_policy(path: Path, device: torch.device) -> LoadedPolicy:
    """Load the policy of a checkpoint or of an exported file.

    Raises:
        UserError: the file is damaged, foreign or of a newer format, or its weights do not fit its settings.
    """
    loaded = checkpoint.load(path)
    state = loaded.state
    check_state(state, path)
    check_remakable(state, path, torso=True)
    settings = Settings.from_dict(state["settings"], source=str(path))
    observation_space = space_from_dict(state["observation_space"])
    action_space = space_from_dict(state["action_space"])
    weights: dict[str, Any] = state["policy"]
    try:
        # first without memory: a file must not decide how much is allocated before its sizes are known to fit
        with torch.device("meta"):
            expected = ActorCritic(observation_space, action_space, settings).state_dict()
        _check_weights(weights, expected)
        policy = ActorCritic(observation_space, action_space, settings)
        policy.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: the weights are not those of its settings' network: {reason[:200]}") from error
    return LoadedPolicy(
        policy=policy.to(device).eval(),
        settings=settings,
        observation_space=observation_space,
        action_space=action_space,
        protocol=state["protocol"],
        timesteps=state["timesteps"],
        kind=loaded.kind,
    )


def export(run_or_checkpoint: Path, output: Path) -> None:
    """Write the policy of a run or checkpoint alone, without what only training needs.

    Args:
        run_or_checkpoint: a run folder (its final checkpoint, or else the last) or a checkpoint.
        output: the file to write.

    Raises:
        UserError: no checkpoint that loads, or `output` cannot be written.
    """
    folder = run_or_checkpoint.is_dir()
    source = RunFolder.open(run_or_checkpoint).evaluation_checkpoint() if folder else run_or_checkpoint
    state = checkpoint.load(source).state
    check_state(state, source)
    write(output, {name: state[name] for name in (*_NEEDED, *_OPTIONAL) if name in state}, kind="policy")


def write(output: Path, state: Mapping[str, Any], *, kind: checkpoint.Kind) -> None:
    """Write a file where the caller asked for it.

    Raises:
        UserError: it cannot be written there.
    """
    if output.is_dir():
        raise UserError(f"{output} cannot be written: it is a folder; name a file in it")
    try:
        checkpoint.save(output, state, kind=kind)
    except OSError as error:
        reason = error.strerror if output.parent.is_dir() else f"there is no folder {output.parent}"
        raise UserError(f"{output} cannot be written: {reason}; give another path") from error


def check_remakable(state: Mapping[str, Any], path: Path, *, torso: bool = False) -> None:
    """Refuse a file whose environment or torso came from a caller: settings alone do not make them again.

    Args:
        state: the file's content.
        path: the file, for the message.
        torso: whether the torso is asked for too.

    Raises:
        UserError: the caller has to pass what they passed when the agent was made.
    """
    if state["protocol"].get("own"):
        raise UserError(
            f"{path}: was trained in an environment of one's own, which the id '{state['settings']['env']}' alone does "
            "not make; pass it in Python: acktr.load(file, env=function), with resume=True to go on in a run folder"
        )
    if torso and state.get("own_torso"):
        raise UserError(
            f"{path}: has a torso of one's own, whose code is not in the file; pass it in Python: "
            "acktr.load(file, torso=...), with resume=True to go on in a run folder"
        )


def check_state(state: Mapping[str, Any], path: Path) -> None:
    """Refuse a file that holds no policy.

    Raises:
        UserError: what is missing or strange.
    """
    missing = [name for name in _NEEDED if name not in state]
    if missing:
        raise UserError(f"{path}: holds no policy ({', '.join(missing)} missing); name a file that acktr wrote")
    strange = [name for name, kind in _NEEDED.items() if not isinstance(state[name], kind)]
    if strange:
        raise UserError(f"{path}: holds no policy ({', '.join(strange)} of another type); name a file that acktr wrote")


def _check_weights(weights: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    """Compare names, shapes and dtypes; ValueError for the first that differ."""
    if weights.keys() != expected.keys():
        raise ValueError(f"names differ: {', '.join(sorted(weights.keys() ^ expected.keys()))}")
    for name, tensor in expected.items():
        found = weights[name]
        if not isinstance(found, Tensor):
            raise ValueError(f"{name} is no tensor")
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise ValueError(
                f"{name} is {found.dtype} {list(found.shape)}, the network has {tensor.dtype} {list(tensor.shape)}"
            )
