"""A report: all that runs have to say, on one page that opens from the disk."""

import dataclasses
import datetime
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from acktr.agents.files import write_text_atomically
from acktr.agents.report_games import games_of
from acktr.agents.report_page import page
from acktr.agents.report_runs import read_runs
from acktr.agents.run_folder import provenance
from acktr.agents.runs import choose_device
from acktr.errors import UserError

_SUFFIXES = (".html", ".htm")
_PACKAGES = ("acktr", "torch", "gymnasium")


def write_report(
    folders: Sequence[Path],
    output: Path,
    *,
    episodes: int | None,
    play: bool,
    video: bool,
    seed: int,
    device: str,
    say: Callable[[str], None] = print,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the report of one or more runs. The run folders stay as they are.

    Args:
        folders: run folders.
        output: the file to write, .html.
        episodes: games that each evaluation is to have; None takes as many as evaluation.json has, else 10.
        play: whether games may be played where evaluation.json does not hold those of the present checkpoint.
        video: whether a game of each run is filmed, if games may be played.
        seed: of the games and of sampled actions.
        device: auto, cpu, cuda or cuda:N.
        say: takes a line before each thing that takes a while, and one for each that could not be done.
        progress: called with the games of an evaluation that are over and their number in all.

    Raises:
        UserError: one of the folders is no run folder, there is no such device, or `output` cannot be written.
    """
    _check_output(output)
    runs = read_runs(folders)
    if play and device != "auto":
        # only auto looks at the environment
        choose_device(dataclasses.replace(runs[0].settings, device=device), cast(Any, None))
    games = [
        games_of(run, episodes=episodes, play=play, video=video, seed=seed, device=device, say=say, progress=progress)
        for run in runs
    ]
    packages = provenance()["packages"]
    versions = {name: packages[name] for name in _PACKAGES}
    text = page(runs, games, written=datetime.date.today(), versions=versions)
    try:
        write_text_atomically(output, text)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}; give another path") from error


def _check_output(output: Path) -> None:
    """Refuse what could not be written, before games are played for it."""
    if output.suffix.lower() not in _SUFFIXES:
        raise UserError(f"{output}: reports are HTML; give a path that ends in {' or '.join(_SUFFIXES)}")
    if output.is_dir():
        raise UserError(f"{output} cannot be written: it is a folder; name a file in it")
    if not output.parent.is_dir():
        raise UserError(f"{output} cannot be written: there is no folder {output.parent}; make it or give another path")
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        raise UserError(f"{output} cannot be written: no permission; give another path")
