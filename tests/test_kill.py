"""`kill -9` at random moments, some inside a checkpoint write: `acktr resume` always goes on."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acktr.agents.metrics_file import read_metrics
from acktr.agents.run_folder import RunFolder

INTERVAL = 500
TOTAL = 20_000
KILLS = 10
KILLS_IN_A_WRITE = 4


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", "import sys; from acktr.cli import main; sys.exit(main())", *words]


def start(words: list[str], *, slow_save: float) -> subprocess.Popen[bytes]:
    env = {**os.environ, "ACKTR_TEST_SLOW_SAVE": str(slow_save)}
    return subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def temporaries(folder: Path) -> list[Path]:
    return list((folder / "checkpoints").glob("*.tmp*")) + list((folder / "checkpoints").glob(".*tmp*"))


def wait_for(condition: object, process: subprocess.Popen[bytes], seconds: float = 90.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.002)


@pytest.mark.timeout(600)
def test_ten_kills_four_of_them_inside_a_checkpoint_write_lose_at_most_one_interval(tmp_path: Path) -> None:
    draw = random.Random(7)
    folder = tmp_path / "run"
    words = command(
        "train", "--env", "CartPole-v1", "--total-timesteps", str(TOTAL), "--run-dir", str(folder),
        "--checkpoint-interval", str(INTERVAL), "--log-interval", "1", "--num-threads", "1",
    )  # fmt: skip
    in_a_write = 0
    for kill in range(KILLS):
        inside = kill % 2 == 0 and in_a_write < KILLS_IN_A_WRITE
        process = start(words, slow_save=0.3 if inside else 0.05)
        wait_for(lambda: (folder / "metrics.csv").exists(), process)
        if inside:
            # past at least one good checkpoint of this process, then in the middle of the next write
            wait_for(lambda: temporaries(folder), process)
            in_a_write += 1
        else:
            rows = len(read_metrics(folder / "metrics.csv"))
            target = rows + draw.randint(2, 12)
            wait_for(lambda target=target: len(read_metrics(folder / "metrics.csv")) >= target, process)
            time.sleep(draw.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if inside:
            assert temporaries(folder), "the kill did not fall inside a write"
        rows_before = read_metrics(folder / "metrics.csv")
        reached = int(rows_before[-1]["timesteps"] or 0) if rows_before else 0
        found = RunFolder.open(folder).load_latest(lambda line: None)
        saved = 0 if found is None else int(found[1].state["timesteps"])
        batch = 8 * 20
        assert reached - saved <= INTERVAL + 2 * batch
        words = command("resume", str(folder))
    assert in_a_write >= 3
    twin = tmp_path / "twin"
    shutil.copytree(folder, twin)
    finals = []
    for path in (folder, twin):
        process = start(command("resume", str(path)), slow_save=0.0)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
        steps = [row["timesteps"] or 0 for row in read_metrics(path / "metrics.csv")]
        assert steps == sorted(set(steps))
        assert steps[-1] >= TOTAL
        found = RunFolder.open(path).load_latest()
        assert found is not None
        finals.append({name: value.numpy().tobytes() for name, value in found[1].state["policy"].items()})
    assert finals[0] == finals[1]
