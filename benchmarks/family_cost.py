"""What one update costs under each curvature, on the Nature CNN without any environment.

All variants take turns in one process, on the same frames, the same share of them for the statistics and the same
intervals; medians over the rounds are compared, since a machine's speed drifts. With `--position-stride 1` all see the
same statistics; with a larger one K-FAC's input factors are taken at a part of the positions, while the gradients of
the examples, which the other methods need, always take all.

    python benchmarks/family_cost.py --json benchmarks/results/family/cost.json
"""

import argparse
import json
import statistics
import time
from typing import Any

if __name__ == "__main__":
    from acktr.process import tune

    tune()  # as `acktr train` does; before torch is imported

import torch
from arguments import count, output, share
from origin import commit, in_words, machine
from torch import Tensor, nn
from torch.distributions import Categorical

from acktr.agents.networks import nature_torso
from acktr.kfac import KFAC, Fisher, GaussNewton, Joint

VARIANTS: dict[str, dict[str, Any]] = {
    "kfac, factored": {"curvature": "kfac", "damping_mode": "factored"},
    "kfac, exact": {"curvature": "kfac", "damping_mode": "exact"},
    "ekfac, factored": {"curvature": "ekfac", "damping_mode": "factored"},
    "ekfac, exact": {"curvature": "ekfac", "damping_mode": "exact"},
    "kfoc, factored": {"curvature": "kfoc", "damping_mode": "factored"},
    "kfoc, exact": {"curvature": "kfoc", "damping_mode": "exact"},
    "ekfoc, exact": {"curvature": "ekfoc", "damping_mode": "exact"},
    "diagonal": {"curvature": "diagonal"},
    "block-tridiagonal": {"structure": "block-tridiagonal"},
}
BESIDE = {
    name: "kfac, exact" if name.endswith("exact") or name.startswith("ek") else "kfac, factored" for name in VARIANTS
}
"""The plain K-FAC that each is compared with: the eigenbasis variant for what needs an eigenbasis."""


class Network(nn.Module):
    """The actor-critic of the Atari preset on 84 x 84 frames, six actions."""

    def __init__(self) -> None:
        super().__init__()
        self.torso = nature_torso((4, 84, 84), channels=(32, 64, 32), features=512)
        self.policy, self.value = nn.Linear(512, 6), nn.Linear(512, 1)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, 6) and values (N,)."""
        features = self.torso(frames)
        return self.policy(features), self.value(features).squeeze(-1)


class Contestant:
    """One network with its optimizer."""

    def __init__(self, options: dict[str, Any], args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.network = Network()
        self.optimizer = KFAC(
            self.network,
            lr=1e-4,
            max_kl=None,
            position_stride=args.position_stride,
            inverse_interval=args.inverse_interval,
            **options,
        )
        self.rows = max(1, round(args.batch * args.stat_fraction))

    def update(self, frames: Tensor) -> None:
        """Statistics of the first rows, the loss of all, and a step."""
        with self.optimizer.capture():
            logits, values = self.network(frames[: self.rows])
        metric = Joint(Fisher(distribution=Categorical(logits=logits)), GaussNewton(values=values, sigma=0.5))
        self.optimizer.update_statistics(metric)
        if self.rows < len(frames):
            more_logits, more_values = self.network(frames[self.rows :])
            logits, values = torch.cat((logits, more_logits)), torch.cat((values, more_values))
        self.optimizer.zero_grad()
        (values.square().mean() - 0.1 * torch.log_softmax(logits, -1)[:, 0].mean()).backward()
        self.optimizer.step()


def main() -> None:
    """Measure, print a table, and keep the figures with `--json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=count, default=320)
    parser.add_argument("--stat-fraction", type=share, default=0.25, help="share of the batch for the statistics")
    parser.add_argument("--position-stride", type=count, default=1)
    parser.add_argument("--inverse-interval", type=count, default=10)
    parser.add_argument("--rounds", type=count, default=9)
    parser.add_argument("--threads", type=count, default=torch.get_num_threads())
    parser.add_argument("--json", type=output)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    frames = torch.rand(args.batch, 4, 84, 84)
    contestants = {name: Contestant(options, args) for name, options in VARIANTS.items()}
    for contestant in contestants.values():
        for _ in range(3 * args.inverse_interval):
            contestant.update(frames)
        contestant.optimizer.steps = 1000  # young inverses are refreshed more often; what lasts is measured
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name, contestant in contestants.items():
            start = time.perf_counter()
            for _ in range(args.inverse_interval):
                contestant.update(frames)
            seconds[name].append((time.perf_counter() - start) / args.inverse_interval)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    content = {**commit(), "machine": machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(f"commit {in_words(content)}; torch {torch.__version__}; {content['machine']['cpu']}, {args.threads} threads")
    print(f"{'curvature':<20}{'ms':>8}{'of plain K-FAC':>16}{'beside':>18}")
    for name, median in medians.items():
        print(f"{name:<20}{1e3 * median:>8.1f}{median / medians[BESIDE[name]]:>16.2f}{BESIDE[name]:>18}")
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key != "json"}
        ratios = {name: round(median / medians[BESIDE[name]], 3) for name, median in medians.items()}
        figures = {
            **content,
            "settings": settings,
            "milliseconds": {name: [round(1e3 * value, 2) for value in found] for name, found in seconds.items()},
            "ratio_to_plain": ratios,
        }
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
