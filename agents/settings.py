"""The typed settings of a run: every name that a preset file, a flag or a keyword argument may set.

This module imports no torch, so that `acktr --help` and `acktr presets` answer at once.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from acktr.agents.setting_fields import check, converted_value, values_taken
from acktr.agents.settings_learning import NetworkSettings, ObjectiveSettings
from acktr.agents.settings_optimizer import A2CSettings, OptimizerSettings
from acktr.agents.settings_run import EnvironmentSettings, RecordSettings, RunSettings
from acktr.errors import UserError

EVALUATION_SEED = 1_000_000
"""Default seed of evaluations and videos, away from the small seeds that people train with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(  # fields stand in the order of the bases from last to first
    RecordSettings,
    A2CSettings,
    OptimizerSettings,
    ObjectiveSettings,
    NetworkSettings,
    EnvironmentSettings,
    RunSettings,
):
    """Everything that decides what a run computes. Frozen; `dataclasses.replace` makes a changed copy.

    Raises:
        UserError: a value of the wrong type or out of its range, naming the setting and what it takes.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check(field, getattr(self, field.name))
        if self.env == "":
            raise UserError("setting 'env' is empty: name an environment, for example --env CartPole-v1")
        if self.network != "small-conv" and len(self.conv_channels) != 3:
            raise UserError(
                f"setting 'conv_channels' takes three whole numbers, got {self.conv_channels}; with network "
                "small-conv any number"
            )
        if self.overlap and self.exact_resume:
            raise UserError(
                "settings 'overlap' and 'exact_resume' exclude each other: the batch that is being collected at a "
                "checkpoint would be lost; leave one of them off"
            )
        if self.overlap and self.pixels and self.vectorization == "sync":
            raise UserError(
                "settings 'overlap' and 'vectorization' sync exclude each other where 'pixels' is true: pictures are "
                "drawn in the thread that asked for the first; use vectorization async"
            )
        if self.overlap and self.exploration != "none":
            raise UserError(
                f"settings 'overlap' and 'exploration' {self.exploration} exclude each other: weights drawn for a "
                "rollout are learnt from in the same update; leave one of them off"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values (tuples as lists), ready for YAML or JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "settings") -> "Settings":
        """Build settings from plain values, converting each by the declared type of its field.

        Args:
            values: names and values, as YAML or JSON gives them (`1e-3` may be a string, tuples are lists).
            source: what to call the origin in an error message, e.g. the file's name.

        Raises:
            UserError: an unknown name (with the nearest ones), a wrong type or a value out of range.
        """
        return cls(**convert(values, source=source))


FIELDS: dict[str, "dataclasses.Field[Any]"] = {field.name: field for field in dataclasses.fields(Settings)}


def convert(values: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Convert plain values to the declared types of the settings of the same names.

    Args:
        values: a part of the settings, or all of them.
        source: what to call the origin in an error message.

    Raises:
        UserError: an unknown name (with the nearest ones) or a value that does not convert.
    """
    converted: dict[str, Any] = {}
    for name, value in values.items():
        if name not in FIELDS:
            near = _nearest(str(name))
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise UserError(f"{source}: no setting is called '{name}'{hint}")
        try:
            converted[name] = converted_value(FIELDS[name].type, value)
        except (TypeError, ValueError):
            raise UserError(f"{source}: setting '{name}' takes {takes(name)}, got {value!r}") from None
    return converted


SYNONYMS = {
    "learning_rate": "lr",
    "n_steps": "num_steps",
    "n_envs": "num_envs",
    "ent_coef": "entropy_coef",
    "vf_coef": "value_coef",
    "target_kl": "desired_kl",
    "kl_clip": "max_kl",
    "net_arch": "hidden_sizes",
    "total_steps": "total_timesteps",
    "timesteps": "total_timesteps",
    "discount": "gamma",
    "env_id": "env",
}
"""What other packages call these settings."""


def _nearest(name: str) -> list[str]:
    """Settings that an unknown name may have meant, at most 3."""
    meant = [SYNONYMS[name]] if name in SYNONYMS else []
    meant += [near for near in difflib.get_close_matches(name, FIELDS, n=3, cutoff=0.5) if near not in meant]
    return meant[:3]


def takes(name: str) -> str:
    """Say in words which values the setting `name` takes, for help texts and error messages."""
    return values_taken(FIELDS[name])
