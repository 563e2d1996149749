"""From a file to games played: a run folder, checkpoint or exported policy is evaluated or filmed."""

import json
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from acktr.agents.evaluation import MOST_ENVS, customary, evaluate, playing_settings
from acktr.agents.files import write_text_atomically
from acktr.agents.policy_files import LoadedPolicy, load_policy
from acktr.agents.run_folder import EVALUATION_FILE, SETTINGS_FILE, RunFolder
from acktr.agents.runs import choose_device, is_convolutional, make_environment
from acktr.agents.spaces import first_difference
from acktr.agents.threads import set_threads
from acktr.agents.video import record
from acktr.envs.vector import VectorEnvironment
from acktr.errors import UserError


def evaluate_file(
    played: Path,
    *,
    episodes: int,
    deterministic: bool | None,
    seed: int,
    num_envs: int | None,
    device: str,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Evaluate a policy; for a run folder the result is kept there as `evaluation.json`.

    Args:
        played: a run folder, a checkpoint or an exported policy.
        episodes: full games to play.
        deterministic: greedy or sampled actions; None takes what is customary for the environment: sampled on Atari,
            greedy elsewhere.
        seed: of the games and of sampled actions.
        num_envs: environments to play in, at most as many as games; None takes up to 16.
        device: auto, cpu, cuda or cuda:N.
        progress: called with the games that are over and their number in all.
        warn: takes a line when the result could not be kept in the run folder.

    Returns:
        What `acktr.agents.evaluation.evaluate` returns, with `checkpoint` and `timesteps`.

    Raises:
        UserError: the file does not load, its environment cannot be made, or there is no such device.
    """
    file = policy_file(played)
    loaded = load_policy(file, torch.device("cpu"))
    settings = playing_settings(loaded.settings, min(num_envs or MOST_ENVS, episodes), device)
    environment = make_environment(settings)
    try:
        set_threads(settings.num_threads, small=not is_convolutional(settings, environment))
        check_spaces(loaded, environment, file)
        chosen, _ = choose_device(settings, environment)
        result = evaluate(
            loaded.policy.to(chosen),
            environment,
            episodes=episodes,
            deterministic=customary(environment) if deterministic is None else deterministic,
            seed=seed,
            device=chosen,
            progress=progress,
        )
    finally:
        environment.close()
    result = {**result, "checkpoint": str(file), "timesteps": loaded.timesteps}
    if (played / SETTINGS_FILE).is_file():
        try:
            write_text_atomically(played / EVALUATION_FILE, json.dumps(result, indent=2, allow_nan=False) + "\n")
        except OSError as error:  # the games are played: what they showed is not lost with the file
            warn(f"{played / EVALUATION_FILE} cannot be written: {error.strerror}")
    return result


def record_file(
    played: Path, output: Path, *, episodes: int, deterministic: bool | None, seed: int, device: str
) -> dict[str, Any]:
    """Film a policy.

    Args:
        played: a run folder, a checkpoint or an exported policy.
        output: the video to write.
        episodes: full games to film.
        deterministic: greedy or sampled actions; None as in `evaluate_file`.
        seed: of the games and of sampled actions.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        What `acktr.agents.video.record` returns.

    Raises:
        UserError: as `evaluate_file`.
    """
    file = policy_file(played)
    loaded = load_policy(file, torch.device("cpu"))
    settings = playing_settings(loaded.settings, 1, device)
    environment = make_environment(settings)
    try:
        set_threads(settings.num_threads, small=not is_convolutional(settings, environment))
        chosen, _ = choose_device(settings, environment)
    finally:
        environment.close()
    check_spaces(loaded, environment, file)
    return record(
        loaded.policy.to(chosen),
        settings,
        output,
        episodes=episodes,
        deterministic=customary(environment) if deterministic is None else deterministic,
        seed=seed,
        device=chosen,
    )


def report(result: Mapping[str, Any]) -> str:
    """An evaluation as a few lines to read.

    Args:
        result: what `evaluate_file` returns.
    """
    returns = f"return of one full game: {result['return_mean']:.1f}"
    if result["return_ci95"] is not None:
        low, high = result["return_ci95"]
        returns = (
            f"return of {result['episodes']} full games: mean {result['return_mean']:.1f} (95 % interval {low:.1f} to "
            f"{high:.1f}), median {result['return_median']:.1f}, standard deviation {result['return_std']:.1f}"
        )
    lines = [
        f"{result['env']}, {result['timesteps']:,} timesteps, {result['checkpoint']}",
        returns,
        f"length: mean {result['length_mean']:.0f} decisions",
    ]
    if result["human_normalised"] is not None:
        lines.append(f"human-normalised: {result['human_normalised']:.3f} (0 random play, 1 a human tester)")
    if result["truncated"]:
        lines.append(f"{result['truncated']} of {result['episodes']} games were ended by a limit of time")
    if result["stalled"]:
        lines.append(f"warning: {result['stalled']} of {result['episodes']} games stalled: the policy waits for ever")
    protocol = {name: value for name, value in result["protocol"].items() if value is not None}
    versions = protocol.pop("versions", {})
    lines.append("protocol: " + _pairs(protocol))
    lines.append("versions: " + _pairs(versions))
    return "\n".join(lines)


def report_video(result: Mapping[str, Any]) -> str:
    """A video in one line to read.

    Args:
        result: what `record_file` returns.
    """
    returns = ", ".join(f"{value:.1f}" for value in result["returns"])
    seconds = result["frames"] / result["fps"]
    return f"{result['output']}: {seconds:.1f} seconds, raw returns {returns}"


def policy_file(played: Path) -> Path:
    """The file to play: of a run folder its final or last checkpoint, else the file itself."""
    return RunFolder.open(played).evaluation_checkpoint() if played.is_dir() else played


def check_spaces(loaded: LoadedPolicy, environment: VectorEnvironment, file: Path) -> None:
    """Refuse a policy for an environment that has changed since, e.g. by another version of its package."""
    for name in ("observation_space", "action_space"):
        found = first_difference(name, getattr(loaded, name), getattr(environment, name), operator.eq)
        if found is not None:
            where, then, now = found
            raise UserError(
                f"{file}: was trained on {environment.id} with {where} {then}, which is {now} here; "
                "install the versions of the run's versions.json"
            )


def _pairs(mapping: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_shown(value)}" for name, value in mapping.items())


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
