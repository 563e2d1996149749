"""The games of a report: what was evaluated before, or is now, and one that is filmed."""

import dataclasses
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import imageio_ffmpeg

from acktr.agents import checkpoint
from acktr.agents.play import evaluate_file, record_file
from acktr.agents.report_runs import RunFiles, read_evaluation
from acktr.agents.run_folder import EVALUATION_FILE, RunFolder
from acktr.errors import RunError, UserError

EPISODES = 10
"""Games that are played unless told."""

LONGEST_FILM = 60.0
"""Seconds of a game that a page holds: films are nearly all of its size."""

_NOT_PLAYED = "No games were played for this page."

_QUALITY = 28
"""H.264's constant rate factor: a sixth of the size of `acktr record`'s films, and still sharp."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Film:
    """The beginning of a game.

    Attributes:
        data: an mp4 file.
        seconds: of the whole game; the film has no more than `LONGEST_FILM` of them.
        score: raw return of the whole game; None where filming ended before the game did.
    """

    data: bytes
    seconds: float
    score: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Games:
    """What a run's policy did.

    Attributes:
        evaluation: what `acktr evaluate` says of it; None where nothing was played.
        origin: where the evaluation comes from, or why there is none: one sentence.
        film: of one game.
        no_film: why there is no film: one sentence, empty where none was asked for.
    """

    evaluation: Mapping[str, Any] | None
    origin: str
    film: Film | None = None
    no_film: str = ""


def games_of(
    run: RunFiles,
    *,
    episodes: int | None,
    play: bool,
    video: bool,
    seed: int,
    device: str,
    say: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> Games:
    """Find a run's evaluation or play for one, and film a game. Whatever fails is a sentence of the result.

    The folder's evaluation.json stands where it is of the checkpoint that would be played and of as many games as are
    asked for. The run folder stays as it is.

    Args:
        run: the run.
        episodes: games that are asked for; None takes as many as evaluation.json has, else 10.
        play: whether games may be played at all.
        video: whether one is filmed.
        seed: of the games and of sampled actions.
        device: auto, cpu, cuda or cuda:N.
        say: takes a line before each thing that takes a while, and one where it failed.
        progress: called with the games that are over and their number in all.
    """
    kept = read_evaluation(run.path)
    if kept is None and not play:
        return Games(evaluation=None, origin=_NOT_PLAYED)
    try:
        file = RunFolder.open(run.path).evaluation_checkpoint()
        timesteps = checkpoint.load(file).state.get("timesteps")
    except UserError as error:
        reason = f"No game could be played: {error}."
        if play:
            say(f"{run.path}: {reason}")
        if kept is None:
            return Games(evaluation=None, origin=reason, no_film=reason if video else "")
        origin = f"From the run folder's {EVALUATION_FILE}; it holds no checkpoint to play again."
        return Games(evaluation=kept, origin=origin, no_film="No game could be filmed." if play and video else "")
    current = kept is not None and kept["timesteps"] == timesteps
    if kept is not None and current and kept["episodes"] >= (episodes or 1):
        games = Games(evaluation=kept, origin=f"From the run folder's {EVALUATION_FILE}.")
    elif not play:
        reason = "has fewer games than were asked for" if current else "is of another checkpoint"
        games = Games(evaluation=None, origin=f"{_NOT_PLAYED} {EVALUATION_FILE} {reason} and is left out.")
    else:
        count = episodes or EPISODES
        say(f"{run.path}: plays {count} games")
        games = _evaluated(file, count, seed=seed, device=device, progress=progress)
        if games.evaluation is None:
            say(f"{run.path}: {games.origin}")
    if play and video:
        say(f"{run.path}: films a game")
        film, reason = _filmed(file, seed=seed, device=device)
        games = dataclasses.replace(games, film=film, no_film=reason)
        if film is None:
            say(f"{run.path}: {reason}")
    return games


def _evaluated(
    file: Path, episodes: int, *, seed: int, device: str, progress: Callable[[int, int], None] | None
) -> Games:
    try:
        found = evaluate_file(
            file, episodes=episodes, deterministic=None, seed=seed, num_envs=None, device=device, progress=progress
        )
    except Exception as error:  # environments raise what they like; a page without games is still a page
        return Games(evaluation=None, origin=f"No game could be played: {_in_a_line(error)}.")
    return Games(evaluation=found, origin="Played for this page.")


def _filmed(file: Path, *, seed: int, device: str) -> tuple[Film | None, str]:
    with tempfile.TemporaryDirectory() as folder:
        whole, short = Path(folder) / "whole.mp4", Path(folder) / "short.mp4"
        try:
            result = record_file(file, whole, episodes=1, deterministic=None, seed=seed, device=device)
            _shorten(whole, short)
            data = short.read_bytes()
        except Exception as error:  # and so do renderers and codecs
            return None, f"No game could be filmed: {_in_a_line(error)}."
    score = result["returns"][0] if result["returns"] else None
    return Film(data=data, seconds=result["frames"] / result["fps"], score=score), ""


def _shorten(whole: Path, short: Path) -> None:
    """The first `LONGEST_FILM` seconds of a film, compressed as browsers play it and to a size for a page."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(whole), "-t", str(LONGEST_FILM)]
    command += [
        "-c:v",
        "libx264",
        "-preset",
        "veryfast",
        "-crf",
        str(_QUALITY),
        "-pix_fmt",
        "yuv420p",
        "-movflags",
        "+faststart",
        str(short),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RunError(f"ffmpeg could not shorten the film: {done.stderr.strip()[:200]}")


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
