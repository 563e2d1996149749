"""Arguments of the benchmarks: what cannot be measured is refused in one line, before anything is."""

import argparse
import functools
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from acktr.errors import RunError, UserError


def count(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text) if text.strip().lstrip("+-").isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"takes a whole number of at least 1, got '{text}'")
    return value


def natural(text: str) -> int:
    """A whole number of at least 0."""
    return 0 if text.strip() == "0" else count(text)


def amount(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"takes a finite number above 0, got '{text}'")
    return value


def share(text: str) -> float:
    """A number above 0 and at most 1."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"takes a number above 0 and at most 1, got '{text}'")
    return value


def change(text: str) -> str:
    """A setting as KEY=VALUE."""
    key, sign, _ = text.partition("=")
    if not (key and sign):
        raise argparse.ArgumentTypeError(f"takes settings as KEY=VALUE, got '{text}'")
    return text


def output(text: str) -> Path:
    """A file that can be written, in a folder that is there."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"takes a file, and {path} is a folder")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path} cannot be written: there is no folder {path.parent}; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written; name another file")
    return path


def picture(text: str) -> Path:
    """Such a file, of a kind that can be drawn."""
    path = output(text)
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"draws .png, .pdf or .svg, got '{text}'")
    return path


def in_one_line(main: Callable[[], None]) -> Callable[[], None]:
    """Let a program end with one line and exit code 2 (1 where a run failed) on what its caller can mend."""

    @functools.wraps(main)
    def guarded() -> None:
        try:
            main()
        except (UserError, RunError) as error:
            print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(2 if isinstance(error, UserError) else 1)

    return guarded


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
