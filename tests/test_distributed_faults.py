"""Jobs of torchrun that lose a process, are told different things, or are stopped: how they end, and go on."""

import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TIMEOUT = 10
"""Seconds after which a process counts as lost."""


class Job:
    """`torchrun` with some processes of `acktr train`, and what they print."""

    def __init__(self, folder: Path, *words: str, size: int = 2, restarts: int = 0) -> None:
        self.run = folder / "run"
        self.log = folder / "log.txt"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size)),
                *("--max-restarts", str(restarts), "--master-port", str(free_port()), "--no-python"),
                *(str(Path(sys.executable).parent / "acktr"), *words),
            ],
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=folder,
        )

    def rank(self, number: int) -> int:
        """Process id of a rank."""
        for child in children(self.process.pid):
            if f"RANK={number}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
                return child
        raise AssertionError(f"no rank {number}: {self.log.read_text()}")

    def wait_for_checkpoint(self) -> int:
        """Timesteps of the newest one, once there is one."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            steps = [
                int(re.sub(r"\D", "", file.name)) for file in (self.run / "checkpoints").glob("step-*.safetensors")
            ]
            if steps:
                return max(steps)
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def end(self) -> tuple[int, str]:
        """Exit code and output."""
        return self.process.wait(timeout=180), self.log.read_text()


def children(parent: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    """Those that a test has started; none outlives it."""
    started: list[Job] = []
    yield started
    for job in started:
        if job.process.poll() is None:
            for child in children(job.process.pid):
                os.kill(child, signal.SIGKILL)
            job.process.kill()
            job.process.wait()


def training(folder: Path, timesteps: int) -> list[str]:
    return [
        *("train", "--env", "CartPole-v1", "--total-timesteps", str(timesteps), "--checkpoint-interval", "4000"),
        *("--run-dir", str(folder / "run"), "--vectorization", "sync", "--rank-timeout", str(TIMEOUT)),
    ]


def timesteps_of(run: Path) -> list[int]:
    with (run / "metrics.csv").open() as lines:
        return [int(row["timesteps"]) for row in csv.DictReader(lines)]


def test_a_job_whose_process_was_killed_goes_on_from_its_last_checkpoint(tmp_path: Path, jobs: list[Job]) -> None:
    job = Job(tmp_path, *training(tmp_path, 40_000), restarts=1)
    jobs.append(job)
    job.wait_for_checkpoint()
    time.sleep(0.5)  # beyond the checkpoint
    os.kill(job.rank(1), signal.SIGKILL)
    code, output = job.end()
    assert code == 0, output
    resumed = re.search(r"resumed at (\d+) timesteps", output)
    assert resumed is not None, output
    rows = timesteps_of(job.run)
    assert rows == sorted(set(rows))
    assert rows[-1] >= 40_000
    assert (job.run / "checkpoints" / "final.safetensors").exists()
    assert int(resumed[1]) >= 4000


def test_a_process_that_hangs_ends_the_job_in_the_stated_time_with_its_name(tmp_path: Path, jobs: list[Job]) -> None:
    job = Job(tmp_path, *training(tmp_path, 10_000_000))
    jobs.append(job)
    before = job.wait_for_checkpoint()
    stopped = job.rank(1)
    os.kill(stopped, signal.SIGSTOP)
    start = time.monotonic()
    until = start + 3 * TIMEOUT
    while "rank 1 of 2 ended or did not answer" not in job.log.read_text():
        assert time.monotonic() < until, job.log.read_text()
        time.sleep(0.2)
    assert f"acktr resume {job.run}" in job.log.read_text().replace("\n", "")
    os.kill(stopped, signal.SIGKILL)  # torchrun itself waits half a minute for it
    code, _ = job.end()
    assert code == 1
    assert job.wait_for_checkpoint() >= before


@pytest.mark.parametrize("flag", ["seed", "curvature-ranks"])
def test_processes_with_different_settings_are_refused_at_the_start(flag: str, tmp_path: Path) -> None:
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    program = str(Path(sys.executable).parent / "acktr")
    ranks = [
        subprocess.Popen(
            [program, *training(tmp_path, 5000), f"--{flag}", str(rank)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2, errors
        name = flag.replace("-", "_")
        assert f"the processes disagree on '{name}': 0 on rank 0, 1 on rank 1" in errors.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def test_restarts_want_a_named_folder(tmp_path: Path, jobs: list[Job]) -> None:
    job = Job(tmp_path, "train", "--env", "CartPole-v1", restarts=1)
    jobs.append(job)
    code, output = job.end()
    assert code == 1  # torchrun's own
    assert "needs --run-dir" in output.replace("\n", " ")


def test_an_interrupted_job_saves_and_goes_on(tmp_path: Path, jobs: list[Job]) -> None:
    job = Job(tmp_path, *training(tmp_path, 10_000_000))
    jobs.append(job)
    job.wait_for_checkpoint()
    job.process.send_signal(signal.SIGTERM)
    _, output = job.end()
    assert "saved; go on with" in output
    last = max(job.wait_for_checkpoint(), 0)
    assert last >= timesteps_of(job.run)[-1]


def test_a_finished_run_says_so_to_all_of_its_processes(tmp_path: Path, jobs: list[Job]) -> None:
    """A process that only decomposes waited for the others, and the job ended with its complaint."""
    for words in ([*training(tmp_path, 2000), "--curvature-ranks", "1"], ["resume", str(tmp_path / "run")]):
        jobs.append(Job(tmp_path, *words))
        code, output = jobs[-1].end()
        assert code == 0, output
    assert output.count("nothing is left to do") == 1
    assert "Error" not in output
    program = str(Path(sys.executable).parent / "acktr")
    alone = [program, "resume", str(tmp_path / "run"), "--total-timesteps", "4000"]
    assert subprocess.run(alone, check=False, capture_output=True, cwd=tmp_path).returncode == 0
    assert timesteps_of(tmp_path / "run")[-1] >= 4000


def test_curvature_ranks_of_an_algorithm_without_inverses_are_refused(tmp_path: Path, jobs: list[Job]) -> None:
    jobs.append(Job(tmp_path, *training(tmp_path, 2000), "--curvature-ranks", "1", "--algorithm", "a2c"))
    code, output = jobs[-1].end()
    assert code == 1
    assert "algorithm a2c has none" in output
    assert not (tmp_path / "run").exists()
