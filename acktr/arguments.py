"""Arguments of a verb, parsed by tyro, whose boxes of what is wrong become the command line's one line."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any

import tyro

from acktr.errors import UserError

_FRAME = re.compile("[\u2500-\u257f]+|-{4,}|^[|+]|[|+]$")  # in ASCII where the output can show no more
_BEHIND = re.compile(r"(?:Got errors|Argument helptext|For full helptext).*", re.DOTALL)


def parsed(
    form: Any, verb: str, args: Sequence[str], **options: Any
) -> tuple[Any, list[str]]:  # tyro's `form` is any type, and what it returns is of that
    """What the arguments come to, and those that the form does not know.

    Args:
        form: a dataclass that declares the arguments.
        verb: whose they are.
        args: as they were given.
        options: of `tyro.cli`.

    Raises:
        UserError: one is missing or malformed.
        SystemExit: after `--help`.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found, unknown = tyro.cli(form, prog=f"acktr {verb}", args=list(args), return_unknown_args=True, **options)
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(f"{_in_a_line(said.getvalue(), verb)}; see `acktr {verb} --help`") from None
    return found, list(unknown)


def _in_a_line(box: str, verb: str) -> str:
    """The message within a box, without its title and what stands below its first rule."""
    lines = [_FRAME.sub(" ", line) for line in box.splitlines()[1:]]
    text = " ".join(_BEHIND.sub("", "\n".join(lines)).split())
    missing = re.fullmatch(rf"Missing from acktr {verb}: (.*?)\.? \(required\)", text)
    if missing is not None:
        name, _, meaning = missing[1].partition(" ")
        return f"`acktr {verb}` wants {name}: {meaning[:1].lower()}{meaning[1:]}"
    return f"{text[:1].lower()}{text[1:]}".rstrip(".")
