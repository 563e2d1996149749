"""The verbs that take a policy: `evaluate`, `record`, `export` and `curvature`."""

import dataclasses
import json
import math
import sys
import textwrap
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from acktr.agents.settings import EVALUATION_SEED
from acktr.command_options import (
    Device,
    Episodes,
    Greedy,
    Json,
    Played,
    Sampled,
    Seed,
    check_least,
    how_to_act,
    show_progress,
    terminal_width,
    warn,
)
from acktr.errors import UserError


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
        deterministic = how_to_act(self.deterministic, self.no_deterministic)
        check_least("--episodes", self.episodes, 1)
        check_least("--seed", self.seed, 0)
        check_least("--num-envs", self.num_envs, 1)
        from acktr.agents.play import evaluate_file, report

        result = evaluate_file(
            self.played,
            episodes=self.episodes,
            deterministic=deterministic,
            seed=self.seed,
            num_envs=self.num_envs,
            device=self.device,
            progress=show_progress if sys.stderr.isatty() else None,
            warn=warn,
        )
        if self.as_json:
            print(json.dumps(result, allow_nan=False))
            return 0
        for line in report(result).splitlines():
            print(textwrap.fill(line, terminal_width(), subsequent_indent="  ", break_on_hyphens=False))
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
        deterministic = how_to_act(self.deterministic, self.no_deterministic)
        check_least("--episodes", self.episodes, 1)
        check_least("--seed", self.seed, 0)
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
        deterministic = how_to_act(self.deterministic, self.no_deterministic)
        for name, value, least in (("--states", self.states, 1), ("--units", self.units, 1), ("--seed", self.seed, 0)):
            check_least(name, value, least)
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
        print(json.dumps(result, allow_nan=False) if self.as_json else report(result, terminal_width()))
        return 0
