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

ROWS, STEPS = 12, 24


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


class Experts(nn.Module):
    """Two experts, of which each example goes through one: even ones through the first."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(2, 4, 3, stride=3) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(2, 4) for _ in range(2))
        self.layers = nn.ModuleList(nn.Linear(36, 6) for _ in range(2))
        self.gain = nn.Parameter(torch.ones(2))  # of the second expert alone
        self.logits = nn.Linear(6, 3)
        self.value = nn.Linear(6, 1)

    def forward(self, frames: Tensor, examples: Tensor) -> tuple[Tensor, Tensor]:
        features = frames.new_zeros(len(frames), 6)
        for expert in range(2):
            chosen = examples % 2 == expert
            if chosen.any():
                hidden = torch.tanh(self.norms[expert](self.convolutions[expert](frames[chosen]))).flatten(1)
                found = self.layers[expert](hidden)
                features[chosen] = torch.tanh(found * (self.gain.sum() if expert else 1.0))
        return self.logits(features), self.value(features).squeeze(-1)


def train(options: dict[str, Any], ranks: Ranks | None = None) -> Tensor:
    """Parameters after some updates, flat, and what the optimizer counted; the same on every rank."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    options = dict(options)
    experts, mixed, reload = (options.pop(name, False) for name in ("experts", "mixed", "reload"))
    parts = options.pop("parts", 1)
    plain = options.get("structure") == "block-tridiagonal"
    network = Experts() if experts else Network()
    if plain:
        del network.norm
    if mixed:
        network.trunk.float()
    optimizer = KFAC(network, lr=0.1, max_kl=1e-2, damping=0.1, inverse_interval=3, ranks=ranks, **options)
    draws = torch.Generator().manual_seed(1)

    def outputs(frames: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(network, Experts):
            return network(frames, rows)
        if mixed:
            features = torch.tanh(network.trunk(frames.float())).double()
            return network.logits(network.norm(features)), network.value(features).squeeze(-1)
        return network(frames, plain=plain)

    for step in range(STEPS):
        frames = torch.rand(ROWS, 2, 9, 9, generator=draws)
        actions, sampled = torch.randint(0, 3, (2, ROWS), generator=draws)
        targets = torch.randn(ROWS, generator=draws)
        weights = torch.ones(ROWS) if experts else (torch.rand(ROWS, generator=draws) > 0.2).double()
        mine = torch.arange(ROWS) if ranks is None else torch.arange(ROWS)[ranks.rank :: ranks.size]
        state = optimizer.state_dict() if reload and step == STEPS // 2 else None
        optimizer.zero_grad()
        for rows in (mine[mine * parts // ROWS == part] for part in range(parts)):
            with optimizer.capture():
                logits, values = outputs(frames[rows], rows)
            policy = Fisher(distribution=Categorical(logits=logits), draw=sampled[rows])
            metric = Joint(policy, GaussNewton(values=values, kind="exact"))
            own = None if experts else weights[rows]
            optimizer.update_statistics(metric, own, places=tuple(rows.tolist()))
            losses = -Categorical(logits=logits).log_prob(actions[rows]) + (values - targets[rows]).square()
            ((losses * weights[rows]).sum() / weights.sum()).backward()
        if state is not None:
            optimizer.load_state_dict(state)  # with sums on their way
        if ranks is not None:
            for parameter in network.parameters():
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                (parameter.grad,) = ranks.add_up([gradient], kind="gradients")
        optimizer.step()
    counts = [optimizer.estimate.refresh_count, optimizer.estimate.retry_count, optimizer.estimate.stale_count]
    flat = [parameter.detach().double().flatten() for parameter in network.parameters()]
    return torch.cat([*flat, torch.tensor(counts).double()])


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
