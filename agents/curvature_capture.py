"""One forward pass of a network on the states, and its layers' batches of gradients, which every figure is made of."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from acktr.agents.curvature_states import FisherKind, Network
from acktr.kfac.capture import Call, Recorder, backward_passes
from acktr.kfac.layers import Affine, ParameterMap, groups_of
from acktr.kfac.moments import WeightBatch
from acktr.kfac.statistics import EVERY_POSITION


class Captured:
    """A network's forward pass on the states, with what the losses of its metric need for a backward pass.

    Args:
        network: what is run.
        kind: of its metric.

    Attributes:
        examples: N, the number of states.
        inputs: what each layer was called with, by its name.
    """

    def __init__(self, network: Network, kind: FisherKind) -> None:
        self._names = {id(module): name for name, module in network.layers.items()}
        recorder = Recorder(list(network.layers.values()))
        with torch.enable_grad(), recorder.recording():
            self._losses = network.metric(kind).losses()
        self._calls = recorder.take()
        self.examples = self._losses.shape[1]
        self.inputs = {self._names[id(call.module)]: call.checked_inputs() for call in self._calls}

    def passes(self) -> Iterator[Mapping[str, tuple[Call, Tensor]]]:
        """The losses one after another: the calls of the layers that one reaches, with the gradients there."""
        for number in range(len(self._losses)):
            with torch.enable_grad():
                reached = backward_passes(self._losses[number : number + 1], self._calls)[0]
            yield {self._names[id(call.module)]: (call, gradient) for call, gradient in reached}

    def batches(self, layers: Mapping[str, Affine]) -> Iterator[tuple[str, WeightBatch]]:
        """What the states say of each layer that a loss reaches, of kind "expand"."""
        passes = list(self.passes())
        for name, module in layers.items():
            own = [[found[name]] for found in passes if name in found]
            if own:
                yield (
                    name,
                    WeightBatch(
                        name=name,
                        map=ParameterMap(weight=module.weight, bias=module.bias, groups=groups_of(module)),
                        kind="expand",
                        passes=own,
                        weights=None,
                        examples=self.examples,
                        thinning=EVERY_POSITION,
                        dtype=torch.float64,
                    ),
                )
