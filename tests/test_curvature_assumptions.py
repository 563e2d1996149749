"""What `acktr curvature` measures of the assumptions behind Kronecker factors, on known fields."""

import numpy as np
import pytest
import torch
from curvature_networks import convolutional, networks
from torch import Tensor, nn

from acktr.agents.curvature_assumptions import Autocorrelation, assumptions_of, correlation
from acktr.agents.curvature_capture import Captured

pytestmark = pytest.mark.usefixtures("one_thread")


def test_white_noise_correlates_with_itself_at_no_offset() -> None:
    torch.manual_seed(0)
    found = Autocorrelation()
    for _ in range(3):
        found.add(torch.randn(400, 2, 7, 12, dtype=torch.float64) * torch.tensor([1.0, 30.0])[:, None, None])
    result = found.result()
    assert result.channels == 2
    assert result.mean.shape == (7, 13), "up to half of the map each way"
    expected = torch.zeros_like(result.mean)
    expected[3, 6] = 1
    assert (result.mean - expected).abs().max() < 5 / (1200 * 2 * 4 * 6) ** 0.5
    assert result.mean[3, 6] == 1


def test_a_field_that_is_the_same_everywhere_correlates_fully_at_every_offset() -> None:
    torch.manual_seed(0)
    found = Autocorrelation()
    found.add(torch.randn(20, 3, 1, 1, dtype=torch.float64).expand(20, 3, 6, 5))
    torch.testing.assert_close(found.result().mean, torch.ones(7, 5, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_autocorrelation_is_the_mean_over_pairs_of_positions() -> None:
    torch.manual_seed(0)
    maps = torch.randn(5, 1, 4, 6, dtype=torch.float64) + torch.arange(6.0)
    found = Autocorrelation()
    found.add(maps[:2])
    found.add(maps[2:])
    result = found.result()
    for down in (-2, 0, 1):
        for across in (-3, -1, 0, 2):
            products = [
                maps[:, 0, row, column] * maps[:, 0, row + down, column + across]
                for row in range(4)
                for column in range(6)
                if 0 <= row + down < 4 and 0 <= column + across < 6
            ]
            expected = torch.stack(products).mean() / maps.square().mean()
            assert float(result.mean[2 + down, 3 + across]) == pytest.approx(float(expected), rel=1e-10)


def test_channels_of_opposite_sign_cancel_in_the_mean_alone_and_dead_ones_do_not_count() -> None:
    stripes = (-1.0) ** torch.arange(8).expand(1, 8, 8).double()  # changes sign from column to column
    found = Autocorrelation()
    found.add(torch.stack((stripes, torch.ones_like(stripes), torch.zeros_like(stripes)), dim=1))
    result = found.result()
    assert result.channels == 2
    assert float(result.mean[4, 5]) == pytest.approx(0, abs=1e-12)
    assert float(result.mean_absolute[4, 5]) == pytest.approx(1)
    nothing = Autocorrelation()
    nothing.add(torch.zeros(2, 3, 4, 4))
    assert nothing.result().channels == 0
    assert nothing.result().mean.isnan().all()


class Pooled(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))


def test_derivatives_that_are_the_same_everywhere_add_up() -> None:
    """Behind a mean over positions they are: SUD fails by the number of positions, SH of the derivatives holds."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 3, 2), Pooled()).double()
    network = convolutional(module, torch.randn(30, 1, 4, 5, dtype=torch.float64))
    found = assumptions_of(network, Captured(network, "exact"))["0"]
    assert found.positions == 12
    assert found.sud == pytest.approx(12)
    assert found.sh_derivatives == pytest.approx(0, abs=1e-9)
    assert found.sh_activations is not None
    assert 0 < found.sh_activations < 0.5, "noise has the same power everywhere, up to chance"
    assert found.derivatives is not None
    assert found.derivatives.mean.min() == pytest.approx(1)


def test_activations_are_correlated_less_their_mean() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(243, 3)).double()
    noise = 1e6 + torch.randn(200, 1, 10, 10, dtype=torch.float64)
    network = convolutional(module, torch.cat((noise, torch.full_like(noise, 1 / 3)), dim=1))
    activations = assumptions_of(network, Captured(network, "exact"))["0"].activations
    assert activations is not None
    assert activations.channels == 1, "the other one is constant"
    assert float(activations.mean[5, 6]) == pytest.approx(0, abs=0.05)


def test_independence_is_the_correlation_of_squared_norms() -> None:
    torch.manual_seed(0)
    one = torch.rand(1000, dtype=torch.float64)
    assert correlation(one, 3 - 2 * one) == pytest.approx(-1)
    assert correlation(one, torch.rand(1000, dtype=torch.float64)) == pytest.approx(0, abs=0.1)
    assert correlation(one, torch.full_like(one, 0.1)) is None
    network = networks()[0]
    captured = Captured(network, "exact")
    found = assumptions_of(network, captured)["torso.3"]
    squares = captured.inputs["torso.3"].square().sum(1)
    gradients = [reached["torso.3"][1].square().sum(1) for reached in captured.passes()]
    assert found.iad == pytest.approx(np.corrcoef(squares, torch.stack(gradients).sum(0))[0, 1])
    assert (found.positions, found.sud, found.sh_activations, found.activations) == (1, None, None, None)
