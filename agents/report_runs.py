"""What a report knows of a run from the files in its folder. No torch."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acktr.agents.metrics_file import Row, read_metrics
from acktr.agents.run_folder import COMMAND_FILE, EVALUATION_FILE, METRICS_FILE, VERSIONS_FILE, RunFolder
from acktr.agents.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a run folder holds, but for its checkpoints. Only settings and metrics must be there.

    Attributes:
        path: the folder, as it was given.
        name: of the folder, with its parent's where several have the same.
        settings: of the run.
        rows: of its metrics.
        commands: the command lines that trained it, oldest first.
        starts: what each of them ran on, as versions.json has it.
    """

    path: Path
    name: str
    settings: Settings
    rows: tuple[Row, ...]
    commands: tuple[str, ...]
    starts: tuple[Mapping[str, Any], ...]

    def newest(self, column: str) -> float | None:
        """The last value of a column of the metrics; None where there is none."""
        return next((row[column] for row in reversed(self.rows) if row.get(column) is not None), None)

    def series(self, column: str) -> tuple[list[float], list[float]]:
        """Timesteps and values of a column, without the rows in which one of them is empty or not finite."""
        pairs = [(row["timesteps"], row.get(column)) for row in self.rows]
        kept = [(x, y) for x, y in pairs if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)]
        return [x for x, _ in kept], [y for _, y in kept]


def read_runs(folders: Sequence[Path]) -> list[RunFiles]:
    """Read run folders, each once however often it was named.

    Raises:
        UserError: one of them is no run folder, or its settings or metrics do not parse.
    """
    unique = list({folder.resolve(): folder for folder in folders}.items())
    names = [resolved.name for resolved, _ in unique]
    found = []
    for resolved, folder in unique:
        alone = names.count(resolved.name) == 1
        found.append(
            RunFiles(
                path=folder,
                name=resolved.name if alone else f"{resolved.parent.name}/{resolved.name}",
                settings=RunFolder.open(folder).settings,
                rows=tuple(read_metrics(folder / METRICS_FILE)),
                commands=tuple(_text(folder / COMMAND_FILE).splitlines()),
                starts=_starts(folder / VERSIONS_FILE),
            )
        )
    return found


def read_evaluation(folder: Path) -> dict[str, Any] | None:
    """What `acktr evaluate` left in a run folder; None where there is nothing, or what it would not have written."""
    try:
        found = json.loads(_text(folder / EVALUATION_FILE))
        interval = found["return_ci95"]
        numbers = [found["return_mean"], found["length_mean"], found["return_median"], *found["returns"]]
        numbers += [found[name] for name in ("return_std", "human_normalised") if found[name] is not None]
        counts = [found[name] for name in ("episodes", "timesteps", "truncated", "stalled")]
        sound = (
            all(isinstance(number, int | float) and math.isfinite(number) for number in [*numbers, *(interval or ())])
            and all(isinstance(count, int) for count in counts)
            and len(found["returns"]) == found["episodes"] > 0
            and (interval is None or len(interval) == 2)
            and isinstance(found["protocol"], dict)
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):  # whatever may be in a file
        return None
    return dict(found) if sound else None


def _starts(file: Path) -> tuple[Mapping[str, Any], ...]:
    try:
        starts = json.loads(_text(file))["starts"]
        return tuple(start for start in starts if isinstance(start, dict))
    except (ValueError, TypeError, KeyError, RecursionError):
        return ()


def _text(file: Path) -> str:
    """The file's text; empty where there is no such file, as in folders that were copied in part."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
