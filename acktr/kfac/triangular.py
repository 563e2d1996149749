"""Inverses of wide positive definite matrices by blocks, nearly all of the work being matrix products.

LAPACK's own inverse on CPUs reaches a third of the speed of `product` or less. With A = Uᵀ U and U V = I, U and V upper
triangular, the inverse is V Vᵀ; each of the three stages takes n³/3 multiplications and additions, and works in place.

Triangular systems are solved panel by panel with the panel's own triangle. Products with the inverse of that triangle
would be faster still, but a block inverse made of them lets the residual grow far beyond the condition number times the
rounding, and a factorisation breaks down (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 14.2).
"""

from typing import Any

import torch
from torch import Tensor

from acktr.kfac.products import product

_SMALLEST = 1024
"""Width below which the blocks' overhead does not pay."""

_PANEL = 128
"""Width up to which LAPACK factors and solves."""

_STRIP = 256
"""Width of the strips by which a product leaves out the half where a triangle is 0."""


def blocks_pay(matrix: Tensor) -> bool:
    """Whether `invert_by_blocks` is the faster way: where `product` is faster than LAPACK, and as exact.

    Args:
        matrix: (b, n, n).
    """
    single = len(matrix) == 1 and matrix.device.type == "cpu" and matrix.dtype == torch.float32
    if not single or matrix.shape[-1] < _SMALLEST:
        return False
    onednn: Any = torch.backends.mkldnn
    # a caller may let oneDNN round the factors of float32 products to bfloat16, which no inverse survives
    return onednn.is_available() and onednn.matmul.fp32_precision in ("none", "ieee")


def invert_by_blocks(matrix: Tensor) -> Tensor:
    """Replace a matrix by its inverse, by Cholesky and in its own dtype.

    Args:
        matrix: (b, n, n) symmetric positive definite, of which the triangle above the diagonal is read. Any dtype,
            device and b will do. Afterwards the inverse, symmetric to the bit.

    Returns:
        Whether each matrix could be factored, (b,); one that could not holds anything.
    """
    sound = _factor(matrix)
    _invert(matrix)
    _square(matrix)
    return sound


def _factor(matrix: Tensor) -> Tensor:
    """A to U with A = Uᵀ U, zeros below; returns whether each came out."""
    width = matrix.shape[-1]
    if width <= _PANEL:
        lower, info = torch.linalg.cholesky_ex(matrix.mT)  # its lower triangle, with columns first as LAPACK wants it
        matrix.copy_(lower.mT)
        factored: Tensor = info == 0
        return factored
    first, right, below, last = _quarters(matrix)
    below.zero_()
    sound = _factor(first)
    solved = right.contiguous()
    for start, end in _cuts(first.shape[-1], _PANEL):  # Uᵀ Y = right
        if start > 0:
            solved[:, start:end] -= _product(first[:, :start, start:end].mT, solved[:, :start])
        triangle, panel = first[:, start:end, start:end], solved[:, start:end]
        # from the right, for so LAPACK has the columns first without a copy
        panel.copy_(torch.linalg.solve_triangular(triangle, panel.mT, upper=True, left=False).mT)
    right.copy_(solved)
    for start, end in _cuts(last.shape[-1], _STRIP):
        last[:, start:end, start:] -= _product(solved[:, :, start:end].mT, solved[:, :, start:])
    return sound & _factor(last)


def _invert(upper: Tensor) -> None:
    """U to V with U V = I, the residual of which is what bounds that of V Vᵀ; zeros below."""
    width = upper.shape[-1]
    if width <= _PANEL:
        identity = torch.eye(width, dtype=upper.dtype, device=upper.device).expand_as(upper)
        upper.copy_(torch.linalg.solve_triangular(upper.mT, identity, upper=False, left=False).mT)
        return
    first, right, _, last = _quarters(upper)
    _invert(last)
    solved = torch.empty_like(right, memory_format=torch.contiguous_format)
    for start, end in _cuts(last.shape[-1], _STRIP):
        solved[:, :, start:end] = _product(right[:, :, :end], last[:, :end, start:end])
    solved.neg_()
    for start, end in reversed(_cuts(first.shape[-1], _PANEL)):  # U Y = -right V
        if end < first.shape[-1]:
            solved[:, start:end] -= _product(first[:, start:end, end:], solved[:, end:])
        triangle, panel = first[:, start:end, start:end], solved[:, start:end]
        panel.copy_(torch.linalg.solve_triangular(triangle.mT, panel.mT, upper=False, left=False).mT)
    right.copy_(solved)
    _invert(first)


def _square(upper: Tensor) -> None:
    """V to V Vᵀ, symmetric to the bit; a strip of rows needs nothing of those above it."""
    for start, end in _cuts(upper.shape[-1], _STRIP):
        strip = _product(upper[:, start:end, start:], upper[:, :end, start:].mT)
        upper[:, start:end, :start] = strip[:, :, :start]
        upper[:, :start, start:end] = strip[:, :, :start].mT
        square = strip[:, :, start:].tril()
        upper[:, start:end, start:end] = square + square.tril(-1).mT


def _quarters(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views: the first diagonal block, what is right of it and below it, and the last diagonal block."""
    half = matrix.shape[-1] // 2
    return matrix[:, :half, :half], matrix[:, :half, half:], matrix[:, half:, :half], matrix[:, half:, half:]


def _cuts(width: int, most: int) -> list[tuple[int, int]]:
    """Equal parts of at most that width, as start and end."""
    parts = -(-width // most)
    return [(width * part // parts, width * (part + 1) // parts) for part in range(parts)]


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`product` of parts of matrices, which it is slow on: a copy of what has gaps costs a fraction of the product."""
    return product(_without_gaps(left), _without_gaps(right))


def _without_gaps(matrices: Tensor) -> Tensor:
    if matrices.stride(-1) == 1:
        return matrices.contiguous()
    return matrices.mT.contiguous().mT
