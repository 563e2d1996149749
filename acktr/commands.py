"""The verbs of the command line, each a dataclass of its arguments with a method `run`.

Imports of torch and of the emulator stay inside the methods, so that help texts and errors in flags come at once.
"""

import dataclasses
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

from tyro.conf import Positional, arg

from acktr import flags
from acktr.agents import presets
from acktr.agents.settings import FIELDS, convert
from acktr.arguments import parsed
from acktr.benchmark_command import Benchmark
from acktr.command_options import Json, terminal_width
from acktr.errors import UserError
from acktr.policy_commands import Curvature, Evaluate, Export, Record
from acktr.report_command import Report


class Command(Protocol):
    """A verb with its arguments."""

    def run(self) -> int:
        """Do it.

        Returns:
            The exit code.

        Raises:
            UserError: something that the caller can mend.
            RunError: the run failed.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resume:
    """Go on with a run from its last checkpoint, in the same folder.

    A run keeps its settings: a longer total and another device are all that can change.
    """

    folder: Annotated[Path, Positional, arg(metavar="RUN", help="The run folder.")]
    total_timesteps: Annotated[
        str,
        arg(
            metavar="N",
            help="A new end of the run; schedules stretch from where they stand, of a finished run they start anew.",
            help_behavior_hint="(default: the run's)",
        ),
    ] = ""
    device: Annotated[
        str, arg(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.", help_behavior_hint="(default: the run's)")
    ] = ""

    def run(self) -> int:
        """Resume the run."""
        total = None
        if self.total_timesteps:
            total = convert({"total_timesteps": self.total_timesteps}, source="--total-timesteps")["total_timesteps"]
        from acktr.agents.runs import resume

        resume(self.folder, total_timesteps=total, device=self.device or None)
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """Draw learning curves; runs that differ in their seed alone make one curve with its spread."""

    folders: Annotated[
        tuple[Path, ...], Positional, arg(metavar="RUN [RUN ...]", help="Run folders.", help_behavior_hint="(required)")
    ]
    output: Annotated[Path, arg(metavar="FILE", aliases=("-o",), help="The picture to write.")] = Path("curve.png")

    def run(self) -> int:
        """Plot."""
        if not self.folders:
            raise UserError("`acktr plot` takes one run folder or more: acktr plot runs/CartPole-v1/* -o curve.png")
        from acktr.agents.plots import plot

        plot(self.folders, self.output)
        print(f"{self.output} written")
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Presets:
    """List the presets, or print one.

    What is printed is YAML: `acktr presets atari > mine.yaml` makes a start, `--preset mine.yaml` uses it.
    """

    name: Annotated[
        str,
        Positional,
        arg(metavar="[NAME]", help="The preset to print, with the source of each value.", help_behavior_hint=""),
    ] = ""

    def run(self) -> int:
        """Print."""
        if self.name:
            print(presets.load(self.name).text, end="")
            return 0
        for name in presets.names():
            print(_summary(presets.load(name)), end="\n\n")
        print(
            "acktr presets NAME prints one with the source of each value; acktr train --preset takes NAME or FILE.yaml"
        )
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """Show versions, devices, threads and the emulator: what a bug report should hold."""

    as_json: Json = False

    def run(self) -> int:
        """Print."""
        from acktr.info import facts

        found = facts()
        if self.as_json:
            print(json.dumps(found))
            return 0
        width = max(map(len, found)) + 2
        for title, value in found.items():
            line = f"{title:<{width}}{value}"
            print(textwrap.fill(line, terminal_width(), subsequent_indent=" " * width, break_on_hyphens=False))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Train a policy into a new run folder."""

    flags: flags.TrainFlags
    description: ClassVar[str] = "Train a policy into a new run folder."

    def run(self) -> int:
        """Train."""
        from acktr.agents.runs import train

        folder = self.flags.run_dir
        train(self.flags.settings, run_dir=Path(folder) if folder else None, notes=self.flags.notes)
        return 0


_COMMANDS: dict[str, type[Any]] = {
    "benchmark": Benchmark,
    "resume": Resume,
    "evaluate": Evaluate,
    "record": Record,
    "export": Export,
    "plot": Plot,
    "report": Report,
    "curvature": Curvature,
    "presets": Presets,
    "info": Info,
}


def parse(verb: str, args: Sequence[str]) -> Command:
    """Parse the arguments of a verb.

    Args:
        verb: one of `acktr --help`'s verbs.
        args: the arguments after it.

    Raises:
        UserError: an unknown flag, a missing or malformed argument, or a value that a setting does not take.
        SystemExit: `--help`.
    """
    if verb == "train":
        return Train(flags=flags.parse_train(args, description=Train.description))
    command = _COMMANDS[verb]
    found, unknown = parsed(command, verb, args)
    strange = next((word for word in unknown if word.startswith("-")), "").partition("=")[0]
    if verb == "resume" and strange.lstrip("-").removeprefix("no-").replace("-", "_") in FIELDS:
        raise UserError(
            f"`acktr resume` cannot change {strange}: a run keeps its settings, but for --total-timesteps and --device"
        )
    names = ["json" if field.name == "as_json" else field.name for field in dataclasses.fields(command)]
    flags.refuse_unknown(verb, unknown, names)
    result: Command = found
    return result


def _summary(preset: presets.Preset) -> str:
    """A preset in a few lines: its name, its description and its values."""
    width = terminal_width()
    sections = [("", preset.values), *preset.environments, ("a2c", preset.a2c)]
    lines = [preset.name, *textwrap.wrap(preset.description, width, initial_indent="  ", subsequent_indent="  ")]
    for title, values in sections:
        # A no-break space keeps a name and its value together on a line.
        pairs = [f"{name} {flags.shown_value(value)}".replace(" ", "\u00a0") for name, value in values.items()]
        indent = f"    {title}: " if title else "    "
        text = textwrap.fill(", ".join(pairs), width, initial_indent=indent, subsequent_indent="      ")
        lines.append(text.replace("\u00a0", " "))
    return "\n".join(lines)
