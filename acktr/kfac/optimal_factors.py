"""K-FOC: the one Kronecker product nearest to a block in the Frobenius norm (Schnaus, Lee & Triebel 2021).

With P the gradient of one example's loss, the block is E[vec P vec Pᵀ] and the product G ⊗ A nearest to it is the top
singular pair of its rearrangement. Alternating `G ← E[P A Pᵀ]` and `A ← E[Pᵀ G P]` is the power method for it, and
each half step the exact least squares for one factor given the other (their algorithm 2).
"""

import functools
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from acktr.kfac.averages import RunningAverage, Share
from acktr.kfac.moments import WeightBatch
from acktr.kfac.products import product
from acktr.kfac.sums import Sum, Sums

Aggregation = Literal["running", "approx"]

COLD_STEPS = 12
"""Power steps on the first batch, from the identity; later ones start from the running factor."""

_UNSEEN = 1e-6
"""Of its mean eigenvalue, added to the factor that power steps start from: what it knows nothing of could not grow."""

_KEPT_ELEMENTS = 1 << 26
"""Gradients of the examples are kept between half steps up to this many entries (256 MiB in float32)."""


class OptimalFactors:
    """Running factors of K-FOC, with `tr A / i = tr G / o` as their gauge.

    Args:
        steps: of the power method on each batch, from the running factor of the inputs.
        aggregation: how batches are put together. "running" keeps the product nearest to the weighted sum of the
            running product and the batch's; "approx" averages each factor by itself, as K-FAC does.
    """

    def __init__(self, *, steps: int = 1, aggregation: Aggregation = "running") -> None:
        self.inputs = RunningAverage()
        self.outputs = RunningAverage()
        self.steps = steps
        self.aggregation = aggregation

    def observe(self, batch: WeightBatch, share: Share) -> Sums[None]:
        """Add a batch; one that is empty or not finite changes nothing."""
        groups, _, columns = batch.map.matrix_shape
        weight = batch.total_weight()
        start = self.inputs.value
        steps = self.steps if start is not None else max(self.steps, COLD_STEPS)
        if start is None:
            start = torch.eye(columns).to(weight).expand(groups, columns, columns)
        A, G, weight = yield from nearest_product(batch, start, steps=steps)
        if self.aggregation == "approx" or self.inputs.value is None:
            # the first average is the batch itself either way
            self.inputs.update(A * weight, weight, share)
            self.outputs.update(G * weight, weight, share)
            return
        self._merge(A, G, weight, share)

    def _merge(self, A: Tensor, G: Tensor, weight: Tensor, share: Share) -> None:
        value_a, value_g, mass = self.inputs.value, self.outputs.value, self.inputs.mass
        assert value_a is not None
        assert value_g is not None
        assert mass is not None
        usable = (weight > 0) & torch.isfinite(A.sum() + G.sum())
        grown = torch.where(usable, share.keep * mass + share.add, mass)
        part = torch.where(usable, share.add / grown, 0.0)
        A, G = torch.where(usable, A, 0.0), torch.where(usable, G, 0.0)
        merged_a, merged_g = nearest_to_two((value_a, value_g * (1 - part)), (A, G * part))
        usable &= torch.isfinite(merged_a.sum() + merged_g.sum())
        grown = torch.where(usable, grown, mass)
        self.inputs.value, self.inputs.mass = torch.where(usable, merged_a, value_a), grown
        self.outputs.value, self.outputs.mass = torch.where(usable, merged_g, value_g), grown.clone()

    def state_dict(self) -> dict[str, Any]:
        """Both factors with their masses."""
        return {"inputs": self.inputs.state_dict(), "outputs": self.outputs.state_dict()}

    def load_state_dict(self, state: dict[str, Any], like: Tensor) -> None:
        """Take back what `state_dict` gave."""
        self.inputs.load_state_dict(state["inputs"], like)
        self.outputs.load_state_dict(state["outputs"], like)


def nearest_product(batch: WeightBatch, start: Tensor, *, steps: int) -> Sums[tuple[Tensor, Tensor, Tensor]]:
    """Power steps towards the factors whose product is nearest to a batch's block.

    Args:
        batch: of one weight.
        start: (b, i, i) symmetric positive semi-definite: the factor of the inputs to start from, to which a trace of
            the identity is added; the identity itself where it is 0.
        steps: at least 1; each is a half step for the outputs' factor and one for the inputs'.

    Returns:
        A (b, i, i) and G (b, o, o), positive semi-definite, of equal mean diagonals, and the batch's weight, 0-d. A is
        the best one for G; the error never exceeds that of the best G for the factor started from. Both 0 where the
        batch has no gradient.
    """
    terms = _terms(batch, half_steps=2 * steps)
    weight = batch.total_weight()
    A, G = _open(start), start  # the loop replaces both
    for step in range(steps):
        sums = [Sum(_symmetric(terms.outputs_given(_divided(A, _norm(A)))), symmetric=True)]
        if step == 0:
            G, weight = yield [*sums, Sum(weight)]
        else:
            (G,) = yield sums
        G = G / weight
        G = _divided(G, _norm(G))
        (A,) = yield [Sum(_symmetric(terms.inputs_given(G)), symmetric=True)]
        A = A / weight
    return *in_gauge(A, G), weight


def nearest_to_two(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The product A ⊗ G nearest to `A_1 ⊗ G_1 + A_2 ⊗ G_2`, in closed form.

    With Gram matrices of the two A and of the two G under the Frobenius product, the coefficients of A are the top
    eigenvector of a 2 x 2 matrix. For positive semi-definite factors its entries are not negative, so by Perron and
    Frobenius neither are the coefficients, and the result is positive semi-definite.

    Args:
        one: A_1 (b, i, i) and G_1 (b, o, o).
        other: A_2 and G_2.

    Returns:
        A and G, of equal mean diagonals.
    """
    # at the scale of the larger: the squares of a block's norm below leave the range of float32 at ordinary sizes
    roots = [(_norm(A).sqrt() * _norm(G).sqrt()) for A, G in (one, other)]
    largest = torch.maximum(*roots)
    one, other = (
        (_divided(A, _norm(A)) * _divided(root, largest), _divided(G, _norm(G)) * _divided(root, largest))
        for (A, G), root in zip((one, other), roots, strict=True)
    )
    gram_a, gram_g = _gram_of_two(one[0], other[0]), _gram_of_two(one[1], other[1])
    (p, q), (r, s) = [row.unbind(-1) for row in (gram_g @ gram_a).unbind(-2)]
    top = (p + s) / 2 + (((p - s) / 2).square() + q * r).clamp(min=0).sqrt()
    # of the two rows that give the eigenvector the one whose difference does not cancel
    alpha = torch.where((p >= s).unsqueeze(-1), torch.stack((top - s, r), -1), torch.stack((q, top - p), -1))
    length = torch.einsum("bp,bpq,bq->b", alpha, gram_a, alpha).clamp(min=0).sqrt()
    alpha = _divided(alpha, length[:, None])
    beta = torch.einsum("bpq,bq->bp", gram_a, alpha)
    (first_a, second_a), (first_g, second_g) = alpha[..., None, None].unbind(1), beta[..., None, None].unbind(1)
    A, G = first_a * one[0] + second_a * other[0], first_g * one[1] + second_g * other[1]
    return in_gauge(A * largest, G * largest)


def in_gauge(A: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with equal mean diagonals, which makes the π of factored damping 1; unchanged where one is 0."""
    mean_a, mean_g = (factor.diagonal(dim1=-2, dim2=-1).mean(-1) for factor in (A, G))
    usable = (mean_a > 0) & (mean_g > 0)
    # roots apart: the quotient of a tiny and a huge trace may leave the range of numbers
    scale = torch.where(usable, mean_g.clamp(min=0).sqrt() / torch.where(usable, mean_a, 1.0).sqrt(), 1.0)
    return A * scale[:, None, None], G / scale[:, None, None]


class _Terms(Protocol):
    """Sums over a batch that the power method alternates between."""

    def outputs_given(self, A: Tensor) -> Tensor:
        """Σ P A Pᵀ, (b, o, o)."""
        ...

    def inputs_given(self, G: Tensor) -> Tensor:
        """Σ Pᵀ G P, (b, i, i)."""
        ...


def _terms(batch: WeightBatch, *, half_steps: int) -> _Terms:
    """By the gradients P or by pairs of positions, whichever costs fewer multiplications; by pairs for one position."""
    groups, rows, columns = batch.map.matrix_shape
    positions = batch.positions
    by_gradients = positions * rows * columns + half_steps * rows * columns * (rows + columns)
    by_pairs = half_steps * positions * (rows**2 + columns**2 + positions * (rows + columns))
    pairs = by_pairs <= by_gradients
    entries = batch.examples * len(batch.passes) * groups
    entries *= positions * (rows + columns) if pairs else rows * columns
    keep = entries <= _KEPT_ELEMENTS
    if pairs:
        return _ByPairs(list(batch.extended_pairs()) if keep else _Anew(batch.extended_pairs))
    return _ByGradients(list(batch.gradients()) if keep else _Anew(batch.gradients))


T = TypeVar("T")


class _Anew(Iterable[T]):
    """What a generator function yields, computed anew at each reading."""

    def __init__(self, function: Callable[[], Iterator[T]]) -> None:
        self._function = function

    def __iter__(self) -> Iterator[T]:
        return self._function()


class _ByGradients:
    def __init__(self, parts: Iterable[Tensor]) -> None:
        self._parts = parts  # P of some examples, (n, b, o, i)

    def outputs_given(self, A: Tensor) -> Tensor:
        return _sum(_times(P, A).matmul(P.transpose(-1, -2)).sum(0) for P in self._parts)

    def inputs_given(self, G: Tensor) -> Tensor:
        return _sum(product(_rows_of_each(P).mT, _rows_of_each(G @ P)) for P in self._parts)


class _ByPairs:
    def __init__(self, parts: Iterable[tuple[Tensor, Tensor]]) -> None:
        self._parts = parts  # gradients (n, T, b, o) and inputs (n, T, b, i)

    def outputs_given(self, A: Tensor) -> Tensor:
        return _sum(_moment_by_forms(g, a, A) for g, a in self._parts)

    def inputs_given(self, G: Tensor) -> Tensor:
        return _sum(_moment_by_forms(a, g, G) for g, a in self._parts)


def _moment_by_forms(rows: Tensor, others: Tensor, factor: Tensor) -> Tensor:
    """Σ_{t,t'} (y_tᵀ M y_t') x_t x_t'ᵀ of rows x (n, T, b, k) and others y (n, T, b, m) of the same examples."""
    turned = _times(others.transpose(1, 2), factor)  # (n, b, T, m)
    if rows.shape[1] == 1:
        weighted = rows * (turned * others.transpose(1, 2)).sum(-1, keepdim=True).transpose(1, 2)
    else:
        weighted = ((turned @ others.permute(0, 2, 3, 1)) @ rows.transpose(1, 2)).transpose(1, 2)
    return product(_by_group(rows).mT, _by_group(weighted))


def _times(matrices: Tensor, factor: Tensor) -> Tensor:
    """(n, b, m, k) times (b, k, k)."""
    if factor.shape[0] == 1:  # one plain product is faster than a batched one
        return product(matrices.reshape(1, -1, matrices.shape[-1]), factor).reshape(matrices.shape)
    return matrices @ factor


def _by_group(rows: Tensor) -> Tensor:
    """(n, m, b, k) to (b, n m, k)."""
    return rows.flatten(0, 1).transpose(0, 1)


def _rows_of_each(matrices: Tensor) -> Tensor:
    """(n, b, o, i) to (b, n o, i)."""
    return _by_group(matrices.transpose(1, 2))


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, parts)


def _open(factors: Tensor) -> Tensor:
    """Positive definite factors to start from: a direction of eigenvalue 0 would keep it."""
    mean = factors.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    identity = torch.eye(factors.shape[-1]).to(factors)
    return torch.where(mean > 0, factors + _UNSEEN * mean * identity, identity)


def _symmetric(matrices: Tensor) -> Tensor:
    return (matrices + matrices.mT) / 2


def _norm(matrices: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.matrix_norm(matrices, keepdim=True)
    return norm


def _divided(value: Tensor, by: Tensor) -> Tensor:
    """The quotient, and 0 where the divisor is 0; NaN stays, and tells of a batch that is not usable."""
    return torch.where(by == 0, 0.0, value / by)


def _gram_of_two(one: Tensor, other: Tensor) -> Tensor:
    """(b, 2, 2) Frobenius products of two (b, k, k)."""
    both = torch.stack((one, other), dim=1).flatten(2)
    return both @ both.mT
