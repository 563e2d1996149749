"""The verb `report`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from acktr.agents.settings import EVALUATION_SEED
from acktr.command_options import Device, Seed, check_least, show_progress
from acktr.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Write one HTML page about one or more runs, with curves, games, a film, settings and provenance inside.

    Games are played where evaluation.json does not hold those of the present checkpoint; the run folders stay as they
    are. The page needs no network.
    """

    folders: Annotated[
        tuple[Path, ...], Positional, arg(metavar="RUN [RUN ...]", help="Run folders.", help_behavior_hint="(required)")
    ]
    output: Annotated[Path, arg(metavar="FILE", aliases=("-o",), help="The page to write.")] = Path("report.html")
    episodes: Annotated[
        int | None,
        arg(
            metavar="N",
            help="Full games to evaluate by.",
            help_behavior_hint="(default: those of evaluation.json, else 10)",
        ),
    ] = None
    no_play: Annotated[bool, FlagCreatePairsOff, arg(help="Play no games, film none.", help_behavior_hint="")] = False
    no_video: Annotated[bool, FlagCreatePairsOff, arg(help="Film no game.", help_behavior_hint="")] = False
    seed: Seed = EVALUATION_SEED
    device: Device = "auto"

    def run(self) -> int:
        """Write the page."""
        if not self.folders:
            raise UserError(
                "`acktr report` takes one run folder or more: acktr report runs/CartPole-v1/* -o report.html"
            )
        check_least("--episodes", self.episodes, 1)
        check_least("--seed", self.seed, 0)
        from acktr.agents.report import write_report

        write_report(
            self.folders,
            self.output,
            episodes=self.episodes,
            play=not self.no_play,
            video=not self.no_video,
            seed=self.seed,
            device=self.device,
            progress=show_progress if sys.stderr.isatty() else None,
        )
        size = self.output.stat().st_size
        print(f"{self.output} written, {f'{size / 1e6:.1f} MB' if size >= 1e6 else f'{size / 1000:.0f} kB'}")
        return 0
