"""Running averages of statistics, unbiased from the first batch on."""

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a batch's statistic weighs in a running average.

    Attributes:
        keep: factor on the weight of everything before, 0 to 1.
        add: weight of the batch, 0 or more; 0-d where it is known on the device alone.
    """

    keep: float
    add: float | Tensor

    @classmethod
    def of(cls, decay: float) -> "Share":
        """Of a new batch in an exponential average."""
        return cls(keep=decay, add=1 - decay)

    def times(self, factor: Tensor) -> "Share":
        """The same for a batch that tells that many times as much."""
        return Share(keep=self.keep, add=self.add * factor)


def looks_are_free(tensor: Tensor) -> bool:
    """Whether a look at the tensor keeps nobody waiting: on a CPU, where a pass over its memory costs more."""
    return tensor.device.type == "cpu"


class RunningAverage:
    """Exponential average that is unbiased from its first value: a weighted sum over the sum of its weights.

    A batch without any valid example, or with a non-finite statistic, has weight 0 and leaves the value as it is; this
    is decided without a host read of another device. Until a batch counts, the value is that of the identity as a
    curvature: one of 0 would let the trust region pass any step.

    Args:
        of: "matrices" (b, n, n); "diagonals" of any shape; "covariances" between different things, which are 0 until a
            batch counts.
    """

    def __init__(self, of: Literal["matrices", "diagonals", "covariances"] = "matrices") -> None:
        self.value: Tensor | None = None
        self.mass: Tensor | None = None
        self._of = of

    def update(self, total: Tensor, weight: Tensor, share: Share) -> None:
        """Add the batch's mean `total / weight`.

        Args:
            total: sum over examples, shaped as the value; set to 0 where the batch has no weight.
            weight: 0-d, the sum of the examples' weights.
            share: of the batch's mean.
        """
        usable = (weight > 0) & torch.isfinite(total.sum())
        if self.value is None or self.mass is None:
            self.value, self.mass = self._neutral(total), torch.zeros_like(weight)
        if looks_are_free(total):
            if usable:
                self._add(total, weight, share.keep * self.mass + share.add, share.add)
            return
        total.masked_fill_(~usable, 0.0)  # a NaN times a share of 0 would still be one
        fresh = share.add * usable.to(total.dtype)
        mass = torch.where(usable, share.keep * self.mass, self.mass) + fresh
        self._add(total, torch.where(usable, weight, 1.0), mass, fresh)

    def _add(self, total: Tensor, weight: Tensor, mass: Tensor, fresh: Tensor | float) -> None:
        assert self.value is not None
        self.mass = mass
        part = fresh / mass.clamp(min=torch.finfo(mass.dtype).tiny)
        # two passes over the value and no temporary: the widest factors are bound by memory
        self.value.mul_(1 - part).addcmul_(total, part / weight)

    def _neutral(self, like: Tensor) -> Tensor:
        if self._of == "covariances":
            return torch.zeros_like(like)
        if self._of == "diagonals":
            return torch.ones_like(like)
        return torch.eye(like.shape[-1]).to(like).expand_as(like).clone()

    def state_dict(self) -> dict[str, Any]:
        """Value and mass; empty before the first update."""
        return {} if self.value is None else {"value": self.value, "mass": self.mass}

    def load_state_dict(self, state: dict[str, Any], like: Tensor) -> None:
        """Take back what `state_dict` gave, on the device and in the precision of `like`."""
        self.value = state["value"].to(like, copy=True) if state else None
        self.mass = state["mass"].to(like, copy=True) if state else None
