"""metrics.csv: its columns, its reader, and a writer that survives a kill in mid-row."""

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from acktr.agents.files import write_text_atomically, write_whole
from acktr.errors import UserError

COLUMNS: tuple[str, ...] = (
    "timesteps",
    "updates",
    "wall_time",
    "steps_per_second",
    "return_mean",
    "return_std",
    "length_mean",
    "episodes",
    "kl_predicted",
    "kl_measured",
    "kl_policy",
    "trust_region_scale",
    "entropy",
    "explained_variance",
    "policy_loss",
    "value_loss",
    "learning_rate",
    "decomposition_retries",
    "stale_inverses",
    "skipped_batches",
    "rejected_steps",
    "damping",
    "kl_to_prior",
)
"""Columns of metrics.csv. Others read them by name: new ones are only ever appended."""

Row = dict[str, float | None]


def read_metrics(path: Path) -> list[Row]:
    """Read a metrics.csv: a dictionary per complete row, None for an empty cell.

    An incomplete last line, as a killed process leaves it, is no row.

    Raises:
        UserError: the file is missing or not a metrics file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the run has written no metrics") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    complete = text[: text.rfind("\n") + 1]
    lines = csv.reader(io.StringIO(complete))
    header = next(lines, [])
    if not header:
        return []
    if "timesteps" not in header:
        raise UserError(f"{path}: not a metrics file of acktr: it has no column 'timesteps'")
    rows: list[Row] = []
    for number, cells in enumerate(lines, start=2):
        if len(cells) != len(header):
            raise UserError(f"{path}: line {number} has {len(cells)} cells for {len(header)} columns")
        try:
            rows.append(
                {name: float(cell) if cell else None for name, cell in zip(header, cells, strict=True)},
            )
        except ValueError:
            raise UserError(f"{path}: line {number} holds something that is no number") from None
    return rows


def clean_row(values: Mapping[str, float | None]) -> Row:
    """Every column of `values`, None where it is missing, None or NaN."""
    return {name: _number(values.get(name)) for name in COLUMNS}


class MetricsFile:
    """Appends rows to a metrics.csv, each at once as one complete line.

    Attributes:
        last_row: the newest row kept or written, None while there is none.

    Args:
        path: the file.
        resume_at: None starts a new file; a number of timesteps keeps the rows up to it and drops what lies beyond,
            an incomplete last line included, and gives rows of an older version the newer columns, empty.
    """

    def __init__(self, path: Path, *, resume_at: int | None = None) -> None:
        kept: list[Row] = []
        if resume_at is not None and path.exists():
            kept = [row for row in read_metrics(path) if (row["timesteps"] or 0.0) <= resume_at]
        lines = [",".join(COLUMNS), *(_line(row) for row in kept)]
        write_text_atomically(path, "\n".join(lines) + "\n")
        # unbuffered: a row that a full disk refuses must not be tried again when the file is closed
        self._handle = path.open("ab", buffering=0)
        self.last_row: Row | None = kept[-1] if kept else None

    def write(self, row: Mapping[str, float | None]) -> None:
        """Append one row. Missing columns, None and NaN become empty cells.

        Raises:
            ValueError: a name that is no column.
            OSError: the row could not be written.
        """
        unknown = set(row) - set(COLUMNS)
        if unknown:
            raise ValueError(f"metrics.csv has no column {', '.join(sorted(unknown))}")
        write_whole(self._handle, (_line(row) + "\n").encode())
        self.last_row = clean_row(row)

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        self._handle.close()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _number(value: float | None) -> float | None:
    if value is None:
        return None
    number = float(value)
    return None if math.isnan(number) else number


def _line(row: Mapping[str, float | None]) -> str:
    return ",".join(_cell(row.get(name)) for name in COLUMNS)


def _cell(value: float | None) -> str:
    number = _number(value)
    if number is None:
        return ""
    # whole numbers without a point, so that counters read as counters; repr gives a float back exactly
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)
