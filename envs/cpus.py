"""How many CPU cores this process may use, container limits included."""

import math
import os
from pathlib import Path


def usable_cpus(root: Path = Path("/")) -> int:
    """Return the cores of this process's affinity mask, capped by its control group's CPU quota; at least 1.

    Thread pools that ask the hardware for its core count oversubscribe a container that is limited by quota. Processes
    that torchrun starts on one machine share its cores out.

    Args:
        root: where `proc` and `sys` are found.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(root)
    here = affinity if quota is None else min(affinity, math.ceil(quota))
    return max(1, here // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _cgroup_quota(root: Path) -> float | None:
    """Return the smallest CPU quota, in cores, on the path from this process's control group to the top."""
    quotas: list[float] = []
    for relative in _cgroup_paths(root):
        for base in (root / "sys/fs/cgroup", root / "sys/fs/cgroup/cpu", root / "sys/fs/cgroup/cpu,cpuacct"):
            folder = base / relative
            for level in (folder, *(parent for parent in folder.parents if parent.is_relative_to(base))):
                quotas.extend(_quota_of(level))
    return min(quotas, default=None)


def _cgroup_paths(root: Path) -> set[str]:
    """Return the control groups this process is in, relative to the mount point; '' is the top."""
    listing = root / "proc/self/cgroup"
    if not listing.is_file():
        return {""}
    lines = (line.split(":", 2) for line in listing.read_text().splitlines())
    # A path that leads out of the mount ("/../..") belongs to a group outside this container's view.
    return {""} | {parts[2].lstrip("/") for parts in lines if len(parts) == 3 and ".." not in parts[2]}


def _quota_of(folder: Path) -> list[float]:
    """Return the quota set in one control group folder, as a list of no or one number of cores."""
    unified = folder / "cpu.max"
    if unified.is_file():
        fields = unified.read_text().split()
    elif (folder / "cpu.cfs_quota_us").is_file() and (folder / "cpu.cfs_period_us").is_file():
        fields = [(folder / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    else:
        return []
    if len(fields) != 2 or fields[0] in ("max", "-1"):
        return []
    return [int(fields[0]) / int(fields[1])]
