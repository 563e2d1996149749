"""`acktr train`'s flags: one per setting, made from the declarations in `acktr.agents.settings`.

Imports no torch. The flags default to what the presets come to, so that `acktr train --env ID --help` shows the
values that a run on that environment would take.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from acktr.agents import presets
from acktr.agents.idle_settings import without_effect
from acktr.agents.settings import FIELDS, SYNONYMS, Settings, convert
from acktr.arguments import parsed
from acktr.errors import UserError
from acktr.process import world_size

_GROUPS = {
    "env": "run",
    "num_envs": "environment",
    "network": "network",
    "gamma": "objective",
    "lr": "optimizer",
    "a2c_optimizer": "a2c",
    "log_interval": "record",
}
"""The first setting of each box of the help, in the order of `Settings`, and the box's title."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The flags that decide which defaults the others have, read before them."""

    env: str | None = None
    algorithm: str | None = None
    preset: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """What the flags of `acktr train` come to.

    Attributes:
        settings: the complete settings.
        run_dir: the run's own folder, if one was given.
        notes: lines to print first: the preset chosen and why.
    """

    settings: Settings
    run_dir: str | None
    notes: tuple[str, ...]


def flag(name: str) -> str:
    """The flag of a setting or a parameter: `max_kl` is set by `--max-kl`."""
    return "--" + name.replace("_", "-")


def parse_train(args: Sequence[str], *, description: str) -> TrainFlags:
    """Parse the arguments of `acktr train`. Prints the help and raises SystemExit where `--help` is among them.

    Args:
        args: the arguments after `train`.
        description: text above the flags in the help.

    Raises:
        UserError: an unknown flag, setting, preset or environment, a flag without a value, or a value that its setting
            does not take.
        SystemExit: `--help`.
    """
    selection, _ = parsed(Selection, "train", args, add_help=False)
    given: dict[str, Any] = {}
    for name, value in (("env", selection.env), ("algorithm", selection.algorithm)):
        if value is not None:
            given |= convert({name: value}, source=flag(name))
    pixels = [word == "--pixels" for word in args if word in ("--pixels", "--no-pixels")]
    if pixels:  # like the two above, it has a say in which preset is taken
        given["pixels"] = pixels[-1]
    resolution = presets.resolve(given, preset=selection.preset)
    shown = "; ".join(resolution.notes) or "no preset. Add --env ID to see those for an environment."
    found, unknown = parsed(
        _flag_class(resolution),
        "train",
        args,
        description=f"{description}\n\nThe defaults below follow {shown}",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    refuse_unknown("train", unknown, [*FIELDS, "preset", "run_dir"])
    values = {name: getattr(getattr(found, group), name) for name, group in group_of_setting().items()}
    settings = Settings(**values)
    notes = (*resolution.notes, *without_effect(settings, _named(args), alone=world_size() == 1))
    return TrainFlags(settings=settings, run_dir=found.run.run_dir or None, notes=notes)


def _named(args: Sequence[str]) -> set[str]:
    """Settings that are flags among the arguments, whatever their values."""
    words = {word.partition("=")[0] for word in args}
    return {name for name in FIELDS if words & {flag(name), flag(f"no_{name}")}}


def refuse_unknown(verb: str, unknown: Sequence[str], known: Sequence[str]) -> None:
    """Refuse arguments that a verb does not know.

    Args:
        verb: the verb, for the message.
        unknown: the arguments left over, as they were given.
        known: names of the verb's parameters, in snake case.

    Raises:
        UserError: `unknown` is not empty; names the first flag in it and the nearest known ones.
    """
    if not unknown:
        return
    strange = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
    if not strange.startswith("-"):
        raise UserError(f"'{strange}' is one argument too many for `acktr {verb}`; see `acktr {verb} --help`")
    flags = [flag(name) for name in known]
    flags += ["--no-" + name.replace("_", "-") for name in known if name in FIELDS and FIELDS[name].type is bool]
    near = difflib.get_close_matches(strange.replace("_", "-"), flags, n=3, cutoff=0.6)
    meant = flag(SYNONYMS.get(strange.lstrip("-").replace("-", "_"), ""))
    if meant in flags:
        near = [meant, *(other for other in near if other != meant)][:3]
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise UserError(f"`acktr {verb}` has no flag {strange}{hint}; see `acktr {verb} --help`")


def group_of_setting() -> dict[str, str]:
    """The box of the help that each setting stands in, by the setting's name."""
    groups, current = {}, ""
    for name in FIELDS:
        current = _GROUPS.get(name, current)
        groups[name] = current
    return groups


def shown_value(value: Any) -> str:
    """A setting's value as a person would type it: `7e-04` as 0.0007, 1500000 as 1_500_000, (64, 64) as `64 64`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:_}" if value >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(value)


def _flag_class(resolution: presets.Resolution) -> type[Any]:
    """A dataclass of one dataclass per box of the help, whose fields are the settings."""
    members: dict[str, list[tuple[str, Any, Any]]] = {group: [] for group in _GROUPS.values()}
    for name, group in group_of_setting().items():
        default = resolution.values.get(name, FIELDS[name].default)
        members[group].append((name, _annotation(name, default, resolution), dataclasses.field(default=default)))
    members["run"] += [
        (
            "preset",
            _text(
                "NAME|FILE",
                "A shipped preset, instead of the one of the environment's family; or a YAML file of settings, on top "
                "of it. See `acktr presets`.",
                "(default: by the environment)",
            ),
            dataclasses.field(default=""),
        ),
        (
            "run_dir",
            _text("DIR", "The run's own folder.", "(default: runs/<env>/<algorithm>-seed<k>-<time>)"),
            dataclasses.field(default=""),
        ),
    ]
    boxes = []
    for group, fields in members.items():
        box = dataclasses.make_dataclass(group, fields, kw_only=True, frozen=True)
        box.__doc__ = None
        boxes.append((group, box, dataclasses.field(default_factory=box)))
    return dataclasses.make_dataclass("Flags", boxes, kw_only=True, frozen=True)


def _annotation(name: str, default: Any, resolution: presets.Resolution) -> Any:
    field = FIELDS[name]
    kind: Any = field.type
    source = resolution.sources.get(name)
    origin = f"preset {source}"
    if source in (None, "given"):
        own = field.metadata["origin"]  # that of the declared default, worth naming where it is another's
        origin = "" if source == "given" or own == "this project" else own
    if name == "env" and not default:
        hint = f"(required, for example {field.metadata['typical']})"
    else:
        shown, typical = shown_value(default), str(field.metadata["typical"])
        hint = (
            f"(default {shown}{f', {origin}' if origin else ''}{f'; typically {typical}' if typical != shown else ''})"
        )
    argument = tyro.conf.arg(help=field.metadata["meaning"], help_behavior_hint=hint)
    if kind is bool:
        return Annotated[bool, argument]
    several = get_origin(kind) is tuple
    words = {int: "N", float: "X", str: name.upper()}
    metavar = (
        "|".join(get_args(kind)) if get_origin(kind) is Literal else "N [N ...]" if several else words.get(kind, "X")
    )

    def from_words(given: list[str]) -> Any:
        return convert({name: " ".join(given)}, source=flag(name))[name]

    spec: PrimitiveConstructorSpec[Any] = PrimitiveConstructorSpec(
        nargs="*" if several else 1,
        metavar=metavar,
        instance_from_str=from_words,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [shown_value(value)],
    )
    return Annotated[kind, spec, argument]


def _text(metavar: str, help_text: str, hint: str) -> Any:
    spec: PrimitiveConstructorSpec[Any] = PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda given: given[0],
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )
    return Annotated[str, spec, tyro.conf.arg(help=help_text, help_behavior_hint=hint)]
