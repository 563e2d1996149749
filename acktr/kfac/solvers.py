"""Damped inverses and eigenbases of positive semi-definite matrices that never end a run.

The ladder around every decomposition, which reads one triangle and so takes its matrix as symmetric: try; add a
relative jitter; repeat in float64; repeat in float64 on the CPU. When all fail the caller keeps its last good result.
Failures of single-precision `eigh` and `cholesky` on ill-conditioned covariances are the most reported crash of
published K-FAC codes.

By Cholesky the first rung needs no look from the host, so that of many matrices all are tried before one look at
everything (`settled`); `torch.linalg.eigh` looks at each of its results by itself.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from acktr.kfac.triangular import blocks_pay, invert_by_blocks

_JITTERS = (1e-6, 1e-4)
"""Fractions of the mean eigenvalue added to the diagonal, in turn."""

Outcome = tuple[Tensor | None, int]
"""Of a guarded decomposition: the result, None when every rung failed; and the number of rungs that failed."""


class Attempt:
    """A guarded decomposition whose first rung was tried, and which nobody has looked at yet.

    Args:
        matrix: (b, n, n) symmetric positive semi-definite up to rounding; left as it is until `settled`.
        decompose: gives the result (b, n, n) of a matrix and whether it is one (0-d), without a look from the host.

    Attributes:
        sound: 0-d bool, whether the newest rung came out.
    """

    def __init__(self, matrix: Tensor, decompose: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self._like = matrix
        self._decompose = decompose
        self._rungs = _rungs(matrix)
        self._result, self.sound = decompose(next(self._rungs))

    def settle(self, sound: bool) -> Outcome:
        """Climb on until a rung comes out, with a host read for each.

        Args:
            sound: what `self.sound` holds.

        Returns:
            The result in the dtype and on the device of the matrix, or None when every rung failed; and the number of
            rungs that failed.
        """
        retries = 0
        while not sound:
            retries += 1
            rung = next(self._rungs, None)
            if rung is None:
                return None, retries
            self._result, self.sound = self._decompose(rung)
            sound = bool(self.sound)
        return self._result.to(self._like), retries


def settled(attempts: Sequence[Attempt]) -> list[Outcome]:
    """What came of the attempts, in their order: one host read, and further ones for those whose first rung failed."""
    if not attempts:
        return []
    device = attempts[0].sound.device
    sound = torch.stack([attempt.sound.to(device) for attempt in attempts])
    return [attempt.settle(verdict) for attempt, verdict in zip(attempts, sound.tolist(), strict=True)]


def damped_inverse(matrix: Tensor, damping: Tensor) -> Attempt:
    """Inverse of `matrix + damping · I` by Cholesky, guarded.

    Args:
        matrix: (b, n, n) symmetric positive semi-definite up to rounding.
        damping: (b,) added to the diagonal.

    Returns:
        An attempt at the inverse (b, n, n), symmetric to the bit and with its rows first.
    """
    return Attempt(matrix, lambda rung: _inverse(_damped(rung, damping)))


def damped_cholesky(matrix: Tensor, damping: Tensor) -> Attempt:
    """Cholesky factor of `matrix + damping · I`, guarded: a third of the work of the inverse.

    Args:
        matrix: (b, n, n) symmetric positive semi-definite up to rounding.
        damping: (b,) added to the diagonal.

    Returns:
        An attempt at the upper factor (b, n, n).
    """
    return Attempt(matrix, lambda rung: _upper_factor(_damped(rung, damping)))


def eigenbasis(matrix: Tensor) -> tuple[tuple[Tensor, Tensor] | None, int]:
    """Eigenvalues, ascending and floored at 0, and eigenvectors of a symmetric matrix, guarded.

    Args:
        matrix: (b, n, n) symmetric positive semi-definite up to rounding.

    Returns:
        Eigenvalues (b, n) and eigenvectors in columns (b, n, n), in the dtype and on the device of `matrix`, or None
        when every rung failed; and the number of rungs that failed.
    """
    retries = 0
    for attempt in _rungs(matrix):
        try:
            values, vectors = torch.linalg.eigh(attempt)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch's stubs leave it out
            retries += 1  # counted and reported; the next rung decides
            continue
        if bool(torch.isfinite(values).all() & torch.isfinite(vectors).all()):
            return (values.clamp(min=0).to(matrix), vectors.to(matrix).contiguous()), retries
        retries += 1
    return None, retries


def _damped(matrix: Tensor, damping: Tensor) -> Tensor:
    """A copy with the damping on its diagonal."""
    damped = matrix.clone(memory_format=torch.contiguous_format)
    _diagonal(damped).add_(damping.to(matrix)[:, None])
    return damped


def _inverse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse (b, n, n), in the memory of the matrix or its own, and whether all of it is one, 0-d."""
    if blocks_pay(matrix):
        inverse, sound = matrix, invert_by_blocks(matrix)
    else:
        factor, sound = _lower_factor(matrix)
        # LAPACK refuses to invert a factor whose failed pivot is exactly 0, and would raise
        _diagonal(factor).copy_(torch.where(sound[:, None], _diagonal(factor), 1.0))
        # LAPACK leaves columns first; a file holds rows first, and products of the two differ in the last bit. The
        # inverse is symmetric to the bit, so its transpose is the same with rows first, at no cost
        inverse = torch.cholesky_inverse(factor).mT.contiguous()
    # no entry of such a matrix exceeds the largest of its diagonal
    return inverse, sound.all() & torch.isfinite(_diagonal(inverse)).all()


def _upper_factor(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The upper factor (b, n, n) and whether all of it is one, 0-d."""
    factor, sound = _lower_factor(matrix)
    # LAPACK's lower one has columns first: no copy
    return factor.mT.contiguous(), sound.all() & torch.isfinite(_diagonal(factor)).all()


def _lower_factor(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The lower factor (b, n, n), and whether each is one, (b,)."""
    # symmetric, and the transpose has its columns first, as LAPACK wants them: else torch copies across memory
    factor, info = torch.linalg.cholesky_ex(matrix.mT)
    return factor, info == 0


def _rungs(matrix: Tensor) -> Iterator[Tensor]:
    yield matrix
    mean = _diagonal(matrix).mean(-1).abs()
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for jitter in _JITTERS:
        yield matrix + (jitter * mean)[:, None, None] * identity
    if matrix.dtype != torch.float64:
        yield (matrix + (_JITTERS[0] * mean)[:, None, None] * identity).double()
    if matrix.device.type != "cpu":
        yield (matrix + (_JITTERS[0] * mean)[:, None, None] * identity).double().cpu()


def _diagonal(matrices: Tensor) -> Tensor:
    """The diagonals (b, n) of (b, n, n), a view."""
    return matrices.diagonal(dim1=-2, dim2=-1)
