"""What a run says while it trains: metrics.csv, TensorBoard, and a live status or plain lines on the console."""

import shlex
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from acktr.agents.metrics_file import COLUMNS, MetricsFile, Row, clean_row
from acktr.agents.run_folder import METRICS_FILE, RunFolder
from acktr.agents.settings import Settings
from acktr.agents.tensorboard_file import TensorBoardFile
from acktr.errors import RunError

if TYPE_CHECKING:
    from rich.live import Live

__all__ = ["COLUMNS", "Reporter"]

PLAIN_LINE_SECONDS = 10.0
"""Least time between two plain lines, where the output is no terminal."""

REFRESH_SECONDS = 0.25
"""Least time between two redraws of the live status."""

_GAP = "   "

_TAGS = {
    "return_mean": "rollout",
    "return_std": "rollout",
    "length_mean": "rollout",
    "episodes": "rollout",
    "kl_predicted": "trust_region",
    "kl_measured": "trust_region",
    "kl_policy": "trust_region",
    "trust_region_scale": "trust_region",
    "entropy": "policy",
    "explained_variance": "value",
    "policy_loss": "losses",
    "value_loss": "losses",
    "learning_rate": "optimizer",
    "decomposition_retries": "optimizer",
    "stale_inverses": "optimizer",
    "skipped_batches": "optimizer",
    "rejected_steps": "optimizer",
    "damping": "optimizer",
    "kl_to_prior": "policy",
    "updates": "time",
    "wall_time": "time",
    "steps_per_second": "time",
}

_HPARAM_METRICS = tuple(f"{_TAGS[name]}/{name}" for name in ("return_mean", "steps_per_second", "explained_variance"))
"""What TensorBoard shows beside the settings of each run."""


class Reporter:
    """Records one run. A context manager; `close` may also be called by hand.

    Args:
        folder: where metrics.csv and the TensorBoard events go; None records on the console only.
        settings: the run's settings (name of the run, total of timesteps).
        console: False prints nothing at all.
        resume_at: timesteps of the checkpoint that the run goes on from: later rows are dropped from metrics.csv and
            purged from TensorBoard. None for a new run.

    Attributes:
        last_row: the newest row kept or written, e.g. to go on with `wall_time`; None while there is none.
    """

    def __init__(
        self, folder: RunFolder | None, settings: Settings, *, console: bool = True, resume_at: int | None = None
    ) -> None:
        self._metrics: MetricsFile | None = None
        self._events: TensorBoardFile | None = None
        self._console = Console(settings) if console else None
        self.last_row: Row | None = None
        if folder is not None:
            try:
                self._metrics = MetricsFile(folder.path / METRICS_FILE, resume_at=resume_at)
                self.last_row = self._metrics.last_row
                purge_step = None if resume_at is None else resume_at + 1
                self._events = TensorBoardFile(folder.path, purge_step=purge_step)
                self._events.describe(settings.to_dict(), _HPARAM_METRICS)
            except OSError as error:
                raise _cannot_write(folder, error) from error
        self._folder = folder

    def expect(self, total_timesteps: int) -> None:
        """Show progress towards another end than the settings name."""
        if self._console is not None:
            self._console.total = total_timesteps

    def message(self, line: str) -> None:
        """Print one plain line: device chosen, preset chosen, resumed and the like."""
        if self._console is not None:
            self._console.message(line)

    def rest(self) -> None:
        """Let the live status stand as it is; messages come below it from now on."""
        if self._console is not None:
            self._console.rest()

    def row(self, values: Mapping[str, float | int | None]) -> None:
        """Record one row: metrics.csv, TensorBoard scalars at `timesteps`, console.

        Args:
            values: by column name; `timesteps` is required, what is missing, None or NaN is left empty.

        Raises:
            ValueError: a name that is no column.
            RunError: the row could not be written (disk full).
        """
        row = clean_row(values)
        if self._folder is not None and self._metrics is not None and self._events is not None:
            try:
                self._metrics.write(values)
                scalars = {f"{group}/{name}": row[name] for name, group in _TAGS.items()}
                present = {tag: value for tag, value in scalars.items() if value is not None}
                self._events.write(present, step=int(row["timesteps"] or 0))
            except OSError as error:
                raise _cannot_write(self._folder, error) from error
        self.last_row = row
        if self._console is not None:
            self._console.row(row)

    def conditions(self, values: Mapping[str, float], *, timesteps: int) -> None:
        """Record condition numbers of the factors, for TensorBoard alone.

        Args:
            values: by learner, layer and factor.
            timesteps: so far.

        Raises:
            RunError: they could not be written (disk full).
        """
        if self._folder is not None and self._events is not None and values:
            try:
                self._events.write(
                    {f"optimizer_condition/{name}": value for name, value in values.items()}, step=timesteps
                )
            except OSError as error:
                raise _cannot_write(self._folder, error) from error

    def status(self, *, timesteps: int, steps_per_second: float) -> None:
        """Refresh the live status between rows; cheap enough for every step, does nothing where there is none."""
        if self._console is not None:
            self._console.status(timesteps, steps_per_second)

    def close(self) -> None:
        """Close everything; closing twice does nothing."""
        if self._console is not None:
            self._console.close()
        if self._metrics is not None:
            self._metrics.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _cannot_write(folder: RunFolder, error: OSError) -> RunError:
    return RunError(
        f"{folder.path}: metrics cannot be written: {error.strerror or error}; free some space or mend the folder, "
        f"then `acktr resume {shlex.quote(str(folder.path))}`"
    )


class Console:
    """A live status on a terminal, plain lines elsewhere.

    Args:
        settings: gives the run's name and its total of timesteps.

    Attributes:
        total: timesteps that progress is shown towards.
    """

    def __init__(self, settings: Settings) -> None:
        self.total = settings.total_timesteps
        self._title = f"{settings.algorithm} {settings.env} seed {settings.seed}"
        self._row: Row = dict.fromkeys(COLUMNS)
        self._timesteps = 0
        self._rate = 0.0
        self._shown = -1.0e9  # monotonic seconds of the last line or redraw
        self._unprinted = False
        self._closed = False
        self._live: Live | None = None

    def message(self, line: str) -> None:
        """Print one line above the live status."""
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            if self._unprinted:  # the line comes after the rows that it comes after
                self._print(time.monotonic())
            print(line, flush=True)

    def row(self, row: Row) -> None:
        """Show a new row."""
        self._row = row
        self._timesteps = int(row["timesteps"] or 0)
        self._rate = row["steps_per_second"] or self._rate
        now = time.monotonic()
        if _is_terminal():
            self._redraw(now)
        elif now - self._shown >= PLAIN_LINE_SECONDS:
            self._print(now)
        else:
            self._unprinted = True

    def status(self, timesteps: int, steps_per_second: float) -> None:
        """Refresh the live status, at most every `REFRESH_SECONDS`."""
        now = time.monotonic()
        if now - self._shown < REFRESH_SECONDS or not _is_terminal():
            return
        self._timesteps, self._rate = timesteps, steps_per_second
        self._redraw(now)

    def rest(self) -> None:
        """Leave the last status standing: messages come below it."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def close(self) -> None:
        """Leave the last status standing, and show nothing more."""
        if self._closed:
            return
        self._closed = True
        if self._live is not None:
            self.rest()
        elif self._unprinted:
            self._print(time.monotonic())

    def _print(self, now: float) -> None:
        self._shown, self._unprinted = now, False
        print(" | ".join(f"{name} {value}" for name, value in self._figures()), flush=True)

    def _redraw(self, now: float) -> None:
        if self._closed:
            return
        from rich.live import Live  # only where there is a terminal
        from rich.text import Text

        self._shown = now
        if self._live is None:
            self._live = Live(auto_refresh=False)
            self._live.start()
            # shown again at once: a second Ctrl-C ends the process without a chance to restore the cursor
            self._live.console.show_cursor(True)
        lines = [Text(self._title, style="italic")]
        lines += [
            Text(_GAP).join(Text.assemble((name, "dim"), " ", value) for name, value in row)
            for row in _packed(self._figures(), self._live.console.width)
        ]
        self._live.update(Text("\n", no_wrap=True, overflow="ellipsis").join(lines), refresh=True)

    def _figures(self) -> list[tuple[str, str]]:
        row = self._row
        share = min(1.0, self._timesteps / self.total)
        left = (self.total - self._timesteps) / self._rate if self._rate > 0.0 else None
        kl = f"{_power(row['kl_predicted'])}/{_power(row['kl_measured'])}"
        return [
            ("steps", f"{self._timesteps:,}/{self.total:,} ({share:.0%})"),
            ("steps/s", f"{self._rate:,.0f}"),
            ("ETA", _duration(left)),
            ("return", f"{_short(row['return_mean'])} ({int(row['episodes'] or 0)} ep)"),
            ("KL pred/meas", kl),
            ("entropy", _short(row["entropy"])),
            ("expl. var.", _short(row["explained_variance"])),
        ]


def _packed(figures: list[tuple[str, str]], width: int) -> list[list[tuple[str, str]]]:
    """Figures in as few lines as the width allows, none of them broken."""
    lines: list[list[tuple[str, str]]] = []
    room = -1
    for name, value in figures:
        length = len(name) + 1 + len(value)
        room -= len(_GAP) + length
        if room < 0:
            lines.append([])
            room = width - length
        lines[-1].append((name, value))
    return lines


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _short(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _power(value: float | None) -> str:
    """Always as wide, so that what stands behind it stands still."""
    return "-" if value is None or value != value else f"{value:.1e}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
