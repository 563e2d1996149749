"""What a step along each direction gains on data it was not computed from, at equal measured KL.

A run is stopped midway and its policy held still. From each of some batches come the directions: the gradient, the
natural gradient by conjugate gradients with the exact Fisher (TRPO's), and K-FAC's with the factors of the run as they
stand. Each is followed until the mean KL on other batches is the one asked for; there the surrogate objective, the mean
of pi_after / pi_before times the normalised advantage, says what the step is worth. Steps are compared batch by batch,
since the noise of the other batches is common to all: some 0.0004 at a KL of 0.01.

    python benchmarks/directions.py --env Walker2d-v5 --timesteps 100000
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import acktr
from acktr.agents.losses import standardise
from acktr.agents.rollout import Batch
from acktr.kfac import KFAC, mean_kl

TRAINING, HELD_OUT = 8, 64
"""Batches that directions come from, and batches that they are judged by."""

LARGEST_RATIO = 10.0
"""Of the two policies' densities: a few rows, which a step moved by many deviations, would rule the mean otherwise."""

ITERATIONS = 50
"""Of conjugate gradients; Schulman et al. 2015 take 10."""


def main() -> None:
    """Train, stop, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Walker2d-v5")
    parser.add_argument("--timesteps", type=int, default=100_000, help="where the run is stopped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kl", type=float, default=0.01, help="nats that each step makes on the other batches")
    parser.add_argument("--damping", nargs="+", type=float, default=[0.1, 0.01], help="of conjugate gradients")
    args = parser.parse_args()
    agent = acktr.ACKTR(args.env, seed=args.seed, num_threads=1)
    trainer = agent._trainer
    trainer.train(stop=lambda: trainer.timesteps >= args.timesteps)
    print(f"{args.env}, seed {args.seed}, {trainer.timesteps} timesteps, return {agent.return_mean:.1f}")
    scene = Scene(agent, trainer.updater.actor.optimizer, [trainer._collect() for _ in range(TRAINING + HELD_OUT)])
    gains: dict[str, list[float]] = {}
    for batch in scene.training:
        gradient = scene.gradient([batch])
        directions = {"gradient": gradient, "K-FAC, the run's": scene.kfac(gradient)}
        for damping in args.damping:
            own = scene.natural(gradient, [batch], damping)
            directions[f"conjugate gradients, damping {damping:g}, Fisher of the batch"] = own
            all_batches = scene.natural(gradient, scene.training, damping)
            directions[f"conjugate gradients, damping {damping:g}, Fisher of {TRAINING} batches"] = all_batches
        for name, direction in directions.items():
            gains.setdefault(name, []).append(scene.gain(direction, args.kl))
    everything = scene.gradient(scene.training)
    gains[f"gradient of {TRAINING} batches"] = [scene.gain(everything, args.kl)]
    gains[f"K-FAC, the run's, gradient of {TRAINING} batches"] = [scene.gain(scene.kfac(everything), args.kl)]
    reference = np.array(gains["K-FAC, the run's"])
    print("| direction | gain | K-FAC's less it |\n|---|---|---|")
    for name, found in gains.items():
        behind = reference - np.array(found)
        margin = np.std(behind, ddof=1) / TRAINING**0.5
        compared = f"{behind.mean():.4f} ± {margin:.4f}" if len(found) == TRAINING and margin > 0 else ""
        print(f"| {name} | {np.mean(found):.4f} | {compared} |")


class Scene:
    """A policy at rest, and batches of it.

    Args:
        agent: with torsos of its own for policy and critic.
        optimizer: the policy's.
        batches: collected without an update between them.
    """

    def __init__(self, agent: acktr.ACKTR, optimizer: KFAC, batches: list[Batch]) -> None:
        self.policy = agent._trainer.policy
        self.optimizer = optimizer
        self.parameters = [parameter for unit in optimizer.units for parameter in unit.parameters]
        self.at = parameters_to_vector(self.parameters).detach().clone()
        self.training, self.held_out = [batches[:TRAINING], batches[TRAINING:]]
        with torch.no_grad():
            self.before = [self._distribution(batch) for batch in self.held_out]

    def gradient(self, batches: list[Batch]) -> Tensor:
        """Of the surrogate objective, uphill."""
        parts = []
        for batch in batches:
            surrogate = (self._distribution(batch).log_prob(batch.actions) * _advantages(batch)).mean()
            parts.append(torch.cat([part.flatten() for part in torch.autograd.grad(surrogate, self.parameters)]))
        return torch.stack(parts).mean(0)

    @torch.no_grad()
    def kfac(self, gradient: Tensor) -> Tensor:
        """(F + damping)^-1 gradient, F as the run's factors have it."""
        parts, start = [], 0
        for unit in self.optimizer.units:
            shapes = [parameter.shape for parameter in unit.parameters]
            split = [shape.numel() for shape in shapes]
            own = gradient[start : start + sum(split)].split(split)
            start += sum(split)
            matrix = unit.matrix([part.view(shape) for part, shape in zip(own, shapes, strict=True)])
            direction = unit.block.precondition(matrix, self.optimizer.param_groups[0]["damping"])
            parts += [part.flatten() for part in unit.split(direction)]
        return torch.cat(parts)

    def natural(self, gradient: Tensor, batches: list[Batch], damping: float) -> Tensor:
        """(F + damping)^-1 gradient, F the exact Fisher of the batches."""
        slopes = []
        for batch in batches:
            after = self._distribution(batch)
            kl = mean_kl(_detached(after), after, None)
            parts = torch.autograd.grad(kl, self.parameters, create_graph=True)
            slopes.append(torch.cat([part.flatten() for part in parts]))
        slope = torch.stack(slopes).mean(0)

        def product(vector: np.ndarray) -> np.ndarray:
            tangent = torch.from_numpy(vector).to(gradient)
            parts = torch.autograd.grad(slope @ tangent, self.parameters, retain_graph=True)
            return (torch.cat([part.flatten() for part in parts]) + damping * tangent).double().numpy()

        operator = LinearOperator((len(gradient), len(gradient)), matvec=product, dtype=np.float64)
        found, _ = cg(operator, gradient.double().numpy(), rtol=1e-6, maxiter=ITERATIONS)
        return torch.from_numpy(found).to(gradient)

    @torch.no_grad()
    def gain(self, direction: Tensor, kl: float) -> float:
        """The surrogate objective on the other batches where the direction has led to that KL there."""

        def excess(length: float) -> float:
            vector_to_parameters(self.at + length * direction, self.parameters)
            return self._mean(lambda batch, before, after: mean_kl(before, after, batch.weights)) - kl

        far = 1e-3 / float(direction.norm())
        while excess(far) < 0:
            far *= 2
        excess(brentq(excess, 0.0, far, rtol=1e-3))
        gained = self._mean(_surrogate)
        vector_to_parameters(self.at, self.parameters)
        return gained

    def _mean(self, figure: Callable[[Batch, Distribution, Distribution], Tensor]) -> float:
        pairs = zip(self.held_out, self.before, strict=True)
        return float(np.mean([float(figure(batch, before, self._distribution(batch))) for batch, before in pairs]))

    def _distribution(self, batch: Batch) -> Distribution:
        return self.policy.distribution(batch.observations)


def _surrogate(batch: Batch, before: Distribution, after: Distribution) -> Tensor:
    ratio = (after.log_prob(batch.actions) - before.log_prob(batch.actions)).exp()
    return (ratio.clamp(max=LARGEST_RATIO) * _advantages(batch)).mean()


def _advantages(batch: Batch) -> Tensor:
    """Normalised, and 0 in rows that are no transition."""
    advantages = standardise(batch.advantages, batch.weights)
    return advantages if batch.weights is None else advantages * batch.weights


def _detached(distribution: Distribution) -> Distribution:
    """The same Gaussian without its graph."""
    normal = distribution.base_dist
    return torch.distributions.Independent(torch.distributions.Normal(normal.loc.detach(), normal.scale.detach()), 1)


if __name__ == "__main__":
    main()
