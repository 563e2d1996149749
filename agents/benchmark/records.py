"""What finished runs have to say: scores, curves, and the scale that makes environments comparable."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from acktr.agents.benchmark.aggregates import Scores, normalised
from acktr.agents.benchmark.jobs import Job
from acktr.agents.benchmark.suites import CHANCE
from acktr.agents.metrics_file import Row
from acktr.agents.plots import read_curve
from acktr.agents.run_folder import METRICS_FILE, SETTINGS_FILE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A finished run.

    Attributes:
        env: the environment's id.
        contestant: who, by name.
        seed: of the run.
        last_row: the last of its metrics.
        curve: (n, 2) timesteps and mean raw return of the last hundred games.
        settings: that it was run with, as its settings.yaml has them.
    """

    env: str
    contestant: str
    seed: int
    last_row: Row
    curve: NDArray[np.float64]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def score(self) -> float:
        """Mean raw return of the run's last hundred games; NaN where none has ended."""
        value = self.last_row["return_mean"]
        return float("nan") if value is None else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """The finished runs of a benchmark.

    Attributes:
        records: of contestants.
        chance: mean return of random play by environment.
        references: whose mean counts as 1, the first of them that has a run on an environment.
    """

    records: tuple[Record, ...]
    chance: Mapping[str, float]
    references: tuple[str, ...]

    @property
    def environments(self) -> list[str]:
        """In the order of the suite."""
        return list(dict.fromkeys(record.env for record in self.records))

    @property
    def contestants(self) -> list[str]:
        """In the order of the suite."""
        return list(dict.fromkeys(record.contestant for record in self.records))

    def of(self, env: str, contestant: str) -> list[Record]:
        """The runs of one contestant on one environment."""
        return [record for record in self.records if (record.env, record.contestant) == (env, contestant)]

    def scores(self, env: str, contestant: str) -> NDArray[np.float64]:
        """Their scores, (runs,)."""
        return np.array([record.score for record in self.of(env, contestant)])

    def reference(self, env: str) -> str | None:
        """Who sets the scale on an environment: better than chance, with a finite score."""
        for name in self.references:
            scores = self.scores(env, name)
            if len(scores) and env in self.chance and scores.mean() > self.chance[env]:
                return name
        return None

    def comparable(self, contestants: Sequence[str]) -> list[str]:
        """Environments with a scale on which all of these have runs that ended a game."""
        return [
            env
            for env in self.environments
            if self.reference(env) is not None
            and all(len(own := self.scores(env, name)) and np.isfinite(own).all() for name in contestants)
        ]

    def normalised(self, contestant: str, environments: Sequence[str]) -> Scores:
        """Scores on the scale from random play to the reference, (runs,) for each environment."""
        found = []
        for env in environments:
            reference = self.reference(env)
            assert reference is not None
            best = float(self.scores(env, reference).mean())
            found.append(normalised(self.scores(env, contestant), random=self.chance[env], reference=best))
        return found


def results_of(jobs: Sequence[Job], references: tuple[str, ...]) -> Results:
    """Read what is finished."""
    records, chance = [], {}
    for job in jobs:
        row = job.last_row() if job.is_finished() else None
        if row is None:
            continue
        if job.contestant == CHANCE:
            assert row["return_mean"] is not None
            chance[job.env] = row["return_mean"]
            continue
        curve = read_curve(job.folder / METRICS_FILE)[:, :2]
        settings = yaml.safe_load((job.folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        name = job.contestant.name
        records.append(
            Record(env=job.env, contestant=name, seed=job.seed, last_row=row, curve=curve, settings=settings)
        )
    order = {env: place for place, env in enumerate(dict.fromkeys(job.env for job in jobs))}
    names = {name: place for place, name in enumerate(dict.fromkeys(job.contestant.name for job in jobs))}
    records.sort(key=lambda record: (order[record.env], names[record.contestant], record.seed))
    return Results(records=tuple(records), chance=chance, references=references)


def steps_per_second(record: Record) -> float:
    """Over the whole run."""
    row = record.last_row
    return (row["timesteps"] or 0.0) / (row["wall_time"] or float("nan"))
