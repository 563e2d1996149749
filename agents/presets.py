"""Presets: named sets of settings in `configs/*.yaml`, and how they combine with flags and defaults.

Precedence, highest first: flags (or keyword arguments), a preset file of the user's own, the shipped preset, the
defaults of `Settings`. The shipped preset is the one named, else the one of the environment's family
(`acktr.envs.make.family`), or `mujoco-pixels` where pixels are asked for. This module imports no torch.
"""

import dataclasses
import difflib
import fnmatch
import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from acktr.agents.settings import Settings, convert
from acktr.errors import UserError

FALLBACK = "vector"
"""The preset of environments whose family has none of its own."""

FROM_PIXELS = "mujoco-pixels"
"""The preset where pictures of a MuJoCo environment are asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """One YAML file of settings, every value converted to the declared type of its setting.

    Attributes:
        name: `atari` for the shipped `configs/atari.yaml`, the path as given for a user's own file.
        description: one line, shown by `acktr presets`.
        values: the settings at the file's top level.
        environments: (glob, settings) pairs that apply on top where the environment id matches, in the file's order.
        a2c: settings that apply on top of both when the algorithm is a2c.
        text: the file as it stands, comments included.
    """

    name: str
    description: str
    values: Mapping[str, Any]
    environments: tuple[tuple[str, Mapping[str, Any]], ...]
    a2c: Mapping[str, Any]
    text: str

    def layers(self, env: str, algorithm: str) -> list[tuple[str, Mapping[str, Any]]]:
        """The parts that apply to an environment id and an algorithm, lowest first, each with its name."""
        layers = [(self.name, self.values)]
        layers += [
            (f"{self.name}, {pattern}", part)
            for pattern, part in self.environments
            if fnmatch.fnmatchcase(env.rpartition(":")[2], pattern)  # `module:id` is gymnasium's too
        ]
        if algorithm == "a2c":
            layers.append((f"{self.name}, a2c", self.a2c))
        return layers


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Resolution:
    """What presets and overrides come to.

    Attributes:
        values: settings by name, complete but for what `Settings` itself defaults.
        sources: for each name in `values` the layer that it came from, e.g. `atari` or `atari, a2c`.
        notes: lines to print before training: which presets were chosen and why.
    """

    values: Mapping[str, Any]
    sources: Mapping[str, str]
    notes: tuple[str, ...]

    def settings(self) -> Settings:
        """The complete settings.

        Raises:
            UserError: a value out of range, or no environment named.
        """
        return Settings(**self.values)


def names() -> tuple[str, ...]:
    """Names of the shipped presets, sorted."""
    folder = importlib.resources.files("acktr.configs")
    return tuple(sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")))


def load(preset: str | Path) -> Preset:
    """Load a shipped preset by its name, or a preset file by its path.

    Args:
        preset: a name from `names()`, else the path of a YAML file.

    Raises:
        UserError: no such name or file, not YAML, an unknown setting (with the nearest ones) or a value that does not
            convert to its setting's type.
    """
    if isinstance(preset, str) and preset in names():
        text = importlib.resources.files("acktr.configs").joinpath(f"{preset}.yaml").read_text(encoding="utf-8")
        return parse(text, name=preset)
    path = Path(preset)
    if not path.is_file():
        close = difflib.get_close_matches(str(preset), names(), n=3, cutoff=0.5)
        near = ["nearest presets:", *close] if close else ["presets:", *names()]
        raise UserError(
            f"preset '{preset}': neither a preset nor a YAML file of that name; {near[0]} {', '.join(near[1:])}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"preset '{preset}': cannot be read as text: {error}") from None
    return parse(text, name=str(preset))


def parse(text: str, *, name: str) -> Preset:
    """Parse the text of a preset file.

    Args:
        text: YAML: a mapping of settings, optionally with `description` (one line), `environments` (glob of ids to
            settings) and `a2c` (settings).
        name: what to call it in error messages and notes.

    Raises:
        UserError: as `load`.
    """
    source = f"preset '{name}'"
    try:
        document = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {_one_line(error)}") from None
    content = _mapping(document, source)
    description = content.pop("description", "")
    if not isinstance(description, str):
        raise UserError(f"{source}: 'description' takes one line of text, got {description!r}")
    environments = _mapping(content.pop("environments", None), f"{source}: 'environments'")
    a2c = _mapping(content.pop("a2c", None), f"{source}: 'a2c'")
    parts: list[tuple[str, Mapping[str, Any]]] = []
    for pattern, part in environments.items():
        where = f"{source}: 'environments' '{pattern}'"
        parts.append((str(pattern), _section(_mapping(part, where), where)))
    return Preset(
        name=name,
        description=" ".join(description.split()),
        values=MappingProxyType(convert(content, source=source)),
        environments=tuple(parts),
        a2c=_section(a2c, f"{source}: 'a2c'"),
        text=text,
    )


def resolve(overrides: Mapping[str, Any], *, preset: str | Path | None = None, family: str | None = None) -> Resolution:
    """Combine overrides, presets and defaults by the precedence of this module.

    Args:
        overrides: settings given by flag or keyword; `env` among them unless a preset file names one. Without
            either, only a named preset applies.
        preset: name of a shipped preset, which replaces the family's; or path of a preset file, which lies on top of
            the family's.
        family: family of the environment where the caller knows it; `None` asks `acktr.envs.make.family`.

    Raises:
        UserError: an unknown preset, environment or setting, a preset that does not parse, or a value that does not
            convert to its setting's type.
    """
    overrides = convert(overrides, source="settings")
    chosen = load(preset) if preset is not None else None
    own = chosen if chosen is not None and chosen.name not in names() else None
    env = str(overrides.get("env") or (own.values.get("env", "") if own else ""))
    shipped, reason = (chosen, "") if own is None else (None, "")
    if shipped is None and env and overrides.get("pixels", own is not None and own.values.get("pixels")):
        shipped = load(FROM_PIXELS)
        reason = f" (pixels of {env})"
    elif shipped is None and env:
        if family is None:
            from acktr.envs.make import family as family_of

            family = family_of(env)
        has_own = family in names()
        shipped = load(family if has_own else FALLBACK)
        reason = f" (family of {env}{'' if has_own else f': {family}, which has no preset of its own'})"
    files = [layer for layer in (shipped, own) if layer is not None]
    algorithm = overrides.get("algorithm")
    for file in reversed(files):
        algorithm = algorithm or file.values.get("algorithm")
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for file in files:
        for source, part in file.layers(env, str(algorithm)):
            values.update(part)
            sources.update(dict.fromkeys(part, source))
    values.update(overrides)
    sources.update(dict.fromkeys(overrides, "given"))
    notes = []
    if shipped is not None:
        notes.append(f"preset {shipped.name}{reason}{f', under {own.name}' if own else ''}")
    elif own is not None:
        notes.append(f"preset {own.name}")
    return Resolution(values=MappingProxyType(values), sources=MappingProxyType(sources), notes=tuple(notes))


class _UniqueKeyLoader(yaml.SafeLoader):
    """`SafeLoader` that refuses a key given twice, of which plain YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"'{key.value}' is set twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{what}: takes names with values ('lr: 0.25'), got {str(value)[:40]!r}")
    return dict(value)


def _section(part: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    for name in ("env", "algorithm"):
        if name in part:  # they decide which sections apply
            raise UserError(f"{where}: '{name}' cannot be set here; set it at the top level of the file")
    return MappingProxyType(convert(part, source=where))


def _one_line(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())
