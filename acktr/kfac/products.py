"""Matrix products of the curvature's matrices, on the fastest exact kernel at hand.

On CPUs torch multiplies float32 matrices with MKL, which keeps to AVX2 on processors of other makers than its own;
oneDNN, which torch carries too, uses AVX-512 there and takes half the time, in the same float32.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_SMALLEST = 1 << 16
"""Multiplications below which oneDNN's overhead of some 15 microseconds does not pay."""

_NARROW = 32
"""Width up to which the second moment of many rows, `rowsᵀ @ rows`, takes less time than the copy that oneDNN needs."""


def _find_onednn() -> Callable[..., Tensor] | None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return None if operator is None else operator.default


_onednn = _find_onednn()


def product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right`, without a graph.

    Args:
        left: (b, n, k).
        right: (b, k, m).

    Returns:
        (b, n, m).
    """
    single = left.dim() == 3 and left.shape[0] == 1 and right.shape[0] == 1
    multiplications = left[0].numel() * right.shape[-1]
    plain = left.device.type == "cpu" and left.dtype == right.dtype == torch.float32 and _dense(left) and _dense(right)
    if _onednn is None or not (single and plain) or multiplications < _SMALLEST or torch.is_grad_enabled():
        return left @ right
    if max(left.shape[1], right.shape[2]) <= _NARROW and not left.is_contiguous():
        return left @ right
    # a linear layer's x Wᵀ with W = rightᵀ
    return _onednn(left[0], right[0].T, None, "none", [], "").unsqueeze(0)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`functional.linear`, on the same kernel where no graph is wanted.

    Args:
        rows: (..., i).
        weight: (o, i).
        bias: (o,) or None.
    """
    plain = (
        rows.device.type == "cpu"
        and rows.dtype == weight.dtype == torch.float32
        and rows.dim() == 2
        and rows.is_contiguous()
        and weight.is_contiguous()
    )
    wanted = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or rows.numel() * len(weight) < _SMALLEST
    if _onednn is None or not plain or wanted:
        return functional.linear(rows, weight, bias)
    return _onednn(rows, weight, bias, "none", [], "")


def _dense(matrices: Tensor) -> bool:
    """Without gaps between rows or between columns; a slice of columns is some hundred times slower on oneDNN."""
    return matrices.is_contiguous() or matrices.mT.is_contiguous()
