"""Settings: types, ranges, conversion from YAML, JSON and the command line."""

import dataclasses
import json
import math
import subprocess
import sys
from typing import Any, Literal, get_origin

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from acktr.agents.settings import FIELDS, Settings, convert, takes
from acktr.errors import UserError


def test_settings_module_imports_no_torch() -> None:
    code = "import sys, acktr.agents.settings, acktr.agents.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_settings_are_frozen_and_keyword_only() -> None:
    settings = Settings(env="CartPole-v1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.lr = 1.0  # type: ignore[misc]  # the very thing that must fail
    with pytest.raises(TypeError):
        Settings("CartPole-v1")  # type: ignore[misc]  # likewise


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_has_a_help_text_and_a_default_of_its_type(name: str) -> None:
    field = FIELDS[name]
    assert field.metadata["meaning"].endswith((".", "}"))
    assert field.metadata["typical"]
    assert field.metadata["origin"]
    assert takes(name)
    if name != "env":
        assert convert({name: field.default}, source="test") == {name: field.default}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "7e-4", 7e-4),  # YAML 1.1 reads 1e-3 as a string
        ("lr", 1, 1.0),
        ("total_timesteps", "1e6", 1_000_000),
        ("total_timesteps", "1_500_000", 1_500_000),
        ("total_timesteps", 2e6, 2_000_000),
        ("seed", "12345678901234567891", 12345678901234567891),  # a float would round it
        ("seed", 12345678901234567891, 12345678901234567891),
        ("exact_resume", "no", False),
        ("exact_resume", "True", True),
        ("hidden_sizes", [64, 64], (64, 64)),
        ("hidden_sizes", "32 16", (32, 16)),
        ("hidden_sizes", "32,16", (32, 16)),
        ("hidden_sizes", 32, (32,)),
        ("reward_clip", "none", "none"),
        ("env", "CartPole-v1", "CartPole-v1"),
    ],
)
def test_plain_values_convert_by_declared_type(name: str, text: Any, value: Any) -> None:
    converted = convert({name: text}, source="test")[name]
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", "fast"),
        ("lr", None),
        ("lr", True),  # a bool is an int in Python, but not what was meant
        ("lr", [0.1]),
        ("num_envs", 1.5),
        ("num_envs", "inf"),
        ("num_envs", "nan"),
        ("num_envs", True),
        ("exact_resume", 1),
        ("exact_resume", "maybe"),
        ("reward_clip", False),  # YAML 1.1 reads `no` and `off` as False
        ("reward_clip", "sgn"),
        ("hidden_sizes", "64 x"),
        ("hidden_sizes", None),
        ("env", {"id": "CartPole-v1"}),
    ],
)
def test_a_wrong_type_names_the_setting_and_what_it_takes(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"my\.yaml: setting '{name}' takes ") as caught:
        convert({name: value}, source="my.yaml")
    assert takes(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("gamma", 1.5),
        ("gamma", "0.9"),
        ("num_envs", 0),
        ("num_envs", 2.0),
        ("seed", -1),
        ("stat_fraction", 0.0),
        ("damping", -0.1),
        ("hidden_sizes", ()),
        ("hidden_sizes", (64, 0)),
        ("hidden_sizes", [64]),
        ("conv_channels", (32, 64)),
        ("algorithm", "ppo"),
        ("exact_resume", 1),
    ],
)
def test_a_value_out_of_range_names_the_setting(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"setting '{name}' takes "):
        Settings(**{"env": "CartPole-v1", name: value})


def test_the_ends_of_closed_ranges_are_accepted() -> None:
    settings = Settings(env="x", gamma=1.0, gae_lambda=0.0, damping=0.0, stat_fraction=1.0, total_timesteps=1)
    assert (settings.gamma, settings.gae_lambda, settings.damping) == (1.0, 0.0, 0.0)


def test_an_unknown_setting_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UserError, match=r"f\.yaml: no setting is called 'max_kll'; nearest: max_kl"):
        Settings.from_dict({"env": "CartPole-v1", "max_kll": 1}, source="f.yaml")


def test_settings_without_an_environment_are_refused() -> None:
    with pytest.raises(UserError, match="'env' is empty"):
        Settings()


def _values(name: str) -> st.SearchStrategy[Any]:
    field = FIELDS[name]
    kind: Any = field.type
    low, high = field.metadata["low"], field.metadata["high"]
    if get_origin(kind) is Literal:
        return st.sampled_from(kind.__args__)
    if get_origin(kind) is tuple:
        size = 3 if name == "conv_channels" else None
        return st.lists(st.integers(1, 2**40), min_size=size or 1, max_size=size or 5).map(tuple)
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(low, high)
    if kind is float:
        return st.floats(low, high, exclude_min=bool(field.metadata["low_open"]), allow_nan=False, allow_infinity=False)
    return st.text("abcXYZ019-/:_", min_size=1)


@given(st.fixed_dictionaries({name: _values(name) for name in FIELDS}))
def test_yaml_and_json_give_back_every_setting_exactly(values: dict[str, Any]) -> None:
    drawn_here = values["pixels"] and values["vectorization"] == "sync"
    assume(not values["overlap"] or not (values["exact_resume"] or values["exploration"] != "none" or drawn_here))
    settings = Settings(**values)
    assert Settings.from_dict(yaml.safe_load(yaml.safe_dump(settings.to_dict()))) == settings
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
