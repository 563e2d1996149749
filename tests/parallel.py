"""Scripts run by several processes at once."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def run_in_parallel(size: int, script: Path, *arguments: str) -> None:
    """Run a script in several processes, with the environment variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(size)
    ]
    try:
        assert [rank.wait(timeout=800) for rank in ranks] == [0] * size
    finally:
        for rank in ranks:
            rank.kill()
