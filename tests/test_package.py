"""The wheel and the source distribution build, hold what they should, and work in an environment of their own."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import acktr

ROOT = Path(__file__).parents[1]
NOT_SOURCES = shutil.ignore_patterns(
    *(".git", "build", "dist", "runs", "results", "generated", "*.egg-info", "__pycache__", ".*_cache", ".venv", "venv")
)


def build(source: Path, kind: str, out: Path) -> Path:
    """By setuptools, as pip calls it."""
    out.mkdir(parents=True, exist_ok=True)
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "tree", ignore=NOT_SOURCES)
    return build(folder / "tree", "sdist", folder / "out")


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """From the source distribution, which thereby holds all that it takes."""
    folder = sdist.parents[1] / "unpacked"
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build(folder / f"acktr-{acktr.__version__}", "wheel", sdist.parents[1] / "wheel")


def test_the_wheel_puts_one_package_into_site_packages(wheel: Path) -> None:
    """A wheel with `agents` or `envs` at its top would overwrite other packages' files."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"acktr", f"acktr-{acktr.__version__}.dist-info"}
    sources = {
        "acktr" / path.relative_to(ROOT / ("acktr" if folder == "acktr" else "."))
        for folder in ("acktr", "agents", "envs", "configs")
        for suffix in ("*.py", "*.yaml", "py.typed")
        for path in (ROOT / folder).rglob(suffix)
    }
    assert {str(path) for path in sources} == {name for name in names if name.startswith("acktr/")}


def test_the_source_distribution_has_licence_and_readme(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "configs/atari.yaml", "acktr/_version.py"} <= names


def test_the_installed_wheel_trains_without_the_source_tree(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def python(*words: str) -> str:
        command = [sys.executable, "-P", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert python("-c", "import acktr; print(acktr.__file__)").startswith(str(site))
    assert python("-c", "import acktr.agents; print(acktr.agents.__file__)").startswith(str(site))
    python("-m", "acktr", "train", "--env", "CartPole-v1", "--total-timesteps", "640", "--run-dir", "run")
    assert "return of 2 full games" in python("-m", "acktr", "evaluate", "run", "--episodes", "2")
    assert "sb3-ppo" in python("-m", "acktr", "benchmark", "--help")
    versions = (site / f"acktr-{acktr.__version__}.dist-info" / "METADATA").read_text()
    assert f"Version: {acktr.__version__}" in versions
