"""Where figures come from: the commit of the code, the machine, and the record that is kept of a run."""

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CODE = ("acktr", "agents", "envs", "configs", "benchmarks/*.py")
KEPT = ("command.txt", "settings.yaml", "metrics.csv")
COMMIT_FILE = "commit.txt"


def commit() -> dict[str, Any]:
    """The commit of the code and whether files were changed since; None where there is no repository."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", "-C", str(ROOT), *words], check=False, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    name, changes = git("rev-parse", "--short", "HEAD"), git("status", "--porcelain", "--", *CODE)
    return {"commit": name, "modified": None if changes is None else bool(changes)}


def in_words(found: Mapping[str, Any]) -> str:
    """What `commit` found, e.g. "2321f33" or "2321f33, modified"."""
    return f"{found['commit']}{', modified' if found['modified'] else ''}"


def machine() -> dict[str, Any]:
    """What the processes run on."""
    cpu = platform.processor() or platform.machine()
    if (listing := Path("/proc/cpuinfo")).is_file():
        names = [line.partition(":")[2].strip() for line in listing.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu, "cores": cores, "platform": platform.platform(), "python": platform.python_version()}


def keep(run: Path, record: Path) -> None:
    """Keep what a result is: command, settings, metrics and the commit that made it.

    The record's own name, its last two folders, stands in the command in place of the run folder's.

    Args:
        run: its run folder.
        record: a folder to be made.
    """
    record.mkdir(parents=True)
    for name in KEPT:
        shutil.copyfile(run / name, record / name)
    command = record / "command.txt"
    command.write_text(command.read_text().replace(str(run), "/".join(record.parts[-2:])))
    (record / COMMIT_FILE).write_text(in_words(commit()) + "\n")
