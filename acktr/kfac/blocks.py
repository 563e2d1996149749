"""What a curvature block is: what is kept of the Fisher for some parameters, and how its damped inverse is applied.

Every block works on one matrix that holds its parameters: `(b, o, i)` for a Kronecker-factored one, `(d,)` for the
others. The optimizer arranges parameters, gradients and momenta as such matrices (`acktr.kfac.layers.ParameterMap`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

Missing = Literal["statistics", "inverse"]
Damping = float | Tensor
"""lambda on a block: a number of at least 0, or a 0-d tensor above 0 where it is adapted without host reads."""


class Block(Protocol):
    """One block of the Fisher.

    `multiply` and `to_dense` speak of the running estimate without damping; `precondition` applies the inverse as of
    the last refresh, and leaves its argument unchanged while there has been none. Without statistics F is the identity.
    """

    @property
    def missing(self) -> Missing | None:
        """What `precondition` lacks to be more than the identity."""
        ...

    def refresh(self, damping: Damping) -> "RefreshReport":
        """Decompose the running estimate; `damping` is lambda on the block."""
        ...

    def precondition(self, gradient: Tensor, damping: Damping) -> Tensor:
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


@runtime_checkable
class Decomposed(Protocol):
    """A block whose `refresh` is work that another process may do."""

    @property
    def is_symmetric(self) -> bool:
        """Whether the parts of its decomposition are symmetric matrices (b, n, n), of which one triangle says all."""
        ...

    def decomposition(self) -> list[Tensor] | None:
        """What `refresh` made and `precondition` takes; None before the first."""
        ...

    def decomposition_like(self) -> list[Tensor]:
        """Tensors of the same shapes that hold anything; the block must have statistics."""
        ...

    def adopt(self, parts: Sequence[Tensor]) -> None:
        """Take what `decomposition` gave elsewhere into use."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RefreshReport:
    """What a refresh met: rungs of the guard ladder that failed, and whether the old inverse had to stay."""

    retries: int = 0
    stale: bool = False


def divided(gradient: Tensor, curvature: Tensor, damping: Damping) -> Tensor:
    """Gradient / (curvature + damping); without damping 0 where there is no curvature, as by the pseudo-inverse.

    What lies below the rounding of the largest is none: the logits of a softmax always leave such a direction.
    """
    if isinstance(damping, Tensor) or damping > 0:
        return gradient / (curvature + damping)
    nothing = torch.finfo(curvature.dtype).eps * max(curvature.shape) * curvature.amax()
    return torch.where(curvature > nothing, gradient / curvature, 0.0)


def copy_to(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    """A copy on the device and in the precision of `like`."""
    return None if tensor is None else tensor.to(like, copy=True)
