"""Blocks without Kronecker structure: whole, diagonal, or none at all."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from acktr.kfac.averages import RunningAverage, Share
from acktr.kfac.blocks import Damping, Missing, RefreshReport, copy_to, divided
from acktr.kfac.moments import WeightBatch
from acktr.kfac.products import product
from acktr.kfac.solvers import Attempt, Outcome, damped_cholesky, settled
from acktr.kfac.sums import Sum, Sums


class FullBlock:
    """The whole Fisher block of a small parameter of d entries, from its per-example gradients."""

    is_symmetric = False

    def __init__(self, like: Tensor) -> None:
        self.moment = RunningAverage()  # (1, d, d)
        self._like = like
        self._factor: Tensor | None = None  # Cholesky, upper, (d, d)

    def observe(self, batch: WeightBatch, share: Share) -> Sums[None]:
        """Add a batch of a weight."""
        total: Tensor | None = None
        for gradients in batch.exact.gradients():
            rows = gradients.flatten(1).unsqueeze(0)
            part = product(rows.mT, rows)
            total = part if total is None else total.add_(part)
        assert total is not None
        total, weight = yield [Sum(total, symmetric=True), Sum(batch.total_weight())]
        self.moment.update(total, weight, share)

    def update(self, gradients: Tensor, weight: Tensor, share: Share) -> Sums[None]:
        """Add a batch.

        Args:
            gradients: (rows, d) per-example gradients, each already multiplied by the root of its weight.
            weight: 0-d, the sum of the examples' weights.
            share: of the batch.
        """
        total, weight = yield [Sum((gradients.T @ gradients).unsqueeze(0), symmetric=True), Sum(weight)]
        self.moment.update(total, weight, share)

    @property
    def missing(self) -> Missing | None:
        """See `Block`."""
        if self.moment.value is None:
            return "statistics"
        return "inverse" if self._factor is None else None

    def refresh(self, damping: Damping) -> RefreshReport:
        """Factor by Cholesky; systems are solved with the factor, for an inverse would cost three times as much."""
        return self.finish_refresh(settled(self.begin_refresh(damping)))

    def begin_refresh(self, damping: Damping) -> list[Attempt]:
        """Try to factor; nothing before any statistics."""
        if self.moment.value is None:
            return []
        return [damped_cholesky(self.moment.value, damping * self.moment.value.new_ones(1))]

    def finish_refresh(self, outcomes: Sequence[Outcome]) -> RefreshReport:
        """Take the factor of `begin_refresh` into use."""
        if not outcomes:
            return RefreshReport()
        ((factor, retries),) = outcomes
        if factor is None:
            return RefreshReport(retries=retries, stale=True)
        self._factor = factor[0]
        return RefreshReport(retries=retries)

    def decomposition(self) -> list[Tensor] | None:
        """The factor in use."""
        return None if self._factor is None else [self._factor]

    def decomposition_like(self) -> list[Tensor]:
        """A tensor of its shape."""
        assert self.moment.value is not None
        return [torch.empty_like(self.moment.value[0])]

    def adopt(self, parts: Sequence[Tensor]) -> None:
        """Take the factor of another process into use."""
        (self._factor,) = parts

    def precondition(self, gradient: Tensor, damping: Damping) -> Tensor:
        """(F + damping)⁻¹ gradient of d entries in any shape, with the damping of the last refresh."""
        if self._factor is None:
            return gradient
        return torch.cholesky_solve(gradient.reshape(-1, 1), self._factor, upper=True).reshape(gradient.shape)

    def multiply(self, direction: Tensor) -> Tensor:
        """F v of d entries in any shape."""
        if self.moment.value is None:
            return direction
        return (self.moment.value[0] @ direction.flatten()).reshape(direction.shape)

    def to_dense(self) -> Tensor:
        """(d, d)."""
        if self.moment.value is None:
            raise RuntimeError("no statistics yet: call update_statistics first")
        return self.moment.value[0]

    def state_dict(self) -> dict[str, Any]:
        """The running block and the factor in use."""
        return {"moment": self.moment.state_dict(), "factor": self._factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.moment.load_state_dict(state["moment"], self._like)
        self._factor = copy_to(state["factor"], self._like)


class DiagonalBlock:
    """The diagonal of the Fisher of some parameters, from their per-example gradients."""

    def __init__(self, like: Tensor) -> None:
        self.moment = RunningAverage("diagonals")  # in the shape of the parameters' matrix
        self._like = like

    def observe(self, batch: WeightBatch, share: Share) -> Sums[None]:
        """Add a batch of a weight."""
        moment = batch.exact.squares()
        total, weight = yield [Sum(moment.total), Sum(moment.weight)]
        self.moment.update(total, weight, share)

    def update(self, gradients: Tensor, weight: Tensor, share: Share) -> Sums[None]:
        """Add a batch of (rows, d) per-example gradients, as `FullBlock.update`."""
        total, weight = yield [Sum(gradients.square().sum(0)), Sum(weight)]
        self.moment.update(total, weight, share)

    @property
    def missing(self) -> Missing | None:
        """See `Block`."""
        return "statistics" if self.moment.value is None else None

    def refresh(self, damping: Damping) -> RefreshReport:
        """Nothing to decompose."""
        return RefreshReport()

    def precondition(self, gradient: Tensor, damping: Damping) -> Tensor:
        """Gradient / (F + damping), element by element."""
        return gradient if self.moment.value is None else divided(gradient, self.moment.value, damping)

    def multiply(self, direction: Tensor) -> Tensor:
        """F v, element by element."""
        return direction if self.moment.value is None else self.moment.value * direction

    def to_dense(self) -> Tensor:
        """(d, d)."""
        if self.moment.value is None:
            raise RuntimeError("no statistics yet: call update_statistics first")
        return torch.diag(self.moment.value.flatten())

    def state_dict(self) -> dict[str, Any]:
        """The running diagonal."""
        return {"moment": self.moment.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.moment.load_state_dict(state["moment"], self._like)


class IdentityBlock:
    """Parameters that K-FAC cannot treat: plain gradient, Fisher taken as the identity."""

    @property
    def missing(self) -> Missing | None:
        """See `Block`."""
        return None

    def refresh(self, damping: Damping) -> RefreshReport:
        """Nothing to decompose."""
        return RefreshReport()

    def precondition(self, gradient: Tensor, damping: Damping) -> Tensor:
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
