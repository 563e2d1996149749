"""Small networks of every kind that the curvature family is tested on, and its statistics of them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from acktr.kfac import KFAC, Fisher, Metric
from acktr.kfac.curvatures import Curvature
from acktr.kfac.units import WeightUnit


class Twice(nn.Module):
    """One layer at two positions of its input, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.shared(inputs) + self.shared(inputs.flip(1))))  # type: ignore[no-any-return]


def mlp() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(20, 3)


def sequence() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(15, 3)), torch.randn(12, 3, 4)


def convolutional() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 3, 2, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    return model, torch.randn(9, 2, 4, 4)


def grouped() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    return model, torch.randn(9, 2, 3, 3)


NETWORKS = {
    "mlp": mlp,
    "sequence": sequence,
    "convolutional": convolutional,
    "grouped": grouped,
    "twice": lambda: (Twice(), torch.randn(10, 3)),
}
WEIGHTS = [None, "weighted"]


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    return NETWORKS[name]()


def observe(model: nn.Module, optimizer: KFAC, inputs: Tensor, weights: Tensor | None = None) -> Metric:
    with optimizer.capture():
        logits = model(inputs)
    metric = Fisher(distribution=Categorical(logits=logits, validate_args=False), kind="exact")
    optimizer.update_statistics(metric, weights)
    return metric


def example_weights(inputs: Tensor, kind: str | None) -> Tensor | None:
    return None if kind is None else torch.arange(len(inputs)).remainder(3).double()


def settled(name: str, curvature: Curvature, weights: str | None = None, **options: Any) -> tuple[KFAC, Metric, Any]:
    """Two rounds of one batch with no memory: the second is seen in the basis that the first one made."""
    model, inputs = network(name)
    optimizer = KFAC(model, curvature=curvature, stat_decay=0.0, max_kl=None, lr=0.0, **options)
    examples = example_weights(inputs, weights)
    observe(model, optimizer, inputs, examples)
    for unit in optimizer.units:
        unit.block.refresh(0.01)
    optimizer.steps += 1
    metric = observe(model, optimizer, inputs, examples)
    return optimizer, metric, examples


def weight_units(optimizer: KFAC) -> list[WeightUnit]:
    return [unit for unit in optimizer.units if isinstance(unit, WeightUnit)]
