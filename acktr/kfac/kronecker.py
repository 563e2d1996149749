"""The Kronecker-factored block of a weight matrix."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from acktr.kfac.averages import RunningAverage, Share
from acktr.kfac.blocks import Damping, Missing, RefreshReport, copy_to, divided
from acktr.kfac.factors import Factors
from acktr.kfac.moments import WeightBatch
from acktr.kfac.products import product
from acktr.kfac.solvers import Attempt, Outcome, damped_inverse, eigenbasis, settled
from acktr.kfac.sums import Sums

DampingMode = Literal["factored", "exact"]


class KroneckerBlock:
    """F = A ⊗ G on a weight matrix: F V = G V A (Martens & Grosse 2015; Grosse & Martens 2016 for convolutions).

    Damping "factored" adds `π sqrt(λ) I` to A and `sqrt(λ)/π I` to G with the trace-norm `π` (section 6.3) and inverts
    by Cholesky; "exact" keeps eigenbases and divides by `s_G s_Aᵀ + λ`. At equal λ the factored form is never less
    damped, so a value of λ does not carry over from one mode to the other.

    Args:
        factors: A and G as K-FAC or K-FOC estimates them.
        like: a tensor with the device and dtype of the statistics.
        mode: the damping mode.
    """

    def __init__(self, factors: Factors, like: Tensor, *, mode: DampingMode) -> None:
        self.factors = factors
        self.mode = mode
        self._like = like
        self._left: Tensor | None = None  # G's inverse, or its eigenvectors
        self._right: Tensor | None = None  # the same of A
        self._scales: Tensor | None = None  # s_G s_Aᵀ in exact mode, (b, o, i)

    @property
    def inputs(self) -> RunningAverage:
        """A, (b, i, i)."""
        return self.factors.inputs

    @property
    def outputs(self) -> RunningAverage:
        """G, (b, o, o)."""
        return self.factors.outputs

    def observe(self, batch: WeightBatch, share: Share) -> Sums[None]:
        """Add a batch to both factors."""
        return self.factors.observe(batch, share)

    @property
    def missing(self) -> Missing | None:
        """See `Block`."""
        if self.inputs.value is None or self.outputs.value is None:
            return "statistics"
        return "inverse" if self._left is None else None

    def refresh(self, damping: Damping) -> RefreshReport:
        """Invert or decompose both factors; a factor that defies the guard ladder keeps the old pair in use."""
        return self.finish_refresh(settled(self.begin_refresh(damping)))

    def begin_refresh(self, damping: Damping) -> list[Attempt]:
        """Try to invert both factors; nothing in mode "exact", for `eigh` is looked at by itself."""
        A, G = self.inputs.value, self.outputs.value
        if A is None or G is None or self.mode == "exact":
            return []
        damping_a, damping_g = factored_damping(A, G, damping)
        return [damped_inverse(A, damping_a), damped_inverse(G, damping_g)]

    def finish_refresh(self, outcomes: Sequence[Outcome]) -> RefreshReport:
        """Take the inverses of `begin_refresh` into use, or decompose in mode "exact"."""
        if not outcomes:
            return self._decompose()
        (right, retries_a), (left, retries_g) = outcomes
        if left is None or right is None:
            return RefreshReport(retries=retries_a + retries_g, stale=True)
        self._left, self._right, self._scales = left, right, None
        return RefreshReport(retries=retries_a + retries_g)

    def _decompose(self) -> RefreshReport:
        A, G = self.inputs.value, self.outputs.value
        if A is None or G is None:
            return RefreshReport()
        basis_a, retries_a = eigenbasis(A)
        basis_g, retries_g = eigenbasis(G)
        if basis_a is None or basis_g is None:
            return RefreshReport(retries=retries_a + retries_g, stale=True)
        self._right, self._left = basis_a[1], basis_g[1]
        self._scales = basis_g[0][:, :, None] * basis_a[0][:, None, :]
        return RefreshReport(retries=retries_a + retries_g)

    @property
    def is_symmetric(self) -> bool:
        """Whether what travels are inverses, not bases."""
        return self.mode == "factored"

    def decomposition(self) -> list[Tensor] | None:
        """Both inverses, or both bases and the eigenvalues' products."""
        if self._left is None or self._right is None:
            return None
        return [self._left, self._right, *([] if self._scales is None else [self._scales])]

    def decomposition_like(self) -> list[Tensor]:
        """Tensors of these shapes."""
        A, G = self.inputs.value, self.outputs.value
        assert A is not None
        assert G is not None
        found = [torch.empty_like(G), torch.empty_like(A)]
        return found if self.mode == "factored" else [*found, G.new_empty(len(G), G.shape[-1], A.shape[-1])]

    def adopt(self, parts: Sequence[Tensor]) -> None:
        """Take the decomposition of another process into use."""
        self._left, self._right = parts[:2]
        self._scales = parts[2] if len(parts) > 2 else None

    def precondition(self, gradient: Tensor, damping: Damping) -> Tensor:
        """(F + damping)⁻¹ gradient for (b, o, i); in factored mode the damping is that of the last refresh."""
        if self._left is None or self._right is None:
            return gradient
        if self._scales is None:
            return product(product(self._left, gradient), self._right)
        rotated = product(product(self._left.transpose(-1, -2), gradient), self._right)
        rotated = divided(rotated, self._scales, damping)
        return product(product(self._left, rotated), self._right.transpose(-1, -2))

    def wants_rows(self, rows: int) -> bool:
        """Whether `precondition_rows` of that many is less work than forming the gradient and `precondition`."""
        if self._left is None or self._right is None or self._scales is not None or len(self._left) > 1:
            return False
        outputs, inputs = self._left.shape[-1], self._right.shape[-1]
        return rows * (outputs**2 + inputs**2) < outputs * inputs * (outputs + inputs)

    def precondition_rows(self, gradients: Tensor, inputs: Tensor) -> Tensor:
        """`precondition` of Σ g aᵀ, (1, o, i), for (N, o) and (N, i); where `wants_rows`."""
        assert self._left is not None
        assert self._right is not None
        left, right = product(gradients[None], self._left), product(inputs[None], self._right)
        return product(left.mT, right)

    def multiply(self, direction: Tensor) -> Tensor:
        """G V A for (b, o, i) with the running factors; V itself before any statistics."""
        if self.inputs.value is None or self.outputs.value is None:
            return direction
        return product(product(self.outputs.value, direction), self.inputs.value)

    def to_dense(self) -> Tensor:
        """(b · o · i) square, block-diagonal over the groups."""
        if self.inputs.value is None or self.outputs.value is None:
            raise RuntimeError("no statistics yet: call update_statistics first")
        return kronecker_products(self.outputs.value, self.inputs.value)

    def state_dict(self) -> dict[str, Any]:
        """Both factors with their masses, and the inverses in use, which are older than the factors."""
        return {
            **self.factors.state_dict(),
            "left": self._left,
            "right": self._right,
            "eigenvalues": self._scales,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.factors.load_state_dict(state, self._like)
        self._left, self._right, self._scales = (
            copy_to(state[name], self._like) for name in ("left", "right", "eigenvalues")
        )


def factored_damping(A: Tensor, G: Tensor, damping: Damping) -> tuple[Tensor, Tensor]:
    """Split lambda over two factors by the trace norm (Martens & Grosse 2015, section 6.3).

    Args:
        A: (b, i, i).
        G: (b, o, o).
        damping: lambda on the block A ⊗ G.

    Returns:
        What to add to the diagonals of A and of G, each (b,): `π sqrt(λ)` and `sqrt(λ)/π` with
        `π = sqrt((tr A / i) / (tr G / o))`, and π = 1 where a trace is 0 (a dead layer).
    """
    mean_a = A.diagonal(dim1=-2, dim2=-1).mean(-1)
    mean_g = G.diagonal(dim1=-2, dim2=-1).mean(-1)
    usable = (mean_a > 0) & (mean_g > 0)
    one = torch.ones_like(mean_a)
    pi = (torch.where(usable, mean_a, one) / torch.where(usable, mean_g, one)).sqrt().clamp(1e-6, 1e6)
    root = damping**0.5
    return pi * root, root / pi


def kronecker_products(left: Tensor, right: Tensor) -> Tensor:
    """(b, o, o) and (b, i, i) to a (b · o · i) square with the products of the groups as its diagonal blocks."""
    size = left.shape[-1] * right.shape[-1]
    dense = left.new_zeros(len(left) * size, len(left) * size)
    for index, (one, other) in enumerate(zip(left, right, strict=True)):
        part = slice(index * size, (index + 1) * size)
        dense[part, part] = torch.kron(one, other)
    return dense


def size_of_products(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Squared Frobenius norm and trace of `kronecker_products`, 0-d."""
    squares = left.square().sum((-1, -2)) * right.square().sum((-1, -2))
    traces = left.diagonal(dim1=-2, dim2=-1).sum(-1) * right.diagonal(dim1=-2, dim2=-1).sum(-1)
    return squares.sum(), traces.sum()
