"""metrics.csv, TensorBoard and the console."""

import math
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from limits import full_disk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from acktr.agents import reporting
from acktr.agents.api import ACKTR
from acktr.agents.metrics_file import MetricsFile, read_metrics
from acktr.agents.reporting import COLUMNS, Reporter
from acktr.agents.run_folder import RunFolder
from acktr.agents.settings import Settings
from acktr.errors import RunError, UserError

SETTINGS = Settings(env="CartPole-v1", total_timesteps=1000)

DOCUMENTED = (
    "timesteps updates wall_time steps_per_second return_mean return_std length_mean episodes kl_predicted kl_measured "
    "kl_policy trust_region_scale entropy explained_variance policy_loss value_loss learning_rate "
    "decomposition_retries stale_inverses skipped_batches"
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(SETTINGS, tmp_path / "run")


def rows(*steps: int) -> list[dict[str, float | int | None]]:
    return [{"timesteps": step, "return_mean": step / 10, "episodes": 1, "kl_measured": math.nan} for step in steps]


def test_columns_are_the_documented_ones_in_their_order() -> None:
    assert " ".join(COLUMNS[:20]) == DOCUMENTED, "columns are only ever appended"


def test_numbers_come_back_exactly_and_nan_is_empty(tmp_path: Path) -> None:
    values = {"timesteps": 2**40, "return_mean": 0.1 + 0.2, "kl_predicted": 1e-300, "entropy": math.nan, "episodes": 0}
    with MetricsFile(tmp_path / "metrics.csv") as file:
        file.write(values)
    (row,) = read_metrics(tmp_path / "metrics.csv")
    assert row == {**dict.fromkeys(COLUMNS), **values, "entropy": None}
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1].startswith("1099511627776,,,,0.30000000000000004,")


def test_an_unknown_column_is_refused(tmp_path: Path) -> None:
    with MetricsFile(tmp_path / "metrics.csv") as file, pytest.raises(ValueError, match="retrun_mean"):
        file.write({"timesteps": 1, "retrun_mean": 2})


def test_every_row_is_on_disk_at_once(tmp_path: Path) -> None:
    with MetricsFile(tmp_path / "metrics.csv") as file:
        for count, row in enumerate(rows(100, 200), start=1):
            file.write(row)
            assert len(read_metrics(tmp_path / "metrics.csv")) == count


@pytest.mark.parametrize("torn", ["300", "300,3,4", "300,3,4,5,6,7,8,9,1,1,1,1,1,1,1,1,1,1,1,"])
def test_a_row_torn_by_a_kill_is_dropped_on_resume(torn: str, tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    with MetricsFile(file) as metrics:
        for row in rows(100, 200):
            metrics.write(row)
    with file.open("a") as handle:
        handle.write(torn)
    assert [row["timesteps"] for row in read_metrics(file)] == [100, 200]
    with MetricsFile(file, resume_at=400) as metrics:
        metrics.write(rows(500)[0])
    assert [row["timesteps"] for row in read_metrics(file)] == [100, 200, 500]


def test_resume_drops_rows_past_the_checkpoint_and_keeps_the_bytes_of_the_others(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    with MetricsFile(file) as metrics:
        for row in rows(100, 200):
            metrics.write(row)
    before = file.read_bytes()
    with MetricsFile(file, resume_at=200) as metrics:
        metrics.write(rows(300)[0])
    with MetricsFile(file, resume_at=299) as metrics:
        assert metrics.last_row is not None
        assert metrics.last_row["timesteps"] == 200
    assert file.read_bytes() == before


def test_a_file_of_an_older_version_gets_the_newer_columns_empty(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("timesteps,return_mean\n100,3.5\n")
    with MetricsFile(file, resume_at=100) as metrics:
        metrics.write({"timesteps": 200, "entropy": 0.5})
    first, second = read_metrics(file)
    assert (first["return_mean"], first["entropy"]) == (3.5, None)
    assert second["entropy"] == 0.5
    assert file.read_text().splitlines()[0] == ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a,b\n1,2\n", "no column 'timesteps'"), ("timesteps\n1,2\n", "line 2"), ("timesteps\nx\n", "no number")],
)
def test_a_foreign_metrics_file_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(UserError, match=reason):
        read_metrics(tmp_path / "metrics.csv")


def scalars(folder: RunFolder, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder.path))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_shows_the_same_figures_and_no_nan(folder: RunFolder) -> None:
    with Reporter(folder, SETTINGS, console=False) as reporter:
        for row in rows(100, 200):
            reporter.row(row)
    assert scalars(folder, "rollout/return_mean") == [(100, 10.0), (200, 20.0)]
    with pytest.raises(KeyError):
        scalars(folder, "trust_region/kl_measured")


def test_every_column_but_the_axis_has_a_tensorboard_group() -> None:
    assert set(reporting._TAGS) == set(COLUMNS) - {"timesteps"}


def test_tensorboard_is_purged_past_the_checkpoint_on_resume(folder: RunFolder) -> None:
    with Reporter(folder, SETTINGS, console=False) as reporter:
        for row in rows(100, 200, 300, 400):
            reporter.row(row)
    with Reporter(folder, SETTINGS, console=False, resume_at=200) as reporter:
        assert reporter.last_row is not None
        assert reporter.last_row["timesteps"] == 200
        reporter.row({"timesteps": 350, "return_mean": 7.0})
    assert scalars(folder, "rollout/return_mean") == [(100, 10.0), (200, 20.0), (350, 7.0)]
    assert [row["timesteps"] for row in read_metrics(folder.path / "metrics.csv")] == [100, 200, 350]


def test_a_killed_process_leaves_metrics_that_a_resume_reads(folder: RunFolder) -> None:
    program = (
        "import sys, os, signal; from pathlib import Path; from acktr.agents.reporting import Reporter;"
        "from acktr.agents.run_folder import RunFolder; folder = RunFolder.open(Path(sys.argv[1]));"
        "reporter = Reporter(folder, folder.settings);"
        "reporter.row({'timesteps': 100, 'return_mean': 1.0}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", program, str(folder.path)], capture_output=True)
    assert result.returncode == -signal.SIGKILL
    with Reporter(folder, SETTINGS, console=False, resume_at=100) as reporter:
        assert reporter.last_row is not None
        assert reporter.last_row["return_mean"] == 1.0
    assert scalars(folder, "rollout/return_mean") == [(100, 1.0)]


@pytest.mark.parametrize("room", [0, 20, 1500])
def test_a_full_disk_is_a_run_error_and_closing_does_not_hide_it(
    room: int, folder: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the largest room it is the event file, which grows faster, that meets the end of the disk first."""

    def until_full() -> None:
        with Reporter(folder, SETTINGS, console=False) as reporter:
            size = (folder.path / "metrics.csv").stat().st_size
            with full_disk(size + room):
                for step in range(100):
                    reporter.row({"timesteps": step, "return_mean": 1 / 3, "entropy": 1 / 3})

    with pytest.raises(RunError, match="metrics cannot be written: File too large"):
        until_full()
    assert len(read_metrics(folder.path / "metrics.csv")) < 100, "a torn row is no row"
    assert capfd.readouterr().err == ""


# --- the console -------------------------------------------------------------------------------------------------


def test_elsewhere_than_on_a_terminal_lines_are_rare_and_the_last_always_comes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Reporter(None, SETTINGS) as reporter:
        reporter.message("device: cpu")
        for step in range(100, 1001, 100):
            reporter.row({"timesteps": step, "steps_per_second": 50.0, "episodes": 2, "return_mean": 12.5})
            reporter.status(timesteps=step + 1, steps_per_second=50.0)
            clock[0] += 3.0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "device: cpu"
    assert [line.split()[1].split("/")[0] for line in lines[1:]] == ["100", "500", "900", "1,000"]
    assert "\x1b" not in "".join(lines)
    assert "steps 500/1,000 (50%) | steps/s 50 | ETA 0:10 | return 12.5 (2 ep)" in lines[2]


def test_a_message_comes_after_the_row_that_was_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(None, SETTINGS) as reporter:
        for row in rows(100, 200):
            reporter.row(row)
        reporter.message("finished")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["steps", "steps", "finished"]


def test_figures_that_are_missing_show_as_a_dash_and_nothing_prints_when_quiet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Reporter(None, SETTINGS) as reporter:
        reporter.row({"timesteps": 0, "entropy": math.nan})
    assert "return - (0 ep) | KL pred/meas -/- | entropy - | expl. var. -" in capsys.readouterr().out
    with Reporter(None, SETTINGS, console=False) as reporter:
        reporter.message("hidden")
        reporter.row(rows(100)[0])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("width", "lines"), [(200, 1), (80, 2), (50, 3)])
def test_the_live_status_breaks_between_figures_only(width: int, lines: int) -> None:
    figures = [("steps", "2,000,000/2,000,000 (100%)"), ("steps/s", "1,029"), ("return", "401 (12345 ep)")]
    figures += [("KL pred/meas", "8.62e-06/0.000294"), ("entropy", "1.39")]
    packed = reporting._packed(figures, width)
    assert len(packed) == lines
    assert [figure for row in packed for figure in row] == figures
    assert all(len("   ".join(f"{name} {value}" for name, value in row)) <= width for row in packed)


def test_on_a_terminal_there_is_one_live_status_and_the_cursor_stays_visible() -> None:
    program = (
        "from acktr.agents.reporting import Reporter; from acktr.agents.settings import Settings; import time\n"
        "with Reporter(None, Settings(env='CartPole-v1', total_timesteps=1000)) as reporter:\n"
        "    for step in (100, 200):\n"
        "        reporter.row({'timesteps': step, 'steps_per_second': 50.0, 'entropy': 0.5})\n"
        "    reporter.message('a [bold] message')\n"
        "    time.sleep(0.3); reporter.status(timesteps=300, steps_per_second=60.0)\n"
    )
    main, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=terminal, env=environment)
    os.close(terminal)
    chunks = []
    while True:
        try:
            chunk = os.read(main, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(main)
    assert process.wait() == 0
    text = b"".join(chunks).decode()
    assert "a [bold] message" in text
    assert "300/1,000 (30%)" in text
    assert "\x1b[2K" in text, "the status is redrawn in place"
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "the cursor is visible"


def test_tensorboard_knows_the_settings_of_a_run(folder: RunFolder) -> None:
    """For its tab "HParams", which compares runs by them."""
    from tensorboard.plugins.hparams import metadata

    with Reporter(folder, SETTINGS, console=False) as reporter:
        reporter.row(rows(10)[0])
    accumulator = EventAccumulator(str(folder.path)).Reload()
    plugin = accumulator.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data
    assert plugin.plugin_name == "hparams"
    known = metadata.parse_session_start_info_plugin_data(plugin.content).hparams
    assert known["env"].string_value == "CartPole-v1"
    assert known["lr"].number_value == SETTINGS.lr
    assert known["shared_trunk"].bool_value is SETTINGS.shared_trunk
    experiment = metadata.parse_experiment_plugin_data(
        accumulator.summary_metadata[metadata.EXPERIMENT_TAG].plugin_data.content
    )
    assert [info.name for info in experiment.hparam_infos] == list(SETTINGS.to_dict())
    assert "rollout/return_mean" in [info.name.tag for info in experiment.metric_infos]


@pytest.mark.parametrize(
    "settings",
    [{"structure": "block-tridiagonal"}, {"exploration": "noisy-kfac"}]
    + [{"curvature": name} for name in ("ekfac", "kfoc", "ekfoc", "diagonal", "full")],
    ids=str,
)
def test_a_checkpoint_with_its_figures_is_written_under_every_curvature(
    settings: dict[str, str], tmp_path: Path
) -> None:
    small = {"run_dir": tmp_path / "run", "checkpoint_interval": 300, "hidden_sizes": [8], **settings}
    agent = ACKTR("CartPole-v1", seed=0, **small).learn(640)
    agent.close()
    assert (tmp_path / "run" / "checkpoints" / "final.safetensors").is_file()


def test_condition_numbers_of_the_factors_go_to_tensorboard(tmp_path: Path) -> None:
    agent = ACKTR("CartPole-v1", seed=0, run_dir=tmp_path / "run", checkpoint_interval=640).learn(1280)
    agent.close()
    accumulator = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = {tag for tag in accumulator.Tags()["scalars"] if tag.startswith("optimizer_condition/")}
    assert {"optimizer_condition/actor/torso.1/A", "optimizer_condition/actor/torso.1/G"} <= tags
    assert any(tag.startswith("optimizer_condition/critic/") for tag in tags)
    events = accumulator.Scalars("optimizer_condition/actor/torso.1/A")
    written = sorted(int(file.stem.removeprefix("step-")) for file in (tmp_path / "run/checkpoints").glob("step-*"))
    assert [event.step for event in events] == written
    assert all(event.value >= 1 for event in events)
