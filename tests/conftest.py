"""Shared by all tests: the oracles and the benchmarks are importable, and numerical tests run in float64."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before torch is loaded: on busy cores its idle threads, which wait by spinning, slow small tensors a hundred times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
# The repository's folder acktr/ is only a part of the package; child processes must import the installed one.
os.environ["PYTHONSAFEPATH"] = "1"

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture
def float64() -> Iterator[None]:
    """Make float64 the default dtype, with a fixed seed."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small matrices, for which more threads wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
