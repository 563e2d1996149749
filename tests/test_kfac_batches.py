"""Batches in parts, layers with other rows than the batch, and layers whose statistics come late or never."""

import warnings

import pytest
import torch
from oracles import fisher_block
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn import functional

from acktr.kfac import KFAC, Fisher, GaussNewton
from acktr.kfac.units import FULL_SIZE, WeightUnit

pytestmark = pytest.mark.usefixtures("float64")


def captured(model: nn.Module, optimizer: KFAC, inputs: Tensor) -> GaussNewton:
    with optimizer.capture():
        outputs = model(inputs)
    metric = GaussNewton(values=outputs, kind="exact")
    optimizer.update_statistics(metric)
    return metric


def inputs_factor(optimizer: KFAC) -> Tensor:
    unit = optimizer.units[0]
    assert isinstance(unit, WeightUnit)
    assert unit.block.inputs.value is not None
    return unit.block.inputs.value[0]


@pytest.mark.parametrize("window", [0.3, 1.0])
def test_parts_of_one_step_s_batch_count_alike(window: float) -> None:
    """The first part was forgotten where young averages keep nothing of what came before."""
    model, batch = nn.Linear(3, 2), torch.randn(20, 3)
    whole, parts = (KFAC(model, stat_window=window) for _ in range(2))
    captured(model, whole, batch)
    for part in batch.chunk(4):
        captured(model, parts, part)
    torch.testing.assert_close(inputs_factor(parts), inputs_factor(whole))
    torch.testing.assert_close(parts.units[0].block.to_dense(), whole.units[0].block.to_dense())


@pytest.mark.parametrize(("size", "every"), [(7, 3), (8, 3), (5, 3), (7, 2), (9, 3)])
def test_grids_of_unequal_size_average_to_the_factor_of_all_positions(size: int, every: int) -> None:
    """Grids that weighed the same gave the positions of the smaller ones too much."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten())
    frames = torch.zeros(4, 1, size, size)
    frames[:, :, 2:-2, 2:-2] = 1 + torch.rand(4, 1, size - 4, size - 4)
    whole = KFAC(model)
    thinned = KFAC(model, position_stride=every, stat_decay=1 - 1e-9)
    captured(model, whole, frames)
    for _ in range(every**2):
        captured(model, thinned, frames)
        thinned.steps += 1
    torch.testing.assert_close(inputs_factor(thinned), inputs_factor(whole), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("parts", [1, 3, 9])
def test_parts_of_one_batch_see_all_positions_together(parts: int) -> None:
    """Each part began with the same grid."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten())
    frames = torch.arange(36.0).view(1, 1, 6, 6).expand(9, 1, 6, 6).contiguous()
    whole, thinned = KFAC(model), KFAC(model, position_stride=3)
    captured(model, whole, frames)
    for part in frames.chunk(parts):
        captured(model, thinned, part)
    torch.testing.assert_close(inputs_factor(thinned), inputs_factor(whole))


@pytest.mark.parametrize("parts", [1, 3, 4, 6, 9])
@pytest.mark.parametrize("every", [2, 3])
def test_batches_that_repeat_at_an_interval_meet_every_grid(parts: int, every: int) -> None:
    """Samples that rotate through three parts of a batch met three grids of nine."""
    model = nn.Conv2d(1, 2, 1)
    optimizer = KFAC(model, position_stride=every)
    met = set()
    for turn in range(0, parts * every**4, parts):
        (_, grid), *_ = optimizer.estimate.pace.thinning(turn).grids(1)
        met.add((grid.row, grid.column))
    assert len(met) == every**2


def test_patches_made_in_portions_see_all_positions_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each portion began with the same grid."""
    monkeypatch.setattr("acktr.kfac.statistics._CHUNK_ELEMENTS", 100)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten())
    frames = torch.arange(36.0).view(1, 1, 6, 6).expand(9, 1, 6, 6).contiguous()
    whole, thinned = KFAC(model), KFAC(model, position_stride=3)
    captured(model, whole, frames)
    captured(model, thinned, frames)
    torch.testing.assert_close(inputs_factor(thinned), inputs_factor(whole))


def test_maps_too_small_for_a_grid_weigh_as_what_they_are() -> None:
    """All of their positions are taken; they counted as if they were a ninth."""
    model = nn.Conv2d(1, 2, 1)
    whole = KFAC(model, stat_decay=1 - 1e-9)
    thinned = KFAC(model, position_stride=3, stat_decay=1 - 1e-9)
    for size in (9, 2, 9, 2):
        frames = size * torch.ones(9, 1, size, size)
        for optimizer in (whole, thinned):
            with optimizer.capture():
                outputs = model(frames)
            optimizer.update_statistics(GaussNewton(values=outputs.flatten(1)))
            optimizer.steps += 1
    torch.testing.assert_close(inputs_factor(thinned), inputs_factor(whole), rtol=1e-6, atol=1e-9)


class Experts(nn.Module):
    """Each sees every fourth row."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(3, 2) for _ in range(4))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = inputs.new_zeros(len(inputs), 2)
        for index, expert in enumerate(self.experts):
            mine = torch.arange(len(inputs)) % 4 == index
            outputs = outputs.index_put((mine,), expert(inputs[mine]))
        return outputs


class MicroBatches(nn.Module):
    """Four calls of a quarter of the rows each."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([self.linear(part) for part in inputs.chunk(4)])


@pytest.mark.parametrize("build", [Experts, MicroBatches])
@pytest.mark.parametrize("bias", ["joint", "separate"])
def test_the_mean_is_over_the_batch_where_a_layer_sees_a_part_of_it(build: type[nn.Module], bias: str) -> None:
    model = build()
    optimizer = KFAC(model, bias=bias)  # type: ignore[arg-type]
    metric = captured(model, optimizer, torch.randn(40, 3))
    for unit in optimizer.units:
        expected = fisher_block(unit, metric.losses(), None).trace()
        torch.testing.assert_close(unit.block.to_dense().trace(), expected)


@pytest.mark.parametrize("folded", [False, True])
def test_frames_folded_into_the_rows_keep_the_trust_region_true(folded: bool) -> None:
    """Divided by the layer's own number of rows, the curvature was 32 times too small."""

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(3, 4)
            self.head = nn.Linear(4 * 32, 1).requires_grad_(False)

        def forward(self, inputs: Tensor) -> Tensor:
            rows = inputs.flatten(0, 1) if folded else inputs
            features: Tensor = self.head(self.encoder(rows).reshape(len(inputs), -1))
            return features

    model, inputs = Sequence(), torch.randn(200, 32, 3)
    optimizer = KFAC(model, lr=1.0, max_kl=1e-3, momentum=0.0, damping=1e-4)
    before = captured(model, optimizer, inputs).values.detach()
    (model(inputs) - inputs.sum((1, 2))[:, None]).square().mean().backward()
    optimizer.step()
    measured = (model(inputs) - before).square().mean() / 2
    assert 0.3e-3 < measured < 5e-3


def test_a_layer_that_is_first_reached_late_gets_its_inverse_at_once() -> None:
    """It followed the plain gradient until its turn came, up to `inverse_interval` steps."""
    trunk, heads = nn.Linear(3, 8), nn.ModuleList(nn.Linear(8, 1) for _ in range(2))
    model = nn.ModuleList([trunk, heads])
    optimizer = KFAC(model, lr=0.1, max_kl=None, inverse_interval=50)
    for step in range(150):
        head = heads[int(step >= 123)]
        with optimizer.capture():
            outputs = head(torch.tanh(trunk(torch.randn(128, 3))))
        optimizer.update_statistics(GaussNewton(values=outputs, sigma=0.05))
        optimizer.zero_grad()
        ((outputs - 1) / 0.05).square().mean().backward()
        optimizer.step()
        assert outputs.abs().max() < 10
    assert all(unit.block.missing is None for unit in optimizer.units)


def test_weights_for_a_layer_of_other_rows_are_refused_by_name() -> None:
    model = Experts()
    optimizer = KFAC(model)
    with optimizer.capture():
        outputs = model(torch.randn(8, 3))
    with pytest.raises(ValueError, match=r"experts\.0 was called on 2 rows, and there are 8 weights"):
        optimizer.update_statistics(GaussNewton(values=outputs), torch.ones(8))


class Gaussian(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(3, 2)
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, inputs: Tensor) -> Independent:
        return Independent(Normal(self.mean(inputs), self.log_std.exp().expand(len(inputs), 2)), 1)


def test_a_forgotten_capture_is_an_error_where_a_log_std_has_its_own_statistics() -> None:
    model = Gaussian()
    optimizer = KFAC(model)
    with pytest.raises(RuntimeError, match="nothing was captured"):
        optimizer.update_statistics(Fisher(distribution=model(torch.randn(5, 3))))
    with optimizer.capture():
        model(torch.randn(5, 3))
    with pytest.raises(RuntimeError, match="no captured output"):
        optimizer.update_statistics(Fisher(distribution=model(torch.randn(5, 3))))


def test_a_weight_that_is_used_without_its_module_is_named_once() -> None:
    model = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 2)])
    optimizer = KFAC(model)
    first, second = model
    assert isinstance(first, nn.Linear)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with optimizer.capture():
                outputs = second(torch.tanh(functional.linear(torch.randn(6, 3), first.weight, first.bias)))
            optimizer.update_statistics(GaussNewton(values=outputs))
            outputs.square().mean().backward()
            optimizer.step()
    assert len(caught) == 1
    assert str(caught[0].message).startswith("0: the loss reaches")
    assert caught[0].filename == __file__


@pytest.mark.parametrize("normalised", [False, True])
def test_no_damping_and_no_curvature_leaves_a_parameter_alone_instead_of_skipping_the_batch(normalised: bool) -> None:
    width = FULL_SIZE + 1  # a normalisation layer this wide has a diagonal block
    middle = [nn.LayerNorm(width)] if normalised else []
    model = nn.Sequential(nn.Linear(5, width), *middle, nn.ReLU(), nn.Linear(width, 2))
    if normalised:
        with torch.no_grad():
            model[1].weight[0], model[1].bias[0] = 0.0, -1.0  # type: ignore[index, operator]
    optimizer = KFAC(model, lr=0.1, damping=0.0, damping_mode="exact")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(3):
        inputs = torch.randn(4, 5)
        inputs[:, 0] = 0
        metric = captured(model, optimizer, inputs)
        optimizer.zero_grad()
        metric.values.square().mean().backward()
        optimizer.step()
    assert optimizer.skipped == 0
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
