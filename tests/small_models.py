"""A small classifier and one update of it, which the tests of the optimizer share."""

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from acktr.kfac import KFAC, Fisher


def classifier() -> nn.Sequential:
    """Three inputs, four logits, a ReLU in place; the same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(inplace=True), nn.Linear(6, 4))


def backward(model: nn.Module, optimizer: KFAC, inputs: Tensor, weights: Tensor | None = None) -> None:
    """Exact statistics of a batch of `inputs`, and the gradients of its cross-entropy to the first class."""
    with optimizer.capture():
        logits = model(inputs)
    metric = Fisher(distribution=Categorical(logits=logits, validate_args=False), kind="exact")
    optimizer.update_statistics(metric, weights)
    optimizer.zero_grad()
    losses = -torch.log_softmax(logits, -1)[:, 0]
    losses = losses if weights is None else torch.where(weights > 0, losses, 0.0) * weights
    losses.mean().backward()


def train_step(model: nn.Module, optimizer: KFAC, inputs: Tensor, weights: Tensor | None = None) -> None:
    """One whole update."""
    backward(model, optimizer, inputs, weights)
    optimizer.step()
