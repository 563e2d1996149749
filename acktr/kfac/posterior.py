"""The Gaussian that a curvature block stands for: covariance c (F + γ)⁻¹, by its eigenvectors and eigenvalues.

With weight λ of the KL, N examples and prior variance η, c = λ / N and γ = c / η (Zhang et al. 2018, arXiv:1712.02390,
section 3). Every structure of F leads to the same form: a draw is `Q_left (s ∘ (Q_leftᵀ E Q_right)) Q_rightᵀ` with E of
independent standard normals and s² the eigenvalues, so it costs four products, and log-determinant and trace are sums.
That is the symmetric root of the covariance times E, the same whatever signs and bases the eigenvectors came out with;
without the inner turn the same E would be another draw after any change of the last digit.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from acktr.kfac.blocks import Block, RefreshReport, copy_to
from acktr.kfac.corrected import CorrectedBlock
from acktr.kfac.kronecker import KroneckerBlock, factored_damping, kronecker_products
from acktr.kfac.products import product
from acktr.kfac.small_blocks import DiagonalBlock, FullBlock
from acktr.kfac.solvers import eigenbasis


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """`E_q[log p(data)] - λ KL(q ‖ N(0, η))`, what the posterior q is to maximise.

    Attributes:
        examples: N, of the data set.
        kl_weight: λ.
        prior_variance: η.

    Raises:
        ValueError: one of them out of range.
    """

    examples: int
    kl_weight: float = 1.0
    prior_variance: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.examples, bool) or not isinstance(self.examples, int) or self.examples < 1:
            raise ValueError(
                f"examples takes the size of the data set, a whole number of at least 1, got {self.examples!r}"
            )
        for name in ("kl_weight", "prior_variance"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} takes a finite number above 0, got {value}")

    @property
    def scale(self) -> float:
        """The covariance is this times the damped inverse of F: c = λ / N."""
        return self.kl_weight / self.examples

    @property
    def damping(self) -> float:
        """What the prior adds to F: γ = c / η."""
        return self.scale / self.prior_variance


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Covariance:
    """Covariance of the matrix of a block's parameters.

    Attributes:
        deviations: s, the square roots of its eigenvalues, in the shape of the matrix: (b, o, i) or (d,).
        left: eigenvectors in columns; (b, o, o) where there is `right`, (d, d) over the flattened matrix where there is
            none, or None where the matrix's entries are independent.
        right: (b, i, i), or None.
    """

    deviations: Tensor
    left: Tensor | None = None
    right: Tensor | None = None

    def colour(self, noise: Tensor) -> Tensor:
        """Turn independent standard normals in the shape of the matrix into a draw of mean 0, in the same shape."""
        if self.left is None:
            return self.deviations * noise
        if self.right is None:
            turned = self.left.mT @ noise.flatten()
            return (self.left @ (self.deviations.flatten() * turned)).view_as(noise)
        turned = product(product(self.left.mT, noise), self.right)
        return product(product(self.left, self.deviations * turned), self.right.mT)

    def kl_to_isotropic(self, mean: Tensor, variance: float) -> Tensor:
        """KL of N(mean, this covariance) from N(0, variance · I) in nats, 0-d.

        Args:
            mean: in the shape of the matrix.
            variance: above 0.
        """
        ratios = self.deviations.square() / variance
        return ((ratios - 1 - ratios.log()).sum() + mean.square().sum() / variance) / 2

    def to_dense(self) -> Tensor:
        """The covariance over the row-major flattening of the matrix."""
        variances = self.deviations.flatten().square()
        if self.left is None:
            return torch.diag(variances)
        basis = self.left if self.right is None else kronecker_products(self.left, self.right)
        return (basis * variances) @ basis.mT

    def state_dict(self) -> dict[str, Any]:
        """The three tensors."""
        return {"deviations": self.deviations, "left": self.left, "right": self.right}

    @classmethod
    def from_state(cls, state: dict[str, Any], like: Tensor) -> "Covariance":
        """What `state_dict` was taken of, on the device and in the precision of `like`.

        Raises:
            ValueError: it was of a matrix of another shape.
        """
        if state["deviations"].shape != like.shape:
            found, expected = tuple(state["deviations"].shape), tuple(like.shape)
            raise ValueError(f"this state holds a posterior of shape {found}, the model's is {expected}")
        deviations, left, right = (copy_to(state[name], like) for name in ("deviations", "left", "right"))
        assert deviations is not None
        return cls(deviations=deviations, left=left, right=right)


def covariance_of(block: Block, shape: torch.Size, objective: Objective) -> tuple[Covariance | None, RefreshReport]:
    """Covariance c (F + γ)⁻¹ with the block's running estimate F and its basis of the last refresh.

    For a Kronecker block in damping mode "factored" the inverse is that of `(A + π sqrt(γ)) ⊗ (G + sqrt(γ)/π)`, a
    matrix-variate Gaussian (Zhang et al. 2018, equation 11): with γ = d² its covariances are
    `U = sqrt(c) (A/π + d)⁻¹` of the columns and `S = sqrt(c) (π G + d)⁻¹` of the rows. All others are damped exactly:
    `s² = c / (R + γ)` with R the eigenvalues `s_G s_Aᵀ` of the product, or EKFAC's corrected ones (Bae et al. 2018,
    arXiv:1811.12565), whichever mode the block's own inverse is damped in.

    Args:
        block: with statistics, and refreshed.
        shape: of the matrix of its parameters.
        objective: gives c and γ.

    Returns:
        The covariance, or None where there are no statistics yet or no decomposition came out; and what the guard
        ladder met.

    Raises:
        TypeError: a block without such a form.
    """
    match block:
        case KroneckerBlock() if block.mode == "factored":
            return _matrix_variate(block, objective)
        case KroneckerBlock():
            state = block.state_dict()
            return _rotated(state["left"], state["right"], state["eigenvalues"], objective)
        case CorrectedBlock():
            state = block.state_dict()
            return _rotated(state["left"], state["right"], block.scales.value, objective)
        case FullBlock() if block.moment.value is not None:
            basis, retries = eigenbasis(block.moment.value)
            if basis is None:
                return None, RefreshReport(retries=retries, stale=True)
            (values,), (left,) = basis
            covariance = Covariance(deviations=_deviations(values, objective).reshape(shape), left=left)
            return covariance, RefreshReport(retries=retries)
        case DiagonalBlock() if block.moment.value is not None:
            return Covariance(deviations=_deviations(block.moment.value, objective)), RefreshReport()
        case FullBlock() | DiagonalBlock():
            return None, RefreshReport()
    raise TypeError(f"no posterior is known for a {type(block).__name__}")


def _matrix_variate(block: KroneckerBlock, objective: Objective) -> tuple[Covariance | None, RefreshReport]:
    A, G = block.inputs.value, block.outputs.value
    if A is None or G is None:
        return None, RefreshReport()
    basis_a, retries_a = eigenbasis(A)
    basis_g, retries_g = eigenbasis(G)
    retries = retries_a + retries_g
    if basis_a is None or basis_g is None:
        return None, RefreshReport(retries=retries, stale=True)
    (values_a, right), (values_g, left) = basis_a, basis_g
    damping_a, damping_g = factored_damping(A, G, objective.damping)
    columns = (values_a + damping_a[:, None]).rsqrt()[:, None, :]
    rows = (values_g + damping_g[:, None]).rsqrt()[:, :, None]
    covariance = Covariance(deviations=objective.scale**0.5 * rows * columns, left=left, right=right)
    return covariance, RefreshReport(retries=retries)


def _rotated(
    left: Tensor | None, right: Tensor | None, curvature: Tensor | None, objective: Objective
) -> tuple[Covariance | None, RefreshReport]:
    if left is None or right is None or curvature is None:
        return None, RefreshReport()
    return Covariance(deviations=_deviations(curvature, objective), left=left, right=right), RefreshReport()


def _deviations(curvature: Tensor, objective: Objective) -> Tensor:
    return (objective.scale / (curvature + objective.damping)).sqrt()
