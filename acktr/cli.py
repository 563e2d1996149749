"""The command `acktr`: finds the verb, hands over its arguments, turns errors into one line and an exit code.

Exit codes: 0 done, 1 the run failed, 2 the caller can mend it, 130 interrupted. Verbs import what they need when they
run: `acktr --help` imports no torch.
"""

import difflib
import errno
import os
import sys
from collections.abc import Sequence

from acktr import __version__
from acktr.errors import RunError, UserError
from acktr.process import tune, world_size

VERBS = {
    "train": "train on an environment, into a new run folder",
    "resume": "go on with a run that was interrupted, or prolong one",
    "evaluate": "play full games and report raw returns with their confidence interval",
    "record": "film a policy at play",
    "export": "write a policy alone, without what only training needs",
    "plot": "draw learning curves of one or more runs",
    "benchmark": "run a suite of environments over seeds, beside peers, and sum it up",
    "report": "write one HTML page about one or more runs",
    "curvature": "compare K-FAC and its relatives with the exact Fisher of a policy",
    "presets": "list the presets, or print one with the source of each value",
    "info": "show versions, devices, threads and the emulator",
}

_HELP = """\
ACKTR: natural-gradient deep reinforcement learning with Kronecker-factored curvature.

usage: acktr VERB [arguments]

{verbs}

acktr VERB --help shows the flags of a verb, acktr --version the version.

examples:
  acktr train --env CartPole-v1
  acktr train --env BreakoutNoFrameskip-v4 --total-timesteps 2e6 --seed 1
  acktr train --env BreakoutNoFrameskip-v4 --help      the flags, with that environment's defaults
  acktr evaluate runs/BreakoutNoFrameskip-v4/acktr-seed1-20260101-120000
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the program's name; those of the process when None.

    Returns:
        The exit code.

    Raises:
        SystemExit: `--help` of a verb (0), or a flag without a value (2).
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(args)
        if sys.stdout is not None:  # closed by the caller
            sys.stdout.flush()
    except UserError as error:
        return _report(error, 2)
    except RunError as error:
        return _report(error, 1)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # the others say nothing of their own
            print("acktr: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`acktr presets | head`) has enough; without this, Python complains again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            sys.stdout = None  # what it holds cannot be written at exit either
            return _report(RunError("the output cannot be written: no space left on it"), 1)
        if error.filename is None:
            raise  # no file that the caller could mend: a defect, whose traceback is wanted
        return _report(RunError(f"{error.filename}: {error.strerror}; mend that and try again"), 1)
    return code


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        lines = [f"  {verb:<10}{what}" for verb, what in VERBS.items()]
        print(_HELP.format(verbs="\n".join(lines)), end="")
        return 0 if args else 2
    if args[0] in ("-V", "--version", "version"):
        print(f"acktr {__version__}")
        return 0
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=2, cutoff=0.5) or list(VERBS)
        raise UserError(f"`acktr` has no verb '{verb}'; nearest: {', '.join(near)}; see `acktr --help`")
    tune()  # before torch is imported
    from acktr.commands import parse

    return parse(verb, rest).run()


def _report(error: Exception, code: int) -> int:
    speaker = f"acktr, rank {os.environ.get('RANK', '?')}" if world_size() > 1 else "acktr"
    print(f"{speaker}: error: " + " ".join(str(error).split()), file=sys.stderr)
    return code
