"""What runs on a CUDA device equals what runs on the CPU: `pytest -m gpu`."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import flat_parameters
from torch import nn
from torch.distributions import Categorical

from acktr.agents import runs
from acktr.agents.presets import resolve
from acktr.agents.run_folder import RunFolder
from acktr.kfac import KFAC, Fisher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.mark.parametrize("mode", ["factored", "exact"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_factors_and_updates_equal_the_cpus(mode: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 49, 32), nn.Tanh(), nn.Linear(32, 5)
    ).to(dtype)
    twin = copy.deepcopy(model).cuda()
    optimizers = [KFAC(network, lr=0.1, max_kl=1e-3, damping_mode=mode) for network in (model, twin)]
    tolerance = 1e-9 if dtype is torch.float64 else 2e-3
    for _ in range(5):
        inputs = torch.randn(32, 3, 16, 16, dtype=dtype)
        for network, optimizer in zip((model, twin), optimizers, strict=True):
            local = inputs.to(next(network.parameters()).device)
            with optimizer.capture():
                logits = network(local)
            optimizer.update_statistics(Fisher(distribution=Categorical(logits=logits), kind="exact"))
            optimizer.zero_grad()
            torch.autograd.backward(-torch.log_softmax(logits, -1)[:, 0].mean())
            optimizer.step()
    for one, two in zip(optimizers[0].units, optimizers[1].units, strict=True):
        torch.testing.assert_close(one.block.to_dense(), two.block.to_dense().cpu(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(flat_parameters(model), flat_parameters(twin).cpu(), rtol=tolerance, atol=tolerance)


def test_training_and_resuming_on_the_device(tmp_path: Path) -> None:
    settings = resolve(
        {"env": "BreakoutNoFrameskip-v4", "total_timesteps": 2000, "device": "cuda", "checkpoint_interval": 500}
    ).settings()
    folder = runs.train(settings, run_dir=tmp_path / "run")
    runs.resume(folder, total_timesteps=3000)
    found = RunFolder.open(folder).load_latest()
    assert found is not None
    assert all(torch.isfinite(value).all() for value in found[1].state["policy"].values())
