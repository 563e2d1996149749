"""A training by K-FAC in one process or in several, each with a part of every batch; run as a script by the latter.

    python parallel_training.py FOLDER CASES

leaves in FOLDER what came out, in the environment that torchrun makes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from acktr.kfac import KFAC, Fisher, GaussNewton, Joint
from acktr.kfac.distributed import Ranks

ROWS, STEPS = 12, 50


class Network(nn.Module):
    """Convolutions, a normalisation and two heads, on frames of 2 x 9 x 9."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2), nn.Tanh(), nn.Conv2d(3, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 6)
        )
        self.norm = nn.LayerNorm(6)
        self.logits = nn.Linear(6, 3)
        self.value = nn.Linear(6, 1)

    def forward(self, frames: Tensor, *, plain: bool = False) -> tuple[Tensor, Tensor]:
        features = torch.tanh(self.trunk(frames))
        features = features if plain else self.norm(features)
        return self.logits(features), self.value(features).squeeze(-1)


def train(options: dict[str, Any], ranks: Ranks | None = None) -> Tensor:
    """Parameters after some updates, flat; the same on every rank."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    plain = options.get("structure") == "block-tridiagonal"
    network = Network()
    if plain:
        del network.norm
    optimizer = KFAC(network, lr=0.1, max_kl=1e-2, damping=0.1, inverse_interval=3, ranks=ranks, **options)
    draws = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        frames = torch.rand(ROWS, 2, 9, 9, generator=draws)
        actions, sampled = torch.randint(0, 3, (2, ROWS), generator=draws)
        targets = torch.randn(ROWS, generator=draws)
        weights = (torch.rand(ROWS, generator=draws) > 0.2).double()
        mine = torch.arange(ROWS) if ranks is None else torch.arange(ROWS)[ranks.rank :: ranks.size]
        with optimizer.capture():
            logits, values = network(frames[mine], plain=plain)
        policy = Fisher(distribution=Categorical(logits=logits), draw=sampled[mine])
        metric = Joint(policy, GaussNewton(values=values, kind="exact"))
        optimizer.update_statistics(metric, weights[mine], places=tuple(mine.tolist()))
        losses = -Categorical(logits=logits).log_prob(actions[mine]) + (values - targets[mine]).square()
        optimizer.zero_grad()
        ((losses * weights[mine]).sum() / weights.sum()).backward()
        if ranks is not None:
            gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            for gradient, total in zip(gradients, ranks.add_up(gradients, kind="gradients"), strict=True):
                gradient.copy_(total)
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def main() -> None:
    """One rank's part."""
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    ranks = Ranks()
    torch.save([train(options, ranks) for options in cases], folder / f"rank{ranks.rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
