"""What a report shows of the settings: first those that somebody has changed, or in which runs differ. No torch."""

import dataclasses
import itertools
import shlex
from collections.abc import Sequence
from typing import Any

from acktr.agents import presets
from acktr.agents.idle_settings import idle
from acktr.agents.report_markup import Markup, element, joined, table
from acktr.agents.report_numbers import NONE, in_words, shown
from acktr.agents.report_runs import RunFiles
from acktr.agents.settings import FIELDS, Settings

_IDENTITY = ("env", "algorithm", "seed")
"""What presets have no say in: worth a line only where runs differ."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """One setting over all runs.

    Attributes:
        name: of the setting.
        values: of each run.
        shipped: what each run's preset comes to as this version ships it.
        idle: by run, whether the setting does nothing in it.
        changed: by run, whether it has an effect and somebody has changed it from its preset.
    """

    name: str
    values: tuple[Any, ...]
    shipped: tuple[Any, ...]
    idle: tuple[bool, ...]
    changed: tuple[bool, ...]

    @property
    def stands_out(self) -> bool:
        """Whether it has an effect, and runs differ in it or from their presets."""
        active = {value for value, unused in zip(self.values, self.idle, strict=True) if not unused}
        return any(self.changed) or len(active) > 1


def settings_section(runs: Sequence[RunFiles]) -> Markup:
    """A table of the settings that stand out, and one of all others, folded."""
    named, compared = compare(runs)
    outstanding = [setting for setting in compared if setting.stands_out]
    others = [setting for setting in compared if not setting.stands_out]
    among = " or between the runs" if len(runs) > 1 else ""
    parts = [element("p", f"Compared with {in_words(named)}, as shipped with this version.", class_="quiet")]
    if outstanding:
        columns = ["Setting", *([run.name for run in runs] if len(runs) > 1 else ["Value"]), "Preset"]
        rows = [_setting(setting, each=True) for setting in outstanding]
        parts.append(table(columns, rows, caption=f"Settings that differ from the preset{among}"))
    else:
        parts.append(element("p", "Every setting is the preset's."))
    rows = [_setting(setting, each=False) for setting in others]
    parts.append(
        element(
            "details",
            element("summary", f"The other {len(others)} settings"),
            table(["Setting", "Value"], rows, caption="Other settings"),
        )
    )
    return joined(*parts)


def compare(runs: Sequence[RunFiles]) -> tuple[list[str], list[Compared]]:
    """The presets that the runs are compared with, and every setting in the order of `Settings`."""
    named, shipped = zip(*(_shipped(run) for run in runs), strict=True)
    without_effect = [set[str]().union(*idle(run.settings, FIELDS).values()) for run in runs]
    compared = []
    for name in FIELDS:
        values = tuple(getattr(run.settings, name) for run in runs)
        defaults = tuple(getattr(settings, name) for settings in shipped)
        unused = tuple(name in names for names in without_effect)
        compared.append(
            Compared(
                name=name,
                values=values,
                shipped=defaults,
                idle=unused,
                changed=tuple(
                    # what `auto` came to was chosen by the run itself
                    name not in _IDENTITY and value != default and default != "auto" and not idles
                    for value, default, idles in zip(values, defaults, unused, strict=True)
                ),
            )
        )
    return list(dict.fromkeys(named)), compared


def _setting(setting: Compared, *, each: bool) -> Markup:
    """A row: with a value for each run and the presets', or with what they all have."""
    meaning = FIELDS[setting.name].metadata["meaning"]
    title = element("th", element("code", setting.name), element("small", meaning), scope="row", class_="setting")
    if not each:
        note = element("small", "without effect") if all(setting.idle) else Markup()
        return element("tr", title, element("td", _unlike(setting.values), note))
    values = [
        element("td", NONE, element("small", "without effect"))
        if unused
        else element("td", shown(value), class_="changed" if changed else False)
        for value, changed, unused in zip(setting.values, setting.changed, setting.idle, strict=True)
    ]
    active = [value for value, unused in zip(setting.shipped, setting.idle, strict=True) if not unused]
    return element("tr", title, *values, element("td", _unlike(active)))


def _unlike(values: Sequence[Any]) -> str:
    return " / ".join(dict.fromkeys(map(shown, values)))


def _shipped(run: RunFiles) -> tuple[str, Settings]:
    """Name and settings of the preset that the run's command names, else of its environment's family."""
    settings = run.settings
    given = {"env": settings.env, "algorithm": settings.algorithm, "pixels": settings.pixels}
    try:
        resolution = presets.resolve(given, preset=_preset_named(*run.commands[:1]))
    except Exception:  # an environment that is not installed here has no family, and its module may raise what it likes
        return f"no preset, as {settings.env} is not installed here, but the defaults", Settings.from_dict(given)
    return resolution.notes[0], resolution.settings()


def _preset_named(command: str = "") -> str | None:
    """The shipped preset that a command line asks for by `--preset`."""
    try:
        words = [part for word in shlex.split(command) for part in word.split("=", 1)]
    except ValueError:  # a quote without its other
        return None
    named = [value for flag, value in itertools.pairwise(words) if flag == "--preset"]
    return named[-1] if named and named[-1] in presets.names() else None
