"""Pages that are made from the code and the committed results: settings, presets, benchmarks."""

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

from acktr.agents import presets
from acktr.agents.setting_fields import values_taken
from acktr.agents.settings import FIELDS
from acktr.flags import flag, group_of_setting, shown_value

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

RESULT_PAGES = {"results.md": "README.md", "ablations.md": "ablations.md"}
"""By the name that they get here."""

LINK = re.compile(r"\]\(([\w./-]+)\)")

TITLES = {
    "run": "Run",
    "environment": "Environment",
    "network": "Network",
    "objective": "Objective",
    "optimizer": "K-FAC and the trust region",
    "a2c": "A2C",
    "record": "Records",
}


def write_pages(folder: Path) -> None:
    """Make all of them anew.

    Args:
        folder: where they go; emptied first.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "settings.md").write_text(settings_page(), encoding="utf-8")
    (folder / "presets.md").write_text(presets_page(), encoding="utf-8")
    for name, file in RESULT_PAGES.items():
        (folder / name).write_text(results_page(file, folder), encoding="utf-8")


def settings_page() -> str:
    """Every setting: flag and keyword, values, default, meaning, typical range, origin."""
    lines = [
        "# Settings",
        "",
        "Every setting is a flag of `acktr train` (`--max-kl 0.01`, `--center-values`, `--no-center-values`), a",
        "keyword of `acktr.ACKTR` and `acktr.A2C` (`max_kl=0.01`), and a key of a preset file. A flag wins over",
        "`--preset FILE.yaml`, that over the preset of the environment's family ([presets](presets.md)), that over the",
        "default that stands here.",
        "`acktr train --env ID --help` shows the values that a run on that environment would take.",
    ]
    groups = group_of_setting()
    for group, title in TITLES.items():
        lines += ["", f"## {title}", ""]
        for name, field in FIELDS.items():
            if groups[name] == group:
                lines += _entry(name, field)
    return "\n".join(lines) + "\n"


def _entry(name: str, field: dataclasses.Field[Any]) -> list[str]:
    default = shown_value(field.default) if field.default is not dataclasses.MISSING else ""
    facts = [
        f"*{values_taken(field)}*",
        f"default `{default}`" if default else "required",
        f"typically {field.metadata['typical']}",
        f"origin: {field.metadata['origin']}",
    ]
    return [f"`{flag(name)}`", f": {field.metadata['meaning']}  ", f"  {'; '.join(facts)}", ""]


def presets_page() -> str:
    """Each preset's file as it stands."""
    lines = ["# Presets", "", "What `acktr presets NAME` prints: the values, and where each of them comes from."]
    for name in presets.names():
        preset = presets.load(name)
        lines += ["", f"## {name}", "", preset.description, "", "```yaml", preset.text.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def results_page(file: str, folder: Path) -> str:
    """A page of the committed results, with the pictures and files that it names beside it."""
    text = (
        (RESULTS / file)
        .read_text(encoding="utf-8")
        .replace("](../../docs/", "](../")
        .replace("](README.md", "](results.md")
    )
    for name in sorted(set(LINK.findall(text))):
        source, target = RESULTS / name, folder / name
        if not source.is_file() or name in RESULT_PAGES:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":  # a page that no table of contents has
            target.write_text("---\norphan: true\n---\n\n" + source.read_text(encoding="utf-8"), encoding="utf-8")
        else:
            shutil.copyfile(source, target)
    return text
