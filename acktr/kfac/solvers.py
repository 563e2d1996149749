"""Damped inverses and eigenbases of positive semi-definite matrices that never end a run.

The ladder around every decomposition, which reads one triangle and so takes its matrix as symmetric: try; add a
relative jitter; repeat in float64; repeat in float64 on the CPU. When all fail the caller keeps its last good result.
Failures of single-precision `eigh` and `cholesky` on ill-conditioned covariances are the most reported crash of
published K-FAC codes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_JITTERS = (1e-6, 1e-4)
"""Fractions of the mean eigenvalue added to the diagonal, in turn."""


def damped_inverse(matrix: Tensor, damping: Tensor) -> tuple[Tensor | None, int]:
    """Inverse of `matrix + damping · I` by Cholesky, guarded.

    Args:
        matrix: (b, n, n) symmetric positive semi-definite up to rounding.
        damping: (b,) added to the diagonal.

    Returns:
        The inverse (b, n, n) in the dtype and on the device of `matrix`, or None when every rung failed; and the
        number of rungs that failed.
    """
    retries = 0
    for attempt in _rungs(matrix):
        factor, sound = _damped_cholesky(attempt, damping)
        # LAPACK refuses to invert a factor whose failed pivot is exactly 0, and would raise
        _diagonal(factor).copy_(torch.where(sound[:, None], _diagonal(factor), 1.0))
        inverse = torch.cholesky_inverse(factor)
        # the one host read of a refresh: did it work? No entry of such a matrix exceeds the largest of its diagonal
        if bool(sound.all() & torch.isfinite(_diagonal(inverse)).all()):
            # LAPACK leaves columns first; a file holds rows first, and products of the two differ in the last bit.
            # The inverse is symmetric to the bit, so its transpose is the same with rows first, at no cost
            return inverse.mT.contiguous().to(matrix), retries
        retries += 1
    return None, retries


def damped_cholesky(matrix: Tensor, damping: Tensor) -> tuple[Tensor | None, int]:
    """Cholesky factor of `matrix + damping · I`, guarded: a third of the work of the inverse.

    Args:
        matrix: (b, n, n) symmetric positive semi-definite up to rounding.
        damping: (b,) added to the diagonal.

    Returns:
        The upper factor (b, n, n) in the dtype and on the device of `matrix`, or None when every rung failed; and the
        number of rungs that failed.
    """
    retries = 0
    for attempt in _rungs(matrix):
        factor, sound = _damped_cholesky(attempt, damping)
        if bool(sound.all() & torch.isfinite(_diagonal(factor)).all()):  # the one host read of a refresh
            return factor.mT.contiguous().to(matrix), retries  # LAPACK's lower one has columns first: no copy
        retries += 1
    return None, retries


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


def _damped_cholesky(matrix: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """The lower factor (b, n, n), and whether each is one, (b,)."""
    damped = matrix.clone()
    _diagonal(damped).add_(damping.to(matrix)[:, None])
    # symmetric, and the transpose has its columns first, as LAPACK wants them: else torch copies across memory
    factor, info = torch.linalg.cholesky_ex(damped.mT)
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
