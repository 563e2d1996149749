"""K-FAC against Adam in supervised learning: an autoencoder of curves, made here, with a bottleneck of six numbers.

Deep autoencoders are the problem that K-FAC was first shown on (Martens & Grosse 2015). All optimizers start from the
same weights and see the same batches. `LevenbergMarquardt` is K-FAC without a learning rate: it takes the length of its
steps, the momentum and the damping from the exact quadratic model of each batch.

    python supervised.py                # 300 steps each
    python supervised.py --steps 150    # a look
"""

import argparse
import copy
import itertools
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from acktr.kfac import KFAC, GaussNewton, LevenbergMarquardt, Metric

POINTS, EXAMPLES, BATCH = 64, 4000, 500

Step = Callable[[Tensor], None]


def curves(examples: int) -> Tensor:
    """(examples, POINTS): sums of two sine waves of random height, phase and frequency."""
    at = torch.linspace(0, 2 * math.pi, POINTS)
    height, phase, frequency = (torch.rand(examples, 2, 1) for _ in range(3))
    return (height * torch.sin((1 + frequency) * at + 2 * math.pi * phase)).sum(1)


def autoencoder() -> nn.Sequential:
    """Six layers."""
    sizes = (POINTS, 64, 32, 6, 32, 64, POINTS)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared error of an example, the mean: a Gaussian's of deviation 1, but for a constant."""
    return (outputs - targets).square().sum(1).mean() / 2


def adam(model: nn.Module, lr: float) -> Step:
    """A step of Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def step(batch: Tensor) -> None:
        optimizer.zero_grad()
        error(model(batch), batch).backward()
        optimizer.step()

    return step


def kfac(model: nn.Module) -> Step:
    """A step of K-FAC: two lines more than any optimizer of torch has."""
    optimizer = KFAC(model, lr=1.0, max_kl=0.01, momentum=0.9, damping=0.01, stat_decay=0.95, inverse_interval=5)

    def step(batch: Tensor) -> None:
        with optimizer.capture():
            outputs = model(batch)
        optimizer.update_statistics(GaussNewton(values=outputs, sigma=1.0))
        optimizer.zero_grad()
        error(outputs, batch).backward()
        optimizer.step()

    return step


def levenberg_marquardt(model: nn.Module) -> Step:
    """A step by the quadratic model; the objective is called several times in it."""
    steps = LevenbergMarquardt(model, KFAC(model, max_kl=None, inverse_interval=5), damping=10.0)

    def step(batch: Tensor) -> None:
        def objective() -> tuple[Tensor, Metric]:
            outputs = model(batch)
            return error(outputs, batch), GaussNewton(values=outputs, sigma=1.0)

        steps.step(objective)

    return step


def main() -> None:
    """Train once with each and print the table."""
    parser = argparse.ArgumentParser(description="K-FAC against Adam on an autoencoder")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    data, held_out = curves(EXAMPLES), curves(1000)
    start = autoencoder()
    batches = [torch.randperm(EXAMPLES)[:BATCH] for _ in range(arguments.steps)]
    makers: dict[str, Callable[[nn.Module], Step]] = {
        **{f"Adam, lr {lr}": lambda model, lr=lr: adam(model, lr) for lr in (1e-3, 3e-3, 1e-2)},  # type: ignore[misc]
        "K-FAC": kfac,
        "LevenbergMarquardt": levenberg_marquardt,
    }
    print(f"{'optimizer':20} {'steps':>6} {'seconds':>8} {'training':>9} {'held out':>9}")
    for name, maker in makers.items():
        model = copy.deepcopy(start)
        step, began = maker(model), time.perf_counter()
        for rows in batches:
            step(data[rows])
        seconds = time.perf_counter() - began
        with torch.no_grad():
            found = [float(error(model(inputs), inputs)) for inputs in (data, held_out)]
        print(f"{name:20} {arguments.steps:6} {seconds:8.1f} {found[0]:9.3f} {found[1]:9.3f}")


if __name__ == "__main__":
    main()
