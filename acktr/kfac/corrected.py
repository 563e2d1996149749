"""EKFAC: the Kronecker eigenbasis with the second moments of the gradient in it (George et al. 2018).

For Q = Q_G ⊗ Q_A, eigenvectors of the factors, the diagonal nearest to the block in that basis is
`R = E[(Q_Gᵀ P Q_A)²]`, P being the gradient of one example's loss. K-FAC has `s_G s_Aᵀ` in its place.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from acktr.kfac.averages import RunningAverage, Share
from acktr.kfac.blocks import Damping, Missing, RefreshReport, copy_to, divided
from acktr.kfac.factors import Factors
from acktr.kfac.kronecker import DampingMode, factored_damping, kronecker_products
from acktr.kfac.moments import WeightBatch
from acktr.kfac.products import product
from acktr.kfac.solvers import eigenbasis
from acktr.kfac.sums import Sum, Sums

_ROUNDING = 32
"""Units in the last place of the largest eigenvalue that one of 0 comes out as: up to 4 were seen of 1500 x 1500."""

_LEAST = 1e-8
"""Of the largest, at least: what is smaller has eigenvectors that are known to half of the digits of float64."""


class CorrectedBlock:
    """F = (Q_G ⊗ Q_A) diag(R) (Q_G ⊗ Q_A)ᵀ, its basis decomposed now and then and R updated with every batch.

    R starts as `s_G s_Aᵀ` and is carried over to each new basis by the squares of the rotation,
    `(O_G²)ᵀ R O_A²` with `O = Q_oldᵀ Q_new`, which keeps its sum (the trace) and is exact where the block was diagonal.

    What a factor's zero eigenvalues leave open, the basis of their space, changes with the last digit of the factor:
    fewer rows than inputs, or units that are never active, and the same training on another machine has another basis.
    R there is evened out, one mean for all such directions, which is the same in every basis of that space.

    Damping "exact" divides by `R + λ`. "factored" adds to R what it adds to `s_G s_Aᵀ` in K-FAC, the terms
    `sqrt(λ)/π s_A + π sqrt(λ) s_G + λ`, so that values of λ carry over from there.

    Args:
        factors: whose eigenvectors make the basis: K-FAC's or K-FOC's.
        like: a tensor with the device and dtype of the statistics.
        mode: the damping mode.
    """

    is_symmetric = False

    def __init__(self, factors: Factors, like: Tensor, *, mode: DampingMode) -> None:
        self.factors = factors
        self.mode = mode
        self.scales = RunningAverage("diagonals")  # R, (b, o, i)
        self._like = like
        self._left: Tensor | None = None  # eigenvectors of G, (b, o, o)
        self._right: Tensor | None = None  # of A, (b, i, i)
        self._damped_rows: Tensor | None = None  # π sqrt(λ) s_G, (b, o, 1), in factored mode
        self._damped_columns: Tensor | None = None  # sqrt(λ)/π s_A, (b, 1, i)
        self._null_rows: Tensor | None = None  # 1 where G has no more than rounding, else 0, (b, o, 1)
        self._null_columns: Tensor | None = None  # where A has, (b, 1, i)

    @property
    def inputs(self) -> RunningAverage:
        """A, (b, i, i)."""
        return self.factors.inputs

    @property
    def outputs(self) -> RunningAverage:
        """G, (b, o, o)."""
        return self.factors.outputs

    @property
    def missing(self) -> Missing | None:
        """See `Block`."""
        if self.inputs.value is None or self.outputs.value is None:
            return "statistics"
        return "inverse" if self._left is None else None

    def observe(self, batch: WeightBatch, share: Share) -> Sums[None]:
        """Add a batch to the factors and, once there is a basis, to R."""
        yield from self.factors.observe(batch, share)
        if self._left is not None:
            moment = batch.exact.squares(self._left, self._right)
            total, weight = yield [Sum(moment.total), Sum(moment.weight)]
            self.scales.update(self._evened(total), weight, share)

    def refresh(self, damping: Damping) -> RefreshReport:
        """Decompose both factors and carry R over; a factor that defies the guard ladder keeps all as it is."""
        A, G = self.inputs.value, self.outputs.value
        if A is None or G is None or self.outputs.mass is None:
            return RefreshReport()
        basis_a, retries_a = eigenbasis(A)
        basis_g, retries_g = eigenbasis(G)
        retries = retries_a + retries_g
        if basis_a is None or basis_g is None:
            return RefreshReport(retries=retries, stale=True)
        (values_a, right), (values_g, left) = basis_a, basis_g
        if self._left is None or self._right is None or self.scales.value is None:
            self.scales.value = values_g[:, :, None] * values_a[:, None, :]
            self.scales.mass = self.outputs.mass.clone()
        else:
            turn_left, turn_right = product(self._left.mT, left).square_(), product(self._right.mT, right).square_()
            self.scales.value = product(product(turn_left.mT, self.scales.value), turn_right)
        self._left, self._right = left, right
        self._null_rows, self._null_columns = _null(values_g)[:, :, None], _null(values_a)[:, None, :]
        self.scales.value = self._evened(self.scales.value)
        if self.mode == "factored":
            damping_a, damping_g = factored_damping(A, G, damping)
            self._damped_rows = (values_g * damping_a[:, None])[:, :, None]
            self._damped_columns = (values_a * damping_g[:, None])[:, None, :]
        return RefreshReport(retries=retries)

    def decomposition(self) -> list[Tensor] | None:
        """The basis, R in it with its mass, where it is open, and what factored damping adds."""
        parts = (self._left, self._right, self.scales.value, self.scales.mass, self._null_rows, self._null_columns)
        if self._left is None:
            return None
        return [part for part in (*parts, self._damped_rows, self._damped_columns) if part is not None]

    def decomposition_like(self) -> list[Tensor]:
        """Tensors of these shapes."""
        A, G = self.inputs.value, self.outputs.value
        assert A is not None
        assert G is not None
        groups, rows, columns = len(G), G.shape[-1], A.shape[-1]
        by_row, by_column = G.new_empty(groups, rows, 1), G.new_empty(groups, 1, columns)
        scales = [G.new_empty(groups, rows, columns), G.new_empty(())]
        pairs = 2 if self.mode == "factored" else 1
        return [torch.empty_like(G), torch.empty_like(A), *scales, *[by_row, by_column] * pairs]

    def adopt(self, parts: Sequence[Tensor]) -> None:
        """Take the decomposition of another process into use."""
        self._left, self._right, self.scales.value, self.scales.mass, self._null_rows, self._null_columns = parts[:6]
        if len(parts) > 6:
            self._damped_rows, self._damped_columns = parts[6:]

    def precondition(self, gradient: Tensor, damping: Damping) -> Tensor:
        """(F + damping)⁻¹ gradient for (b, o, i); in factored mode but for λ itself as of the last refresh."""
        if self._left is None or self._right is None or self.scales.value is None:
            return gradient
        curvature = self.scales.value
        if self._damped_rows is not None and self._damped_columns is not None:
            curvature = curvature + self._damped_rows + self._damped_columns
        rotated = divided(product(product(self._left.mT, gradient), self._right), curvature, damping)
        return product(product(self._left, rotated), self._right.mT)

    def multiply(self, direction: Tensor) -> Tensor:
        """F V for (b, o, i); G V A while there is no basis, and V itself before any statistics."""
        if self.inputs.value is None or self.outputs.value is None:
            return direction
        if self._left is None or self._right is None or self.scales.value is None:
            return product(product(self.outputs.value, direction), self.inputs.value)
        rotated = product(product(self._left.mT, direction), self._right) * self.scales.value
        return product(product(self._left, rotated), self._right.mT)

    def to_dense(self) -> Tensor:
        """(b · o · i) square, block-diagonal over the groups."""
        if self.inputs.value is None or self.outputs.value is None:
            raise RuntimeError("no statistics yet: call update_statistics first")
        if self._left is None or self._right is None or self.scales.value is None:
            return kronecker_products(self.outputs.value, self.inputs.value)
        basis = kronecker_products(self._left, self._right)
        return (basis * self.scales.value.flatten()) @ basis.T

    def state_dict(self) -> dict[str, Any]:
        """The factors, R with its mass, the basis in use and the damping that it was made with."""
        return {
            **self.factors.state_dict(),
            "scales": self.scales.state_dict(),
            "left": self._left,
            "right": self._right,
            "damped_rows": self._damped_rows,
            "damped_columns": self._damped_columns,
            "null_rows": self._null_rows,
            "null_columns": self._null_columns,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.factors.load_state_dict(state, self._like)
        self.scales.load_state_dict(state["scales"], self._like)
        self._left, self._right, self._damped_rows, self._damped_columns, self._null_rows, self._null_columns = (
            copy_to(state.get(name), self._like)  # older states know nothing of what is open
            for name in ("left", "right", "damped_rows", "damped_columns", "null_rows", "null_columns")
        )

    def _evened(self, scales: Tensor) -> Tensor:
        """(b, o, i) with one mean for all rows, and all columns, that the basis leaves open."""
        for null, axis in ((self._null_rows, 1), (self._null_columns, 2)):
            if null is not None:
                mean = (scales * null).sum(axis, keepdim=True) / null.sum(axis, keepdim=True).clamp(min=1)
                scales = torch.lerp(scales, mean, null)
        return scales


def _null(values: Tensor) -> Tensor:
    """1 where an eigenvalue of (b, n), ascending, is too small beside the largest to have a direction, else 0."""
    least = max(_LEAST, _ROUNDING * torch.finfo(values.dtype).eps)
    return (values <= least * values[:, -1:]).to(values)
