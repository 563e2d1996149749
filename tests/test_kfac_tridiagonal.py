"""The block-tridiagonal inverse against dense matrices, and the chains that it takes."""

import copy
import itertools
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import example_gradients
from torch import Tensor, nn
from torch.distributions import Categorical

from acktr.kfac import KFAC, Fisher, GaussNewton, Joint, Metric
from acktr.kfac.chain_block import ChainBlock
from acktr.kfac.chains import ChainUnit
from acktr.kfac.kronecker import factored_damping
from acktr.kfac.tridiagonal import ChainFactors, TridiagonalInverse, decompose

pytestmark = pytest.mark.usefixtures("float64")
QUICK = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def joint_factors(sizes: list[tuple[int, int]], examples: int = 40, correlated: float = 0.6) -> ChainFactors:
    """Factors of a chain of (o, i) layers whose inputs, and gradients, are correlated along the chain."""

    def moments(widths: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        common = torch.randn(examples, max(widths))
        rows = [torch.randn(examples, width) + correlated * common[:, :width] for width in widths]
        own = [(row.T @ row / examples).unsqueeze(0) for row in rows]
        between = [(a.T @ b / examples).unsqueeze(0) for a, b in itertools.pairwise(rows)]
        return own, between

    inputs, inputs_between = moments([columns for _, columns in sizes])
    outputs, outputs_between = moments([rows for rows, _ in sizes])
    return ChainFactors(inputs=inputs, outputs=outputs, inputs_between=inputs_between, outputs_between=outputs_between)


def split(flat: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
    parts = torch.split(flat, [rows * columns for rows, columns in sizes])
    return [part.reshape(1, *size) for part, size in zip(parts, sizes, strict=True)]


def dense(function: Any, sizes: list[tuple[int, int]]) -> Tensor:
    total = sum(rows * columns for rows, columns in sizes)
    return torch.stack(
        [torch.cat([part.flatten() for part in function(split(row, sizes))]) for row in torch.eye(total)]
    )


def slices(sizes: list[tuple[int, int]]) -> list[slice]:
    ends = torch.tensor([0, *(rows * columns for rows, columns in sizes)]).cumsum(0).tolist()
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def decomposed(factors: ChainFactors, damping: float) -> TridiagonalInverse:
    inverse, retries = decompose(factors, damping)
    assert retries == 0
    assert inverse is not None
    return inverse


SIZES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=4)


@QUICK
@given(SIZES, st.integers(0, 1000), st.sampled_from([1e-4, 0.03, 1.0]))
def test_the_implied_fisher_is_the_factored_one_next_to_the_diagonal_and_its_inverse_zero_beyond(
    sizes: list[tuple[int, int]], seed: int, damping: float
) -> None:
    torch.manual_seed(seed)
    factors = joint_factors(sizes)
    inverse = dense(decomposed(factors, damping).apply, sizes)
    torch.testing.assert_close(inverse, inverse.T, rtol=1e-9, atol=1e-9 * float(inverse.abs().max()))
    assert float(torch.linalg.eigvalsh((inverse + inverse.T) / 2).min()) > 0
    implied = torch.linalg.inv(inverse)
    where = slices(sizes)
    scale = float(implied.abs().max())
    for layer, part in enumerate(where):
        A, G = factors.inputs[layer], factors.outputs[layer]
        added_a, added_g = factored_damping(A, G, damping)
        own = torch.kron(G[0] + added_g * torch.eye(len(G[0])), A[0] + added_a * torch.eye(len(A[0])))
        torch.testing.assert_close(implied[part, part], own, rtol=1e-9, atol=1e-10 * scale)
        for other, beyond in enumerate(where):
            if other == layer + 1:
                between = torch.kron(factors.outputs_between[layer][0], factors.inputs_between[layer][0])
                torch.testing.assert_close(implied[part, beyond], between, rtol=1e-9, atol=1e-10 * scale)
            elif other > layer + 1:
                assert float(inverse[part, beyond].abs().max()) == 0


@QUICK
@given(SIZES, st.integers(0, 1000))
def test_multiply_is_semidefinite_with_the_undamped_blocks_on_its_diagonal(
    sizes: list[tuple[int, int]], seed: int
) -> None:
    torch.manual_seed(seed)
    factors = joint_factors(sizes, examples=3)  # singular factors
    inverse = decomposed(factors, 0.05)
    found = dense(lambda parts: inverse.multiply(parts, factors), sizes)
    torch.testing.assert_close(found, found.T)
    assert float(torch.linalg.eigvalsh(found).min()) > -1e-10 * float(found.abs().max())
    for layer, part in enumerate(slices(sizes)):
        torch.testing.assert_close(found[part, part], torch.kron(factors.outputs[layer][0], factors.inputs[layer][0]))


def test_without_damping_multiply_undoes_the_inverse() -> None:
    torch.manual_seed(0)
    sizes = [(2, 3), (3, 2), (2, 4)]
    factors = joint_factors(sizes)
    inverse = decomposed(factors, 0.0)
    gradients = [torch.randn(1, *size) for size in sizes]
    back = inverse.multiply(inverse.apply(gradients), factors)
    for one, two in zip(back, gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-9)


# --- in the optimizer ----------------------------------------------------------------------------------------------


class Heads(nn.Module):
    """Two heads on one torso, declared in another order than they are used."""

    def __init__(self, torso: nn.Module, width: int) -> None:
        super().__init__()
        self.value, self.policy = nn.Linear(width, 1), nn.Linear(width, 3)
        self.torso = torso

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.torso(inputs)
        return self.policy(features), self.value(features).squeeze(-1)


def policy_and_value(kind: Any = "exact", convolutional: bool = False) -> tuple[Heads, Tensor, Any]:
    torch.manual_seed(2)
    if convolutional:
        layers = (nn.Conv2d(2, 3, 2), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 2), nn.Tanh(), nn.Flatten())
        model, inputs = Heads(nn.Sequential(*layers), 8), torch.randn(15, 2, 4, 4)
    else:
        model = Heads(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh()), 4)
        inputs = torch.randn(15, 4)

    def metric(outputs: tuple[Tensor, Tensor]) -> Metric:
        distribution = Categorical(logits=outputs[0], validate_args=False)
        return Joint(Fisher(distribution=distribution, kind=kind), GaussNewton(values=outputs[1], sigma=0.7, kind=kind))

    return model, inputs, metric


def observed(model: nn.Module, inputs: Tensor, metric: Any, weights: Tensor | None = None, **options: Any) -> KFAC:
    optimizer = KFAC(model, structure="block-tridiagonal", **options)
    with optimizer.capture():
        outputs = model(inputs)
    optimizer.update_statistics(metric(outputs), weights)
    return optimizer


def chain_of(optimizer: KFAC) -> tuple[ChainUnit, ChainBlock]:
    unit = optimizer.units[0]
    assert isinstance(unit, ChainUnit)
    return unit, unit.block


@pytest.mark.parametrize("weighted", [False, True])
def test_factors_of_a_chain_with_two_heads_are_those_by_autograd(weighted: bool) -> None:
    model, inputs, metric = policy_and_value()
    weights = torch.arange(15.0).remainder(3) if weighted else None
    optimizer = observed(model, inputs, metric, weights)
    unit, block = chain_of(optimizer)
    assert [[unit.layers[index].name for index in link] for link in block.order] == [
        ["torso.0"],
        ["torso.2"],
        ["value", "policy"],
    ]
    first, second = torch.tanh(model.torso[0](inputs)), None  # type: ignore[index]
    second = torch.tanh(model.torso[2](first))  # type: ignore[index]
    ones = torch.ones(15, 1)
    rows = [torch.cat((part.detach(), ones), 1) for part in (inputs, first, second)]
    losses = metric(model(inputs)).losses()
    biases = [model.torso[0].bias, model.torso[2].bias]  # type: ignore[index]
    found = example_gradients(losses, [*biases, model.value.bias, model.policy.bias])  # a bias's gradient is g itself
    gradients = torch.split(found, [5, 4, 4], dim=-1)
    share = (torch.ones(15) if weights is None else weights) / (15 if weights is None else float(weights.sum()))
    factors = block.factors()
    for link in range(3):
        torch.testing.assert_close(factors.inputs[link][0], torch.einsum("n,ni,nj->ij", share, rows[link], rows[link]))
        G = torch.einsum("n,cni,cnj->ij", share, gradients[link], gradients[link])
        torch.testing.assert_close(factors.outputs[link][0], G)
    for link in range(2):
        A = torch.einsum("n,ni,nj->ij", share, rows[link], rows[link + 1])
        G = torch.einsum("n,cni,cnj->ij", share, gradients[link], gradients[link + 1])
        torch.testing.assert_close(factors.inputs_between[link][0], A)
        torch.testing.assert_close(factors.outputs_between[link][0], G)


def test_the_heads_are_independent_of_each_other_in_the_exact_metric() -> None:
    model, inputs, metric = policy_and_value()
    _, block = chain_of(observed(model, inputs, metric))
    assert float(block.factors().outputs[-1][0, 0, 1:].abs().max()) < 1e-14
    _, sampled = chain_of(observed(*policy_and_value("sampled")))
    joint = torch.cat(
        [
            torch.cat((sampled.factors().outputs[1][0], sampled.factors().outputs_between[1][0]), 1),
            torch.cat((sampled.factors().outputs_between[1][0].T, sampled.factors().outputs[2][0]), 1),
        ]
    )
    assert float(torch.linalg.eigvalsh(joint).min()) > -1e-12  # of one sample, whose cross terms it keeps


@pytest.mark.parametrize("convolutional", [False, True])
def test_a_step_is_the_dense_inverse_times_the_gradient(convolutional: bool) -> None:
    model, inputs, metric = policy_and_value(convolutional=convolutional)
    optimizer = observed(model, inputs, metric, lr=0.3, max_kl=None, momentum=0.0, damping=0.02)
    unit, block = chain_of(optimizer)
    policy, value = model(inputs)
    (torch.log_softmax(policy, -1)[:, 0].mean() - value.square().mean()).backward()
    gradient = unit.matrix([cast(Tensor, parameter.grad) for parameter in unit.parameters])
    before = unit.matrix([parameter.detach().clone() for parameter in unit.parameters])
    optimizer.step()
    step = unit.matrix([parameter.detach() for parameter in unit.parameters]) - before
    inverse = dense(decomposed(block.factors(), 0.02).apply, block.shapes)
    torch.testing.assert_close(step, -0.3 * inverse @ gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(optimizer.kl_predicted, step @ block.to_dense() @ step / 2)


def test_a_convolution_enters_by_its_mean_patch_and_summed_gradient() -> None:
    model, inputs, metric = policy_and_value(convolutional=True)
    _, block = chain_of(observed(model, inputs, metric))
    reduced = KFAC(model, conv_factors="reduce")
    with reduced.capture():
        outputs = model(inputs)
    reduced.update_statistics(metric(outputs))
    for link, name in enumerate(["torso.0", "torso.2"]):
        expected = next(unit for unit in reduced.units if unit.name == name).block
        torch.testing.assert_close(block.inputs[link].value, expected.inputs.value)  # type: ignore[attr-defined]
        torch.testing.assert_close(block.outputs[link].value, expected.outputs.value)  # type: ignore[attr-defined]


def test_one_layer_is_no_chain_of_neighbours_and_equals_block_diagonal() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(3, 2), torch.randn(9, 3)
    changes = []
    for structure in ("block-diagonal", "block-tridiagonal"):
        twin = copy.deepcopy(model)
        optimizer = KFAC(twin, structure=cast(Any, structure))
        with optimizer.capture():
            outputs = twin(inputs)
        optimizer.update_statistics(GaussNewton(values=outputs, kind="exact"))
        outputs.square().mean().backward()
        optimizer.step()
        changes.append(torch.cat([parameter.detach().flatten() for parameter in twin.parameters()]))
    torch.testing.assert_close(*changes)


def train(model: Heads, optimizer: KFAC, inputs: Tensor, metric: Any, steps: int) -> float:
    loss = torch.zeros(())
    for _ in range(steps):
        with optimizer.capture():
            policy, value = model(inputs)
        optimizer.update_statistics(metric((policy, value)))
        optimizer.zero_grad()
        loss = -torch.log_softmax(policy, -1)[:, 0].mean() + (value - 1).square().mean() / 2
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("convolutional", [False, True])
def test_a_chain_trains_and_resumes_to_the_bit(convolutional: bool) -> None:
    model, inputs, metric = policy_and_value(convolutional=convolutional)
    options: Any = {"structure": "block-tridiagonal", "max_kl": 1e-2, "inverse_interval": 3}
    optimizer = KFAC(model, **options)
    first = train(model, optimizer, inputs, metric, 1)
    assert train(model, optimizer, inputs, metric, 20) < first / 2
    twin = copy.deepcopy(model)
    resumed = KFAC(twin, **options)
    resumed.load_state_dict(optimizer.state_dict())
    for one, two in ((model, optimizer), (twin, resumed)):
        train(one, two, inputs, metric, 5)
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(ValueError, match=r"structure 'block-tridiagonal', this optimizer has 'block-diagonal'"):
        KFAC(twin).load_state_dict(optimizer.state_dict())


def test_an_empty_batch_and_one_that_is_not_finite_change_no_byte() -> None:
    model, inputs, metric = policy_and_value()
    optimizer = observed(model, inputs, metric)
    _, block = chain_of(optimizer)
    before = copy.deepcopy(block.factors())
    for spoilt, weights in ((inputs, torch.zeros(15)), (inputs * float("nan"), None)):
        with optimizer.capture():
            outputs = model(spoilt)
        optimizer.update_statistics(metric(outputs), weights)
    after = block.factors()
    for name in ("inputs", "outputs", "inputs_between", "outputs_between"):
        for one, two in zip(getattr(before, name), getattr(after, name), strict=True):
            assert torch.equal(one, two)


def test_between_two_refreshes_the_trust_region_knows_the_newest_factors() -> None:
    """F̂ of the factors that were decomposed let steps of 70 times the KL pass."""
    model, inputs, metric = policy_and_value()
    optimizer = observed(model, inputs, metric, stat_decay=0.0, inverse_interval=1000, lr=0.0)
    optimizer.refresh()
    _, block = chain_of(optimizer)
    before = block.to_dense()
    optimizer.steps += 1
    with optimizer.capture():
        outputs = model(3 * inputs)
    optimizer.update_statistics(metric(outputs))
    after, factors = block.to_dense(), block.factors()
    rows, columns = block.shapes[0]
    part = slice(0, rows * columns)
    torch.testing.assert_close(after[part, part], torch.kron(factors.outputs[0][0], factors.inputs[0][0]))
    assert float(after[part, part].trace()) > 2 * float(before[part, part].trace())


def test_a_batch_that_reaches_one_head_of_a_link_leaves_the_other_s_gradients_at_zero() -> None:
    for reached in ("policy", "value"):
        model, inputs, metric = policy_and_value()
        optimizer = observed(model, inputs, metric, stat_decay=0.0)
        optimizer.steps += 1
        with optimizer.capture():
            policy, value = model(inputs)
        distribution = Categorical(logits=policy, validate_args=False)
        part: Metric = Fisher(distribution=distribution, kind="exact")
        optimizer.update_statistics(part if reached == "policy" else GaussNewton(values=value, kind="exact"))
        _, block = chain_of(optimizer)
        last = block.factors().outputs[-1][0].diagonal()  # the value's row first, as the model declares them
        assert (last > 0).tolist() == (
            [False, True, True, True] if reached == "policy" else [True, False, False, False]
        )


def test_a_layer_that_a_later_batch_leaves_out_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = KFAC(model, structure="block-tridiagonal")

    def observe() -> None:
        with optimizer.capture():
            logits = model(torch.randn(8, 4))
        optimizer.update_statistics(Fisher(distribution=Categorical(logits=logits)))

    observe()
    model[0].requires_grad_(False)
    with pytest.raises(ValueError, match="the metric's losses do not reach layer 0"):
        observe()


# --- what is no chain ----------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        first = torch.tanh(self.one(inputs))
        return self.three(first + self.two(first))  # type: ignore[no-any-return]


class TwoInputs(Residual):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.three(self.one(inputs) * self.two(inputs.flip(1)))  # type: ignore[no-any-return]


class Parallel(Residual):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.two(inputs) + self.one(inputs)  # type: ignore[no-any-return]


class Again(Residual):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.three(self.two(torch.tanh(self.one(torch.tanh(self.one(inputs))))))  # type: ignore[no-any-return]


class Unreached(Residual):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.two(self.one(inputs))  # type: ignore[no-any-return]


class OtherFunctions(Residual):
    def forward(self, inputs: Tensor) -> Tensor:
        first = self.one(inputs)
        return self.two(torch.tanh(first)) + self.three(torch.relu(first))  # type: ignore[no-any-return]


class Fork(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.four = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        first = torch.tanh(self.one(inputs))
        return self.two(first) + self.four(torch.tanh(self.three(first)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Residual, "layer three takes its input from layers one and two"),
        (TwoInputs, "layer three takes its input from layers one and two"),
        (Parallel, "do not reach layer three"),
        (Again, "layer one is used more than once"),
        (Unreached, "do not reach layer three"),
        (OtherFunctions, "layers two and three take different functions of one layer's output"),
        (Fork, "layer one gives its output to layers two and three, which go on"),
    ],
)
def test_what_is_no_chain_is_refused_before_any_step_with_the_layer_named(model: type[nn.Module], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        observed(model(), torch.randn(6, 3), lambda outputs: GaussNewton(values=outputs, kind="exact"))
    assert "use structure 'block-diagonal'" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (lambda: nn.Conv2d(2, 2, 1, groups=2), {}, "is a grouped convolution"),
        (lambda: nn.Linear(2, 2), {"curvature": "ekfac"}, "needs curvature 'kfac', got 'ekfac'"),
        (lambda: nn.Linear(2, 2), {"damping_mode": "exact"}, "needs damping_mode 'factored', got 'exact'"),
    ],
)
def test_what_the_structure_cannot_do_is_refused_at_once(model: Any, options: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        KFAC(model(), structure="block-tridiagonal", **options)


def test_folded_frames_are_no_examples() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frame, self.head = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.frame(inputs.flatten(0, 1)).reshape(len(inputs), 4))  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match="layer frame sees 12 rows for 6 examples"):
        observed(Folded(), torch.randn(6, 2, 3), lambda outputs: GaussNewton(values=outputs, kind="exact"))
