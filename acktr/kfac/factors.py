"""The two factors A and G of a weight's block: what a Kronecker-factored curvature is estimated by."""

from typing import Any, Protocol

from torch import Tensor

from acktr.kfac.averages import RunningAverage, Share
from acktr.kfac.moments import WeightBatch


class Factors(Protocol):
    """A pair of running factors whose Kronecker product A ⊗ G stands for a block.

    Attributes:
        inputs: A, (b, i, i).
        outputs: G, (b, o, o).
    """

    inputs: RunningAverage
    outputs: RunningAverage

    def observe(self, batch: WeightBatch, share: Share) -> None:
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

    def observe(self, batch: WeightBatch, share: Share) -> None:
        """Add a batch to both."""
        A = batch.of_inputs()
        self.inputs.update(A.total, A.weight, share.times(A.extent))
        G = batch.of_outputs()
        self.outputs.update(G.total, G.weight, share)

    def state_dict(self) -> dict[str, Any]:
        """Both factors with their masses."""
        return {"inputs": self.inputs.state_dict(), "outputs": self.outputs.state_dict()}

    def load_state_dict(self, state: dict[str, Any], like: Tensor) -> None:
        """Take back what `state_dict` gave."""
        self.inputs.load_state_dict(state["inputs"], like)
        self.outputs.load_state_dict(state["outputs"], like)
