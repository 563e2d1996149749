"""How many multiplications code makes, counted as it runs: what its time should grow like."""

import math
from typing import Any, Self

import torch
from torch.utils.flop_counter import FlopCounterMode


def _linear_flops(rows: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(rows) * weight[0]  # type: ignore[no-any-return]


def _factorisation_flops(matrix: Any, *args: Any, **kwargs: Any) -> int:
    return math.prod(matrix) * matrix[-1] // 3  # type: ignore[no-any-return]


def _inversion_flops(factor: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * _factorisation_flops(factor)


def _solution_flops(triangle: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return math.prod(right) * triangle[-1]  # type: ignore[no-any-return]


_OF_OUR_OWN = {
    torch.ops.aten.linalg_cholesky_ex: _factorisation_flops,
    torch.ops.aten.cholesky_inverse: _inversion_flops,
    torch.ops.aten.linalg_solve_triangular: _solution_flops,
}
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _OF_OUR_OWN[torch.ops.mkldnn._linear_pointwise] = _linear_flops
"""Floating-point operations by operator, two to a multiplication, that torch's counter does not know."""


class Multiplications(FlopCounterMode):
    """Counts those of matrix products, convolutions, factorisations and inversions while its `with` block runs.

    Torch uses one CPU thread meanwhile, since it is in the thread of the block alone that anything is seen.
    """

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=_OF_OUR_OWN)
        self._threads = torch.get_num_threads()

    def __enter__(self) -> Self:
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        super().__enter__()
        return self

    def __exit__(self, *args: Any) -> Any:
        torch.set_num_threads(self._threads)
        return super().__exit__(*args)

    @property
    def count(self) -> int:
        """Multiplications so far."""
        return int(self.get_total_flops()) // 2
