"""The distance of every curvature from the exact block, against dense matrices."""

import pytest
from family_networks import NETWORKS, mlp, network, settled, weight_units
from oracles import fisher_block, relative_error
from torch import nn
from torch.distributions import Categorical

from acktr.kfac import Fisher, Metric, block_errors
from acktr.kfac.errors import APPROXIMATIONS
from acktr.kfac.statistics import FactorKind

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("conv_factors", ["expand", "reduce"])
@pytest.mark.parametrize("name", NETWORKS)
def test_errors_without_forming_a_block_are_those_of_the_dense_ones(name: str, conv_factors: FactorKind) -> None:
    model, inputs = network(name)

    def forward() -> Metric:
        return Fisher(distribution=Categorical(logits=model(inputs), validate_args=False), kind="exact")

    found = block_errors(model, forward, conv_factors=[conv_factors])
    layers: list[str] = []
    expected = {}
    for curvature in APPROXIMATIONS:
        optimizer, metric, _ = settled(name, curvature, kfoc_steps=60, conv_factors=conv_factors)
        layers = [unit.name for unit in weight_units(optimizer)]
        for unit in weight_units(optimizer):
            exact = fisher_block(unit, metric.losses(), between_groups=True)
            block = unit.block.to_dense()
            expected[unit.name, curvature] = (relative_error(block, exact), float(block.trace() / exact.trace()))
    assert [(error.layer, error.curvature, error.conv_factors) for error in found] == [
        (layer, curvature, conv_factors) for layer in layers for curvature in APPROXIMATIONS
    ]
    for error in found:
        relative, trace = expected[error.layer, error.curvature]
        # K-FOC is the end of an iteration; few means over positions span no basis, and rounding chooses the rest of it
        near = 1e-4 if error.curvature in ("kfoc", "ekfoc") else 1e-9
        if conv_factors == "reduce" and error.curvature in ("ekfac", "ekfoc"):
            near = 0.01
        assert error.relative == pytest.approx(relative, rel=near, abs=1e-7)
        assert error.trace == pytest.approx(trace, rel=near)


def test_what_is_the_same_under_both_factors_is_there_once() -> None:
    model, inputs = network("convolutional")
    found = block_errors(
        model,
        lambda: Fisher(distribution=Categorical(logits=model(inputs), validate_args=False), kind="exact"),
        conv_factors=["expand", "reduce"],
    )
    kinds = {(error.layer, error.conv_factors) for error in found}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            assert {(name, "expand"), (name, "reduce")} <= kinds
            assert sum((error.layer, error.curvature) == (name, "diagonal") for error in found) == 1
        if isinstance(layer, nn.Linear):
            assert (name, "expand") in kinds
            assert (name, "reduce") not in kinds


def test_block_errors_refuses_what_it_would_misread() -> None:
    model, inputs = mlp()

    def forward() -> Metric:
        return Fisher(distribution=Categorical(logits=model(inputs)), kind="exact")

    assert block_errors(model, forward) == block_errors(model, forward, conv_factors=("expand",))
    with pytest.raises(ValueError, match="conv_factors takes one of expand, reduce, got 'both'"):
        block_errors(model, forward, conv_factors="both")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"a metric is wanted.*got Tensor"):
        block_errors(model, lambda: model(inputs))
