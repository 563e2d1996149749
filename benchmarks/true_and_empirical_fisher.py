"""What the true and the empirical Fisher make of a gradient field, on the smallest problem that tells them apart.

Linear regression `y = slope x + intercept` with Gaussian noise of deviation 1, after figure 1 of Kunstner, Balles &
Hennig 2019 (arXiv:1905.12558). At each point of the plane of (slope, intercept) the arrows show the direction of the
gradient, of the natural gradient and of the gradient preconditioned with the empirical Fisher; the lines are paths of
many small steps along them. The true Fisher is the Hessian here, so its field points at the minimum from everywhere.
The empirical one weighs each example with its squared residual, so it depends on how wrong the line is and for whom.
All fields are steps of `KFAC(curvature="full")`, which are checked against the closed forms.

    python benchmarks/true_and_empirical_fisher.py --output benchmarks/results/curvature/true_and_empirical_fisher.png
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Normal

from acktr.kfac import KFAC, EmpiricalFisher, Fisher, Metric

SLOPE, INTERCEPT = 2.0, 2.0
EXAMPLES = 200
SIDE = 19
"""Arrows in each direction."""
DAMPING = 1e-9
STARTS = ((0.3, 3.6), (3.7, 3.7), (0.4, 0.6), (3.4, 0.3))
STEPS = 400
LENGTH = 0.02
"""Of one step on a path; shorter where the direction itself is."""

Field = Callable[[Tensor], Tensor]
"""From a point (slope, intercept) to the direction of a step there, both (2,)."""


def main() -> None:
    """Draw the fields, and check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("true_and_empirical_fisher.png"))
    args = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = 1 + torch.randn(EXAMPLES, generator=generator)
    y = SLOPE * x + INTERCEPT + torch.randn(EXAMPLES, generator=generator)
    problem = Regression(x, y)
    fields = {
        "gradient descent": lambda point: -problem.gradient(point),
        "natural gradient, true Fisher": lambda point: problem.step(point, empirical=False),
        "empirical Fisher": lambda point: problem.step(point, empirical=True),
    }
    centre = problem.minimum()
    grid = torch.cartesian_prod(*(torch.linspace(-1.9, 1.9, SIDE) + middle for middle in centre))
    found = {name: torch.stack([field(point) for point in grid]) for name, field in fields.items()}
    check(problem, grid, found)
    starts = [torch.tensor(start) - torch.tensor([SLOPE, INTERCEPT]) + centre for start in STARTS]
    paths = {name: [path(field, start) for start in starts] for name, field in fields.items()}
    draw(problem, grid, found, paths, args.output)
    print(f"{args.output} written")


class Regression:
    """A linear layer with one input and one output under a Gaussian of deviation 1, and its data.

    Args:
        x: (N,).
        y: (N,).
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.rows = torch.stack((x, torch.ones_like(x)), dim=1)
        self.model = nn.Linear(1, 1)

    def gradient(self, point: Tensor) -> Tensor:
        """Of the mean negative log-likelihood."""
        return self.rows.T @ (self.rows @ point - self.y) / len(self.x)

    def loss(self, points: Tensor) -> Tensor:
        """Mean of half the squared residuals at (..., 2) points."""
        return (points @ self.rows.T - self.y).square().mean(-1) / 2

    def minimum(self) -> Tensor:
        """Where the gradient is 0."""
        return torch.linalg.lstsq(self.rows, self.y[:, None]).solution[:, 0]

    def step(self, point: Tensor, *, empirical: bool) -> Tensor:
        """What one step of K-FAC with whole blocks and learning rate 1 adds to a point."""
        with torch.no_grad():
            self.model.weight.copy_(point[0])
            self.model.bias.copy_(point[1])
        optimizer = KFAC(self.model, curvature="full", lr=1.0, max_kl=None, momentum=0.0, damping=DAMPING)
        with optimizer.capture():
            outputs = self.model(self.x[:, None])[:, 0]
        losses = (outputs - self.y).square() / 2
        metric: Metric = EmpiricalFisher(example_losses=losses)
        if not empirical:
            metric = Fisher(distribution=Normal(outputs, torch.ones_like(outputs)), kind="exact")
        optimizer.update_statistics(metric)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return torch.stack((self.model.weight.detach()[0, 0], self.model.bias.detach()[0])) - point


def check(problem: Regression, grid: Tensor, found: dict[str, Tensor]) -> None:
    """Compare K-FAC's fields with the closed forms, and stop where they differ by more than 1e-6."""
    residuals = grid @ problem.rows.T - problem.y  # (points, N)
    fishers = {
        "natural gradient, true Fisher": (problem.rows.T @ problem.rows / len(problem.x)).expand(len(grid), 2, 2),
        "empirical Fisher": torch.einsum("pn,ni,nj->pij", residuals.square(), problem.rows, problem.rows)
        / len(problem.x),
    }
    gradients = torch.stack([problem.gradient(point) for point in grid])
    for name, fisher in fishers.items():
        expected = -torch.linalg.solve(fisher + DAMPING * torch.eye(2), gradients[..., None])[..., 0]
        error = float((found[name] - expected).norm() / expected.norm())
        print(f"{name}: K-FAC's field is {error:.1e} from the closed form, relative")
        if not error < 1e-6:
            raise SystemExit(f"{name}: the field is wrong")


def path(field: Field, start: Tensor) -> NDArray[np.float64]:
    """Points (STEPS + 1, 2) of small steps along a field."""
    points = [start]
    for _ in range(STEPS):
        direction = field(points[-1])
        points.append(points[-1] + direction * min(0.1, LENGTH / max(float(direction.norm()), 1e-12)))
    return torch.stack(points).numpy()


def draw(
    problem: Regression,
    grid: Tensor,
    found: dict[str, Tensor],
    paths: dict[str, list[NDArray[np.float64]]],
    output: Path,
) -> None:
    """Write the picture: the data, and each field over contours of the loss."""
    figure = Figure(figsize=(15.5, 4.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(1, 4)
    centre = problem.minimum()
    axes[0].scatter(problem.x, problem.y, s=6, color="grey")
    ends = torch.stack((problem.x.min(), problem.x.max()))
    axes[0].plot(ends, centre[0] * ends + centre[1], color="tab:red", label="least squares")
    axes[0].set(title=f"data, {EXAMPLES} examples", xlabel="x", ylabel="y")
    axes[0].legend(frameon=False)
    at = grid.reshape(SIDE, SIDE, 2)
    fine = torch.stack(
        torch.meshgrid(*(torch.linspace(-2.05, 2.05, 121) + middle for middle in centre), indexing="ij"), dim=-1
    )
    heights = problem.loss(fine)
    levels = float(heights.min()) + np.geomspace(0.05, float(heights.max() - heights.min()), 11)
    for axis, (name, directions) in zip(axes[1:], found.items(), strict=True):
        arrows = (directions / directions.norm(dim=1, keepdim=True)).reshape(SIDE, SIDE, 2)
        axis.contour(fine[..., 0], fine[..., 1], heights, levels=levels, colors="black", linewidths=0.5, alpha=0.35)
        axis.quiver(
            *at.unbind(-1), *arrows.unbind(-1), color="tab:blue", alpha=0.55, scale=24, width=0.004, pivot="middle"
        )
        for line in paths[name]:
            axis.plot(*line.T, color="tab:orange", linewidth=1.8)
            axis.plot(*line[0], color="tab:orange", marker="o", markersize=4)
        axis.plot(*centre, color="tab:red", marker="*", markersize=11)
        low, high = (centre - 2.05).tolist(), (centre + 2.05).tolist()
        axis.set(title=name, xlabel="slope", ylabel="intercept", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    main()
