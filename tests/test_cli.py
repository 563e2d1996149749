"""The command line: flags, precedence, one-line errors, exit codes."""

import dataclasses
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import acktr
from acktr import cli, commands, flags
from acktr.agents.settings import FIELDS, Settings
from acktr.errors import RunError, UserError

TINY = [
    "--env",
    "CartPole-v1",
    "--total-timesteps",
    "400",
    "--num-envs",
    "2",
    "--num-steps",
    "10",
    "--num-threads",
    "1",
]


def replace_runs(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    """Put a module in the place of `acktr.agents.runs`, so that flags are tested without training."""
    module = types.ModuleType("acktr.agents.runs")
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, "acktr.agents.runs", module)


class Trained:
    """Stands in for `acktr.agents.runs.train` and keeps what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
        self.settings: Settings | None = None
        self.run_dir: Path | None = None
        self.notes: tuple[str, ...] = ()
        self.error = error
        replace_runs(monkeypatch, train=self)

    def __call__(self, settings: Settings, *, run_dir: Path | None, notes: tuple[str, ...] = ()) -> Path:
        self.settings, self.run_dir, self.notes = settings, run_dir, notes
        if self.error is not None:
            raise self.error
        return Path("run")


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, with nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("acktr: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


# --- the program itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [["--help"], ["--version"], ["train", "--help"], ["train", "--env", "CartPole-v1", "--help"], ["presets"]],
)
def test_help_and_presets_answer_without_importing_torch(args: list[str]) -> None:
    code = f"""
import sys
from acktr.cli import main
try:
    code = main({args!r})
except SystemExit as stop:
    code = stop.code
assert code == 0, code
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr == ""


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"acktr {acktr.__version__}\n"


def test_without_a_verb_the_help_is_shown_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: acktr VERB" in capsys.readouterr().out


@pytest.mark.parametrize("verb", sorted(set(cli.VERBS) - {"train"}))
def test_every_verb_has_a_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    assert f"usage: acktr {verb}" in capsys.readouterr().out


def test_an_unknown_verb_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert "no verb 'trian'; nearest: train" in error_line(capsys)


def test_python_dash_m_runs_the_same_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "acktr", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"acktr {acktr.__version__}\n")


def test_a_reader_that_leaves_early_causes_no_traceback(tmp_path: Path) -> None:
    command = f"{sys.executable} -m acktr presets | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("bad\nthing"), 2, "acktr: error: bad thing\n"),
        (RunError("diverged"), 1, "acktr: error: diverged\n"),
        (KeyboardInterrupt(), 130, "acktr: interrupted\n"),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Trained(monkeypatch, error)
    assert cli.main(["train", *TINY]) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["resume"], "`acktr resume` wants RUN: the run folder; see `acktr resume --help`"),
        (["evaluate"], "`acktr evaluate` wants RUN|FILE: a run folder, a checkpoint or an exported policy; see "),
        (["plot", "-o"], "missing value for argument '-o/--output'"),
        (["train", "--env"], "missing value for argument '--env'"),
        (["train", "--env", "CartPole-v1", "--lr"], "missing value for argument '--lr'"),
        (["evaluate", "x", "--episodes", "many"], "error parsing --episodes: invalid literal for int() with base 10"),
        (["benchmark", "cartpole", "--jobs", "x"], "error parsing --jobs: "),
    ],
    ids=["resume", "evaluate", "plot -o", "env", "lr", "episodes", "jobs"],
)
def test_missing_and_malformed_arguments_are_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"acktr: error: {line}")
    assert error.endswith(f"; see `acktr {words[0]} --help`\n")
    assert error.count("\n") == 1


# --- train -----------------------------------------------------------------------------------------------------------


def test_every_setting_is_a_flag_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    for name, field in FIELDS.items():
        assert flags.flag(name) in text
        if field.type is bool:
            assert "--no-" + name.replace("_", "-") in text


def test_the_help_shows_the_defaults_of_the_resolved_preset(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        cli.main(["train", "--env", "ALE/Pong-v5", "--preset", "atari-baselines", "--help"])
    text = capsys.readouterr().out
    assert "preset atari-baselines" in text
    assert "(default 32, preset atari-baselines;" in text
    assert "(default false, preset atari-baselines, ALE/*-v5;" in text


def test_flags_win_over_the_preset_and_convert_by_type(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Trained(monkeypatch)
    args = ["--max-kl", "3e-4", "--total-timesteps", "2e6", "--hidden-sizes", "32", "16", "--no-shared-trunk"]
    assert cli.main(["train", "--env", "PongNoFrameskip-v4", *args, "--lr=0.1", "--run-dir", "here"]) == 0
    settings = trained.settings
    assert settings is not None
    assert (settings.max_kl, settings.total_timesteps, settings.lr) == (3e-4, 2_000_000, 0.1)
    assert settings.hidden_sizes == (32, 16)
    assert not settings.shared_trunk
    assert settings.terminal_on_life_loss
    assert trained.run_dir == Path("here")
    assert trained.notes == ("preset atari (family of PongNoFrameskip-v4)",)


def test_a_flag_that_repeats_a_default_still_wins_over_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--lr 0.25` is the default of the setting but not of the preset's a2c section: the flag must count."""
    trained = Trained(monkeypatch)
    assert cli.main(["train", "--env", "CartPole-v1", "--algorithm", "a2c", "--lr", "0.25"]) == 0
    assert trained.settings is not None
    assert trained.settings.lr == 0.25
    assert trained.settings.num_steps == 5


def test_underscores_are_taken_for_hyphens(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Trained(monkeypatch)
    assert cli.main(["train", "--env", "CartPole-v1", "--max_kl", "0.5"]) == 0
    assert trained.settings is not None
    assert trained.settings.max_kl == 0.5


def test_a_flag_that_the_others_leave_without_effect_is_named() -> None:
    idle = ["--rms-alpha", "0.9", "--pixel-size", "64"]
    parsed = flags.parse_train(["--env", "Hopper-v5", "--critic-lr", "0.1", *idle], description="")
    assert parsed.notes[1:] == (
        "without effect, as algorithm is acktr: rms_alpha",
        "without effect, as pixels is false: pixel_size",
    )
    shared = flags.parse_train(["--env", "Hopper-v5", "--shared-trunk", "--critic-lr", "0.1"], description="")
    assert shared.notes[1:] == ("without effect, as shared_trunk is true: critic_lr",)
    assert len(flags.parse_train(["--env", "Hopper-v5", "--lr", "0.1"], description="").notes) == 1


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["--position-stride", "5"], "as network is mlp: position_stride"),
        (["--conv-factors=reduce", "--conv-features", "3"], "as network is mlp: conv_factors, conv_features"),
        (
            ["--network", "nature", "--curvature", "kfoc", "--position-stride", "2"],
            "as curvature is kfoc: position_stride",
        ),
        (["--overlap", "--reuse-forward"], "as overlap is true: reuse_forward"),
        (["--algorithm", "a2c", "--inverse-interval", "2"], "as algorithm is a2c: inverse_interval"),
        (["--algorithm", "a2c", "--inverse-interval", "3"], "as algorithm is a2c: inverse_interval"),
        (["--inverse-placement", "owner"], "as there is one process: inverse_placement"),
    ],
)
def test_a_flag_without_effect_is_named_though_it_repeats_the_default(words: list[str], note: str) -> None:
    parsed = flags.parse_train(["--env", "CartPole-v1", *words], description="")
    assert f"without effect, {note}" in parsed.notes


def test_a_preset_file_may_stand_for_all_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Trained(monkeypatch)
    (tmp_path / "mine.yaml").write_text("env: CartPole-v1\nlr: 1e-3\n", encoding="utf-8")
    assert cli.main(["train", "--preset", str(tmp_path / "mine.yaml"), "--seed", "3"]) == 0
    assert trained.settings is not None
    assert (trained.settings.env, trained.settings.lr, trained.settings.seed) == ("CartPole-v1", 1e-3, 3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "'env' is empty"),
        (["--env", "BreakoutNoFramskip-v4"], "BreakoutNoFrameskip-v4"),
        (["--env", "CartPole-v1", "--max-kll", "1"], "no flag --max-kll; nearest: --max-kl"),
        (["--env", "CartPole-v1", "--max-kll=1"], "no flag --max-kll; nearest: --max-kl"),
        (["--env", "CartPole-v1", "--learning-rate", "1"], "no flag --learning-rate; nearest: --lr"),
        (["--env", "CartPole-v1", "--n_envs=4"], "no flag --n_envs; nearest: --num-envs"),
        (["--env", "CartPole-v1", "--no-exact-resum"], "nearest: --no-exact-resume"),
        (["--env", "CartPole-v1", "surplus"], "'surplus' is one argument too many"),
        (["--env", "CartPole-v1", "--lr", "fast"], "--lr: setting 'lr' takes a number above 0, got 'fast'"),
        (["--env", "CartPole-v1", "--lr", "-1"], "setting 'lr' takes a number above 0, got -1.0"),
        (["--env", "CartPole-v1", "--num-envs", "1.5"], "--num-envs: setting 'num_envs' takes a whole number"),
        (["--env", "CartPole-v1", "--algorithm", "ppo"], "takes one of acktr, a2c, got 'ppo'"),
        (["--env", "CartPole-v1", "--preset", "atri"], "nearest presets: atari"),
        (["--env", "ALE/Pong-v5", "--network", "mlp"], "a curvature factor of 28225 x 28225"),
    ],
)
def test_bad_input_to_train_is_one_line_and_leaves_nothing_behind(
    args: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *args]) == 2
    assert message in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


# --- the other verbs -------------------------------------------------------------------------------------------------


def test_resume_takes_only_a_total_and_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["resume", "run", "--lr", "0.1"]) == 2
    assert "`acktr resume` cannot change --lr" in error_line(capsys)
    assert cli.main(["resume", "run", "--total-timesteps", "much"]) == 2
    assert "takes a whole number of at least 1, got 'much'" in error_line(capsys)
    assert cli.main(["resume", "run", "--devise", "cpu"]) == 2
    assert "nearest: --device" in error_line(capsys)


def test_resume_hands_over_what_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    replace_runs(monkeypatch, resume=lambda run, **given: calls.append((run, given)))
    assert cli.main(["resume", "run", "--total-timesteps", "1e5", "--device", "cpu"]) == 0
    assert cli.main(["resume", "run"]) == 0
    assert calls == [
        (Path("run"), {"total_timesteps": 100_000, "device": "cpu"}),
        (Path("run"), {"total_timesteps": None, "device": None}),
    ]


@pytest.mark.parametrize("verb", ["evaluate", "record", "export", "plot", "curvature", "resume"])
def test_a_missing_run_is_a_one_line_error(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in error_line(capsys)


def test_contradicting_flags_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "run", "--deterministic", "--no-deterministic"]) == 2
    assert "exclude each other" in error_line(capsys)
    assert cli.main(["evaluate", "run", "--episodes", "0"]) == 2
    assert "--episodes takes a whole number of at least 1" in error_line(capsys)


def test_presets_lists_all_and_prints_one_verbatim(capsys: pytest.CaptureFixture[str]) -> None:
    from acktr.agents import presets

    assert cli.main(["presets"]) == 0
    listing = capsys.readouterr().out
    for name in presets.names():
        assert f"\n{name}\n" in "\n" + listing
    assert cli.main(["presets", "atari"]) == 0
    assert capsys.readouterr().out == presets.load("atari").text
    assert cli.main(["presets", "atri"]) == 2
    assert "nearest presets: atari" in error_line(capsys)


def test_info_names_versions_devices_and_the_emulator(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["acktr"] == acktr.__version__
    assert "torch" in found["packages"]
    assert "ale-py" in found["emulator"]
    assert cli.main(["info"]) == 0
    assert "torch threads" in capsys.readouterr().out


def test_every_verb_of_the_help_can_be_parsed() -> None:
    for verb in cli.VERBS:
        args = {"train": TINY, "presets": [], "info": []}.get(verb, ["run"])
        assert callable(commands.parse(verb, args).run)


# --- for real --------------------------------------------------------------------------------------------------------


def test_train_evaluate_export_resume_on_cartpole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *TINY, "--checkpoint-interval", "200", "--run-dir", "run"]) == 0
    assert "preset classic-control (family of CartPole-v1)" in capfd.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "final.safetensors").is_file()

    assert cli.main(["evaluate", "run", "--episodes", "4", "--json", "--device", "cpu"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["episodes"] == 4
    assert result["timesteps"] >= 400
    assert result["protocol"]["policy"] == "deterministic"
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8")) == result

    assert cli.main(["export", "run", "-o", "policy.safetensors"]) == 0
    assert cli.main(["evaluate", "policy.safetensors", "--episodes", "4", "--no-deterministic"]) == 0
    text = capfd.readouterr().out
    assert "return of 4 full games: mean " in text
    assert "policy stochastic" in text

    assert cli.main(["train", *TINY, "--run-dir", "run"]) == 2
    assert "already holds a run" in capfd.readouterr().err
    assert cli.main(["resume", "run"]) == 0
    assert "nothing is left to do" in capfd.readouterr().out
    assert cli.main(["resume", "policy.safetensors"]) == 2


def test_equal_seeds_give_equal_evaluations(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert cli.main(["train", *TINY, "--run-dir", run]) == 0
    results = []
    for seed in ("5", "5", "6"):
        capfd.readouterr()
        assert cli.main(["evaluate", run, "--episodes", "8", "--no-deterministic", "--seed", seed, "--json"]) == 0
        results.append(json.loads(capfd.readouterr().out))
    assert results[0] == results[1]
    assert results[0] != {**results[2], "protocol": results[0]["protocol"]}


def test_a_policy_is_not_played_in_an_environment_of_other_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from acktr.agents import play

    run = str(tmp_path / "run")
    assert cli.main(["train", *TINY, "--run-dir", run]) == 0
    make = play.make_environment
    monkeypatch.setattr(
        play, "make_environment", lambda settings: make(dataclasses.replace(settings, env="Acrobot-v1"))
    )
    capsys.readouterr()
    assert cli.main(["evaluate", run]) == 2
    assert "was trained on" in error_line(capsys)


@pytest.mark.parametrize(("episodes", "num_envs", "used"), [(1, 16, 1), (3, 2, 2), (17, 16, 16)])
def test_a_prime_number_of_games_is_played_in_as_many_environments_as_any_other(
    episodes: int, num_envs: int, used: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert cli.main(["train", *TINY, "--run-dir", run]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", run, "--json", "--episodes", str(episodes), "--num-envs", str(num_envs)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["protocol"]["num_envs"], len(result["returns"])) == (used, episodes)
