"""One benchmark, from its first run to its table."""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock

from acktr.agents.benchmark.jobs import Job, jobs_of
from acktr.agents.benchmark.peer_settings import check_installed, published
from acktr.agents.benchmark.progress import Progress
from acktr.agents.benchmark.records import results_of
from acktr.agents.benchmark.runner import run
from acktr.agents.benchmark.suites import PEERS, Suite, peers, suite
from acktr.agents.benchmark.summary import write
from acktr.agents.run_folder import record_start
from acktr.errors import RunError, UserError

LOCK_FILE = ".lock"

_OF_SEED = re.compile(r"-seed(\d+)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Campaign:
    """A suite as it was asked for.

    Attributes:
        name: of the suite.
        suite: with what the caller changed.
        jobs: its runs.
        out: its folder.
    """

    name: str
    suite: Suite
    jobs: tuple[Job, ...]
    out: Path

    def sum_up(self) -> str:
        """Write the files of what is finished by now; the table, empty where nothing is.

        All that the folder holds of the suite is in them, whatever was asked for this time.

        Raises:
            UserError: the folder holds a run with other settings.
        """
        known, own = suite(self.name), self.suite
        there = [int(found[1]) + 1 for path in self.out.glob("runs/*/*") if (found := _OF_SEED.search(path.name))]
        whole = dataclasses.replace(
            known,
            total_timesteps=own.total_timesteps,
            seeds=max(known.seeds, own.seeds, *there),
            peer_seeds=max(known.peer_seeds, own.peer_seeds, *there),
            peer_environments=known.environments,
        )
        results = results_of(jobs_of(whole, self.out, peers=peers(tuple(PEERS))), known.references)
        if not results.records:
            return ""
        return write(results, self.out, title=f"{self.name}: {self.suite.description}")


def planned(
    name: str,
    *,
    out: Path | None = None,
    environments: Sequence[str] = (),
    contestants: Sequence[str] = (),
    peer_names: Sequence[str] = (),
    seeds: int | None = None,
    total_timesteps: int | None = None,
) -> Campaign:
    """A suite, or a part of it, or with other numbers.

    Args:
        name: of the suite.
        out: its folder; None makes `benchmarks/<name>` below the working folder's `runs`.
        environments: some of the suite's; empty takes all of them.
        contestants: some of the suite's; empty takes all of them.
        peer_names: peers to run too; on the environments that were named, else on those that the suite has for them.
        seeds: runs of each; None as the suite says.
        total_timesteps: of each run; None as the suite says.

    Raises:
        UserError: an unknown name, or peers without their packages or without settings for an environment.
    """
    chosen = suite(name)
    others = peers(peer_names)
    if others:
        check_installed()
    changes: dict[str, Any] = {}
    if environments:
        named = _some(environments, chosen.environments, "environment", name)
        changes |= {"environments": named, "peer_environments": named}
    if contestants:
        names = _some(contestants, [contestant.name for contestant in chosen.contestants], "contestant", name)
        changes["contestants"] = tuple(contestant for contestant in chosen.contestants if contestant.name in names)
    if seeds is not None:
        changes |= {"seeds": seeds, "peer_seeds": seeds}
    if total_timesteps is not None:
        changes["total_timesteps"] = total_timesteps
    chosen = dataclasses.replace(chosen, **changes)
    for contestant in others:
        for env in chosen.peer_environments:
            published(contestant.algorithm, env)
    folder = out or Path("runs") / "benchmarks" / name
    return Campaign(name=name, suite=chosen, jobs=tuple(jobs_of(chosen, folder, peers=others)), out=folder)


def carry_out(campaign: Campaign, *, at_once: int | None = None) -> str:
    """Run what is missing and sum up; after an interruption what is finished is summed up too.

    Args:
        campaign: what to run.
        at_once: processes; None takes one for each core that this process may use.

    Returns:
        The table, as Markdown.

    Raises:
        UserError: another process runs this benchmark, or its folder holds runs with other settings.
        RunError: runs failed; all others are finished and summed up.
        KeyboardInterrupt: after Ctrl-C; the same command goes on.
    """
    number = at_once or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        campaign.out.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(campaign.out / LOCK_FILE, blocking=False)
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"{campaign.out}: another process runs this benchmark; wait for it or stop it") from error
    except OSError as error:
        raise UserError(f"{campaign.out} cannot be made: {error.strerror}; give another --out") from error
    with lock:
        record_start(campaign.out)
        try:
            failed = run(campaign.jobs, at_once=number, progress=Progress(campaign.jobs, at_once=number))
        except KeyboardInterrupt:
            campaign.sum_up()
            raise
        table = campaign.sum_up()
    if failed:
        logs = ", ".join(str(job.log) for job in failed)
        raise RunError(f"{len(failed)} of {len(campaign.jobs)} runs failed, see {logs}; the same command tries again")
    return table


def _some(asked: Sequence[str], known: Sequence[str], what: str, name: str) -> tuple[str, ...]:
    for word in asked:
        if word not in known:
            raise UserError(f"the benchmark {name} has no {what} '{word}'; it has {', '.join(known)}")
    return tuple(word for word in known if word in asked)
