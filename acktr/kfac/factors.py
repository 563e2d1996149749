"""The two factors A and G of a weight's block: what a Kronecker-factored curvature is estimated by."""

from typing import Any, Protocol

import torch
from torch import Tensor

from acktr.kfac.averages import RunningAverage, Share
from acktr.kfac.moments import WeightBatch
from acktr.kfac.sums import Sum, Sums


class Factors(Protocol):
    """A pair of running factors whose Kronecker product A ⊗ G stands for a block.

    Attributes:
        inputs: A, (b, i, i).
        outputs: G, (b, o, o).
    """

    inputs: RunningAverage
    outputs: RunningAverage

    def observe(self, batch: WeightBatch, share: Share) -> Sums[None]:
        """Add a batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Both factors with their masses."""
        ...

    def load_state_dict(self, state: dict[str, Any], like: Tensor) -> None:
        """Take back what `state_dict` gave, on the device and in the precision of `like`."""
        ...


class MomentFactors:
    """K-FAC's: A = E[a aᵀ] and G = E[g gᵀ], each averaged by itself (Martens & Grosse 2015, section 3)."""

    def __init__(self) -> None:
        self.inputs = RunningAverage()
        self.outputs = RunningAverage()

    def observe(self, batch: WeightBatch, share: Share) -> Sums[None]:
        """Add a batch to both."""
        A, G = batch.of_inputs(), batch.of_outputs()
        inputs, mass, outputs, weight, *extent = yield [
            Sum(A.total, symmetric=True),
            Sum(A.weight),
            Sum(G.total, symmetric=True),
            Sum(G.weight),
            *(Sum(figure) for figure in A.extent or ()),
        ]
        of_inputs = share
        if extent:
            told, possible = extent
            of_inputs = share.times(told / possible.clamp(min=torch.finfo(possible.dtype).tiny))
        self.inputs.update(inputs, mass, of_inputs)
        self.outputs.update(outputs, weight, share)

    def state_dict(self) -> dict[str, Any]:
        """Both factors with their masses."""
        return {"inputs": self.inputs.state_dict(), "outputs": self.outputs.state_dict()}

    def load_state_dict(self, state: dict[str, Any], like: Tensor) -> None:
        """Take back what `state_dict` gave."""
        self.inputs.load_state_dict(state["inputs"], like)
        self.outputs.load_state_dict(state["outputs"], like)
