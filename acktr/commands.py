"""The verbs of the command line, each a dataclass of its arguments with a method `run`.

Imports of torch and of the emulator stay inside the methods, so that help texts and errors in flags come at once.
"""

import dataclasses
import json
import math
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

from tyro.conf import FlagCreatePairsOff, Positional, arg

from acktr import flags
from acktr.agents import presets
from acktr.agents.settings import EVALUATION_SEED, FIELDS, convert
from acktr.arguments import parsed
from acktr.benchmark_command import Benchmark
from acktr.errors import UserError
from acktr.report_command import Report

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
class Evaluate:
    """Play full games and report raw, unclipped returns; a run's result is kept in its folder as evaluation.json."""

    played: Played
    episodes: Episodes = 30
    deterministic: Greedy = False
    no_deterministic: Sampled = False
    seed: Seed = EVALUATION_SEED
    num_envs: Annotated[
        int,
        arg(metavar="N", help="Environments to play in.", help_behavior_hint="(default: up to 16)"),
    ] = 16
    device: Device = "auto"
    as_json: Json = False

    def run(self) -> int:
        """Evaluate and print."""
        deterministic = _deterministic(self.deterministic, self.no_deterministic)
        _check("--episodes", self.episodes, 1)
        _check("--seed", self.seed, 0)
        _check("--num-envs", self.num_envs, 1)
        from acktr.agents.play import evaluate_file, report

        result = evaluate_file(
            self.played,
            episodes=self.episodes,
            deterministic=deterministic,
            seed=self.seed,
            num_envs=self.num_envs,
            device=self.device,
            progress=_show_progress if sys.stderr.isatty() else None,
            warn=_warn,
        )
        if self.as_json:
            print(json.dumps(result, allow_nan=False))
            return 0
        for line in report(result).splitlines():
            print(textwrap.fill(line, _terminal_width(), subsequent_indent="  ", break_on_hyphens=False))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """Film a policy at play."""

    played: Played
    output: Annotated[Path, arg(metavar="FILE", aliases=("-o",), help="The video to write.")] = Path("game.mp4")
    episodes: Episodes = 1
    deterministic: Greedy = False
    no_deterministic: Sampled = False
    seed: Seed = EVALUATION_SEED
    device: Device = "auto"

    def run(self) -> int:
        """Film and say what was filmed."""
        deterministic = _deterministic(self.deterministic, self.no_deterministic)
        _check("--episodes", self.episodes, 1)
        _check("--seed", self.seed, 0)
        from acktr.agents.play import record_file, report_video

        result = record_file(
            self.played,
            self.output,
            episodes=self.episodes,
            deterministic=deterministic,
            seed=self.seed,
            device=self.device,
        )
        print(report_video(result))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Write a policy alone: weights, spaces and settings, all that evaluate and record need."""

    played: Annotated[Path, Positional, arg(metavar="RUN|FILE", help="A run folder or a checkpoint.")]
    output: Annotated[Path, arg(metavar="FILE", aliases=("-o",), help="The file to write.")] = Path(
        "policy.safetensors"
    )

    def run(self) -> int:
        """Export."""
        from acktr.agents.policy_files import export

        export(self.played, self.output)
        print(f"{self.output} written, {self.output.stat().st_size / 1000:.0f} kB")
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
class Curvature:
    """Compare K-FAC and its relatives with the exact Fisher of a policy, on states that it visits.

    Writes tables (CSV, JSON) and pictures: errors of each layer, the Fisher and its inverse for some units of each
    layer beside their approximations, and autocorrelations of convolutions.
    """

    played: Played
    out: Annotated[
        Path | None,
        arg(
            metavar="DIR",
            help="The folder to write to.",
            help_behavior_hint="(default: curvature in the run folder, FILE-curvature beside a file)",
        ),
    ] = None
    states: Annotated[
        int | None,
        arg(metavar="N", help="States to visit.", help_behavior_hint="(default: 512, with convolutions 128)"),
    ] = None
    units: Annotated[
        int | None,
        arg(
            metavar="N",
            help="Units of each layer in the pictures of matrices.",
            help_behavior_hint="(default: 20, or as many as fit)",
        ),
    ] = None
    damping: Annotated[
        float | None,
        arg(
            metavar="X",
            help="Damping of the inverses.",
            help_behavior_hint="(default: the run's settings damping and critic_damping, as without damping_control)",
        ),
    ] = None
    deterministic: Greedy = False
    no_deterministic: Sampled = False
    seed: Seed = EVALUATION_SEED
    as_json: Json = False

    def run(self) -> int:
        """Compare, write and print."""
        deterministic = _deterministic(self.deterministic, self.no_deterministic)
        for name, value, least in (("--states", self.states, 1), ("--units", self.units, 1), ("--seed", self.seed, 0)):
            _check(name, least if value is None else value, least)
        if self.damping is not None and not 0 < self.damping < math.inf:
            raise UserError(f"--damping takes a number above 0, got {self.damping}")
        from acktr.agents.curvature_report import curvature_file, report

        result = curvature_file(
            self.played,
            out=self.out,
            states=self.states,
            units=self.units,
            damping=self.damping,
            deterministic=deterministic,
            seed=self.seed,
        )
        print(json.dumps(result, allow_nan=False) if self.as_json else report(result, _terminal_width()))
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
            print(textwrap.fill(line, _terminal_width(), subsequent_indent=" " * width, break_on_hyphens=False))
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


def _deterministic(deterministic: bool, no_deterministic: bool) -> bool | None:
    """Greedy, sampled or, as None, what is customary for the environment."""
    if deterministic and no_deterministic:
        raise UserError("--deterministic and --no-deterministic exclude each other; give one of them")
    return deterministic or (False if no_deterministic else None)


def _check(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{name} takes a whole number of at least {least}, got {value}")


def _show_progress(done: int, total: int) -> None:
    end = "\r\033[K" if done == total else ""
    print(f"\r{done} of {total} games{end}", end="", file=sys.stderr, flush=True)


def _warn(line: str) -> None:
    print(f"acktr: warning: {line}", file=sys.stderr)


def _terminal_width() -> int:
    return min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)


def _summary(preset: presets.Preset) -> str:
    """A preset in a few lines: its name, its description and its values."""
    width = _terminal_width()
    sections = [("", preset.values), *preset.environments, ("a2c", preset.a2c)]
    lines = [preset.name, *textwrap.wrap(preset.description, width, initial_indent="  ", subsequent_indent="  ")]
    for title, values in sections:
        # A no-break space keeps a name and its value together on a line.
        pairs = [f"{name} {flags.shown_value(value)}".replace(" ", "\u00a0") for name, value in values.items()]
        indent = f"    {title}: " if title else "    "
        text = textwrap.fill(", ".join(pairs), width, initial_indent=indent, subsequent_indent="      ")
        lines.append(text.replace("\u00a0", " "))
    return "\n".join(lines)
