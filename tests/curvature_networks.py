"""Networks of small policies, as `acktr curvature` takes them, and their Fisher by autograd."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from oracles import dense_fisher as autograd_fisher
from torch import Tensor, nn
from torch.distributions import Categorical

from acktr.agents.curvature_states import FisherKind, Network, networks_of
from acktr.agents.policy import ActorCritic
from acktr.agents.settings import Settings
from acktr.kfac import Fisher, Metric
from acktr.kfac.layers import AFFINE_TYPES

SETTINGS = Settings(env="CartPole-v1", hidden_sizes=(5, 4), value_sigma=0.5, damping=0.02, critic_damping=0.3)
SMALL = {"hidden_sizes": (5, 4), "num_envs": 2, "num_threads": 1}


def networks(*, gaussian: bool = False, shared: bool = False, states: int = 12, **changes: Any) -> list[Network]:
    torch.manual_seed(0)
    settings = Settings.from_dict({**SETTINGS.to_dict(), "shared_trunk": shared, "policy_gain": 1.0, **changes})
    actions: gymnasium.Space[Any] = Box(-1, 1, (2,)) if gaussian else Discrete(3)
    policy = ActorCritic(Box(-np.inf, np.inf, (3,)), actions, settings)
    return networks_of(policy, torch.randn(states, 3), settings, sigma=0.5, damping=None, seed=0)


def convolutional(module: nn.Sequential, inputs: Tensor) -> Network:
    """A network of one's own in float64, ending in a classifier of three."""

    def metric(kind: FisherKind) -> Metric:
        generator = torch.Generator().manual_seed(0)
        distribution = Categorical(logits=module(inputs), validate_args=False)
        return Fisher(distribution=distribution, kind=kind, generator=generator)

    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, AFFINE_TYPES)}
    chain = [[name] for name in layers]
    return Network(name="joint", layers=layers, metric=metric, damping=0.1, sigma=None, chain=chain)


def small_convolutional() -> Network:
    torch.manual_seed(2)
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 3, 2, stride=2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(18, 3),
    )
    return convolutional(module.double(), torch.randn(9, 2, 6, 4, dtype=torch.float64))


def autograd_matrix(network: Network) -> Tensor:
    """The exact Fisher of all layers, rows of (weight, bias) one behind the other, with no formula of this project."""
    parameters = [parameter for layer in network.layers.values() for parameter in layer.parameters()]
    dense = autograd_fisher(network.metric("exact").losses(), parameters)
    order: list[Tensor] = []
    start = 0
    for layer in network.layers.values():
        entries = torch.arange(start, start + layer.weight.numel()).reshape(len(layer.weight), -1)
        start += layer.weight.numel()
        if layer.bias is not None:
            entries = torch.cat((entries, torch.arange(start, start + len(layer.bias))[:, None]), dim=1)
            start += len(layer.bias)
        order.append(entries.flatten())
    at = torch.cat(order)
    return dense[at][:, at]


ALL_NETWORKS: dict[str, Callable[[], Network]] = {
    "joint": lambda: networks(shared=True)[0],
    "joint-gaussian": lambda: networks(shared=True, gaussian=True)[0],
    "policy": lambda: networks()[0],
    "policy-gaussian": lambda: networks(gaussian=True)[0],
    "policy-of-two-heads": lambda: networks(gaussian=True, state_dependent_std=True)[0],
    "critic": lambda: networks()[1],
    "convolutional": small_convolutional,
}
