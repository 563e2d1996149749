"""Curvature blocks: what is kept of the Fisher for one group of parameters, and how its damped inverse is applied.

Every block works on one matrix that holds its parameters: `(b, o, i)` for a Kronecker-factored one, `(d,)` for the
others. The optimizer arranges parameters, gradients and momenta as such matrices (`acktr.kfac.layers.ParameterMap`).
"""

import dataclasses
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from acktr.kfac.averages import RunningAverage, Share
from acktr.kfac.products import product
from acktr.kfac.solvers import damped_inverse, eigenbasis

DampingMode = Literal["factored", "exact"]


class Block(Protocol):
    """One block of the Fisher.

    `multiply` and `to_dense` speak of the running estimate without damping; `precondition` applies the inverse as of
    the last refresh, and leaves its argument unchanged while there has been none. Without statistics F is the identity.
    """

    @property
    def missing(self) -> Literal["statistics", "inverse"] | None:
        """What `precondition` lacks to be more than the identity."""
        ...

    def refresh(self, damping: float) -> "RefreshReport":
        """Decompose the running estimate; `damping` is lambda on the block."""
        ...

    def precondition(self, gradient: Tensor, damping: float) -> Tensor:
        """(F + damping)⁻¹ gradient."""
        ...

    def multiply(self, direction: Tensor) -> Tensor:
        """F direction."""
        ...

    def to_dense(self) -> Tensor:
        """The block as a matrix over the row-major flattening of its parameters' matrix."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RefreshReport:
    """What a refresh met: rungs of the guard ladder that failed, and whether the old inverse had to stay."""

    retries: int = 0
    stale: bool = False


class KroneckerBlock:
    """F = A ⊗ G on a weight matrix: F V = G V A (Martens & Grosse 2015; Grosse & Martens 2016 for convolutions).

    Damping "factored" adds `π sqrt(λ) I` to A and `sqrt(λ)/π I` to G with the trace-norm `π` (section 6.3) and inverts
    by Cholesky; "exact" keeps eigenbases and divides by `s_G s_Aᵀ + λ`. At equal λ the factored form is never less
    damped, so a value of λ does not carry over from one mode to the other.

    Args:
        like: a tensor with the device and dtype of the statistics.
        mode: the damping mode.
    """

    def __init__(self, like: Tensor, *, mode: DampingMode) -> None:
        self.inputs = RunningAverage()
        self.outputs = RunningAverage()
        self.mode = mode
        self._like = like
        self._left: Tensor | None = None  # G's inverse, or its eigenvectors
        self._right: Tensor | None = None  # the same of A
        self._scales: Tensor | None = None  # s_G s_Aᵀ in exact mode, (b, o, i)

    @property
    def dtype(self) -> torch.dtype:
        """Of the statistics."""
        return self._like.dtype

    @property
    def missing(self) -> Literal["statistics", "inverse"] | None:
        """See `Block`."""
        if self.inputs.value is None or self.outputs.value is None:
            return "statistics"
        return "inverse" if self._left is None else None

    def refresh(self, damping: float) -> RefreshReport:
        """Invert or decompose both factors; a factor that defies the guard ladder keeps the old pair in use."""
        A, G = self.inputs.value, self.outputs.value
        if A is None or G is None:
            return RefreshReport()
        if self.mode == "factored":
            damping_a, damping_g = factored_damping(A, G, damping)
            right, retries_a = damped_inverse(A, damping_a)
            left, retries_g = damped_inverse(G, damping_g)
            if left is None or right is None:
                return RefreshReport(retries=retries_a + retries_g, stale=True)
            self._left, self._right, self._scales = left, right, None
            return RefreshReport(retries=retries_a + retries_g)
        basis_a, retries_a = eigenbasis(A)
        basis_g, retries_g = eigenbasis(G)
        if basis_a is None or basis_g is None:
            return RefreshReport(retries=retries_a + retries_g, stale=True)
        self._right, self._left = basis_a[1], basis_g[1]
        self._scales = basis_g[0][:, :, None] * basis_a[0][:, None, :]
        return RefreshReport(retries=retries_a + retries_g)

    def precondition(self, gradient: Tensor, damping: float) -> Tensor:
        """(F + damping)⁻¹ gradient for (b, o, i); in factored mode the damping is that of the last refresh."""
        if self._left is None or self._right is None:
            return gradient
        if self._scales is None:
            return product(product(self._left, gradient), self._right)
        rotated = product(product(self._left.transpose(-1, -2), gradient), self._right)
        rotated = _divided(rotated, self._scales, damping)
        return product(product(self._left, rotated), self._right.transpose(-1, -2))

    def multiply(self, direction: Tensor) -> Tensor:
        """G V A for (b, o, i) with the running factors; V itself before any statistics."""
        if self.inputs.value is None or self.outputs.value is None:
            return direction
        return product(product(self.outputs.value, direction), self.inputs.value)

    def to_dense(self) -> Tensor:
        """(b · o · i) square, block-diagonal over the groups."""
        if self.inputs.value is None or self.outputs.value is None:
            raise RuntimeError("no statistics yet: call update_statistics first")
        groups, rows, columns = self.outputs.value.shape[0], self.outputs.value.shape[1], self.inputs.value.shape[1]
        size = rows * columns
        dense = self.outputs.value.new_zeros(groups * size, groups * size)
        for index, (G, A) in enumerate(zip(self.outputs.value, self.inputs.value, strict=True)):
            part = slice(index * size, (index + 1) * size)
            dense[part, part] = torch.kron(G, A)
        return dense

    def state_dict(self) -> dict[str, Any]:
        """Both factors with their masses, and the inverses in use, which are older than the factors."""
        return {
            "inputs": self.inputs.state_dict(),
            "outputs": self.outputs.state_dict(),
            "left": self._left,
            "right": self._right,
            "scales": self._scales,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.inputs.load_state_dict(state["inputs"], self._like)
        self.outputs.load_state_dict(state["outputs"], self._like)
        self._left, self._right, self._scales = (
            _copy_to(state[name], self._like) for name in ("left", "right", "scales")
        )


class FullBlock:
    """The whole Fisher block of a small parameter of d entries, from its per-example gradients."""

    def __init__(self, like: Tensor) -> None:
        self.moment = RunningAverage()  # (1, d, d)
        self._like = like
        self._inverse: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the statistics."""
        return self._like.dtype

    def update(self, gradients: Tensor, weight: Tensor, share: Share) -> None:
        """Add a batch.

        Args:
            gradients: (rows, d) per-example gradients, each already multiplied by the root of its weight.
            weight: 0-d, the sum of the examples' weights.
            share: of the batch.
        """
        self.moment.update((gradients.T @ gradients).unsqueeze(0), weight, share)

    @property
    def missing(self) -> Literal["statistics", "inverse"] | None:
        """See `Block`."""
        if self.moment.value is None:
            return "statistics"
        return "inverse" if self._inverse is None else None

    def refresh(self, damping: float) -> RefreshReport:
        """Invert by Cholesky."""
        if self.moment.value is None:
            return RefreshReport()
        inverse, retries = damped_inverse(self.moment.value, self.moment.value.new_full((1,), damping))
        if inverse is None:
            return RefreshReport(retries=retries, stale=True)
        self._inverse = inverse[0]
        return RefreshReport(retries=retries)

    def precondition(self, gradient: Tensor, damping: float) -> Tensor:
        """(F + damping)⁻¹ gradient for (d,), with the damping of the last refresh."""
        return gradient if self._inverse is None else self._inverse @ gradient

    def multiply(self, direction: Tensor) -> Tensor:
        """F v for (d,)."""
        return direction if self.moment.value is None else self.moment.value[0] @ direction

    def to_dense(self) -> Tensor:
        """(d, d)."""
        if self.moment.value is None:
            raise RuntimeError("no statistics yet: call update_statistics first")
        return self.moment.value[0]

    def state_dict(self) -> dict[str, Any]:
        """The running block and the inverse in use."""
        return {"moment": self.moment.state_dict(), "inverse": self._inverse}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.moment.load_state_dict(state["moment"], self._like)
        self._inverse = _copy_to(state["inverse"], self._like)


class DiagonalBlock:
    """The diagonal of the Fisher of d parameters, from their per-example gradients."""

    def __init__(self, like: Tensor) -> None:
        self.moment = RunningAverage()  # (d,)
        self._like = like

    @property
    def dtype(self) -> torch.dtype:
        """Of the statistics."""
        return self._like.dtype

    def update(self, gradients: Tensor, weight: Tensor, share: Share) -> None:
        """Add a batch of (rows, d) per-example gradients, as `FullBlock.update`."""
        self.moment.update(gradients.square().sum(0), weight, share)

    @property
    def missing(self) -> Literal["statistics", "inverse"] | None:
        """See `Block`."""
        return "statistics" if self.moment.value is None else None

    def refresh(self, damping: float) -> RefreshReport:
        """Nothing to decompose."""
        return RefreshReport()

    def precondition(self, gradient: Tensor, damping: float) -> Tensor:
        """Gradient / (F + damping) for (d,)."""
        return gradient if self.moment.value is None else _divided(gradient, self.moment.value, damping)

    def multiply(self, direction: Tensor) -> Tensor:
        """F v for (d,)."""
        return direction if self.moment.value is None else self.moment.value * direction

    def to_dense(self) -> Tensor:
        """(d, d)."""
        if self.moment.value is None:
            raise RuntimeError("no statistics yet: call update_statistics first")
        return torch.diag(self.moment.value)

    def state_dict(self) -> dict[str, Any]:
        """The running diagonal."""
        return {"moment": self.moment.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.moment.load_state_dict(state["moment"], self._like)


class IdentityBlock:
    """Parameters that K-FAC cannot treat: plain gradient, Fisher taken as the identity."""

    @property
    def missing(self) -> Literal["statistics", "inverse"] | None:
        """See `Block`."""
        return None

    def refresh(self, damping: float) -> RefreshReport:
        """Nothing to decompose."""
        return RefreshReport()

    def precondition(self, gradient: Tensor, damping: float) -> Tensor:
        """The gradient itself."""
        return gradient

    def multiply(self, direction: Tensor) -> Tensor:
        """The direction itself."""
        return direction

    def to_dense(self) -> Tensor:
        """No matrix is kept.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("this parameter is not factored: its gradient is applied as it is")

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""


def factored_damping(A: Tensor, G: Tensor, damping: float) -> tuple[Tensor, Tensor]:
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


def _divided(gradient: Tensor, curvature: Tensor, damping: float) -> Tensor:
    """Gradient / (curvature + damping); without damping 0 where there is no curvature, as by the pseudo-inverse."""
    if damping > 0:
        return gradient / (curvature + damping)
    return torch.where(curvature > 0, gradient / curvature, 0.0)


def _copy_to(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.to(like, copy=True)
