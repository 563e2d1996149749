"""What finished runs have to say: scores, curves, and the scale that makes environments comparable."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from acktr.agents.benchmark.aggregates import EnvironmentScores
from acktr.agents.benchmark.jobs import Job
from acktr.agents.benchmark.suites import CHANCE, HUMAN
from acktr.agents.human_scores import human_score
from acktr.agents.metrics_file import Row
from acktr.agents.plots import read_curve
from acktr.agents.run_folder import METRICS_FILE, SETTINGS_FILE
from acktr.envs.atari import atari_spec
from acktr.envs.registry import family, find_spec

_CLEARLY = 3.0
"""Standard errors of random play's mean that a score must lie above it to be better."""

MOST = 0.9
"""Share of the way from random play to the first contestant's end."""


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
        evaluation: mean raw return of the games that its policy played afterwards; None where it played none.
    """

    env: str
    contestant: str
    seed: int
    last_row: Row
    curve: NDArray[np.float64]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    evaluation: float | None = None

    @property
    def score(self) -> float:
        """Mean raw return of the run's last hundred games; NaN where none has ended."""
        value = self.last_row["return_mean"]
        return float("nan") if value is None else value


class Chance(NamedTuple):
    """Random play on an environment: its mean return, and the standard error of that."""

    mean: float
    error: float = 0.0

    def is_beaten_by(self, score: float) -> bool:
        """Clearly, by three standard errors."""
        return score > self.mean + _CLEARLY * self.error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """The finished runs of a benchmark.

    Attributes:
        records: of contestants.
        chance: random play by environment.
        references: whose mean counts as 1, the first of them whose runs on an environment are clearly better than
            chance; HUMAN takes the score of the human tester on an Atari game.
        contestants: those that have records or unfinished runs, in the order of the suite.
        unfinished: number of runs that were begun and are not at their end, by environment and contestant.
        gap: what the unfinished lack, as two parts of a sentence.
    """

    records: tuple[Record, ...]
    chance: Mapping[str, Chance]
    references: tuple[str, ...]
    contestants: tuple[str, ...]
    unfinished: Mapping[tuple[str, str], int] = dataclasses.field(default_factory=dict)
    gap: tuple[str, str] = ("runs", "are unfinished")

    @property
    def environments(self) -> list[str]:
        """Where somebody has a run, be it unfinished."""
        begun = [env for (env, _), number in self.unfinished.items() if number]
        return list(dict.fromkeys([*(record.env for record in self.records), *begun]))

    @property
    def finishers(self) -> tuple[str, ...]:
        """Contestants with records; the first of them is whom the others are compared with."""
        ran = {record.contestant for record in self.records}
        return tuple(name for name in self.contestants if name in ran)

    def of(self, env: str, contestant: str) -> list[Record]:
        """The runs of one contestant on one environment."""
        return [record for record in self.records if (record.env, record.contestant) == (env, contestant)]

    def scores(self, env: str, contestant: str) -> NDArray[np.float64]:
        """Their scores, (runs,)."""
        return np.array([record.score for record in self.of(env, contestant)])

    def reference(self, env: str) -> tuple[str, float] | None:
        """Who sets the scale on an environment, and the score there: clearly better than chance.

        Within the error of random play's mean a scale would be noise, and so would all that is measured by it.
        """
        if env not in self.chance:
            return None
        chance = self.chance[env]
        for name in self.references:
            scores = self.scores(env, name)
            best = _human(env) if name == HUMAN else float(scores.mean()) if len(scores) else None
            if best is not None and chance.is_beaten_by(best):
                return name, best
        return None

    def scale_setters(self, env: str) -> tuple[str, ...]:
        """Contestants whose runs decide on the scale: the reference, and those who would have gone before it."""
        found = self.reference(env)
        last = len(self.references) if found is None else self.references.index(found[0]) + 1
        return tuple(name for name in self.references[:last] if name != HUMAN)

    def on(self, env: str) -> EnvironmentScores:
        """All scores on an environment, with the scale there."""
        found = self.reference(env)
        name = None if found is None else found[0]
        return EnvironmentScores(
            runs={name: scores for name in self.finishers if len(scores := self.scores(env, name))},
            random=self.chance[env].mean if env in self.chance else 0.0,
            reference=found[1] if found is not None and name == HUMAN else name,
        )

    def steps_to_the_end_of(self, env: str, other: str) -> NDArray[np.float64]:
        """Timesteps until the first contestant's runs had the mean score at which another one's ended, (runs,).

        Infinite for a run that never had it; empty where one of the two has no runs or no score, and where the other
        ended no better than random play, which anybody has from the start.
        """
        end = self._end(env, other)
        return np.empty(0) if end is None else self._steps_to(env, self.finishers[0], end)

    def steps_to_most_of_the_first(self, env: str, contestant: str) -> NDArray[np.float64]:
        """Timesteps until runs had come nine tenths of the way from random play to the first one's end, (runs,).

        Likewise; empty, too, where random play is not known.
        """
        end = self._end(env, self.finishers[0])
        if end is None or env not in self.chance:
            return np.empty(0)
        start = self.chance[env].mean
        return self._steps_to(env, contestant, start + MOST * (end - start))

    def _end(self, env: str, contestant: str) -> float | None:
        scores = self.scores(env, contestant)
        if not len(scores) or not np.isfinite(scores).all():
            return None
        end = float(scores.mean())
        return None if env in self.chance and not self.chance[env].is_beaten_by(end) else end

    def _steps_to(self, env: str, contestant: str, level: float) -> NDArray[np.float64]:
        spacings = [float(np.median(np.diff(r.curve[:, 0]))) for r in self.records if r.env == env and len(r.curve) > 1]
        curves = [record.curve for record in self.of(env, contestant)]
        return np.array([_first_at(curve, level, max(spacings, default=0.0)) for curve in curves if len(curve)])

    def of_evaluations(self) -> "Results":
        """Those of the runs whose policies played games afterwards, with these games' mean as the score.

        Runs that lack these games are unfinished there: they may be those that went best or worst.
        """
        records = tuple(
            dataclasses.replace(record, last_row={**record.last_row, "return_mean": record.evaluation})
            for record in self.records
            if record.evaluation is not None
        )
        missing = [(record.env, record.contestant) for record in self.records if record.evaluation is None]
        unfinished = collections.Counter(self.unfinished) + collections.Counter(missing)
        return dataclasses.replace(self, records=records, unfinished=unfinished, gap=("games", "are missing"))


def results_of(jobs: Sequence[Job], references: tuple[str, ...]) -> Results:
    """Read what is finished."""
    records, chance, unfinished = [], {}, collections.Counter[tuple[str, str]]()
    for job in jobs:
        row = job.last_row() if job.is_trained() else None
        if row is None:
            unfinished[job.env, job.contestant.name] += job.is_begun()
            continue
        if job.contestant == CHANCE:
            mean, deviation, games = row["return_mean"], row["return_std"], row["episodes"]
            assert mean is not None
            chance[job.env] = Chance(mean=mean, error=(deviation or 0.0) / math.sqrt(games or 1.0))
            continue
        curve = read_curve(job.folder / METRICS_FILE)[:, :2]
        settings = yaml.safe_load((job.folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        name = job.contestant.name
        records.append(
            Record(
                env=job.env,
                contestant=name,
                seed=job.seed,
                last_row=row,
                curve=curve,
                settings=settings,
                evaluation=job.evaluation(),
            )
        )
    order = {env: place for place, env in enumerate(dict.fromkeys(job.env for job in jobs))}
    names = {name: place for place, name in enumerate(dict.fromkeys(job.contestant.name for job in jobs))}
    records.sort(key=lambda record: (order[record.env], names[record.contestant], record.seed))
    begun = {record.contestant for record in records} | {name for (_, name), number in unfinished.items() if number}
    return Results(
        records=tuple(records),
        chance=chance,
        references=references,
        contestants=tuple(name for name in names if name in begun and name != CHANCE.name),
        unfinished=unfinished,
    )


def _human(env: str) -> float | None:
    return human_score(atari_spec(find_spec(env)).game) if family(env) == "atari" else None


def steps_per_second(record: Record) -> float:
    """Over the whole run."""
    row = record.last_row
    return (row["timesteps"] or 0.0) / (row["wall_time"] or float("nan"))


def _first_at(curve: NDArray[np.float64], level: float, spacing: float) -> float:
    """Timesteps at which a curve first has a level; infinite where it never has.

    A noisy curve is above a level the sooner the more often it is looked at. So all are looked at in steps of the same
    width, that of the widest rows, and between these on a straight line.
    """
    first, last = curve[0, 0], curve[-1, 0]
    steps = curve[:, 0] if spacing <= 0 else np.append(np.arange(spacing, last, spacing), last)
    steps = steps[steps >= first]
    values = np.interp(steps, curve[:, 0], curve[:, 1])
    above = np.flatnonzero(values >= level)
    if not len(above):
        return math.inf
    place = int(above[0])
    if place == 0:
        return float(steps[0])
    share = (level - values[place - 1]) / (values[place] - values[place - 1])
    return float(steps[place - 1] + share * (steps[place] - steps[place - 1]))
