"""`acktr benchmark`: runs side by side, goes on after an interruption, and sums up what is finished."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import yaml

from acktr.agents.benchmark import peers
from acktr.agents.benchmark.campaign import planned
from acktr.agents.benchmark.evaluations import EPISODES, evaluated
from acktr.agents.benchmark.jobs import Job, jobs_of
from acktr.agents.benchmark.peer_settings import peer_record, published
from acktr.agents.benchmark.progress import Progress
from acktr.agents.benchmark.runner import run
from acktr.agents.benchmark.suites import CHANCE, PEERS, SUITES, Contestant, Suite
from acktr.agents.benchmark.suites import peers as peers_named
from acktr.agents.metrics_file import MetricsFile, read_metrics
from acktr.agents.run_folder import RunFolder
from acktr.cli import main
from acktr.errors import UserError

SHORT = ["cartpole", "--seeds", "2", "--only", "acktr", "--total-timesteps", "2000"]


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open() as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmark") / "cartpole"
    assert main(["benchmark", *SHORT, "--jobs", "2", "--out", str(out)]) == 0
    return out


def test_it_leaves_a_row_for_each_run_and_the_aggregates(finished: Path) -> None:
    runs = rows_of(finished / "runs.csv")
    assert [(row["environment"], row["contestant"], row["seed"]) for row in runs] == [
        ("CartPole-v1", "acktr", "0"),
        ("CartPole-v1", "acktr", "1"),
    ]
    for row in runs:
        folder = finished / "runs" / "CartPole-v1" / f"acktr-seed{row['seed']}"
        last = read_metrics(folder / "metrics.csv")[-1]
        assert last["return_mean"] is not None
        assert float(row["return"]) == pytest.approx(last["return_mean"], rel=1e-5)
        assert RunFolder.open(folder).settings.seed == int(row["seed"])
    assert {row["contestant"] for row in rows_of(finished / "curves.csv")} == {"acktr"}
    of_acktr = next(row for row in rows_of(finished / "aggregate.csv") if row["contestant"] == "acktr")
    scores = [float(row["return"]) for row in runs]
    assert of_acktr["statistic"] == "mean"
    assert float(of_acktr["value"]) == pytest.approx(np.mean(scores), rel=1e-5)
    assert float(of_acktr["low"]) < float(of_acktr["value"]) < float(of_acktr["high"])
    assert (finished / "curves.png").stat().st_size > 10_000


def test_each_final_policy_plays_games_of_its_own_once(finished: Path, tmp_path: Path) -> None:
    kept = shutil.copytree(finished, tmp_path / "kept")
    runs = [kept / "runs" / "CartPole-v1" / f"acktr-seed{seed}" for seed in range(2)]
    ends = [read_metrics(run / "metrics.csv")[-1]["timesteps"] for run in runs]
    means = [evaluated(run, seed, end) for seed, (run, end) in enumerate(zip(runs, ends, strict=True))]
    assert [float(row["final_policy"]) for row in rows_of(kept / "runs.csv")] == pytest.approx(means, rel=1e-5)
    (row,) = [row for row in rows_of(kept / "aggregate.csv") if row["what"] == "final policy"]
    assert float(row["value"]) == pytest.approx(np.mean([mean for mean in means if mean is not None]), rel=1e-5)
    assert re.search(r"^\| CartPole-v1 \| return \| final policy \|", (kept / "table.md").read_text(), re.MULTILINE)
    metrics = [(run / "metrics.csv").read_bytes() for run in runs]
    (runs[0] / "evaluation.json").unlink()
    # by hand, in the games of another run, which would make the two depend on each other
    assert main(["evaluate", str(runs[1]), "--episodes", str(EPISODES)]) == 0
    words = [*SHORT, "--out", str(kept)]
    assert main(["benchmark", *words, "--summary"]) == 0
    assert [row["final_policy"] for row in rows_of(kept / "runs.csv")] == ["", ""]
    assert main(["benchmark", *words]) == 0
    assert [evaluated(run, seed, end) for seed, (run, end) in enumerate(zip(runs, ends, strict=True))] == means
    assert [(run / "metrics.csv").read_bytes() for run in runs] == metrics


def test_games_of_an_earlier_policy_are_not_taken_for_the_final_ones(finished: Path, tmp_path: Path) -> None:
    """A run that is evaluated by hand while it is interrupted keeps these games when it goes on."""
    kept = shutil.copytree(finished, tmp_path / "kept")
    file = kept / "runs" / "CartPole-v1" / "acktr-seed0" / "evaluation.json"
    found = json.loads(file.read_text())
    job = planned("cartpole", out=kept, contestants=["acktr"], seeds=1, total_timesteps=2000).jobs[-1]
    assert job.is_finished()
    file.write_text(json.dumps({**found, "timesteps": 1000}))
    assert job.is_trained()
    assert not job.is_finished()


def test_random_play_is_measured_on_whole_games(finished: Path) -> None:
    (row,) = read_metrics(finished / "runs" / "CartPole-v1" / "random-seed0" / "metrics.csv")
    assert row["episodes"] == 200
    assert row["return_mean"] == pytest.approx(22.0, abs=3.0)  # known of random play on CartPole


def test_a_finished_benchmark_is_summed_up_again_and_run_no_more(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in finished.glob("runs/*/*/checkpoints/*")}
    assert main(["benchmark", *SHORT, "--out", str(finished)]) == 0
    assert "| CartPole-v1 |" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in finished.glob("runs/*/*/checkpoints/*")} == before
    assert main(["benchmark", *SHORT, "--out", str(finished), "--summary"]) == 0


def test_records_without_their_checkpoints_are_not_trained_again(finished: Path, tmp_path: Path) -> None:
    """Results are committed so: `acktr benchmark SUITE --out` on them sums up what a clone holds, and adds to it."""
    kept = shutil.copytree(finished, tmp_path / "kept", ignore=shutil.ignore_patterns("checkpoints", "events*"))
    campaign = planned("cartpole", out=kept, contestants=["acktr"], seeds=2, total_timesteps=2000)
    assert all(job.is_finished() for job in campaign.jobs)
    before = (finished / "table.md").read_text()
    (kept / "table.md").unlink()
    assert campaign.sum_up() == (kept / "table.md").read_text() == before
    cut = kept / "runs" / "CartPole-v1" / "acktr-seed1" / "metrics.csv"
    cut.write_text("".join(cut.read_text().splitlines(keepends=True)[:-1]))
    assert [job.is_finished() for job in campaign.jobs] == [True, True, False]


def test_a_part_of_a_benchmark_does_not_drop_the_rest_from_its_table(finished: Path, tmp_path: Path) -> None:
    """Nor one without `--peer` what peers have run."""
    kept = shutil.copytree(finished, tmp_path / "kept")
    game = kept / "runs" / "CartPole-v1"
    shutil.copytree(game / "acktr-seed0", game / "sb3-ppo-seed0", ignore=shutil.ignore_patterns("checkpoints"))
    recorded = peer_record("sb3-ppo", "CartPole-v1", 0, 2000)
    (game / "sb3-ppo-seed0" / "settings.yaml").write_text(yaml.safe_dump(recorded))
    table = planned("cartpole", out=kept, contestants=["acktr"], seeds=1, total_timesteps=2000).sum_up()
    assert re.search(r"^\| acktr \| [^|]+, 2 \|.*\n\| sb3-ppo \| [^|]+, 1 \|", table, re.MULTILINE)
    assert [row["seed"] for row in rows_of(kept / "runs.csv")] == ["0", "1", "0"]


def test_a_peers_run_with_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acktr.agents.benchmark.campaign.check_installed", lambda: None)  # nothing is run here
    folder = tmp_path / "runs" / "CartPole-v1" / "sb3-ppo-seed0"
    folder.mkdir(parents=True)
    recorded = peer_record("sb3-ppo", "CartPole-v1", 0, 2000) | {"gamma": 0.5}
    (folder / "settings.yaml").write_text(yaml.safe_dump(recorded, sort_keys=False))
    campaign = planned("cartpole", out=tmp_path, peer_names=["sb3-ppo"], seeds=1, total_timesteps=3000)
    with pytest.raises(UserError, match=r"total_timesteps 2000 and not 3000, gamma 0.5 and not 0.98"):
        campaign.jobs[-1].is_finished()


def test_a_benchmarks_folder_is_no_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(finished)]) == 2
    assert "the folder of a benchmark; name one of its runs" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "same"), [("log_interval", True), ("kfoc_steps", True), ("num_steps", False)])
def test_settings_that_decide_no_result_make_no_other_run(
    finished: Path, tmp_path: Path, name: str, same: bool
) -> None:
    """`kfoc_steps` is idle: the suite's curvature is not K-FOC."""
    kept = shutil.copytree(finished, tmp_path / "kept")
    file = kept / "runs" / "CartPole-v1" / "acktr-seed0" / "settings.yaml"
    recorded = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(recorded | {name: recorded[name] + 1}, sort_keys=False))
    job = planned("cartpole", out=kept, contestants=["acktr"], seeds=1, total_timesteps=2000).jobs[-1]
    with nullcontext() if same else pytest.raises(UserError, match=f"{name} "):
        assert job.is_finished()


def test_runs_with_other_settings_are_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SHORT[:-1], "3000"]
    assert main(["benchmark", *words, "--out", str(finished)]) == 2
    assert "total_timesteps 2000 and not 3000" in capsys.readouterr().err


def heeding_interrupts() -> None:
    """For a process of its own: SIGINT is not ignored, as it is by what a shell has started in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_an_interrupted_benchmark_goes_on_where_its_runs_stopped(tmp_path: Path) -> None:
    words = ["cartpole", "--seeds", "1", "--only", "acktr", "--total-timesteps", "80000", "--out", str(tmp_path)]
    command = [sys.executable, "-P", "-m", "acktr", "benchmark", *words]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeding_interrupts,
    )
    folder = tmp_path / "runs" / "CartPole-v1" / "acktr-seed0"
    deadline = time.monotonic() + 120
    while not (folder / "metrics.csv").is_file() or not read_metrics(folder / "metrics.csv"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "interrupted" in error
    saved = RunFolder.open(folder).latest_checkpoint()
    assert saved is not None  # the run itself was told, and saved
    stopped = int(saved.stem.removeprefix("step-"))
    assert 0 < stopped < 80_000
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "command.txt").read_text().splitlines()[1].startswith("acktr resume")
    assert f"resumed at {stopped}" in folder.with_name("acktr-seed0.log").read_text()
    assert int(rows_of(tmp_path / "runs.csv")[0]["timesteps"]) >= 80_000


class Deaf(Job):
    """A run that ignores SIGINT, as what a shell has started in the background does."""

    def start(self) -> subprocess.Popen[bytes]:
        code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True); time.sleep(100)"
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        DEAF.append(process)
        return process


DEAF: list[subprocess.Popen[bytes]] = []


class Interrupted(Progress):
    """Ctrl-C at the first look."""

    def refresh(self, running: Sequence[Job], waiting: Sequence[Job]) -> None:
        raise KeyboardInterrupt


def test_an_interrupted_benchmark_ends_runs_that_ignore_ctrl_c(tmp_path: Path) -> None:
    folder = tmp_path / "sb3-ppo-seed0"
    deaf = Deaf(env="CartPole-v1", contestant=peers_named(["sb3-ppo"])[0], seed=0, timesteps=100, folder=folder)
    with pytest.raises(KeyboardInterrupt):
        run([deaf], at_once=1, progress=Interrupted([deaf], at_once=1))
    assert [process.poll() for process in DEAF] == [-signal.SIGTERM]


def test_a_run_that_fails_is_named_and_the_others_are_summed_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "runs" / "CartPole-v1" / "acktr-seed0" / "metrics.csv"
    broken.mkdir(parents=True)
    assert main(["benchmark", *SHORT, "--out", str(tmp_path)]) == 1
    assert "1 of 3 runs failed" in (error := capsys.readouterr().err)
    assert "acktr-seed0.log" in error
    assert [row["seed"] for row in rows_of(tmp_path / "runs.csv")] == ["1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cartpol"], "nearest: cartpole"),
        (["cartpole", "--peer", "sb3-dqn"], "there is no peer 'sb3-dqn'"),
        (["cartpole", "--env", "Pong"], "has no environment 'Pong'"),
        (["cartpole", "--only", "ppo"], "has no contestant 'ppo'"),
        (["cartpole", "--seeds", "0"], "--seeds takes a whole number"),
        (["cartpole", "--summary"], "no run of this benchmark is finished"),
        (["cartpole", "--seedz", "2"], "nearest: --seeds"),
    ],
)
def test_errors_of_the_caller_are_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", *words, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_without_a_suite_the_suites_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark"]) == 0
    assert all(f"{name}:" in (said := capsys.readouterr().out) or name in said for name in ["mujoco-1m"])


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_can_be_planned_with_all_peers(name: str, tmp_path: Path) -> None:
    suite = SUITES[name]
    others = peers_named([peer for peer in PEERS if "atari" not in name or peer != "sb3-trpo"])
    jobs = jobs_of(suite, tmp_path, peers=others)
    assert len({job.folder for job in jobs}) == len(jobs)
    for job in jobs:
        if job.contestant.is_ours:
            assert job.settings().env == job.env
            assert job.timesteps == job.settings().total_timesteps
        elif job.contestant != CHANCE:
            published(job.contestant.algorithm, job.env)
    number = len(suite.environments) * (1 + suite.seeds * len(suite.contestants))
    assert len(jobs) == number + len(suite.peer_environments) * suite.peer_seeds * len(others)


def test_seeds_come_before_environments(tmp_path: Path) -> None:
    campaign = planned("mujoco-1m", out=tmp_path, seeds=2)
    assert [job.seed for job in campaign.jobs] == sorted(job.seed for job in campaign.jobs)


def test_a_contestants_changes_become_flags_of_its_runs(tmp_path: Path) -> None:
    changes = {"max_kl": 0.5, "hidden_sizes": (8, 8), "shared_trunk": True, "center_values": False}
    odd = Contestant(name="odd", algorithm="acktr", changes=changes)
    suite = Suite(description="", environments=("CartPole-v1",), total_timesteps=200, seeds=1, contestants=(odd,))
    job = next(job for job in jobs_of(suite, tmp_path) if job.contestant is odd)
    assert job.start().wait() == 0
    assert job.is_trained()
    found = RunFolder.open(job.folder).settings
    assert {name: getattr(found, name) for name in changes} == changes


def test_more_seeds_than_the_suite_has_stay_in_the_table(finished: Path, tmp_path: Path) -> None:
    kept = shutil.copytree(finished, tmp_path / "kept")
    game = kept / "runs" / "CartPole-v1"
    game.joinpath("acktr-seed1").rename(game / "acktr-seed7")
    settings = game / "acktr-seed7" / "settings.yaml"
    settings.write_text(settings.read_text().replace("seed: 1\n", "seed: 7\n"))
    planned("cartpole", out=kept, seeds=1, total_timesteps=2000).sum_up()
    assert [row["seed"] for row in rows_of(kept / "runs.csv")] == ["0", "7"]


# --- peers -------------------------------------------------------------------------------------------------------


def test_published_settings_hold_for_every_version_of_an_id() -> None:
    assert published("sb3-trpo", "Hopper-v5")["n_critic_updates"] == 20
    assert published("sb3-a2c", "PongNoFrameskip-v4")["num_envs"] == 16
    with pytest.raises(UserError, match="no settings of sb3-trpo are published for PongNoFrameskip-v4"):
        published("sb3-trpo", "PongNoFrameskip-v4")


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_trains_with_its_published_settings(peer: str, tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    pytest.importorskip("sb3_contrib")
    suite = Suite(description="", environments=("Hopper-v5",), total_timesteps=3000, peer_environments=("Hopper-v5",))
    job = next(job for job in jobs_of(suite, tmp_path, peers=peers_named([peer])) if job.contestant.name == peer)
    assert not job.is_finished()
    assert job.start().wait() == 0, job.log.read_text()
    assert job.is_finished()
    rows = read_metrics(job.folder / "metrics.csv")
    assert rows[-1]["return_mean"] is not None
    assert 0 < rows[-1]["return_mean"] < 500  # raw, where normalised rewards would sum to a few
    recorded = yaml.safe_load((job.folder / "settings.yaml").read_text())
    assert {**published(peer, "Hopper-v5"), "seed": 0}.items() <= recorded.items()
    games = json.loads((job.folder / "evaluation.json").read_text())
    assert len(games["returns"]) == EPISODES
    assert 0 < games["return_mean"] < 2000
    assert job.evaluation() == games["return_mean"]


def test_a_learning_rate_that_falls_ends_at_nought() -> None:
    schedule = peers._scheduled("lin_0.5")
    assert (schedule(1.0), schedule(0.5), schedule(0.0)) == (0.5, 0.25, 0.0)
    assert peers._scheduled(0.3) == 0.3


def test_a_peers_games_are_as_long_as_the_decisions_in_them(tmp_path: Path) -> None:
    """On Atari the Monitor below the wrappers counts emulated frames."""
    pytest.importorskip("stable_baselines3")
    with MetricsFile(tmp_path / "metrics.csv") as metrics:
        recorder = peers._recorder(metrics, 100, 4)
        recorder.model = types.SimpleNamespace(ep_info_buffer=[{"r": 1.0, "l": 4000}, {"r": 3.0, "l": 6000}])
        recorder.num_timesteps = 100
        recorder._on_training_end()
    (row,) = read_metrics(tmp_path / "metrics.csv")
    assert (row["timesteps"], row["return_mean"], row["length_mean"]) == (100, 2.0, 1250.0)
