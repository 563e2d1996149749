"""The quadratic model of an objective by its exact Fisher, along a few directions (Martens & Grosse 2015, section 7).

    M(δ) - h(θ) = 1/2 δᵀ (F + (λ + η) I) δ + ∇hᵀ δ

with F the exact Fisher or Gauss-Newton matrix of a batch. Along k directions that takes k Jacobian-vector products,
`uᵀ F v = mean over examples of (Sᵀ J u)ᵀ (Sᵀ J v)` with S Sᵀ the Fisher of the outputs, and no backward pass (their
appendix C).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from acktr.kfac.metrics import Metric

Direction = Mapping[str, Tensor]
"""A change of each parameter, by its name in the model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuadraticModel:
    """The model along k directions.

    Attributes:
        curvature: (k, k) float64, `d_iᵀ (F + (λ + η) I) d_j`.
        slopes: (k,) float64, `∇hᵀ d_i`.
    """

    curvature: Tensor
    slopes: Tensor

    def minimiser(self) -> Tensor:
        """(k,) coefficients of the directions that minimise it; those of least length where several do.

        NaN where the model is not finite, which some builds of LAPACK would refuse to decompose.
        """
        finite = torch.isfinite(self.curvature).all()
        inverse: Tensor = torch.linalg.pinv(torch.where(finite, self.curvature, 0.0), hermitian=True)
        return torch.where(finite, -inverse @ self.slopes, torch.nan)

    def change(self, coefficients: Tensor) -> Tensor:
        """`M(δ) - M(0)` for `δ = Σ c_i d_i`, 0-d; at the minimiser `1/2 ∇hᵀ δ`."""
        return coefficients @ self.curvature @ coefficients / 2 + self.slopes @ coefficients


class _Outputs(nn.Module):
    """A metric's columns as a function of the model's parameters, whatever else the caller's function does."""

    def __init__(self, model: nn.Module, metric: Callable[[], Metric]) -> None:
        super().__init__()
        self.model = model
        self._metric = metric

    def forward(self) -> Tensor:
        return self._metric().exact_losses()


def fisher_products(model: nn.Module, metric: Callable[[], Metric], directions: Sequence[Direction]) -> Tensor:
    """Products `d_iᵀ F d_j` with the exact Fisher of a batch.

    Args:
        model: the network.
        metric: runs the model on the batch and gives the metric of its outputs. Called once for each direction, with
            the parameters replaced by ones that carry it.
        directions: k of them; parameters that one does not name stay.

    Returns:
        (k, k) float64.

    Raises:
        ValueError: a batch normalisation in training mode, whose outputs are no function of one example.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"layer {name} normalises by the batch, so that no example has outputs and a Fisher of its own: call "
                f"eval() on it, or use LayerNorm or GroupNorm"
            )
    outputs = _Outputs(model, metric)
    parameters = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}

    def columns(values: dict[str, Tensor]) -> Tensor:
        found: Tensor = torch.func.functional_call(outputs, values, ())
        return found

    tangents = []
    for direction in directions:
        full = {name: torch.zeros_like(value) for name, value in parameters.items()}
        full |= {f"model.{name}": value for name, value in direction.items()}
        tangents.append(torch.func.jvp(columns, (parameters,), (full,))[1].double())
    stacked = torch.stack(tangents).flatten(1)  # (k, C N)
    products: Tensor = stacked @ stacked.T / tangents[0].shape[1]
    return products


def inner_products(directions: Sequence[Direction]) -> Tensor:
    """(k, k) float64 of `d_iᵀ d_j`."""
    rows = []
    for one in directions:
        common = [[(one[name] * other[name]).sum().double() for name in one if name in other] for other in directions]
        rows.append(torch.stack([torch.stack(terms).sum() for terms in common]))
    return torch.stack(rows)


def combined(coefficients: Tensor, directions: Sequence[Direction]) -> Direction:
    """`Σ c_i d_i`, each part in the dtype of the directions."""
    found: dict[str, Tensor] = {}
    for coefficient, direction in zip(coefficients, directions, strict=True):
        for name, part in direction.items():
            term = coefficient.to(part) * part
            found[name] = found[name] + term if name in found else term
    return found
