"""The README's code runs as it stands there."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def blocks() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run(code: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    return output.getvalue()


def test_library_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert float(run(blocks()[0])) > 20
    assert (tmp_path / "agent.safetensors").is_file()


def test_custom_loop_of_at_most_40_lines_learns_cartpole_to_400() -> None:
    code = blocks()[1]
    assert len(code.splitlines()) <= 40
    assert float(run(code).split()[-1]) >= 400
