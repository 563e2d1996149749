"""Factors against dense oracles over geometries, activations and sharing."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import block_order, dense_fisher, example_gradients, fisher_block, relative_error, unit_named
from torch import Tensor, nn
from torch.distributions import Categorical

from acktr.kfac import KFAC, Fisher, GaussNewton
from acktr.kfac.layers import input_rows, output_positions
from acktr.kfac.statistics import Thinning

pytestmark = pytest.mark.usefixtures("float64")
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, tuple[int, int]]:
    groups = draw(st.sampled_from([1, 2]))
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 2)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding: Any = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    mode = draw(st.sampled_from(["zeros", "reflect", "circular", "replicate"]))
    if draw(st.booleans()) and stride == (1, 1):
        padding = "same"
    torch.manual_seed(draw(st.integers(0, 1000)))
    conv = nn.Conv2d(
        2 * groups,
        2 * groups,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
        dtype=torch.float64,
    )
    return conv, (draw(st.integers(5, 7)), draw(st.integers(5, 7)))


@QUICK
@given(convolutions())
def test_patches_times_weight_are_the_convolution(case: tuple[nn.Conv2d, tuple[int, int]]) -> None:
    conv, size = case
    inputs = torch.randn(3, conv.in_channels, *size)
    rows = torch.cat([part for _, part in input_rows(conv, inputs)])
    weight = conv.weight.detach().reshape(conv.groups, conv.out_channels // conv.groups, -1)
    outputs = torch.einsum("ntgi,goi->ngot", rows, weight).flatten(1, 2)
    if conv.bias is not None:
        outputs = outputs + conv.bias.detach()[:, None]
    expected = conv(inputs).detach()
    assert output_positions(conv, inputs) == expected[0, 0].numel()
    torch.testing.assert_close(outputs.reshape(expected.shape), expected)


@QUICK
@given(convolutions(), st.booleans())
def test_reduced_factors_of_any_convolution_are_those_of_mean_patches_and_summed_gradients(
    case: tuple[nn.Conv2d, tuple[int, int]], inplace: bool
) -> None:
    conv, size = case
    model = nn.Sequential(conv, nn.ReLU(inplace=inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    inputs = torch.randn(4, conv.in_channels, *size)
    optimizer = KFAC(model, conv_factors="reduce")
    with optimizer.capture():
        outputs = model(inputs)
    optimizer.update_statistics(GaussNewton(values=outputs, kind="exact"))
    probe = conv(inputs).detach().requires_grad_()
    pooled = torch.relu(probe).mean((2, 3))
    gradients = torch.stack(
        [torch.autograd.grad(pooled[:, c].sum(), probe, retain_graph=True)[0] for c in range(pooled.shape[1])]
    )
    summed = gradients.sum((3, 4)).reshape(gradients.shape[0], 4, conv.groups, -1)
    expected = torch.einsum("cngo,cngp->gop", summed, summed) / 4
    block = optimizer.units[0].block
    torch.testing.assert_close(block.outputs.value, expected)  # type: ignore[attr-defined]  # a Kronecker block
    mean = torch.cat([part for _, part in input_rows(conv, inputs)]).mean(1)
    if conv.bias is not None:
        mean = torch.cat((mean, torch.ones(*mean.shape[:2], 1)), -1)
    torch.testing.assert_close(
        block.inputs.value,  # type: ignore[attr-defined]  # a Kronecker block
        torch.einsum("ngi,ngj->gij", mean, mean) / 4,
    )


@QUICK
@given(st.booleans(), st.booleans(), st.integers(1, 3), st.integers(0, 100))
def test_one_example_is_exact_with_in_place_activations_and_extra_axes(
    inplace: bool, bias: bool, positions: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(3, 4, bias=bias), nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(4 * positions, 3)
    )
    optimizer = KFAC(model, conv_factors="expand")
    with optimizer.capture():
        logits = model(torch.randn(1, positions, 3))
    metric = Fisher(distribution=Categorical(logits=logits), kind="exact")
    optimizer.update_statistics(metric)
    head = unit_named(optimizer, "3")
    torch.testing.assert_close(head.block.to_dense(), fisher_block(head, metric.losses()), rtol=1e-9, atol=1e-11)
    first = unit_named(optimizer, "0")
    if positions == 1:
        expected = fisher_block(first, metric.losses())
        torch.testing.assert_close(first.block.to_dense(), expected, rtol=1e-9, atol=1e-11)


class Twice(nn.Module):
    """One layer used at two places, or two layers that share a weight."""

    def __init__(self, *, tied: bool, shared_bias: bool) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.two = nn.Linear(3, 3) if tied else self.one
        if tied:
            self.two.weight = self.one.weight
            if shared_bias:
                self.two.bias = self.one.bias

    def forward(self, inputs: Tensor) -> Tensor:
        return self.one(inputs[:, 0]) + self.two(inputs[:, 1])  # type: ignore[no-any-return]


@QUICK
@given(st.booleans(), st.booleans(), st.integers(0, 100))
def test_a_weight_used_twice_has_one_block_over_both_uses(tied: bool, shared_bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    model = Twice(tied=tied, shared_bias=shared_bias)
    optimizer = KFAC(model, conv_factors="reduce")
    with optimizer.capture():
        outputs = model(torch.randn(1, 2, 3))
    metric = GaussNewton(values=outputs, kind="exact")
    optimizer.update_statistics(metric)
    assert sum(p is model.one.weight for unit in optimizer.units for p in unit.parameters) == 1
    # both uses receive the same gradient, where the reduce setting is exact
    unit = optimizer.units[0]
    torch.testing.assert_close(unit.block.to_dense(), fisher_block(unit, metric.losses()), rtol=1e-9, atol=1e-11)
    covered = {id(p) for unit in optimizer.units for p in unit.parameters}
    assert covered == {id(p) for p in model.parameters()}


@QUICK
@given(st.integers(2, 8), st.integers(0, 1000))
def test_permuting_or_repeating_the_examples_changes_no_factor(examples: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    inputs = torch.randn(examples, 1, 3, 3)
    blocks = []
    for data in (inputs, inputs[torch.randperm(examples)], inputs.repeat(2, 1, 1, 1)):
        optimizer = KFAC(model)
        with optimizer.capture():
            logits = model(data)
        optimizer.update_statistics(Fisher(distribution=Categorical(logits=logits), kind="exact"))
        blocks.append([unit.block.to_dense() for unit in optimizer.units])
    for other in blocks[1:]:
        for one, two in zip(blocks[0], other, strict=True):
            torch.testing.assert_close(one, two)


@QUICK
@given(convolutions(), st.integers(1, 3))
def test_thinned_inputs_average_to_all_inputs_over_the_turns_of_the_grid(
    case: tuple[nn.Conv2d, tuple[int, int]], every: int
) -> None:
    conv, size = case
    inputs = torch.randn(3, conv.in_channels, *size)
    everything = torch.cat([rows for _, rows in input_rows(conv, inputs)])
    found = [list(input_rows(conv, inputs, Thinning(every=every, turn=turn))) for turn in range(every**2)]
    for pairs in found:
        for part, rows in pairs:
            owners = torch.arange(3)[part]
            assert len(owners) == len(rows)
            assert set(owners.tolist()) <= {0, 1, 2}
    every_turn = [rows for pairs in found for _, rows in pairs]
    taken = sum(len(rows) * rows.shape[1] for rows in every_turn)
    turns = 1 if taken == everything[..., 0, 0].numel() else every**2
    assert taken == turns * everything[..., 0, 0].numel()  # on a map too small for the grids each turn takes all
    moment = sum(torch.einsum("ntgi,ntgj->gij", rows, rows) for rows in every_turn)
    torch.testing.assert_close(moment, turns * torch.einsum("ntgi,ntgj->gij", everything, everything))


def test_a_batch_of_as_many_examples_as_grids_sees_every_position() -> None:
    conv = nn.Conv2d(1, 1, 1)
    places = torch.arange(20.0).reshape(1, 1, 4, 5).expand(9, 1, 4, 5)
    rows = torch.cat([rows.flatten() for _, rows in input_rows(conv, places, Thinning(every=3, turn=4))])
    assert sorted(rows.tolist()) == list(range(20))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_called_on_no_rows_adds_none(stride: int) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)
            self.head = nn.Linear(2, 3)

        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            parts = (self.one(frames), self.other(frames[:0]))
            return self.head(torch.cat([part.mean((2, 3)) for part in parts]))  # type: ignore[no-any-return]

    model = Experts()
    optimizer = KFAC(model, position_stride=stride)
    with optimizer.capture():
        logits = model(torch.randn(5, 1, 6, 6))
    optimizer.update_statistics(Fisher(distribution=Categorical(logits=logits), kind="exact"))
    assert torch.equal(
        unit_named(optimizer, "other").block.to_dense(), torch.zeros(20, 20)
    )  # the losses know none of it
    assert unit_named(optimizer, "one").block.to_dense().trace() > 0


def test_nature_cnn_at_an_eighth_of_its_width_has_the_factors_of_explicit_patches() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 8, 4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 8, 4, 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 4, 3, 1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(4 * 49, 64),
        nn.ReLU(inplace=True),
        nn.Linear(64, 5),
    )
    inputs = torch.rand(3, 4, 84, 84)
    optimizer = KFAC(model)
    with optimizer.capture():
        logits = model(inputs)
    optimizer.update_statistics(Fisher(distribution=Categorical(logits=logits), kind="exact"))
    x = inputs
    for index, unit in ((0, "0"), (2, "2"), (4, "4")):
        conv = model[index]
        patches = nn.functional.unfold(x, conv.kernel_size, stride=conv.stride).transpose(1, 2).flatten(0, 1)
        patches = torch.cat((patches, torch.ones(len(patches), 1)), 1)
        block = unit_named(optimizer, unit).block
        expected = patches.T @ patches / len(patches)
        torch.testing.assert_close(block.inputs.value[0], expected)  # type: ignore[attr-defined]  # a Kronecker block
        x = torch.relu(conv(x)).detach()


def test_in_place_relu_after_a_linear_layer_on_three_axes_keeps_its_statistics() -> None:
    gradients = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(8, 2))
        optimizer = KFAC(model)
        with optimizer.capture():
            outputs = model(torch.randn(5, 2, 3))
        optimizer.update_statistics(GaussNewton(values=outputs, kind="exact"))
        gradients.append(unit_named(optimizer, "0").block.to_dense())
    torch.testing.assert_close(*gradients)
    assert float(gradients[0].trace()) > 0


def test_trace_of_an_expanded_block_is_the_trace_under_independence() -> None:
    # tr(A ⊗ G) = tr A · tr G, which for one example and position-constant inputs is Σ_t |g|² · |a|²
    conv = nn.Conv2d(1, 2, 1, bias=False)
    optimizer = KFAC(conv)
    with optimizer.capture():
        outputs = conv(torch.full((1, 1, 2, 2), 1.5))
    metric = GaussNewton(values=outputs.flatten(1), kind="exact")
    optimizer.update_statistics(metric)
    unit = optimizer.units[0]
    dense = dense_fisher(metric.losses(), [conv.weight])
    order = block_order(unit)
    assert relative_error(unit.block.to_dense(), dense[order][:, order]) < 1e-12
    assert example_gradients(metric.losses(), [conv.weight]).shape == (8, 1, 2)
