"""What runs on a CUDA device equals what runs on the CPU: `pytest -m gpu`."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import flat_parameters
from torch import nn
from torch.distributions import Categorical

import acktr
from acktr.agents import runs
from acktr.agents.acktr import ACKTRUpdater
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


_WAITING = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"}


@pytest.mark.parametrize("options", [{}, {"reuse_forward": False}], ids=["recalled", "forward pass twice"])
def test_the_profiler_sees_no_waiting_in_an_update_but_one_in_a_refresh(options: dict[str, Any]) -> None:
    trainer = acktr.ACKTR("BreakoutNoFrameskip-v4", num_envs=8, num_steps=8, device="cuda", **options)._trainer
    trainer.collector.restart()
    updater = trainer.updater
    assert isinstance(updater, ACKTRUpdater)
    for _ in range(3):
        updater.update(trainer._collect(), progress=0.1)
    updater.actor.optimizer.steps = 10_000
    estimate = updater.actor.optimizer.estimate
    found = []
    for _ in range(24):
        batch, refreshed = trainer._collect(), estimate.refresh_count
        torch.cuda.synchronize()
        with torch.profiler.profile() as profile:
            with torch.profiler.record_function("whole update"):
                updater.update(batch, progress=0.1)
            torch.cuda.synchronize()
        (span,) = [event.time_range for event in profile.events() if event.name == "whole update" and event.cpu_time]
        waits = [
            event.name
            for event in profile.events()
            if event.name in _WAITING and span.start <= event.time_range.start <= span.end
        ]
        found.append((waits, estimate.refresh_count - refreshed))
    assert all(len(waits) <= min(1, refreshes) for waits, refreshes in found), found
    assert any(refreshes for _, refreshes in found)
    assert any(not refreshes for _, refreshes in found)


def test_acting_one_update_behind_is_the_same_on_a_stream_of_its_own() -> None:
    """The definition, in one thread and on one stream, beside the overlapped collection."""
    options: dict[str, Any] = {"num_envs": 4, "num_steps": 8, "conv_channels": (8, 8, 8), "conv_features": 64}
    overlapped, plain = (
        acktr.ACKTR("PongNoFrameskip-v4", overlap=True, device="cuda", **options)._trainer for _ in range(2)
    )
    for trainer in (overlapped, plain):
        trainer.collector.restart()
    assert overlapped._overlapped is not None
    ready = plain.collector.collect(copy.deepcopy(plain.policy)).batch
    for _ in range(12):
        mine = overlapped._overlapped.next().batch
        theirs, ready = ready, plain.collector.collect(copy.deepcopy(plain.policy)).batch
        assert torch.equal(mine.actions, theirs.actions)
        overlapped.updater.update(mine, progress=0.1)
        plain.updater.update(dataclasses.replace(theirs, is_on_policy=False), progress=0.1)
        torch.testing.assert_close(flat_parameters(overlapped.policy), flat_parameters(plain.policy))
    overlapped._overlapped.discard()
