"""What an update of ACKTR costs beside one of A2C: counted in multiplications and operations, not timed."""

import math
from typing import Any, NamedTuple

import multiplications
import pytest
import torch
from gymnasium import spaces
from torch.utils._python_dispatch import TorchDispatchMode

from acktr.agents.a2c import A2CUpdater
from acktr.agents.acktr import ACKTRUpdater
from acktr.agents.part import Part
from acktr.agents.policy import ActorCritic
from acktr.agents.presets import resolve
from acktr.agents.recall import Recall
from acktr.agents.rollout import Batch
from acktr.agents.updates import Updater

STEPS, ENVS = 20, 16


class Operations(TorchDispatchMode):
    """Counts those that a GPU would be given: views and the making of empty tensors give it nothing to do."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if not (func.is_view or "empty" in name or "detach" in name):
            self.count += 1
        return func(*args, **(kwargs or {}))


class Cost(NamedTuple):
    """Means over updates."""

    multiplications: float
    operations: float


def batch_of(policy: ActorCritic) -> Batch:
    """Random frames, and what the layers gave for them step by step."""
    frames = torch.randint(0, 256, (STEPS * ENVS, 4, 84, 84), dtype=torch.uint8)
    recall = Recall(num_steps=STEPS, num_envs=ENVS)
    with torch.no_grad():
        for step in range(STEPS):
            with recall.recording(step):
                policy(frames[step * ENVS : (step + 1) * ENVS])
    numbers = torch.randn(2, STEPS * ENVS)
    return Batch(
        observations=frames,
        actions=torch.randint(0, 4, (STEPS * ENVS,)),
        advantages=numbers[0],
        returns=numbers[1],
        weights=None,
        valid_rows=STEPS * ENVS,
        part=Part.whole(ENVS),
        recall=recall,
    )


def cost_of(algorithm: str, updates: int) -> Cost:
    """Of the Atari preset's updates, once its intervals have settled."""
    torch.manual_seed(0)
    asked = {"env": "BreakoutNoFrameskip-v4", "algorithm": algorithm, "num_steps": STEPS, "num_envs": ENVS}
    settings = resolve(asked).settings()
    policy = ActorCritic(spaces.Box(0, 255, (4, 84, 84), "uint8"), spaces.Discrete(4), settings)
    updater: Updater = A2CUpdater(policy, settings)
    if algorithm == "acktr":
        acktr = ACKTRUpdater(policy, settings, torch.Generator())
        acktr.update(batch_of(policy), progress=0.1)
        acktr.actor.optimizer.steps = 10_000
        updater = acktr
    products = operations = 0
    for _ in range(updates):
        batch = batch_of(policy)
        assert batch.forward_is_known
        with multiplications.Multiplications() as flops, Operations() as counted:
            updater.update(batch, progress=0.1)
        products += flops.count
        operations += counted.count
    return Cost(products / updates, operations / updates)


class Layer(NamedTuple):
    """Outputs, inputs and the positions at which the weight is used."""

    outputs: int
    inputs: int
    positions: int

    @property
    def product(self) -> int:
        """Multiplications of one example's forward pass."""
        return self.outputs * self.inputs * self.positions


TRUNK = [Layer(32, 4 * 64, 400), Layer(64, 32 * 16, 81), Layer(32, 64 * 9, 49), Layer(512, 32 * 49, 1)]
HEADS = [Layer(4, 512, 1), Layer(1, 512, 1)]
LAYERS = TRUNK + HEADS


def backward_of_a2c() -> int:
    """Weight gradients of all layers and input gradients of all but the first; the forward pass is the rollout's."""
    return STEPS * ENVS * sum(layer.product * (1 if layer is TRUNK[0] else 2) for layer in LAYERS)


def update_of_acktr() -> float:
    """The terms of docs/architecture.md, the part of the heads' gradients that is left out being a thousandth."""
    settings = resolve({"env": "BreakoutNoFrameskip-v4"}).settings()
    rows = STEPS * ENVS
    sample = rows * settings.stat_fraction
    forward = sum(layer.product for layer in LAYERS)
    to_outputs = sum(layer.product for layer in LAYERS[1:])
    inputs = sum(
        layer.positions / (settings.position_stride**2 if layer.positions > 1 else 1) * (layer.inputs + 1) ** 2
        for layer in LAYERS
    )
    outputs = sum(layer.positions * layer.outputs**2 for layer in LAYERS)
    sides = [(layer.outputs, layer.inputs + 1) for layer in LAYERS]
    by_gradient = [o * i * (o + i) for o, i in sides]
    by_rows = [
        rows * (o**2 + i**2) + (rows * o if layer is TRUNK[3] else 0)
        for layer, (o, i) in zip(LAYERS, sides, strict=True)
    ]
    precondition = sum(by_gradient[:3]) + min(by_gradient[3], by_rows[3]) + sum(map(min, by_gradient[4:], by_rows[4:]))
    predicted_kl = sum(by_gradient)
    inverses = sum(o**3 + i**3 for o, i in sides) / 2
    return (
        backward_of_a2c()
        + sample * (to_outputs + inputs + outputs) / settings.stat_interval
        + precondition
        + (rows * settings.kl_fraction + rows // 16) * forward  # the measured KL
        + predicted_kl / settings.kl_interval
        + inverses / settings.inverse_interval
    )


@pytest.fixture(scope="module")
def costs() -> dict[str, Cost]:
    settings = resolve({"env": "BreakoutNoFrameskip-v4"}).settings()
    updates = math.lcm(settings.inverse_interval, settings.stat_interval, settings.kl_interval)
    assert updates <= 40
    return {"acktr": cost_of("acktr", updates), "a2c": cost_of("a2c", 1)}


def test_a2c_multiplies_for_its_backward_pass_alone(costs: dict[str, Cost]) -> None:
    assert costs["a2c"].multiplications == backward_of_a2c()


def test_acktr_multiplies_as_often_as_its_parts_come_to(costs: dict[str, Cost]) -> None:
    assert costs["acktr"].multiplications == pytest.approx(update_of_acktr(), rel=0.03)


def test_acktrs_update_stays_within_its_share_of_a2cs(costs: dict[str, Cost]) -> None:
    assert costs["acktr"].multiplications < 1.75 * costs["a2c"].multiplications
    assert costs["acktr"].operations < 5 * costs["a2c"].operations
