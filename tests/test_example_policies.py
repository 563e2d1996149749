"""The policies in examples/policies score what is written beside them."""

import json
from pathlib import Path
from typing import Any

import pytest

from acktr.cli import main

FOLDER = Path(__file__).parent.parent / "examples" / "policies"
STATED: list[dict[str, Any]] = json.loads((FOLDER / "scores.json").read_text())
EPISODES, OF_ATARI, SEED = 20, 8, 3_000_000
"""Games of Atari are long. The scores were stated from other episodes, and training knew neither."""


@pytest.mark.parametrize("stated", STATED, ids=[stated["file"] for stated in STATED])
def test_an_example_policy_scores_what_is_stated(stated: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    episodes = OF_ATARI if "NoFrameskip" in stated["env"] else EPISODES
    command = ["evaluate", str(FOLDER / stated["file"]), "--json"]
    assert main([*command, "--episodes", str(episodes), "--seed", str(SEED)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["env"], found["episodes"]) == (stated["env"], episodes)
    assert stated["seed"] != SEED
    low, high = found["return_ci95"]
    assert low <= stated["return_ci95"][1]
    assert high >= stated["return_ci95"][0]


def test_every_example_policy_is_small_and_has_its_score() -> None:
    files = sorted(FOLDER.glob("*.safetensors"))
    assert [file.name for file in files] == sorted(stated["file"] for stated in STATED)
    assert all(file.stat().st_size < 5e6 for file in files)
    for stated in STATED:
        assert stated["episodes"] >= 100
        assert stated["return_ci95"][0] <= stated["return_mean"] <= stated["return_ci95"][1]
