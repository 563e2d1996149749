"""How far each curvature is from the exact Fisher block of a layer, for layers of any size and many states.

The errors are those of `acktr.kfac.block_errors`. What makes them affordable here: with one position (a linear layer)
the gradient P of an example is `g aᵀ` and never formed, and a curvature that is the orthogonal projection of the block,
such as EKFAC's, needs no comparison with the gradients at all.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from acktr.agents.curvature_states import FisherKind, Network
from acktr.kfac.capture import Call, Recorder, backward_passes
from acktr.kfac.layers import Affine, ParameterMap, groups_of
from acktr.kfac.moments import Moment, WeightBatch
from acktr.kfac.optimal_factors import nearest_product
from acktr.kfac.statistics import EVERY_POSITION, FactorKind

CURVATURES = ("kfac", "ekfac", "kfoc", "ekfoc", "diagonal")

_MOST_STEPS = 15
"""Pairs of power steps that K-FOC takes at most."""
_SETTLED = 1e-7
"""Of the square of K-FOC's norm: growth in a pair of power steps that ends them."""
_ROWS = 1024
"""Gradients whose inner products with all others are held at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerError:
    """One curvature of one layer beside the exact block.

    Attributes:
        curvature: of `CURVATURES`.
        conv_factors: expand, or for a convolution also reduce.
        relative: `|F̂ - F| / |F|` in Frobenius norm; NaN where the exact block is 0.
        trace: `tr F̂ / tr F`; likewise.
    """

    curvature: str
    conv_factors: FactorKind
    relative: float
    trace: float


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


@torch.no_grad()
def layer_errors(exact: WeightBatch) -> list[LayerError]:
    """Every curvature of a layer, estimated from a batch and compared with the exact block of that batch.

    Args:
        exact: of one weight of one group, of kind "expand".

    Returns:
        In the order of `CURVATURES`; where there is more than one position, once more with "reduce".
    """
    squared_norm, trace = block_size(exact)
    kinds: tuple[FactorKind, ...] = ("expand", "reduce") if exact.positions > 1 else ("expand",)
    found: list[LayerError] = []
    for kind in kinds:
        used = dataclasses.replace(exact, kind=kind)
        for curvature, (inner, own_norm, own_trace) in _compared(exact, used).items():
            relative = own_share = math.nan
            if squared_norm > 0:
                relative = math.sqrt(max(squared_norm - 2 * inner + own_norm, 0.0) / squared_norm)
                own_share = own_trace / trace
            found.append(LayerError(curvature=curvature, conv_factors=kind, relative=relative, trace=own_share))
    return found


def block_size(batch: WeightBatch) -> tuple[float, float]:
    """Squared Frobenius norm and trace of the exact block, by inner products of the examples' gradients."""
    weight = float(batch.total_weight())
    norm = trace = 0.0
    if batch.positions == 1:
        pairs = [(g.flatten(1), a.flatten(1)) for g, a in batch.extended_pairs()]
        outputs, inputs = (torch.cat(rows) for rows in zip(*pairs, strict=True))
        for start in range(0, len(outputs), _ROWS):
            part = slice(start, start + _ROWS)
            norm += float(((outputs[part] @ outputs.T) * (inputs[part] @ inputs.T)).square().sum())
        trace = float((outputs.square().sum(1) * inputs.square().sum(1)).sum())
    else:
        for index, gradients in enumerate(batch.gradients()):
            rows = gradients.flatten(1)
            trace += float(rows.square().sum())
            for other_index, other in enumerate(batch.gradients()):  # made anew: all at once may not fit
                if other_index >= index:
                    twice = 1 if other_index == index else 2
                    norm += twice * float((rows @ other.flatten(1).T).square().sum())
    return norm / weight**2, trace / weight


def _compared(exact: WeightBatch, used: WeightBatch) -> dict[str, tuple[float, float, float]]:
    """`⟨F, F̂⟩`, `|F̂|²` and `tr F̂` of every curvature whose statistics are `used`'s."""
    A, G = _mean(used.of_inputs()), _mean(used.of_outputs())
    found = {
        "kfac": (_inner_with_product(exact, A, G), *_size_of_product(A, G)),
        "ekfac": _in_basis(exact, _basis(G), _basis(A)),
    }
    A, G = optimal_product(used, A)
    found["kfoc"] = (_inner_with_product(exact, A, G), *_size_of_product(A, G))
    found["ekfoc"] = _in_basis(exact, _basis(G), _basis(A))
    found["diagonal"] = _in_basis(exact, None, None)
    return found


def optimal_product(batch: WeightBatch, start: Tensor) -> tuple[Tensor, Tensor]:
    """K-FOC's factors A and G of one batch, (1, i, i) and (1, o, o), by power steps until they settle.

    Args:
        batch: of one weight.
        start: (1, i, i) for A, not 0.
    """
    A, norm = start, 0.0
    for _ in range(_MOST_STEPS):
        A, G = nearest_product(batch, A, steps=2)
        grown = _size_of_product(A, G)[0]
        if grown - norm <= _SETTLED * grown:
            break
        norm = grown
    return A, G


def _inner_with_product(batch: WeightBatch, A: Tensor, G: Tensor) -> float:
    """⟨F, A ⊗ G⟩: the mean of ⟨P, G P A⟩."""
    total = 0.0
    if batch.positions == 1:
        for outputs, inputs in batch.extended_pairs():
            g, a = outputs.flatten(1), inputs.flatten(1)
            total += float((((g @ G[0]) * g).sum(1) * ((a @ A[0]) * a).sum(1)).sum())
    else:
        for part in batch.gradients():
            gradients = part[:, 0]
            turned = (gradients.flatten(0, 1) @ A[0]).reshape(gradients.shape)
            total += float(((turned @ gradients.mT).sum(0) * G[0]).sum())
    return total / float(batch.total_weight())


def _in_basis(exact: WeightBatch, left: Tensor | None, right: Tensor | None) -> tuple[float, float, float]:
    """`⟨F, F̂⟩`, `|F̂|²` and `tr F̂` of the curvature that is diagonal in a Kronecker basis, the identity for None."""
    scales = _mean(exact.squares(left, right))
    squared_norm = float(scales.square().sum())
    return squared_norm, squared_norm, float(scales.sum())


def _size_of_product(A: Tensor, G: Tensor) -> tuple[float, float]:
    """Squared Frobenius norm and trace of A ⊗ G."""
    return float(A.square().sum() * G.square().sum()), float(A[0].trace() * G[0].trace())


def _mean(moment: Moment) -> Tensor:
    return moment.total / moment.weight


def _basis(factor: Tensor) -> Tensor:
    vectors: Tensor = torch.linalg.eigh(factor)[1]
    return vectors
