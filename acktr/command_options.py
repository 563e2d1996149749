"""Options that several verbs have, and how what was given is checked and shown."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from acktr.errors import UserError

_PLAYED = "A run folder, a checkpoint or an exported policy."
_GREEDY = "(default: sampled on Atari, greedy elsewhere)"

Played = Annotated[Path, Positional, arg(metavar="RUN|FILE", help=_PLAYED)]
Episodes = Annotated[int, arg(metavar="N", help="Full games to play.")]
Seed = Annotated[int, arg(metavar="N", help="Seed of the games and of sampled actions.")]
Device = Annotated[str, arg(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]
Greedy = Annotated[bool, FlagCreatePairsOff, arg(help="Take the most probable action.", help_behavior_hint=_GREEDY)]
Sampled = Annotated[
    bool, FlagCreatePairsOff, arg(help="Sample actions, as in training.", help_behavior_hint="(likewise)")
]
Json = Annotated[
    bool, FlagCreatePairsOff, arg(help="Print one JSON object and nothing else.", help_behavior_hint="", name="json")
]


def how_to_act(deterministic: bool, no_deterministic: bool) -> bool | None:
    """Greedy, sampled or, as None, what is customary for the environment.

    Raises:
        UserError: both are wanted.
    """
    if deterministic and no_deterministic:
        raise UserError("--deterministic and --no-deterministic exclude each other; give one of them")
    return deterministic or (False if no_deterministic else None)


def check_least(name: str, value: int | None, least: int) -> None:
    """Refuse a number that is too small; None stands for one that was not given.

    Raises:
        UserError: it is.
    """
    if value is not None and value < least:
        raise UserError(f"{name} takes a whole number of at least {least}, got {value}")


def show_progress(done: int, total: int) -> None:
    """Games that were played, on a line of the terminal that goes when all are."""
    end = "\r\033[K" if done == total else ""
    print(f"\r{done} of {total} games{end}", end="", file=sys.stderr, flush=True)


def warn(line: str) -> None:
    """A line on stderr."""
    print(f"acktr: warning: {line}", file=sys.stderr)


def terminal_width() -> int:
    """Columns that text is wrapped at, 60 to 120."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
