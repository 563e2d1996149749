"""What benchmarks refuse: in one line, before anything is measured, and with exit code 2."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import arguments
import pytest

from acktr.errors import RunError, UserError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize(
    ("script", "words", "told"),
    [
        ("throughput.py", ["--env", "CartPole-v1", "--rounds", "0"], "--rounds: takes a whole number of at least 1"),
        ("throughput.py", ["--env", "CartPole-v1", "--seconds", "nan"], "--seconds: takes a finite number above 0"),
        ("throughput.py", ["--env", "CartPole-v1", "--num-envs", "-2"], "--num-envs: takes a whole number"),
        ("throughput.py", ["--json", "/no/folder/x.json"], "there is no folder /no/folder"),
        ("throughput.py", ["--set", "nonsense"], "--set: takes settings as KEY=VALUE"),
        ("throughput.py", ["--env", "Nowhere-v1", "--contestants", "acktr"], "Nowhere-v1"),
        ("cost.py", ["--points", "1"], "--points takes 2 or more"),
        ("cost.py", ["--plot", "x.foo"], "draws .png, .pdf or .svg"),
        ("family_cost.py", ["--stat-fraction", "2"], "--stat-fraction: takes a number above 0 and at most 1"),
        ("fidelity.py", ["--from", "10", "--timesteps", "10"], "--from must come before --timesteps"),
        ("fidelity.py", ["--env", "HalfCheetah-v5"], "shared_trunk true"),
        ("fidelity.py", ["--env", "CartPole-v1", "--set", "shared_trunk=true", "curvature=ekfac"], "curvature kfac"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(script: str, words: list[str], told: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = [sys.executable, str(BENCHMARKS / script), *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert told in done.stderr.splitlines()[-1]


def test_an_output_may_be_a_file_that_is_there_but_no_folder(tmp_path: Path) -> None:
    there = tmp_path / "figures.json"
    there.write_text("{}")
    assert arguments.output(str(there)) == there
    with pytest.raises(argparse.ArgumentTypeError, match="is a folder"):
        arguments.output(str(tmp_path))


@pytest.mark.parametrize(("error", "code"), [(UserError("mend\nthis"), 2), (RunError("it failed"), 1)])
def test_errors_of_the_package_end_a_benchmark_in_one_line(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    @arguments.in_one_line
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == code
    assert capsys.readouterr().err.count("\n") == 1
