"""Presets: the shipped files, a user's own files, and precedence."""

from pathlib import Path

import pytest

from acktr.agents import presets
from acktr.agents.networks import nature_torso
from acktr.agents.settings import FIELDS, Settings
from acktr.envs.make import family
from acktr.errors import UserError
from acktr.kfac import KFAC

EXAMPLES = {
    "PongNoFrameskip-v4": "atari",
    "ALE/Pong-v5": "atari",
    "CartPole-v1": "classic-control",
    "HalfCheetah-v5": "mujoco",
    "LunarLander-v3": "box2d",
    "FrozenLake-v1": "vector",
}


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", presets.names())
def test_every_shipped_preset_gives_valid_settings(name: str) -> None:
    preset = presets.load(name)
    assert preset.description
    for algorithm in ("acktr", "a2c"):
        for pattern in ("CartPole-v1", *(pattern.replace("*", "X") for pattern, _ in preset.environments)):
            resolution = presets.resolve({"env": pattern, "algorithm": algorithm}, preset=name)
            assert resolution.settings().algorithm == algorithm


@pytest.mark.parametrize("name", presets.names())
def test_every_value_of_a_shipped_preset_has_its_source_beside_it_or_at_its_section(name: str) -> None:
    section = ""
    for line in presets.load(name).text.splitlines():
        code, _, source = line.partition("#")
        key, _, value = code.partition(":")
        if code.strip() and not value.strip():
            section = source
        elif key.strip() in FIELDS:
            assert source or (line.startswith(" ") and section), line


@pytest.mark.parametrize(("env", "name"), EXAMPLES.items())
def test_the_family_of_an_id_chooses_its_preset(env: str, name: str) -> None:
    resolution = presets.resolve({"env": env})
    assert resolution.notes == (f"preset {name} (family of {env})",)
    for setting, value in presets.load(name).layers(env, "acktr")[0][1].items():
        overruled = any(setting in part for _, part in presets.load(name).layers(env, "acktr")[1:])
        assert overruled or resolution.values[setting] == value


def test_every_family_of_the_examples_is_shipped() -> None:
    assert {family(env) for env in EXAMPLES} <= set(presets.names())


@pytest.mark.parametrize("name", ["atari", "atari-baselines"])
def test_life_rules_are_off_for_ale_v5_and_on_for_noframeskip(name: str) -> None:
    """Machado et al. 2018 train without a life signal; the classic protocol has one."""
    for env, on in (("ALE/Pong-v5", False), ("ale_py:ALE/Pong-v5", False), ("PongNoFrameskip-v4", True)):
        settings = presets.resolve({"env": env}, preset=name).settings()
        assert (settings.terminal_on_life_loss, settings.fire_after_life_loss) == (on, on)


def test_the_baselines_preset_is_the_published_one() -> None:
    settings = presets.resolve({"env": "PongNoFrameskip-v4"}, preset="atari-baselines").settings()
    published = {
        "num_envs": 32,
        "num_steps": 20,
        "conv_channels": (32, 64, 32),
        "policy_gain": 1.0,
        "lr": 0.25,
        "lr_schedule": "linear",
        "max_kl": 1e-3,
        "damping": 0.01,
        "damping_mode": "exact",
        "momentum": 0.9,
        "stat_decay": 0.99,
        "gamma": 0.99,
        "gae_lambda": 1.0,
        "entropy_coef": 0.01,
        "value_coef": 0.5,
        "value_sigma": 0.5,
        "bias": "separate",
        "compat": "baselines",
        "reward_clip": "sign",
    }
    assert {name: getattr(settings, name) for name in published} == published


def test_the_baselines_presets_biases_all_have_whole_blocks() -> None:
    """Published, each has the covariance of its layer's output gradients: 512 of the widest layer."""
    settings = presets.resolve({"env": "PongNoFrameskip-v4"}, preset="atari-baselines").settings()
    torso = nature_torso((4, 84, 84), channels=settings.conv_channels, features=settings.conv_features, zero_sum=False)
    optimizer = KFAC(torso, bias=settings.bias, damping_mode=settings.damping_mode)
    biases = {unit.name: type(unit.block).__name__ for unit in optimizer.units if unit.name.endswith("bias")}
    assert len(biases) == 4
    assert set(biases.values()) == {"FullBlock"}


@pytest.mark.parametrize("name", presets.names())
def test_a2c_never_runs_with_the_step_size_of_acktr(name: str) -> None:
    settings = presets.resolve({"env": "CartPole-v1", "algorithm": "a2c"}, preset=name).settings()
    assert settings.lr < 0.01


def test_precedence_is_flag_then_file_then_family_then_default(tmp_path: Path) -> None:
    file = write(tmp_path, "lr: 0.1\nmax_kl: 2e-4\n")
    resolution = presets.resolve({"env": "PongNoFrameskip-v4", "lr": 0.07}, preset=file)
    settings = resolution.settings()
    assert settings.lr == 0.07
    assert settings.max_kl == 2e-4
    assert settings.stat_fraction == presets.load("atari").values["stat_fraction"]
    assert settings.log_interval == FIELDS["log_interval"].default
    assert resolution.sources["lr"] == "given"
    assert resolution.sources["max_kl"] == file
    assert resolution.sources["stat_fraction"] == "atari"
    assert "log_interval" not in resolution.sources
    assert resolution.notes == (f"preset atari (family of PongNoFrameskip-v4), under {file}",)


def test_a_named_preset_replaces_that_of_the_family() -> None:
    resolution = presets.resolve({"env": "PongNoFrameskip-v4"}, preset="mujoco")
    assert resolution.notes == ("preset mujoco",)
    assert "reward_clip" in resolution.values
    assert resolution.settings().reward_clip == "none"


def test_a_users_file_wins_over_the_a2c_section_of_the_family(tmp_path: Path) -> None:
    file = write(tmp_path, "algorithm: a2c\nlr: 0.003\n")
    settings = presets.resolve({"env": "CartPole-v1"}, preset=file).settings()
    assert settings.algorithm == "a2c"
    assert settings.lr == 0.003
    assert settings.num_steps == presets.load("classic-control").a2c["num_steps"]


def test_the_algorithm_flag_decides_whether_the_a2c_section_applies(tmp_path: Path) -> None:
    file = write(tmp_path, "algorithm: a2c\n")
    settings = presets.resolve({"env": "CartPole-v1", "algorithm": "acktr"}, preset=file).settings()
    assert settings.lr == presets.load("classic-control").values["lr"]


def test_a_file_may_name_the_environment(tmp_path: Path) -> None:
    file = write(tmp_path, "env: CartPole-v1\n")
    resolution = presets.resolve({}, preset=file)
    assert resolution.settings().env == "CartPole-v1"
    assert resolution.values["num_envs"] == presets.load("classic-control").values["num_envs"]


def test_the_settings_file_of_a_run_is_a_preset_that_repeats_it(tmp_path: Path) -> None:
    import yaml

    settings = Settings(env="ALE/Pong-v5", lr=0.0123, hidden_sizes=(3, 4), algorithm="a2c")
    file = write(tmp_path, yaml.safe_dump(settings.to_dict()))
    assert presets.resolve({}, preset=file).settings() == settings


def test_environment_globs_apply_in_order_and_case(tmp_path: Path) -> None:
    file = write(tmp_path, "environments:\n  '*': {lr: 0.1, gamma: 0.9}\n  'Cart*': {lr: 0.2}\n  'cart*': {lr: 0.3}\n")
    settings = presets.resolve({"env": "CartPole-v1"}, preset=file).settings()
    assert (settings.lr, settings.gamma) == (0.2, 0.9)


def test_an_unknown_family_falls_back_and_says_so() -> None:
    resolution = presets.resolve({"env": "Thing-v0"}, family="robots")
    assert resolution.notes == ("preset vector (family of Thing-v0: robots, which has no preset of its own)",)


def test_keywords_of_the_wrong_name_or_type_are_user_errors() -> None:
    with pytest.raises(UserError, match="no setting is called 'learning_rate'"):
        presets.resolve({"env": "CartPole-v1", "learning_rate": 0.1})
    assert presets.resolve({"env": "CartPole-v1", "hidden_sizes": [32]}).settings().hidden_sizes == (32,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: [", "not valid YAML: line 1, column 6"),
        ("lr: 0.1\nlr: 0.2", "line 2, column 1: 'lr' is set twice"),
        ("- lr", "takes names with values"),
        ("lr", "takes names with values"),
        ("lrr: 0.1", "no setting is called 'lrr'; nearest: lr"),
        ("lr: fast", "setting 'lr' takes a number above 0, got 'fast'"),
        ("a2c: 3", "'a2c': takes names with values"),
        ("a2c: {lrr: 3}", "'a2c': no setting is called 'lrr'"),
        ("a2c: {algorithm: acktr}", "'algorithm' cannot be set here"),
        ("environments: {'X*': {env: X}}", "'env' cannot be set here"),
        ("environments: {'X*': {lr: no}}", "'environments' 'X*': setting 'lr' takes"),
        ("description: [a]", "'description' takes one line of text"),
        ("lr: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_bad_file_is_a_one_line_error_that_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        presets.load(file)
    assert message in str(caught.value)
    assert f"preset '{file}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="cannot be read as text"):
        presets.load(tmp_path / "x.yaml")


def test_an_unknown_preset_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"preset 'atri': .* nearest presets: atari"):
        presets.load("atri")
    with pytest.raises(UserError, match="atari-baselines"):
        presets.load("zzz")


def test_an_empty_file_is_a_preset_that_sets_nothing(tmp_path: Path) -> None:
    preset = presets.load(write(tmp_path, "# nothing yet\n"))
    assert dict(preset.values) == {}
