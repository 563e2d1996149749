"""What Kronecker factors take for granted, measured on the states that a policy visits (Grosse & Martens 2016).

KFC (arXiv:1602.01407, section 3) assumes of a convolution that its activations and derivatives are independent (IAD),
that their moments depend on no position (SH), and that derivatives at different positions are uncorrelated (SUD).
"""

import dataclasses
import math

import torch
from torch import Tensor

from acktr.agents.curvature_capture import Captured
from acktr.agents.curvature_states import Network
from acktr.kfac.layers import Affine, gradient_rows, input_rows

REACH = 10
"""Offsets are looked at up to this many positions, and up to half of the map."""

_ROUNDING = 1e-9
"""What is left of a constant less its mean, relative to it, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correlations:
    """Correlation of a map with itself shifted by an offset, one value for each channel.

    Attributes:
        mean: (2 r + 1, 2 c + 1) over the channels that are not constant, offset 0 in the middle; NaN where all are.
        mean_absolute: likewise of the absolute values.
        channels: number of channels that are not constant.
    """

    mean: Tensor
    mean_absolute: Tensor
    channels: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
    """How far a layer is from what its Kronecker factors assume; None where that is not defined.

    Attributes:
        positions: at which the layer uses its weight on a state.
        iad: correlation of |a|² and |g|² over states and positions; 0 under IAD.
        sh_activations: deviation over positions of the mean |a|² there, relative to its mean; 0 under SH.
        sh_derivatives: likewise of |g|².
        sud: mean square of the sum over positions of g over the sum of the mean squares; 1 under SUD, and as large as
            the number of positions where g is the same at all.
        activations: autocorrelation of what goes into a convolution, less its mean in each channel, in pixels of it.
        derivatives: autocorrelation of the derivatives at its output, in positions there.
    """

    positions: int
    iad: float | None
    sh_activations: float | None
    sh_derivatives: float | None
    sud: float | None
    activations: Correlations | None
    derivatives: Correlations | None


class Autocorrelation:
    """Sums up maps, and correlates each with itself at every offset within reach.

    It is the mean of `x_t x_{t+δ}` over maps and over the positions t that have t + δ in the map, over the mean of x²:
    1 everywhere for a map that is the same at all positions, and 0 beyond offset 0 for noise of mean 0. A value above 1
    says that what is near the border, which large offsets leave out, is weaker than the rest.
    """

    def __init__(self) -> None:
        self._products: Tensor | None = None  # (C, 2 H - 1, 2 W - 1), sums, offset 0 in the middle

    def add(self, maps: Tensor) -> None:
        """Add maps (N, C, H, W)."""
        height, width = maps.shape[2:]
        spectrum = torch.fft.rfft2(maps, s=(2 * height, 2 * width))
        products = torch.fft.irfft2(spectrum.abs().square().sum(0), s=(2 * height, 2 * width))
        # offsets come in the order 0, 1, ..., -2, -1, with one more that no two positions have
        products = products.roll((height - 1, width - 1), dims=(1, 2))[:, :-1, :-1]
        self._products = products if self._products is None else self._products + products

    def result(self) -> Correlations:
        """The correlations of all maps so far, of which there must be one."""
        assert self._products is not None
        height, width = ((size + 1) // 2 for size in self._products.shape[1:])
        down, across = (torch.arange(-reach, reach + 1) for reach in (_reach(height), _reach(width)))
        pairs = (height - down.abs())[:, None] * (width - across.abs())[None]
        products = self._products[:, down + height - 1][..., across + width - 1] / pairs
        power = products[:, _reach(height), _reach(width), None, None]
        alive = power.flatten() > 0
        values = products[alive] / power[alive]
        if not len(values):
            nothing = torch.full(products.shape[1:], math.nan, dtype=products.dtype)
            return Correlations(mean=nothing, mean_absolute=nothing, channels=0)
        return Correlations(mean=values.mean(0), mean_absolute=values.abs().mean(0), channels=len(values))


class _LayerSums:
    """What the backward passes say of one layer, added up."""

    def __init__(self, module: Affine) -> None:
        self.module = module
        self.derivatives = Autocorrelation()
        self.squares: Tensor | None = None  # (N, T), |g|² over the passes
        self.summed = 0.0  # Σ |Σ_t g|²

    def add(self, gradients: Tensor) -> None:
        rows = gradient_rows(self.module, gradients).flatten(2)
        squares = rows.square().sum(-1)
        self.squares = squares if self.squares is None else self.squares + squares
        self.summed += float(rows.sum(1).square().sum())
        if gradients.dim() == 4:
            self.derivatives.add(gradients)


@torch.no_grad()
def assumptions_of(network: Network, captured: Captured) -> dict[str, Assumptions]:
    """Measure the assumptions for every layer.

    Args:
        network: whose layers.
        captured: its forward pass on the states.
    """
    sums = {name: _LayerSums(module) for name, module in network.layers.items()}
    for reached in captured.passes():
        for name, (_, gradients) in reached.items():
            sums[name].add(gradients)
    return {name: _judged(found, captured.inputs[name]) for name, found in sums.items() if found.squares is not None}


def _judged(found: _LayerSums, inputs: Tensor) -> Assumptions:
    assert found.squares is not None
    squares = torch.cat([rows.square().sum((-1, -2)) for _, rows in input_rows(found.module, inputs)])
    total = float(found.squares.sum())
    several = squares.shape[1] > 1
    activations = None
    if inputs.dim() == 4:
        activations = Autocorrelation()
        centred = inputs - inputs.mean((0, 2, 3), keepdim=True)
        varies = centred.abs().amax((0, 2, 3), keepdim=True) > _ROUNDING * inputs.abs().amax((0, 2, 3), keepdim=True)
        activations.add(torch.where(varies, centred, 0.0))
    return Assumptions(
        positions=squares.shape[1],
        iad=correlation(squares.flatten(), found.squares.flatten()),
        sh_activations=_spread_over_positions(squares) if several else None,
        sh_derivatives=_spread_over_positions(found.squares) if several else None,
        sud=found.summed / total if several and total > 0 else None,
        activations=activations.result() if activations is not None else None,
        derivatives=found.derivatives.result() if inputs.dim() == 4 else None,
    )


def _reach(size: int) -> int:
    return min(REACH, size // 2)


def correlation(one: Tensor, other: Tensor) -> float | None:
    """Pearson's, of two samples (n,); None where one of them is constant."""
    smallest = _ROUNDING * one.norm(), _ROUNDING * other.norm()
    one, other = one - one.mean(), other - other.mean()
    norms = one.norm(), other.norm()
    if norms[0] <= smallest[0] or norms[1] <= smallest[1]:
        return None
    return float(one @ other / (norms[0] * norms[1]))


def _spread_over_positions(squares: Tensor) -> float | None:
    """Deviation over positions of the mean over states, relative to its mean, of (N, T)."""
    means = squares.mean(0)
    mean = float(means.mean())
    return float(means.std(correction=0)) / mean if mean > 0 else None
