"""Where the runs of a benchmark stand: a live table on a terminal, a line for each start and end elsewhere."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from acktr.agents.benchmark.jobs import Job
from acktr.agents.metrics_file import Row

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

REFRESH_SECONDS = 2.0
"""Between two looks into the metrics of running jobs."""


class Progress:
    """Shows the runs of a benchmark; a context manager.

    Args:
        jobs: all of them.
        at_once: that run at the same time, for the time that is left.
    """

    def __init__(self, jobs: Sequence[Job], *, at_once: int) -> None:
        self._jobs = jobs
        self._at_once = at_once
        self._rows: dict[Job, Row | None] = {}
        self._states: dict[Job, str] = {}
        self._shown = 0.0
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        for job in self._jobs:
            if job.is_finished():
                self._states[job], self._rows[job] = "finished", job.last_row()
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(auto_refresh=False)
            self._live.start()
        else:
            done = len(self._states)
            print(f"{len(self._jobs)} runs, {done} of them finished, {self._at_once} at a time", flush=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(self._table([], []), refresh=True)
            self._live.stop()

    def started(self, job: Job) -> None:
        """A run began, or goes on."""
        self._states[job] = "running"
        if self._live is None:
            print(f"{job.title}: started", flush=True)

    def ended(self, job: Job, *, finished: bool) -> None:
        """A run came to its end."""
        self._states[job], self._rows[job] = ("finished" if finished else "failed"), job.last_row()
        if self._live is None:
            what = f"return {_return(self._rows[job])}" if finished else f"failed; {job.log} says why"
            print(f"{job.title}: {what}", flush=True)

    def refresh(self, running: Sequence[Job], waiting: Sequence[Job]) -> None:
        """Look where the running ones are."""
        now = time.monotonic()
        if self._live is None or now - self._shown < REFRESH_SECONDS:
            return
        self._shown = now
        for job in running:
            self._rows[job] = job.last_row()
        self._live.update(self._table(running, waiting), refresh=True)

    def _table(self, running: Sequence[Job], waiting: Sequence[Job]) -> "Table":
        from rich.table import Table

        done = sum(state == "finished" for state in self._states.values())
        table = Table(title=f"{done} of {len(self._jobs)} runs{self._left(running, waiting)}", box=None, pad_edge=False)
        table.add_column("environment")
        names = list(dict.fromkeys(job.contestant.name for job in self._jobs))
        for name in names:
            table.add_column(name, justify="right")
        for env in dict.fromkeys(job.env for job in self._jobs):
            own = [job for job in self._jobs if job.env == env]
            cells = [self._cell([job for job in own if job.contestant.name == name]) for name in names]
            table.add_row(env, *cells)
        return table

    def _cell(self, jobs: Sequence[Job]) -> str:
        """Mean return of the finished runs, how many they are of how many, and how far the running ones are."""
        if not jobs:
            return ""
        states = [self._states.get(job, "waiting") for job in jobs]
        finished = [self._rows.get(job) for job, state in zip(jobs, states, strict=True) if state == "finished"]
        values = [row["return_mean"] for row in finished if row is not None and row["return_mean"] is not None]
        words = [f"[bold]{_short(sum(values) / len(values))}[/bold]"] if values else []
        words += [f"[cyan]{self._share(job):.0%}[/cyan]" for job in jobs if self._states.get(job) == "running"]
        words += ["[red]failed[/red]"] * states.count("failed")
        count = f"[dim]{len(finished)}/{len(jobs)}[/dim]" if len(jobs) > 1 else ""
        return " ".join([*words, count] if words else ["[dim]-[/dim]"])

    def _share(self, job: Job) -> float:
        row = self._rows.get(job)
        return 0.0 if row is None or not job.timesteps else (row["timesteps"] or 0.0) / job.timesteps

    def _left(self, running: Sequence[Job], waiting: Sequence[Job]) -> str:
        """Time until the end, as long as runs that are known take by steps; nothing before the first row."""
        rates: dict[str, list[float]] = {}
        for job, row in self._rows.items():
            if row is not None and row["wall_time"] and job.timesteps:
                rates.setdefault(job.contestant.name, []).append((row["timesteps"] or 0.0) / row["wall_time"])
        if not rates or not (running or waiting):
            return ""
        every = [rate for own in rates.values() for rate in own]
        seconds = 0.0
        for job in (*running, *waiting):
            own = rates.get(job.contestant.name, every)
            row = self._rows.get(job)
            steps = job.timesteps - (row["timesteps"] or 0.0 if row is not None else 0.0)
            seconds += max(0.0, steps) * len(own) / max(sum(own), 1e-9)
        minutes = round(seconds / 60 / min(self._at_once, len(running) + len(waiting)))
        return f", about {minutes // 60}:{minutes % 60:02d} h left"


def _return(row: Row | None) -> str:
    value = None if row is None else row["return_mean"]
    return "-" if value is None else _short(value)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"
