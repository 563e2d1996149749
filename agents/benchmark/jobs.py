"""The runs of a benchmark: where each stands, and the process that brings it to its end."""

import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from acktr.agents.benchmark.evaluations import EPISODES, evaluated, games_seed
from acktr.agents.benchmark.peer_settings import peer_record
from acktr.agents.benchmark.suites import CHANCE, Contestant, Suite
from acktr.agents.idle_settings import idle
from acktr.agents.metrics_file import Row, read_metrics
from acktr.agents.presets import resolve
from acktr.agents.run_folder import CHECKPOINT_FOLDER, FINAL_FILE, METRICS_FILE, SETTINGS_FILE, RunFolder
from acktr.agents.settings import Settings, convert
from acktr.errors import UserError

_CHOSEN = ("device", "num_threads", "vectorization", "precision", "log_interval")
"""Settings that a run fills in by itself, and those that decide no result."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One run; a key by its identity.

    Attributes:
        env: the environment's id.
        contestant: who.
        seed: of the run.
        timesteps: that it goes on for.
        folder: its run folder.
    """

    env: str
    contestant: Contestant
    seed: int
    timesteps: int
    folder: Path

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.contestant.name}, {self.env}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """What its process said."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def settings(self) -> Settings:
        """What `acktr train` would take for a run of ours."""
        asked = {"env": self.env, "algorithm": self.contestant.algorithm, "seed": self.seed}
        given = convert({**asked, "total_timesteps": self.timesteps, **self.contestant.changes}, source="suite")
        return resolve(given).settings()

    def last_row(self) -> Row | None:
        """The newest row of its metrics; None before the first."""
        file = self.folder / METRICS_FILE
        rows = read_metrics(file) if file.is_file() else []
        return rows[-1] if rows else None

    def is_begun(self) -> bool:
        """Whether it was started."""
        return (self.folder / SETTINGS_FILE).is_file()

    def is_finished(self) -> bool:
        """Whether nothing is left to do: it is trained, and a policy that is there has played its games.

        Raises:
            UserError: the folder holds a run with other settings.
        """
        if not self.is_trained():
            return False
        return not (self.folder / CHECKPOINT_FOLDER).is_dir() or self.evaluation() is not None

    def evaluation(self) -> float | None:
        """Mean raw return of the games that its final policy has played; None where it has not."""
        row = self.last_row()
        return None if row is None else evaluated(self.folder, self.seed, row["timesteps"])

    def is_trained(self) -> bool:
        """Whether its training came to its end.

        Raises:
            UserError: the folder holds a run with other settings.
        """
        if not self.is_begun():
            return False
        self._check_settings()
        checkpoints = self.folder / CHECKPOINT_FOLDER
        if checkpoints.is_dir():
            return (checkpoints / FINAL_FILE).is_file()
        row = self.last_row()  # a peer's run, or a record kept without what its run would go on from
        return row is not None and (row["timesteps"] or 0) >= self.timesteps

    def _check_settings(self) -> None:
        found: Mapping[str, Any]
        if self.contestant == CHANCE:
            return
        no_matter = set(_CHOSEN)
        if self.contestant.is_ours:
            settings = self.settings()
            found, asked = RunFolder.open(self.folder).settings.to_dict(), settings.to_dict()
            no_matter = no_matter.union(*idle(settings, asked).values())
        else:
            found = yaml.safe_load((self.folder / SETTINGS_FILE).read_text(encoding="utf-8"))
            asked = peer_record(self.contestant.algorithm, self.env, self.seed, self.timesteps)
        names = [name for name in {**found, **asked} if name not in no_matter and found.get(name) != asked.get(name)]
        if names:
            apart = ", ".join(f"{name} {found.get(name)} and not {asked.get(name)}" for name in names)
            raise UserError(f"{self.folder} holds a run with {apart}; give another --out, or remove it")

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process of what is next: its training, the rest of it, or the games of its policy."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # a session of its own: Ctrl-C is for the benchmark, which passes it on once
            return subprocess.Popen(
                [sys.executable, "-P", "-m", *self._words()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _words(self) -> list[str]:
        seed, steps, folder = str(self.seed), str(self.timesteps), str(self.folder)
        if self.contestant == CHANCE:
            return ["acktr.agents.benchmark.chance", self.env, seed, folder]
        if not self.contestant.is_ours:
            return ["acktr.agents.benchmark.peers", self.contestant.algorithm, self.env, seed, steps, folder]
        if self.is_trained():
            games = ["--episodes", str(EPISODES), "--seed", str(games_seed(self.seed))]
            return ["acktr", "evaluate", folder, *games, "--device", "cpu"]
        if self.is_begun():
            return ["acktr", "resume", folder]
        words = ["--env", self.env, "--algorithm", self.contestant.algorithm, "--seed", seed, "--num-threads", "1"]
        return [
            "acktr",
            "train",
            *words,
            "--total-timesteps",
            steps,
            *_flags(self.contestant.changes),
            "--run-dir",
            folder,
        ]


def jobs_of(suite: Suite, out: Path, *, peers: tuple[Contestant, ...] = ()) -> list[Job]:
    """All runs of a suite, by seed, so that a first look at everything comes early.

    Args:
        suite: the suite.
        out: the benchmark's folder.
        peers: those that were asked for.
    """
    rounds = [(seed, contestant) for seed in range(suite.seeds) for contestant in suite.contestants]
    rounds += [(seed, contestant) for seed in range(suite.peer_seeds) for contestant in peers]
    jobs = [_job(CHANCE, env, 0, suite, out) for env in suite.environments]
    for seed, contestant in sorted(rounds, key=lambda item: item[0]):
        ours = contestant in suite.contestants
        environments = [env for env in suite.environments if ours or env in suite.peer_environments]
        jobs += [_job(contestant, env, seed, suite, out) for env in environments]
    return jobs


def _job(contestant: Contestant, env: str, seed: int, suite: Suite, out: Path) -> Job:
    folder = out / "runs" / env.rpartition(":")[2].replace("/", "-") / f"{contestant.name}-seed{seed}"
    steps = suite.total_timesteps or resolve(convert({"env": env}, source="suite")).settings().total_timesteps
    return Job(env=env, contestant=contestant, seed=seed, timesteps=0 if contestant == CHANCE else steps, folder=folder)


def _flags(changes: Mapping[str, Any]) -> list[str]:
    """The flags of `acktr train` that set these."""
    words: list[str] = []
    for name, value in changes.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words
