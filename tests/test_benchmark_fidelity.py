"""The benchmark of fidelity: its distances are those of the dense blocks, and whoever watches disturbs nothing."""

import contextlib
from typing import Any

import contestants
import fidelity
import pytest
import torch
from torch import Tensor

from acktr.agents.presets import resolve
from acktr.agents.rollout import Batch
from acktr.agents.settings import Settings
from acktr.agents.trainer import Trainer
from acktr.errors import UserError
from acktr.kfac import weighted_mean
from acktr.kfac.kronecker import kronecker_products

pytestmark = pytest.mark.usefixtures("one_thread")

UPDATES = 7
ROWS = 16


def small(**changes: Any) -> Settings:
    """Breakout as the preset has it, on a small network and small batches."""
    size = {"num_envs": 4, "num_steps": 4, "conv_channels": (4, 4, 2), "conv_features": 16, "num_threads": 1}
    return resolve({"env": "BreakoutNoFrameskip-v4", "device": "cpu", **size, **changes}).settings()


def trained(settings: Settings, *, start: int | None = None, every: int = 1) -> tuple[Trainer, Any]:
    """After some updates, watched from `start` timesteps on."""
    trainer = contestants.make_trainer(settings)
    with contextlib.closing(trainer.environment):
        end = UPDATES * ROWS - ROWS // 2  # resets are no timesteps
        watch = None if start is None else fidelity.Watch(trainer, start=start, end=end, every=every)
        trainer.train(stop=lambda: trainer.timesteps >= end)
    return trainer, watch


def semidefinite(groups: int, size: int) -> Tensor:
    root = torch.randn(groups, size, size)
    return root @ root.mT


@pytest.mark.usefixtures("float64")
def test_the_distance_of_blocks_by_inner_products_is_that_of_the_dense_products() -> None:
    A, plain_A = semidefinite(2, 5), semidefinite(2, 5)
    G, plain_G = semidefinite(2, 3), semidefinite(2, 3)
    plain = kronecker_products(plain_G, plain_A)
    expected = (kronecker_products(G, A) - plain).norm() / plain.norm()
    assert fidelity.product_distance(A, G, plain_A, plain_G) == pytest.approx(float(expected), rel=1e-12)
    near = fidelity.product_distance(plain_A * (1 + 1e-13), plain_G, plain_A, plain_G)
    assert near == pytest.approx(1e-13, rel=1e-2)  # of which a difference of squares would leave nothing


def test_observers_leave_the_training_as_it_is_to_the_bit() -> None:
    settings = small(precision="bfloat16")
    (alone, _), (watched, watch) = trained(settings), trained(settings, start=0)
    assert len(watch.comparisons) == fidelity.COMPARISONS
    assert alone.timesteps == watched.timesteps
    for name, value in alone.policy.state_dict().items():
        assert torch.equal(value, watched.policy.state_dict()[name]), name
    for one, other in zip(alone.updater.actor.optimizer.units, watched.updater.actor.optimizer.units, strict=True):
        assert torch.equal(one.block.outputs.value, other.block.outputs.value), one.name


def test_each_way_differs_from_the_plain_one_and_the_same_way_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_ways = fidelity.ways
    monkeypatch.setattr(fidelity, "ways", lambda settings: {**plain_ways(settings), "again": fidelity.Way()})
    # with the preset's window the first factors hold the newest batch alone, which rarer statistics may have too
    _, watch = trained(small(precision="bfloat16", stat_window=1.0), start=0)
    names = {"positions, stride 3", "rows, 0.25 of them", "updates, one of 4", "bfloat16 torso", "other draws"}
    for comparison in watch.comparisons:
        found = comparison["observers"]
        assert set(found) == {*names, "as shipped", "again"}
        again = found.pop("again")
        assert all(distance == 0 for layer in again["layers"].values() for distance in layer.values())
        assert again["loss"] == 0
        assert again["cosine"] == pytest.approx(1)
        assert all(result["loss"] > 0 for result in found.values())
        first = {name: result["layers"]["torso.0"] for name, result in found.items()}
        assert first["other draws"]["A"] == 0  # the inputs know nothing of the draws
        assert first["positions, stride 3"]["G"] == 0
        assert all(layer["block"] > 0 for layer in first.values())


def test_the_observer_of_the_shipped_way_sees_what_the_learner_sees() -> None:
    trainer, watch = trained(small(), start=0)
    observed = watch.observers["as shipped"].optimizer
    learner = trainer.updater.actor.optimizer
    assert observed.steps == learner.steps
    for own, unit in zip(observed.units, learner.units, strict=True):
        torch.testing.assert_close(own.block.inputs.value, unit.block.inputs.value, rtol=1e-5, atol=1e-7)
    head, own = ({unit.name: unit for unit in kfac.units}["policy_head.logits"] for kfac in (learner, observed))
    torch.testing.assert_close(own.block.outputs.value, head.block.outputs.value, rtol=1e-5, atol=1e-7)


def test_shared_draws_of_the_values_give_the_gauss_newton_metric_of_those_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The value head's G is the mean of noise² / sigma², whatever the values are."""
    batches: list[Batch] = []
    plain_gradient = fidelity.gradient

    def gradient(trainer: Trainer, batch: Batch, progress: float) -> Any:
        batches.append(batch)
        return plain_gradient(trainer, batch, progress)

    monkeypatch.setattr(fidelity, "gradient", gradient)
    trainer, watch = trained(small(stat_window=1.0, stat_decay=0.0), start=0)
    noise = torch.Generator().manual_seed(trainer.settings.seed)
    for _ in range(trainer.updates):
        last = torch.empty(ROWS).normal_(generator=noise)
    units = {unit.name: unit for unit in watch.observers["plain"].optimizer.units}
    found = units["value_head"].block.outputs.value.squeeze()
    expected = weighted_mean(last.square(), batches[-1].weights) / trainer.settings.value_sigma**2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_seeing_fewer_updates_the_observers_see_the_last_one() -> None:
    trainer, watch = trained(small(), start=0, every=4)
    assert watch.comparisons[-1]["timesteps"] == trainer.timesteps
    assert watch.observers["plain"].optimizer.steps < UPDATES


def test_a_training_with_two_optimizers_is_refused() -> None:
    with pytest.raises(UserError, match="shared_trunk"):
        trained(small(shared_trunk=False), start=0)
