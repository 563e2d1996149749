"""The run folder: creation, rotation of checkpoints, and what is found after a crash."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from limits import full_disk

from acktr.agents import checkpoint
from acktr.agents.run_folder import LOCK_FILE, RunFolder
from acktr.agents.settings import Settings
from acktr.errors import RunError, UserError

SETTINGS = Settings(env="CartPole-v1", seed=3, hidden_sizes=(32, 16), lr=1e-5)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(SETTINGS, tmp_path / "run")


def write(folder: RunFolder, timesteps: int, *, is_best: bool = False, is_final: bool = False) -> Path:
    state = {"timesteps": timesteps, "x": torch.full((8,), float(timesteps))}
    return folder.write_checkpoint(state, timesteps=timesteps, is_best=is_best, is_final=is_final)


def names(folder: RunFolder) -> list[str]:
    return sorted(file.name for file in folder.checkpoints.iterdir())


def timesteps(file: Path | None) -> int:
    assert file is not None
    return int(checkpoint.load(file).state["timesteps"])


def damage(file: Path) -> None:
    content = file.read_bytes()
    file.unlink()  # `best` and `final` may be links to it: damage this name alone
    file.write_bytes(content[:-3])


def test_settings_come_back_exactly(folder: RunFolder) -> None:
    assert RunFolder.open(folder.path).settings == SETTINGS


def test_a_moved_folder_works_where_it_stands(folder: RunFolder, tmp_path: Path) -> None:
    write(folder, 10, is_final=True)
    for file in folder.path.rglob("settings.yaml"):
        assert str(tmp_path) not in file.read_text()
    shutil.move(folder.path, tmp_path / "elsewhere")
    moved = RunFolder.open(tmp_path / "elsewhere")
    assert moved.latest_checkpoint() == tmp_path / "elsewhere" / "checkpoints" / "step-10.safetensors"


def test_manifest_names_versions_hardware_and_every_start(folder: RunFolder) -> None:
    folder.record_start()
    starts = json.loads((folder.path / "versions.json").read_text())["starts"]
    assert len(starts) == 2
    assert starts[0]["packages"]["torch"] == torch.__version__
    assert starts[0]["cpu"]
    assert starts[0]["torch_threads"] == torch.get_num_threads()
    assert len((folder.path / "command.txt").read_text().splitlines()) == 2


def test_default_folder_is_named_by_environment_algorithm_seed_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = dataclasses.replace(SETTINGS, env="ALE/Pong-v5")
    first, second = RunFolder.create(settings), RunFolder.create(settings)
    assert first.path.parent == second.path.parent == Path("runs/ALE-Pong-v5")
    assert first.path != second.path
    assert first.path.name.startswith("acktr-seed3-")


@pytest.mark.parametrize("trace", ["settings.yaml", "metrics.csv", "checkpoints"])
def test_a_folder_that_holds_a_run_is_refused_with_the_way_to_resume(trace: str, tmp_path: Path) -> None:
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / trace).mkdir()
    with pytest.raises(UserError, match=r"already holds a run; .*`acktr resume '.*/my run'`"):
        RunFolder.create(SETTINGS, tmp_path / "my run")
    assert [file.name for file in (tmp_path / "my run").iterdir()] == [trace]


def test_a_folder_with_other_files_is_taken(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert RunFolder.create(SETTINGS, tmp_path).settings == SETTINGS


def test_a_path_that_cannot_be_a_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot be made"):
            RunFolder.create(SETTINGS, path)


def test_opening_what_is_no_run_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        RunFolder.open(tmp_path / "absent")
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder.open(tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "settings.yaml").write_text("env: CartPole-v1")
    with pytest.raises(UserError, match=r"runs below it, such as .*one"):
        RunFolder.open(tmp_path)
    (tmp_path / "settings.yaml").write_text("env: [")
    with pytest.raises(UserError, match="does not parse"):
        RunFolder.open(tmp_path)
    (tmp_path / "settings.yaml").write_text("just text")
    with pytest.raises(UserError, match="holds no settings"):
        RunFolder.open(tmp_path)
    (tmp_path / "settings.yaml").write_text("env: CartPole-v1\nmax_klx: 1")
    with pytest.raises(UserError, match=r"max_klx.*nearest: max_kl"):
        RunFolder.open(tmp_path)
    (tmp_path / "policy.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="a file; this takes the run folder"):
        RunFolder.open(tmp_path / "policy.safetensors")


# --- checkpoints -------------------------------------------------------------------------------------------------


def test_the_last_two_best_and_final_are_kept(folder: RunFolder) -> None:
    for step in (100, 200, 300, 1000):
        write(folder, step, is_best=step == 200)
    assert names(folder) == ["best.safetensors", "step-1000.safetensors", "step-300.safetensors"]
    assert timesteps(folder.checkpoints / "best.safetensors") == 200
    write(folder, 1100, is_final=True)
    assert "final.safetensors" in names(folder)
    assert timesteps(folder.evaluation_checkpoint()) == 1100


def test_a_run_that_goes_on_beyond_its_end_has_no_stale_final(folder: RunFolder) -> None:
    write(folder, 100, is_final=True)
    assert folder.evaluation_checkpoint().name == "final.safetensors"
    write(folder, 200)
    assert folder.evaluation_checkpoint().name == "step-200.safetensors"


def test_the_newest_is_found_by_number_not_by_name(folder: RunFolder) -> None:
    write(folder, 900)
    write(folder, 1000)
    assert timesteps(folder.latest_checkpoint()) == 1000


def test_without_checkpoints_there_is_nothing_to_resume_from_or_evaluate(folder: RunFolder) -> None:
    assert folder.latest_checkpoint() is None
    with pytest.raises(UserError, match="no checkpoint yet"):
        folder.evaluation_checkpoint()


def test_a_damaged_newest_falls_back_to_the_one_before_with_a_warning(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, 100)
    damage(write(folder, 200))
    assert timesteps(folder.latest_checkpoint()) == 100
    assert "warning: passing over" in capsys.readouterr().err
    lines: list[str] = []
    assert timesteps(folder.evaluation_checkpoint(lines.append)) == 100
    assert len(lines) == 1
    assert "step-200" in lines[0]


def test_a_damaged_leftover_ahead_of_the_run_does_not_push_good_ones_out(folder: RunFolder) -> None:
    write(folder, 100)
    write(folder, 200)
    damage(write(folder, 300))
    write(folder, 250)
    assert names(folder) == ["step-200.safetensors", "step-250.safetensors"]
    assert timesteps(folder.latest_checkpoint()) == 250


def test_if_all_are_damaged_nothing_starts_over_silently(folder: RunFolder) -> None:
    damage(write(folder, 100))
    with pytest.raises(UserError, match=r"no checkpoint loads; the newest: .*step-100.*; train anew") as caught:
        folder.latest_checkpoint(lambda _: None)
    assert "use an older" not in str(caught.value)


def test_a_newer_format_is_not_passed_over(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Going back to an older file would throw away what a newer acktr can still read."""
    write(folder, 100)
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
    write(folder, 200)
    monkeypatch.undo()
    with pytest.raises(UserError, match="newer"):
        folder.latest_checkpoint()


def test_an_exported_policy_among_the_checkpoints_is_not_resumed(folder: RunFolder) -> None:
    checkpoint.save(folder.checkpoints / "step-5.safetensors", {"timesteps": 5}, kind="policy")
    with pytest.raises(UserError, match="cannot be trained further"):
        folder.latest_checkpoint()


def test_leftovers_of_a_killed_writer_are_removed(folder: RunFolder) -> None:
    write(folder, 100)
    (folder.checkpoints / ".step-200.safetensors.123.tmp").write_bytes(b"half")
    folder.latest_checkpoint()
    assert names(folder) == ["step-100.safetensors"]


def test_a_full_disk_is_a_run_error_that_names_the_intact_checkpoint(folder: RunFolder) -> None:
    good = write(folder, 100)
    with (
        full_disk(4096),
        pytest.raises(RunError, match=r"the last good checkpoint is .*step-100.safetensors; free some space"),
    ):
        folder.write_checkpoint({"x": torch.ones(10_000)}, timesteps=200)
    assert names(folder) == ["step-100.safetensors"]
    assert timesteps(good) == 100


def test_a_checkpoint_folder_that_vanished_is_made_again(folder: RunFolder) -> None:
    shutil.rmtree(folder.checkpoints)
    write(folder, 100)
    assert names(folder) == ["step-100.safetensors"]


def test_a_folder_that_cannot_be_written_is_a_user_error(folder: RunFolder) -> None:
    (folder.path / LOCK_FILE).mkdir()  # stands for a folder without permission, which a superuser has everywhere
    with pytest.raises(UserError, match="cannot be written"), folder.lock():
        pass


def test_folders_and_plots_need_no_torch() -> None:
    program = "import sys, acktr.agents.run_folder, acktr.agents.plots; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, env=dict(os.environ))
