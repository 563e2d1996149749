"""States that a policy visits at play, and the networks whose curvature is looked at there."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from acktr.agents import checkpoint
from acktr.agents.observations import Observations, take_rows, to_tensors
from acktr.agents.policy import ActorCritic
from acktr.agents.settings import Settings
from acktr.agents.value_scale import ValueScale
from acktr.envs.vector import VectorEnvironment
from acktr.kfac import Fisher, GaussNewton, Joint, Metric
from acktr.kfac.layers import AFFINE_TYPES, Affine

FisherKind = Literal["sampled", "exact"]

MOST_ENVS = 8
"""Environments that states are gathered in."""

SPREAD = 500
"""Decisions in each environment that the states are spread over, so that whole games are seen; more if need be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A network with one metric: the whole actor-critic, or the policy's or the critic's part of it.

    Attributes:
        name: policy, critic, or joint where both share a trunk.
        layers: its Linear and Conv2d modules in float64, by their names in the policy.
        metric: runs the network on the states and returns its metric; the exact one, or one draw for each state.
        damping: that it is trained with.
        sigma: standard deviation of the values' Gaussian; None where it has no value.
        chain: names of the layers in the order in which one feeds the next, those with the same input together; None
            where they form no chain.
    """

    name: str
    layers: Mapping[str, Affine]
    metric: Callable[[FisherKind], Metric]
    damping: float
    sigma: float | None
    chain: Sequence[Sequence[str]] | None


@torch.no_grad()
def visited_states(
    policy: ActorCritic, environment: VectorEnvironment, *, states: int, deterministic: bool, seed: int
) -> Observations:
    """Play, and keep a state every so many decisions.

    Args:
        policy: on the CPU.
        environment: to play in.
        states: N.
        deterministic: take the most probable action instead of a draw.
        seed: of the games and of the draws.

    Returns:
        Observations (N, *space) as the environment gives them, none of them a row that is no decision.
    """
    sequence = np.random.SeedSequence(seed)
    generator = torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))
    seeds = [int(child.generate_state(1)[0] >> 1) for child in sequence.spawn(environment.num_envs)]
    observations = environment.reset(seeds)
    stride = max(1, SPREAD * environment.num_envs // states)
    turns = np.arange(environment.num_envs) * stride // environment.num_envs  # no two see the same moment of a game
    kept: list[Observations] = []
    count = decision = 0
    while count < states:
        seen = to_tensors(observations, torch.device("cpu"))
        step = environment.step(policy.act(seen, generator=generator, deterministic=deterministic).numpy())
        chosen = np.flatnonzero(step.valid & ((decision - turns) % stride == 0))[: states - count]
        if chosen.size:
            kept.append(take_rows(seen, torch.from_numpy(chosen)))
            count += chosen.size
        observations = step.observations
        decision += 1
    return joined(kept)


def joined(parts: Sequence[Observations]) -> Observations:
    """Batches one behind the other."""
    if isinstance(parts[0], Tensor):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    return {name: torch.cat([part[name] for part in parts if isinstance(part, dict)]) for name in parts[0]}


def value_sigma(file: Path, settings: Settings) -> float:
    """Standard deviation of the values' Gaussian: as set, as learnt up to a checkpoint, or 1 where it is not known."""
    if settings.value_sigma > 0:
        return settings.value_sigma
    learnt = checkpoint.load(file).state.get("training", {}).get("updater", {}).get("scale")
    scale = ValueScale(0.0, torch.device("cpu"))
    if learnt:
        scale.load_state_dict(learnt)
    return float(scale.sigma)


def networks_of(
    policy: ActorCritic, states: Observations, settings: Settings, *, sigma: float, damping: float | None, seed: int
) -> list[Network]:
    """The networks that training treats apart, as they answer to some states.

    Args:
        policy: as it plays, on the CPU; it is not modified.
        states: (N, *space), raw. They are encoded and normalised in the policy's own precision, as in play; everything
            behind that is in float64.
        settings: of the run.
        sigma: of the values' Gaussian.
        damping: in place of the run's.
        seed: of the draws of a sampled metric.

    Returns:
        One where policy and value share a trunk, else two.
    """
    with torch.no_grad():
        encoded = policy.encoder(states)
    double = copy.deepcopy(policy).double()
    inputs = {name: part.double() for name, part in encoded.items()} if isinstance(encoded, dict) else encoded.double()

    def policy_metric(features: Tensor, kind: FisherKind, generator: torch.Generator) -> Metric:
        return Fisher(distribution=double.policy_head(features), kind=kind, generator=generator)

    def value_metric(features: Tensor, kind: FisherKind, generator: torch.Generator) -> Metric:
        values = double.value_head(features).squeeze(-1)
        return GaussNewton(values=values, sigma=sigma, kind=kind, generator=generator)

    layers = layers_of(double)
    heads = {"joint": (policy_metric, value_metric), "policy": (policy_metric,), "critic": (value_metric,)}

    def network(name: str, torso: nn.Module, default_damping: float) -> Network:
        def metric(kind: FisherKind) -> Metric:
            generator = torch.Generator().manual_seed(seed)
            features = torso(inputs)
            metrics = [head(features, kind, generator) for head in heads[name]]
            return metrics[0] if len(metrics) == 1 else Joint(*metrics)

        trunk = [layer for layer in layers[name] if "torso" in layer.partition(".")[0]]
        last = [layer for layer in layers[name] if layer not in trunk]
        return Network(
            name=name,
            layers=layers[name],
            metric=metric,
            damping=default_damping if damping is None else damping,
            sigma=sigma if value_metric in heads[name] else None,
            chain=[*([layer] for layer in trunk), last] if isinstance(torso, nn.Sequential) else None,
        )

    if double.value_torso is None:
        return [network("joint", double.torso, settings.damping)]
    return [
        network("policy", double.torso, settings.damping),
        network("critic", double.value_torso, settings.critic_damping),
    ]


def layers_of(policy: ActorCritic) -> dict[str, dict[str, Affine]]:
    """Linear and Conv2d modules of each network by their names: of "joint", or of "policy" and "critic"."""
    found = {name: module for name, module in policy.named_modules() if isinstance(module, AFFINE_TYPES)}
    if policy.value_torso is None:
        return {"joint": found}
    critic = {name: module for name, module in found.items() if name.startswith("value_")}
    return {"policy": {name: found[name] for name in found if name not in critic}, "critic": critic}
