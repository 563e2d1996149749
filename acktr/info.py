"""What `acktr info` shows: versions, devices, threads, the emulator."""

import platform
import sys

from acktr import __version__


def facts() -> dict[str, str]:
    """What a bug report should hold, as titles with one line of text each."""
    import ale_py
    import ale_py.roms
    import gymnasium
    import torch

    from acktr.agents.run_folder import provenance
    from acktr.envs.cpus import usable_cpus

    found = provenance()
    packages = {name: version for name, version in found["packages"].items() if name != "acktr"}
    cuda = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if cuda else []
    games = sum(name.startswith("ALE/") and name.endswith("-v5") for name in gymnasium.registry)
    return {
        "acktr": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": str(found["platform"]),
        "packages": ", ".join(f"{name} {version or 'not installed'}" for name, version in packages.items()),
        "cpu": f"{found['cpu']}, {usable_cpus()} usable cores",
        "torch threads": str(torch.get_num_threads()),
        "cuda": f"{torch.version.cuda or 'not in this build of torch'}: {', '.join(gpus) or 'no device'}",
        "emulator": f"ale-py {ale_py.__version__}, {games} games as ALE/*-v5",
    }
