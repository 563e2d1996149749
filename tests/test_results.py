"""The committed results belong to the presets as they are shipped now."""

import json
import re
import shutil
from pathlib import Path

import batch_size
import pytest
import scaling
import yaml

from acktr.agents.benchmark.campaign import planned
from acktr.agents.idle_settings import idle
from acktr.agents.presets import resolve
from acktr.agents.settings import Settings

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
OTHER_SETTINGS = "plain-path/plain"
"""Runs without the fast path, which the shipped presets are compared with."""
SUITES = sorted(path.parent.name for path in RESULTS.glob("*/runs"))
"""Kept by `acktr benchmark`, which compares their settings itself."""
RECORDS = sorted(
    record
    for record in (path.parent.relative_to(RESULTS) for path in RESULTS.rglob("settings.yaml"))
    if not record.as_posix().startswith((OTHER_SETTINGS, *SUITES))
)
OF_THE_COMMAND = {
    *("seed", "num_threads", "vectorization", "precision", "total_timesteps", "log_interval"),
    *("curvature", "structure", "exploration"),
}


def test_there_are_results() -> None:
    assert len(RECORDS) > 50


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_a_change_of_a_preset_asks_for_its_results_to_be_run_again(record: Path) -> None:
    """Settings that have come since are not in the older records, which were made with what is their default now."""
    recorded = yaml.safe_load((RESULTS / record / "settings.yaml").read_text())
    settings = Settings.from_dict(recorded)
    asked = {name: recorded[name] for name in ("env", "algorithm", "pixels") if recorded.get(name)}
    shipped = resolve(asked).settings().to_dict()
    changed = {name for name, value in recorded.items() if shipped[name] != value} - OF_THE_COMMAND
    if record.parts[0] == "batch-size":
        changed -= of_the_batch(record)
    assert changed == set().union(*idle(settings, changed).values())


@pytest.mark.parametrize("name", SUITES)
def test_a_suites_tables_are_those_of_its_runs_with_the_presets_as_shipped(name: str, tmp_path: Path) -> None:
    """Neither a preset nor a peer's settings have changed since: summing up refuses such runs."""
    kept = shutil.copytree(RESULTS / name, tmp_path / name)
    table = planned(name, out=kept).sum_up()
    committed = RESULTS / name
    assert table == (committed / "table.md").read_text()
    for file in ("runs.csv", "curves.csv", "aggregate.csv", "settings.yaml"):
        assert (kept / file).read_text() == (committed / file).read_text()


@pytest.mark.parametrize("name", SUITES)
def test_a_page_of_the_results_has_a_suites_table(name: str) -> None:
    page = (RESULTS / ("ablations.md" if name.startswith("ablations") else "README.md")).read_text()
    rows = [line for line in (RESULTS / name / "table.md").read_text().splitlines() if line.startswith("|")]
    assert [row for row in rows if row not in page] == []


def of_the_batch(record: Path) -> set[str]:
    """Settings that a run has by the rule for its batch, whose values are those."""
    algorithm, batch, power, _ = record.name.split("-")
    words = batch_size.flags(record.parts[1], algorithm, int(batch), float(power.removeprefix("power")))
    names = [word.removeprefix("--").replace("-", "_") for word in words[::2]]
    recorded = yaml.safe_load((RESULTS / record / "settings.yaml").read_text())
    assert [recorded[name] for name in names] == [float(value) for value in words[1::2]]
    return set(names)


@pytest.mark.parametrize("time", range(3))
def test_the_fast_paths_factors_and_steps_keep_the_stated_tolerance(time: int) -> None:
    comparison = json.loads((RESULTS / "fidelity" / "breakout.json").read_text())["comparisons"][time]
    shipped = comparison["observers"]["as shipped"]
    assert max(layer[factor] for layer in shipped["layers"].values() for factor in ("A", "G", "block")) < 0.06
    assert shipped["cosine"] > 0.99
    assert shipped["loss"] < 0.02


def test_fidelity_was_measured_of_the_preset_as_it_is_shipped_now() -> None:
    recorded = json.loads((RESULTS / "fidelity" / "breakout.json").read_text())["settings"]
    shipped = resolve({"env": recorded["env"], "algorithm": "acktr"}).settings().to_dict()
    assert {name for name, value in recorded.items() if shipped[name] != value} <= OF_THE_COMMAND


def test_the_scaling_model_predicts_the_updates_that_it_was_not_fitted_to() -> None:
    runs = json.loads((RESULTS / "scaling" / "scaling.json").read_text())["runs"]
    errors = scaling.errors(runs, scaling.fitted(runs), "predicted")
    assert len(errors) >= 12
    assert max(map(abs, errors)) <= scaling.TOLERANCE


FILES = sorted(path.relative_to(RESULTS) for path in RESULTS.rglob("*") if path.is_file() and path.name != "commit.txt")


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.name not in ("README.md", "ablations.md", "curve.png", ".lock")], ids=str
)
def test_every_result_carries_its_commit(file: Path) -> None:
    """In itself, or in a `commit.txt` beside or above it; curves are drawn from records that have theirs."""
    told = [RESULTS / folder / "commit.txt" for folder in file.parents]
    found = [path.read_text().strip() for path in told if path.is_file()]
    content = json.loads((RESULTS / file).read_text()) if file.suffix == ".json" else None
    if isinstance(content, dict) and "commit" in content:
        found = [content["commit"]]
    assert found
    assert re.fullmatch(r"[0-9a-f]{7,40}", found[0])
