"""The verb `benchmark`."""

import dataclasses
import textwrap
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from acktr.agents.benchmark.suites import PEERS, SUITES
from acktr.agents.settings import convert
from acktr.errors import UserError

_OF_SUITE = "(default: the suite's)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Run a suite of environments over seeds, side by side, and sum the runs up: tables, curves, intervals.

    Interrupted, the same command goes on; finished, it sums up again. Without a suite it lists them.
    """

    suite: Annotated[str, Positional, arg(metavar="[SUITE]", help="The suite.", help_behavior_hint="")] = ""
    out: Annotated[
        Path | None,
        arg(metavar="DIR", help="The benchmark's folder.", help_behavior_hint="(default: runs/benchmarks/SUITE)"),
    ] = None
    env: Annotated[
        tuple[str, ...], arg(metavar="ID [ID ...]", help="Some of its environments.", help_behavior_hint=_OF_SUITE)
    ] = ()
    only: Annotated[
        tuple[str, ...], arg(metavar="NAME [NAME ...]", help="Some of its contestants.", help_behavior_hint=_OF_SUITE)
    ] = ()
    peer: Annotated[
        tuple[str, ...],
        arg(
            metavar="NAME [NAME ...]",
            help=f"Run others too, with their published settings: {', '.join(PEERS)}; of packages to install first.",
            help_behavior_hint="",
        ),
    ] = ()
    seeds: Annotated[
        int | None, arg(metavar="N", help="Runs of each, seeds 0 to N - 1.", help_behavior_hint=_OF_SUITE)
    ] = None
    total_timesteps: Annotated[
        str, arg(metavar="N", help="Environment steps of each run.", help_behavior_hint=_OF_SUITE)
    ] = ""
    jobs: Annotated[
        int | None,
        arg(metavar="N", help="Runs at a time, one thread each.", help_behavior_hint="(default: one per core)"),
    ] = None
    summary: Annotated[
        bool, FlagCreatePairsOff, arg(help="Run nothing, sum up what is finished.", help_behavior_hint="")
    ] = False

    def run(self) -> int:
        """Run and print the table."""
        if not self.suite:
            for name, suite in SUITES.items():
                print(f"{name}: {suite.description}; {suite.seeds} seeds")
                words = ", ".join(suite.environments)
                print(textwrap.fill(words, 100, initial_indent="    ", subsequent_indent="    "))
            return 0
        for name, value in (("--seeds", self.seeds), ("--jobs", self.jobs)):
            if value is not None and value < 1:
                raise UserError(f"{name} takes a whole number of at least 1, got {value}")
        steps = None
        if self.total_timesteps:
            steps = convert({"total_timesteps": self.total_timesteps}, source="--total-timesteps")["total_timesteps"]
        from acktr.agents.benchmark.campaign import carry_out, planned
        from acktr.agents.benchmark.summary import FILES

        campaign = planned(
            self.suite,
            out=self.out,
            environments=self.env,
            contestants=self.only,
            peer_names=self.peer,
            seeds=self.seeds,
            total_timesteps=steps,
        )
        if self.summary:
            table = campaign.sum_up()
            if not table:
                raise UserError(f"{campaign.out}: no run of this benchmark is finished there")
        else:
            table = carry_out(campaign, at_once=self.jobs)
        print(table)
        files = [name for name in FILES if (campaign.out / name).is_file()]
        print(f"{campaign.out}: {', '.join(files)}")
        return 0
