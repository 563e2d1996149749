"""What the papers say of the Fisher and of its Kronecker approximation, as equalities of the package's own numbers."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from oracles import dense_fisher, fisher_block, relative_error
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal
from torch.nn import functional

from acktr.kfac import KFAC, EmpiricalFisher, Fisher, GaussNewton, Metric
from acktr.kfac.units import Unit

pytestmark = pytest.mark.usefixtures("float64")

EXAMPLES = 12
CLASSES = 3


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, CLASSES))


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, CLASSES)
    )


NETWORKS: dict[str, Callable[[], tuple[nn.Sequential, Tensor]]] = {
    "mlp": lambda: (mlp(), torch.randn(EXAMPLES, 3)),
    "convolutional": lambda: (convolutional(), torch.randn(EXAMPLES, 2, 3, 3)),
}


def network(name: str = "mlp") -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)  # probabilities far from equal
    return model, inputs


def observed(
    model: nn.Module, inputs: Tensor, metric_of: Callable[[Tensor], Metric], curvature: str = "kfac"
) -> tuple[list[Unit], Metric]:
    """The units after one batch, and its metric."""
    optimizer = KFAC(model, curvature=curvature)  # type: ignore[arg-type]
    with optimizer.capture():
        outputs = model(inputs)
    metric = metric_of(outputs)
    optimizer.update_statistics(metric)
    return optimizer.units, metric


def exact(outputs: Tensor) -> Metric:
    return Fisher(distribution=Categorical(logits=outputs), kind="exact")


def labels() -> Tensor:
    """Of the data: the model believes in three classes, and two are seen."""
    return torch.arange(EXAMPLES).remainder(2)


def empirical(outputs: Tensor) -> Metric:
    return EmpiricalFisher(example_losses=functional.cross_entropy(outputs, labels(), reduction="none"))


def traced(model: nn.Sequential, inputs: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Outputs of the model, and inputs and outputs of its layers."""
    entering, leaving = [], []
    values = inputs
    for module in model:
        after = module(values)
        if isinstance(module, nn.Linear | nn.Conv2d):
            entering.append(values)
            leaving.append(after)
        values = after
    return values, entering, leaving


def outcomes_of(distribution: Distribution) -> Iterator[tuple[Tensor, Tensor]]:
    """Every outcome (the same for all examples) with its probabilities (N,); a Gaussian's by quadrature."""
    if isinstance(distribution, Categorical):
        for label in range(distribution.logits.shape[-1]):
            yield torch.full(distribution.batch_shape, label), distribution.probs[:, label].detach()
        return
    assert isinstance(distribution, Independent)
    if isinstance(distribution.base_dist, Bernoulli):
        for row in torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * distribution.event_shape[0]):
            outcome = row.expand(len(distribution.mean), -1)
            yield outcome, distribution.log_prob(outcome).exp().detach()
        return
    assert isinstance(distribution.base_dist, Normal)
    # Gauss and Hermite's three nodes are exact for polynomials of up to the fifth degree
    nodes = torch.cartesian_prod(*[torch.tensor([-(3**0.5), 0.0, 3**0.5])] * distribution.event_shape[0])
    for node in nodes:
        weight = torch.where(node == 0, 2 / 3, 1 / 6).prod()
        outcome = distribution.base_dist.loc + node * distribution.base_dist.scale
        yield outcome.detach(), weight.expand(len(outcome))


# --- the error of the Kronecker approximation ----------------------------------------------------------------------

INPUTS, GRADIENTS = "ab", "gh"


def partitions(names: str) -> Iterator[list[str]]:
    """Every way to split the names into groups."""
    if not names:
        yield []
        return
    for rest in partitions(names[1:]):
        yield [names[0], *rest]
        for index, group in enumerate(rest):
            yield [*rest[:index], names[0] + group, *rest[index + 1 :]]


class Moments:
    """Joint moments and cumulants of a layer's inputs a, b and output gradients g, h under one distribution.

    Args:
        inputs: (M, i) with the 1 of the bias.
        gradients: (M, o).
        probabilities: (M,) of the rows, summing to 1.
    """

    def __init__(self, inputs: Tensor, gradients: Tensor, probabilities: Tensor) -> None:
        self.rows = {name: inputs if name in INPUTS else gradients for name in INPUTS + GRADIENTS}
        self.probabilities = probabilities

    def moment(self, names: str) -> Tensor:
        """E of the product, with an axis for each name."""
        terms = [self.rows[name] for name in names]
        return torch.einsum(f"n,{','.join('n' + name for name in names)}->{names}", self.probabilities, *terms)

    def cumulant(self, names: str) -> Tensor:
        """By the moments of every partition: Σ (-1)^(k - 1) (k - 1)! Π E[group], with k groups."""
        total = torch.zeros([self.rows[name].shape[1] for name in names])
        for groups in partitions(names):
            sign = (-1) ** (len(groups) - 1) * math.factorial(len(groups) - 1)
            total += sign * self.product(groups, self.moment, names)
        return total

    def product(self, groups: Sequence[str], of: Callable[[str], Tensor], names: str) -> Tensor:
        """Π of(group), with an axis for each name."""
        return torch.einsum(f"{','.join(groups)}->{names}", *[of(group) for group in groups])

    def sum_of_cumulants(self, terms: Sequence[Sequence[str]]) -> Tensor:
        """Σ Π κ(group) over terms, axes in the order of `Unit.block.to_dense()`: output, input, output, input."""
        return sum((self.product(groups, self.cumulant, "gahb") for groups in terms), torch.zeros(()))

    def block_error(self) -> Tensor:
        """E[a b g h] - E[a b] E[g h]."""
        return self.moment("gahb") - torch.einsum("ab,gh->gahb", self.moment("ab"), self.moment("gh"))


ERROR_TERMS = [["abgh"], ["a", "bgh"], ["b", "agh"]]
"""κ(a, b, g, h) + E[a] κ(b, g, h) + E[b] κ(a, g, h): the error by Martens & Grosse 2015, section 3.1."""

PRODUCT_TERMS = [["ab", "gh"], ["a", "b", "gh"]]
"""What makes E[a b] E[g h] where E[g] = 0."""


def other_terms() -> list[list[str]]:
    """The partitions that stand for neither: each holds κ(g), κ(h) or a covariance of an input and a gradient."""
    known = {frozenset(map(frozenset, groups)) for groups in ERROR_TERMS + PRODUCT_TERMS}
    return [groups for groups in partitions("abgh") if frozenset(map(frozenset, groups)) not in known]


def rows_of_layers(
    model: nn.Sequential, inputs: Tensor, outcomes: Sequence[tuple[Tensor, Tensor]]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each layer of an MLP the rows and probabilities that `Moments` takes, over examples and outcomes."""
    outputs, entering, leaving = traced(model, inputs)
    found = []
    for before, after in zip(entering, leaving, strict=True):
        extended = torch.cat((before, torch.ones(len(before), 1)), dim=1).detach()
        gradients = []
        for outcome, _ in outcomes:
            loss = functional.cross_entropy(outputs, outcome, reduction="sum")
            gradients.append(torch.autograd.grad(loss, after, retain_graph=True)[0])
        probabilities = torch.cat([weight for _, weight in outcomes]) / len(inputs)
        found.append((extended.repeat(len(outcomes), 1), torch.cat(gradients), probabilities))
    return found


def all_labels(model: nn.Sequential, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(outcomes_of(Categorical(logits=model(inputs))))


def test_error_of_the_kronecker_approximation_is_the_sum_of_three_cumulants() -> None:
    """For every pair of weights of every layer, with the labels enumerated by their probabilities.

    The columns of the exact metric have the Fisher's second moments but not mean 0, so the cumulants are of labels.
    """
    model, inputs = network()
    units, metric = observed(model, inputs, exact)
    for unit, rows in zip(units, rows_of_layers(model, inputs, all_labels(model, inputs)), strict=True):
        moments = Moments(*rows)
        error = fisher_block(unit, metric.losses()) - unit.block.to_dense()
        expected = moments.sum_of_cumulants(ERROR_TERMS).flatten(2).flatten(0, 1)
        torch.testing.assert_close(error, expected, rtol=0, atol=1e-12)
        assert float(error.norm() / unit.block.to_dense().norm()) > 0.01  # there is an error to speak of


def test_bias_blocks_have_no_error_since_cumulants_of_a_constant_vanish() -> None:
    model, inputs = network()
    units, metric = observed(model, inputs, exact)
    for unit in units:
        outputs, columns = unit.matrix(unit.parameters)[0].shape
        error = fisher_block(unit, metric.losses()) - unit.block.to_dense()
        error = error.reshape(outputs, columns, outputs, columns)
        assert float(error[:, -1, :, -1].abs().max()) < 1e-14
        assert float(error[:, :-1, :, -1].abs().max()) > 1e-3


def test_under_the_empirical_fisher_three_cumulants_are_not_the_error() -> None:
    """Its gradients neither have mean 0 nor are uncorrelated with the inputs; with those terms the sum is whole."""
    model, inputs = network()
    units, metric = observed(model, inputs, empirical)
    one = torch.ones(EXAMPLES)
    for unit, rows in zip(units, rows_of_layers(model, inputs, [(labels(), one)]), strict=True):
        moments = Moments(*rows)
        error = fisher_block(unit, metric.losses()) - unit.block.to_dense()
        torch.testing.assert_close(error, moments.block_error().flatten(2).flatten(0, 1), rtol=0, atol=1e-12)
        three = moments.sum_of_cumulants(ERROR_TERMS).flatten(2).flatten(0, 1)
        assert float((error - three).norm() / error.norm()) > 0.1
        # E[a b] E[g h] itself is made of more partitions as soon as E[g] is not 0
        mean = moments.moment("g")
        square = torch.einsum("ab,g,h->gahb", moments.moment("ab"), mean, mean)
        rest = (moments.sum_of_cumulants(other_terms()) - square).flatten(2).flatten(0, 1)
        torch.testing.assert_close(error, three + rest, rtol=0, atol=1e-12)


def test_drawn_labels_miss_the_cumulant_sum_by_the_inverse_of_their_number() -> None:
    """E[g] and E[a g] are 0 up to the root of it, and every term that goes with them holds two such cumulants."""
    model, inputs = network()
    generator = torch.Generator().manual_seed(3)
    probabilities = torch.stack([weight for _, weight in all_labels(model, inputs)], dim=1)
    inputs_of_layer, gradients, _ = rows_of_layers(model, inputs, all_labels(model, inputs))[1]
    misses = []
    for draws in (100, 10_000):
        found = []
        for _ in range(100):
            drawn = torch.multinomial(probabilities, draws, replacement=True, generator=generator)
            frequencies = functional.one_hot(drawn, CLASSES).double().mean(1)
            moments = Moments(inputs_of_layer, gradients, frequencies.T.flatten() / EXAMPLES)
            found.append(float((moments.block_error() - moments.sum_of_cumulants(ERROR_TERMS)).norm()))
        misses.append(statistics.mean(found))
    assert 75 < misses[0] / misses[1] < 133


# --- the mean of the gradients -------------------------------------------------------------------------------------

DISTRIBUTIONS: dict[str, Callable[[Tensor], Distribution]] = {
    "categorical": lambda y: Categorical(logits=y),
    "bernoulli": lambda y: Independent(Bernoulli(logits=y), 1),
    "gaussian": lambda y: Independent(Normal(y, torch.full_like(y, 0.7)), 1),
}


@pytest.mark.parametrize("family", DISTRIBUTIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_at_every_layer_have_mean_0_over_the_outcomes_of_the_model(name: str, family: str) -> None:
    """For each example by itself, so that no function of the inputs is correlated with them either."""
    model, inputs = network(name)
    outputs, _, leaving = traced(model, inputs)
    distribution = DISTRIBUTIONS[family](outputs)
    means = [torch.zeros_like(after) for after in leaving]
    largest = 0.0
    for outcome, weight in outcomes_of(distribution):
        loss = Fisher(distribution=distribution, draw=outcome).losses().sum()
        for mean, gradient in zip(means, torch.autograd.grad(loss, leaving, retain_graph=True), strict=True):
            mean += weight.reshape(-1, *[1] * (gradient.dim() - 1)) * gradient
            largest = max(largest, float(gradient.abs().max()))
    assert largest > 0.1
    for mean in means:
        assert float(mean.abs().max()) < 1e-12


def standard_errors(gradients: Tensor) -> Tensor:
    """Mean over the first axis in units of its own standard error; entries that never move left out."""
    moving = gradients.std(0) > 1e-12
    return (gradients.mean(0) / gradients.std(0) * math.sqrt(len(gradients)))[moving]


@pytest.mark.parametrize("name", NETWORKS)
def test_drawn_gradients_have_mean_0_within_5_standard_errors_and_those_of_the_data_have_not(name: str) -> None:
    model, inputs = network(name)
    repeated = inputs.repeat(1000, *[1] * (inputs.dim() - 1))
    outputs, _, leaving = traced(model, repeated)
    drawn = Fisher(distribution=Categorical(logits=outputs), generator=torch.Generator().manual_seed(2))
    targets = labels().repeat(1000)
    data = EmpiricalFisher(example_losses=functional.cross_entropy(outputs, targets, reduction="none"))
    for after in leaving:
        sampled, taken = (
            torch.autograd.grad(metric.losses().sum(), after, retain_graph=True)[0] for metric in (drawn, data)
        )
        assert float(standard_errors(sampled).abs().max()) < 5
        assert float(standard_errors(taken).abs().max()) > 20


# --- the Fisher as an expected Hessian -----------------------------------------------------------------------------


def test_fisher_of_the_logits_is_the_expected_hessian_of_the_negative_log_likelihood() -> None:
    logits = torch.randn(CLASSES) * 2
    p = logits.softmax(0)
    hessian = torch.zeros(CLASSES, CLASSES)
    for label in range(CLASSES):

        def loss(z: Tensor, label: int = label) -> Tensor:
            return -z.log_softmax(0)[label]

        hessian += p[label] * torch.func.hessian(loss)(logits)
    point = logits.unsqueeze(0).requires_grad_()
    fisher = dense_fisher(Fisher(distribution=Categorical(logits=point), kind="exact").losses(), [point])
    torch.testing.assert_close(fisher, hessian, rtol=0, atol=1e-14)


def test_fisher_of_a_gaussian_is_the_expected_hessian_and_2_for_its_log_deviation() -> None:
    """Here the Hessian depends on the outcome, so that of one draw is another matrix."""
    parameters = torch.tensor([0.4, -0.6], requires_grad=True)  # mean and log of the deviation
    normal = Normal(parameters[:1], parameters[1:].exp())
    fisher = dense_fisher(Fisher(distribution=normal, kind="exact").losses(), [parameters])
    hessians = []
    for node, weight in ((-(3**0.5), 1 / 6), (0.0, 2 / 3), (3**0.5, 1 / 6)):
        outcome = (normal.loc + node * normal.scale).detach()

        def loss(values: Tensor, outcome: Tensor = outcome) -> Tensor:
            return -Normal(values[0], values[1].exp()).log_prob(outcome).sum()

        hessians.append(weight * torch.func.hessian(loss)(parameters.detach()))
    torch.testing.assert_close(torch.stack(hessians).sum(0), fisher, rtol=0, atol=1e-13)
    torch.testing.assert_close(fisher, torch.diag(torch.tensor([math.exp(1.2), 2.0])), rtol=0, atol=1e-13)
    assert relative_error(hessians[0] * 6, fisher) > 0.5


def test_fisher_of_all_weights_is_the_expected_hessian_and_not_that_of_the_data() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, CLASSES))
    inputs = torch.randn(EXAMPLES, 2)
    names, parameters = zip(*model.named_parameters(), strict=True)
    sizes = [parameter.numel() for parameter in parameters]

    def loss(flat: Tensor, weights: Tensor) -> Tensor:
        parts = zip(names, flat.split(sizes), parameters, strict=True)
        values = {name: part.reshape(parameter.shape) for name, part, parameter in parts}
        log_probabilities = torch.func.functional_call(model, values, (inputs,)).log_softmax(1)
        return -(weights * log_probabilities).sum(1).mean()

    flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
    logits = model(inputs)
    fisher = dense_fisher(exact(logits).losses(), parameters)
    hessian = torch.func.hessian(loss)
    torch.testing.assert_close(hessian(flat, logits.detach().softmax(1)), fisher, rtol=0, atol=1e-12)
    assert relative_error(hessian(flat, functional.one_hot(labels(), CLASSES).double()), fisher) > 0.1


# --- kinds of the Fisher -------------------------------------------------------------------------------------------


def test_exact_columns_of_a_categorical_square_to_its_covariance() -> None:
    logits = (torch.randn(7, 5) * 2).requires_grad_()
    losses = Fisher(distribution=Categorical(logits=logits), kind="exact").losses()
    columns = torch.stack([torch.autograd.grad(row.sum(), logits, retain_graph=True)[0] for row in losses])
    p = logits.detach().softmax(1)
    covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    torch.testing.assert_close(torch.einsum("cni,cnj->nij", columns, columns), covariance, rtol=0, atol=1e-15)


def tanabe_sagae(p: Tensor) -> Tensor:
    """(N, K) to (N, K, K - 1): the lower triangular L with L Lᵀ = diag(p) - p pᵀ (Tanabe & Sagae 1992)."""
    rest = 1 - p.cumsum(1)
    before = torch.cat((torch.ones(len(p), 1), rest[:, :-1]), dim=1)
    root = torch.zeros(*p.shape, p.shape[1] - 1)
    for j in range(p.shape[1] - 1):
        root[:, j, j] = (p[:, j] * rest[:, j] / before[:, j]).sqrt()
        root[:, j + 1 :, j] = -p[:, j + 1 :] * (p[:, j] / (before[:, j] * rest[:, j])).sqrt()[:, None]
    return root


class TriangularColumns:
    """A metric of one's own: the Fisher of a Categorical by one column less than it has outcomes."""

    summable = False

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def losses(self) -> Tensor:
        return torch.einsum("nkj,nk->jn", tanabe_sagae(self.logits.detach().softmax(1)), self.logits)

    def exact_losses(self) -> Tensor:
        return self.losses()


@pytest.mark.parametrize("name", NETWORKS)
def test_one_column_less_than_outcomes_gives_the_same_factors(name: str) -> None:
    model, inputs = network(name)
    p = torch.softmax(model(inputs), 1).detach()
    covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    root = tanabe_sagae(p)
    torch.testing.assert_close(root @ root.mT, covariance, rtol=0, atol=1e-14)
    torch.testing.assert_close(root[:, :-1], torch.linalg.cholesky(covariance[:, :-1, :-1]), rtol=0, atol=1e-12)
    fewer, metric = observed(model, inputs, TriangularColumns)
    assert metric.losses().shape[0] == CLASSES - 1
    units, _ = observed(model, inputs, exact)
    for one, two in zip(fewer, units, strict=True):
        torch.testing.assert_close(one.block.to_dense(), two.block.to_dense(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("curvature", ["kfac", "full"])
def test_error_of_the_sampled_fisher_shrinks_with_the_root_of_the_draws(curvature: str) -> None:
    model, inputs = network()
    units, _ = observed(model, inputs, exact, curvature)
    generator = torch.Generator().manual_seed(4)

    def drawn(outputs: Tensor) -> Metric:
        return Fisher(distribution=Categorical(logits=outputs), generator=generator)

    errors = []
    for draws in (10, 1000):
        squares = []
        for _ in range(100):
            sampled, _ = observed(model, inputs.repeat(draws, 1), drawn, curvature)
            pairs = zip(sampled, units, strict=True)
            squares.append([relative_error(one.block.to_dense(), two.block.to_dense()) ** 2 for one, two in pairs])
        errors.append(torch.tensor(squares).mean(0).sqrt())
    ratio = errors[0] / errors[1]
    assert float((ratio / 10 - 1).abs().max()) < 0.3
    assert float(errors[1].max()) < 0.02


# --- the vector field of natural gradient on linear regression -----------------------------------------------------


def regression(kind: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one dimension, of a line with an offset; after Kunstner, Balles & Hennig 2019, figure 1."""
    generator = torch.Generator().manual_seed(6)
    inputs = torch.rand(400, 1, generator=generator) * 2
    noise = torch.randn(400, 1, generator=generator)
    if kind == "misspecified":
        return inputs, 1 + inputs**2 + 0.3 * inputs**2 * noise  # a curve, its noise growing with the input
    return inputs, 1 + 2 * inputs + 0.01 * noise


def minimiser(inputs: Tensor, targets: Tensor) -> Tensor:
    """(2,): slope and offset of least squares."""
    extended = torch.cat((inputs, torch.ones_like(inputs)), dim=1)
    solution: Tensor = torch.linalg.lstsq(extended, targets).solution
    return solution.flatten()


def step_from(point: Tensor, data: tuple[Tensor, Tensor], *, curvature: str, fisher: str) -> Tensor:
    """(2,): the change of slope and offset by one step of length 1 without damping."""
    inputs, targets = data
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(point[0])
        model.bias.fill_(point[1])
    optimizer = KFAC(
        model,
        curvature=curvature,  # type: ignore[arg-type]
        lr=1.0,
        damping=0.0,
        damping_mode="exact",
        momentum=0.0,
        max_kl=None,
    )
    with optimizer.capture():
        values = model(inputs)
    sigma = 0.7
    losses = (values - targets).square().flatten() / (2 * sigma**2)
    true = GaussNewton(values=values, sigma=sigma, kind="exact")
    optimizer.update_statistics(true if fisher == "true" else EmpiricalFisher(example_losses=losses))
    losses.mean().backward()
    optimizer.step()
    return torch.stack((model.weight.detach().flatten(), model.bias.detach())).flatten() - point


def around(centre: Tensor, radius: float) -> list[Tensor]:
    """Sixteen points on a circle."""
    angles = torch.arange(16) * math.pi / 8
    return [centre + radius * torch.stack((angle.cos(), angle.sin())) for angle in angles]


def degrees(one: Tensor, other: Tensor) -> float:
    return math.degrees(math.atan2(float((one[0] * other[1] - one[1] * other[0]).abs()), float(one @ other)))


@pytest.mark.parametrize("curvature", ["kfac", "ekfac", "kfoc", "full"])
@pytest.mark.parametrize("kind", ["misspecified", "small residuals"])
def test_natural_gradient_on_linear_regression_points_at_the_minimiser_from_everywhere(
    kind: str, curvature: str
) -> None:
    data = regression(kind)
    best = minimiser(*data)
    for radius in (0.1, 3.0):
        for point in around(best, radius):
            step = step_from(point, data, curvature=curvature, fisher="true")
            torch.testing.assert_close(step, best - point, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["misspecified", "small residuals"])
def test_the_empirical_fisher_points_elsewhere_from_most_places(kind: str) -> None:
    data = regression(kind)
    best = minimiser(*data)
    for radius in (0.1, 3.0):
        angles: dict[str, list[float]] = {"true": [], "empirical": []}
        for point in around(best, radius):
            for fisher, found in angles.items():
                step = step_from(point, data, curvature="full", fisher=fisher)
                found.append(degrees(step, best - point))
        assert max(angles["true"]) < 1e-6
        assert statistics.median(angles["empirical"]) > 40
        assert max(angles["empirical"]) > 90  # away from it


def test_with_small_residuals_steps_by_the_empirical_fisher_grow_towards_the_minimiser() -> None:
    """It falls with the square of the distance, the gradient with the distance: the step is inverse to it."""
    data = regression("small residuals")
    best = minimiser(*data)
    near, far = (
        torch.stack([step_from(point, data, curvature="full", fisher="empirical") for point in around(best, radius)])
        for radius in (0.3, 3.0)
    )
    growth = near.norm(dim=1) / far.norm(dim=1)
    torch.testing.assert_close(growth, torch.full_like(growth, 10.0), rtol=0.05, atol=0)
