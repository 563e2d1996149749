"""Noisy K-FAC beside mean-field posteriors on four regression data sets: test log-likelihood, RMSE and ELBO.

    python benchmarks/noisy_regression.py --results benchmarks/results/noisy

writes splits.csv (every split), summary.csv, curves.csv and elbo.png there; a quarter of an hour on one core. Needs
the extra `bench`.

Data: scikit-learn's diabetes (442 examples) and 500 examples of Friedman 1, 2 and 3, with noise of deviation 1, 125 and
0.1 (a third of the signal's or less; Friedman 1991). Five random 90/10 splits; inputs and targets are standardised by
the training part. Network: one hidden layer of 50 ReLU units (Hernandez-Lobato & Adams 2015). All methods have the
prior N(0, η) on every weight and bias, a Gamma(6, 6) prior on the precision of the noise with its conjugate posterior,
KL weight 1, batches of 100, 150 epochs, a step size that falls linearly to 0, one draw of the weights per batch, and a
deviation of 1 / sqrt(examples) of each weight at the start. Predictions average 100 draws, the noise's precision
integrated out. For each split and method the step size and η come from the grid below, chosen by the log-likelihood of
a fifth of the training part that the others were trained without; then the method is trained anew on the whole
training part.

Methods:
- noisy K-FAC: matrix-variate Gaussian, factored damping (Zhang et al. 2018);
- noisy EK-FAC: eigenvalue-corrected Gaussian, exact damping (Bae et al. 2018);
- noisy diagonal: a mean field fitted by natural gradient, the metric of noisy Adam;
- Bayes by Backprop: a mean field whose ELBO Adam maximises through the draws (Blundell et al. 2015).

The three natural ones keep each step of the mean within a KL of 0.01 nats, without which the largest step size of the
grid diverges now and then.

Log-likelihood and RMSE are in the units of the data, per test example; the ELBO, of the training part, is in nats per
example of standardised targets.
"""

import argparse
import csv
import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_diabetes, make_friedman1, make_friedman2, make_friedman3
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from acktr.kfac import GaussNewton
from acktr.kfac.noisy import NoisyKFAC

matplotlib.use("Agg")
from matplotlib import pyplot as plt

METHODS = {
    "noisy K-FAC": ("kfac", "factored"),
    "noisy EK-FAC": ("ekfac", "exact"),
    "noisy diagonal": ("diagonal", "exact"),
    "Bayes by Backprop": None,
}
NATURAL_RATES = (0.01, 0.03, 0.1, 0.3)
ADAM_RATES = (0.001, 0.003, 0.01, 0.03)
PRIOR_VARIANCES = (0.3, 1.0)
MAX_KL = 0.01
EXAMPLES = 500
HIDDEN = 50
EPOCHS = 150
BATCH = 100
DRAWS, ELBO_DRAWS = 100, 20
"""Of the weights, for a prediction and for a point of a curve."""
CURVE_EVERY = 5
"""Epochs between two points of a curve."""
GAMMA = 6.0
"""Shape and rate of the prior of the noise's precision, as Hernandez-Lobato & Adams take them."""
NOISE_DECAY = 0.95
"""Of the average squared error that the precision is fitted to, per batch."""

Row = dict[str, str | float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Standardised inputs (N, d) and targets (N,) to train on and to be judged by, and the deviation of the targets."""

    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    scale: float

    @classmethod
    def standardised(cls, inputs: np.ndarray, targets: np.ndarray, train: np.ndarray, test: np.ndarray) -> "Data":
        """By the mean and deviation of the examples `train`."""
        low, width = inputs[train].mean(0), inputs[train].std(0)
        centre, scale = targets[train].mean(), targets[train].std()
        x = torch.from_numpy((inputs - low) / width).float()
        y = torch.from_numpy((targets - centre) / scale).float()
        return cls(inputs=x[train], targets=y[train], test_inputs=x[test], test_targets=y[test], scale=float(scale))


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (N, d) and targets (N,) of a data set."""
    if name == "diabetes":
        return load_diabetes(return_X_y=True)  # type: ignore[no-any-return]
    make, noise = {
        "friedman1": (make_friedman1, 1.0),
        "friedman2": (make_friedman2, 125.0),
        "friedman3": (make_friedman3, 0.1),
    }[name]
    return make(n_samples=EXAMPLES, noise=noise, random_state=0)  # type: ignore[no-any-return]


class NoisePrecision:
    """Gamma posterior of the precision of the noise, the one that the squared errors of the draws make best."""

    def __init__(self, examples: int) -> None:
        self.examples = examples
        self.shape, self.rate = GAMMA + examples / 2, GAMMA + examples / 2
        self._error: float | None = None

    def observe(self, error: float) -> None:
        """Add the mean squared error of a batch at a draw."""
        self._error = error if self._error is None else NOISE_DECAY * self._error + (1 - NOISE_DECAY) * error
        self.rate = GAMMA + self.examples / 2 * self._error

    @property
    def mean(self) -> float:
        """E[τ]."""
        return self.shape / self.rate

    def expected_log_likelihood(self, error: float) -> float:
        """Of one example, with mean squared error `error`."""
        mean_log = float(torch.digamma(torch.tensor(self.shape))) - math.log(self.rate)
        return (mean_log - math.log(2 * math.pi) - self.mean * error) / 2

    def kl(self) -> float:
        """From the prior Gamma(6, 6), nats."""
        posterior = torch.distributions.Gamma(torch.tensor(self.shape), torch.tensor(self.rate))
        prior = torch.distributions.Gamma(torch.tensor(GAMMA), torch.tensor(GAMMA))
        return float(torch.distributions.kl_divergence(posterior, prior))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A point of the grid, and the KL weight."""

    learning_rate: float
    prior_variance: float
    kl_weight: float


class Learner(Protocol):
    """A posterior over the weights of the network."""

    def update(self, inputs: Tensor, targets: Tensor, precision: float) -> float:
        """Learn from one batch; the mean squared error at the draw it was judged by."""
        ...

    def draw(self, inputs: Tensor) -> Tensor:
        """Outputs (N,) of one draw."""
        ...

    def kl(self) -> Tensor:
        """Of the posterior from the prior, nats, 0-d."""
        ...


def network(inputs: int) -> nn.Module:
    """One hidden layer, one output."""
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1), nn.Flatten(0))


class Noisy:
    """Natural gradient of the curvature given."""

    def __init__(self, data: Data, choice: Choice, steps: int, curvature: str, damping_mode: str) -> None:
        self.model = network(data.inputs.shape[1])
        self.optimizer = NoisyKFAC(
            self.model,
            examples=len(data.inputs),
            kl_weight=choice.kl_weight,
            prior_variance=choice.prior_variance,
            lr=choice.learning_rate,
            max_kl=MAX_KL,
            curvature=curvature,
            damping_mode=damping_mode,
        )
        self.schedule = falling(self.optimizer, steps)

    def update(self, inputs: Tensor, targets: Tensor, precision: float) -> float:
        """See `Learner`."""
        self.optimizer.zero_grad()
        with self.optimizer.sampled():
            with self.optimizer.capture():
                values = self.model(inputs)
            self.optimizer.update_statistics(GaussNewton(values=values, sigma=precision**-0.5, kind="exact"))
            error = (values - targets).square().mean()
            (precision / 2 * error).backward()
        self.optimizer.step()
        self.schedule.step()
        return float(error.detach())

    def draw(self, inputs: Tensor) -> Tensor:
        """See `Learner`."""
        with self.optimizer.sampled():
            return self.model(inputs)  # type: ignore[no-any-return]

    def kl(self) -> Tensor:
        """See `Learner`."""
        return self.optimizer.kl_to_prior()


class BayesByBackprop:
    """Means and deviations softplus(ρ) of independent weights, by Adam on the reparametrised ELBO."""

    def __init__(self, data: Data, choice: Choice, steps: int) -> None:
        self.model = network(data.inputs.shape[1])
        self.choice, self.examples = choice, len(data.inputs)
        start = math.log(math.expm1(self.examples**-0.5))
        self.means = {name: p.detach().clone().requires_grad_() for name, p in self.model.named_parameters()}
        self.rho = {name: torch.full_like(mean, start).requires_grad_() for name, mean in self.means.items()}
        self.optimizer = torch.optim.Adam([*self.means.values(), *self.rho.values()], lr=choice.learning_rate)
        self.schedule = falling(self.optimizer, steps)

    def update(self, inputs: Tensor, targets: Tensor, precision: float) -> float:
        """See `Learner`."""
        self.optimizer.zero_grad()
        error = (self.draw(inputs) - targets).square().mean()
        (precision / 2 * error + self.choice.kl_weight / self.examples * self.kl()).backward()
        self.optimizer.step()
        self.schedule.step()
        return float(error.detach())

    def draw(self, inputs: Tensor) -> Tensor:
        """See `Learner`."""
        drawn = {
            name: torch.addcmul(mean, softplus(self.rho[name]), torch.randn_like(mean))
            for name, mean in self.means.items()
        }
        return functional_call(self.model, drawn, (inputs,))  # type: ignore[no-any-return]

    def kl(self) -> Tensor:
        """See `Learner`."""
        mean = torch.cat([mean.flatten() for mean in self.means.values()])
        ratios = softplus(torch.cat([rho.flatten() for rho in self.rho.values()])).square() / self.choice.prior_variance
        return ((ratios - 1 - ratios.log()).sum() + mean.square().sum() / self.choice.prior_variance) / 2


def falling(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The step size falls linearly to 0."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a trained posterior is worth: log-likelihood and RMSE in the data's units, and the ELBO's curve."""

    log_likelihood: float
    rmse: float
    curve: Sequence[float]


def train(method: str, data: Data, choice: Choice, *, seed: int, with_curve: bool) -> Outcome:
    """Train one method from scratch and judge it by the test part of `data`."""
    torch.manual_seed(seed)
    batches = math.ceil(len(data.inputs) / BATCH)
    natural = METHODS[method]
    learner: Learner
    if natural is None:
        learner = BayesByBackprop(data, choice, EPOCHS * batches)
    else:
        learner = Noisy(data, choice, EPOCHS * batches, *natural)
    noise = NoisePrecision(len(data.inputs))
    curve = []
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(data.inputs)).chunk(batches):
            noise.observe(learner.update(data.inputs[rows], data.targets[rows], noise.mean))
        if with_curve and (epoch + 1) % CURVE_EVERY == 0:
            curve.append(elbo(learner, noise, data))
    with torch.no_grad():
        outputs = torch.stack([learner.draw(data.test_inputs) for _ in range(DRAWS)])
    predictive = torch.distributions.StudentT(2 * noise.shape, outputs, (noise.rate / noise.shape) ** 0.5)
    log_density = predictive.log_prob(data.test_targets).logsumexp(0) - math.log(DRAWS)
    error = (outputs.mean(0) - data.test_targets).square().mean().sqrt()
    return Outcome(
        log_likelihood=float(log_density.mean()) - math.log(data.scale), rmse=float(error) * data.scale, curve=curve
    )


@torch.no_grad()
def elbo(learner: Learner, noise: NoisePrecision, data: Data) -> float:
    """Evidence lower bound of the training part per example, nats."""
    error = float(
        torch.stack([(learner.draw(data.inputs) - data.targets).square().mean() for _ in range(ELBO_DRAWS)]).mean()
    )
    return noise.expected_log_likelihood(error) - (float(learner.kl()) + noise.kl()) / len(data.inputs)


def tuned(method: str, parts: Data, *, seed: int, kl_weight: float) -> tuple[Choice, float]:
    """The best point of the grid by the log-likelihood of what `parts` holds out, and that log-likelihood."""
    rates = ADAM_RATES if METHODS[method] is None else NATURAL_RATES
    best: tuple[Choice, float] | None = None
    for rate, variance in itertools.product(rates, PRIOR_VARIANCES):
        choice = Choice(learning_rate=rate, prior_variance=variance, kl_weight=kl_weight)
        found = train(method, parts, choice, seed=seed, with_curve=False).log_likelihood
        if best is None or found > best[1]:
            best = choice, found
    assert best is not None
    return best


def main() -> None:
    """Tune, train, judge; write the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--data", nargs="+", default=["diabetes", "friedman1", "friedman2", "friedman3"])
    parser.add_argument("--splits", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--kl-weight", type=float, default=1.0, help="of every method; below 1 a colder posterior")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.results.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    curves: list[Row] = []
    for name, split in itertools.product(args.data, args.splits):
        inputs, targets = load(name)
        order = np.random.RandomState(split).permutation(len(inputs))
        test, rest = np.split(order, [len(order) // 10])
        held_out, train_part = np.split(rest, [len(rest) // 5])
        data = Data.standardised(inputs, targets, rest, test)
        parts = Data.standardised(inputs, targets, train_part, held_out)
        for method in METHODS:
            choice, validation = tuned(method, parts, seed=split, kl_weight=args.kl_weight)
            outcome = train(method, data, choice, seed=split, with_curve=True)
            figures = {"test_log_likelihood": outcome.log_likelihood, "test_rmse": outcome.rmse}
            rows.append(
                {"data": name, "split": split, "method": method}
                | dataclasses.asdict(choice)
                | {"validation_log_likelihood": validation, **figures, "elbo": outcome.curve[-1]}
            )
            epochs = range(CURVE_EVERY, EPOCHS + 1, CURVE_EVERY)
            curves += [
                {"data": name, "split": split, "method": method, "epoch": epoch, "elbo": value}
                for epoch, value in zip(epochs, outcome.curve, strict=True)
            ]
            print(*rounded(rows[-1]).values(), sep="  ", flush=True)
    write(args.results / "splits.csv", rows)
    write(args.results / "curves.csv", curves)
    write(args.results / "summary.csv", summary(rows))
    draw_curves(args.results / "elbo.png", curves, args.data)


def summary(rows: Sequence[Row]) -> list[Row]:
    """Means over the splits with their standard errors, and how far each is behind noisy K-FAC, split by split."""
    table: list[Row] = []
    for name, method in itertools.product(dict.fromkeys(row["data"] for row in rows), METHODS):
        own, reference = (
            [row for row in rows if (row["data"], row["method"]) == (name, which)] for which in (method, "noisy K-FAC")
        )
        line: Row = {"data": name, "method": method}
        for column in ("test_log_likelihood", "test_rmse", "elbo"):
            line[column], line[f"{column}_error"] = mean_and_error([float(row[column]) for row in own])
        column = "test_log_likelihood"
        behind = [float(one[column]) - float(other[column]) for one, other in zip(reference, own, strict=True)]
        line["behind_noisy_kfac"], line["behind_noisy_kfac_error"] = mean_and_error(behind)
        table.append(line)
        print(*rounded(line).values(), sep="  ")
    return table


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return float(np.mean(values)), error


def rounded(row: Row) -> Row:
    """With four digits behind the point."""
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def write(file: Path, rows: Sequence[Row]) -> None:
    """Rows as CSV."""
    with file.open("w", newline="") as stream:
        table = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
        table.writeheader()
        table.writerows(map(rounded, rows))


def draw_curves(file: Path, curves: Sequence[Row], names: Sequence[str]) -> None:
    """ELBO over the epochs, mean of the splits, a panel per data set."""
    figure, panels = plt.subplots(1, len(names), figsize=(4 * len(names), 3.4), squeeze=False, layout="constrained")
    for panel, name in zip(panels[0], names, strict=True):
        for method in METHODS:
            own = [row for row in curves if (row["data"], row["method"]) == (name, method)]
            epochs = sorted({float(row["epoch"]) for row in own})
            means = [np.mean([float(row["elbo"]) for row in own if row["epoch"] == epoch]) for epoch in epochs]
            panel.plot(epochs, means, label=method)
        panel.set(title=name, xlabel="epoch", ylim=(-3, None))
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("ELBO per training example (nats)")
    panels[0][0].legend()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
