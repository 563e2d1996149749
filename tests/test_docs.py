"""The documentation builds without a warning, and its code runs as it stands there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SKIPPED = ("pip", "sudo", "apt-get", "tensorboard", "torchrun", "pytest")
"""Commands that install or stay open, and those of several processes, which tests/test_distributed_*.py run."""

TESTED_ELSEWHERE = ("README.md", "curvature.md", "distributed.md")
"""Whose Python code has tests of its own, which look at what it prints or start it as several processes."""

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHORTER = {
    "train": ("--total-timesteps", "2000"),
    "evaluate": ("--episodes", "4"),
    "benchmark": ("--total-timesteps", "2000", "--seeds", "1"),
    "curvature": ("--states", "4"),
    "report": ("--episodes", "2", "--no-video"),
}
"""What takes minutes as it stands there."""


def script_of(page: Path) -> str:
    """The code of a page in its order, as one Python program that runs the commands, too."""
    lines = ["import subprocess", "from acktr.cli import main", "__name__ = 'docs'"]
    for language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            lines += [code] * (page.name not in TESTED_ELSEWHERE)
        elif language == "bash":
            for words in commands(code):  # of ours in this process, which has loaded torch once for all of them
                ours = f"assert main({words[1:]!r}) == 0"
                lines.append(ours if words[0] == "acktr" else f"subprocess.run({words!r}, check=True)")
        else:
            assert language in ("text", "yaml"), f"{page}: a block of {language}, which no test runs"
    return "\n".join(lines)


def commands(code: str) -> list[list[str]]:
    """Command lines as lists of words, shortened."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if not words or words[0] in SKIPPED:
                continue
            if words[0] == "acktr" and len(words) > 2:
                words += SHORTER.get(words[1], ())
            found.append(words)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_page_has_a_place_left_to_fill_in(page: Path) -> None:
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    assert re.findall(r"^[A-Z_]{3,}$|\b(?:TODO|FIXME|TBD|XXX)\b", prose, re.MULTILINE) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    if not BLOCK.search(page.read_text(encoding="utf-8")):
        pytest.skip("no code on this page")
    script = tmp_path / "page.py"
    script.write_text(script_of(page))
    done = subprocess.run(
        [sys.executable, "-P", str(script)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "sphinx", "-W", "--keep-going", "-q", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    settings = (tmp_path / "generated" / "settings.html").read_text()
    assert "--max-kl" in settings
