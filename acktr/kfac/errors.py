"""How far each curvature of the family is from the exact Fisher blocks of a batch, layer by layer, in Frobenius norm.

No block is formed: with the gradients P of the examples' losses, `|F|²` is the mean of their squared inner products,
`⟨F, F̂⟩` the mean of `⟨P, F̂ P⟩`, and `|F̂|²` is known for every structure. A layer of any size can be compared.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from acktr.kfac.averages import Share
from acktr.kfac.capture import Recorder, backward_passes, calls_of
from acktr.kfac.curvatures import BlockChoice, Curvature, WeightBlock
from acktr.kfac.metrics import Metric
from acktr.kfac.moments import WeightBatch
from acktr.kfac.statistics import EVERY_POSITION, FactorKind
from acktr.kfac.units import WeightUnit, build_units, recorded_modules

CONVERGED = 30
"""Power steps that K-FOC takes on the batch, twice."""

_REPLACE = Share(keep=0.0, add=1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockError:
    """One curvature of one layer beside the exact block.

    Attributes:
        layer: its name in the model.
        curvature: of the family.
        relative: `|F̂ - F| / |F|` in Frobenius norm.
        trace: `tr F̂ / tr F`.
    """

    layer: str
    curvature: str
    relative: float
    trace: float


@torch.no_grad()
def block_errors(
    model: nn.Module,
    forward: Callable[[], Metric],
    *,
    curvatures: Sequence[Curvature] = ("kfac", "ekfac", "kfoc", "ekfoc", "diagonal"),
    conv_factors: FactorKind = "expand",
) -> list[BlockError]:
    """Estimate every curvature from one batch, and compare it with the exact blocks of that batch.

    Args:
        model: the network; it is not modified.
        forward: runs the model on the batch and returns the metric of its outputs; called once, with gradients
            enabled. The exact block is that of the metric's own losses: exact for kind "exact", of the draw for
            "sampled".
        curvatures: which of the family.
        conv_factors: of K-FAC and K-FOC.

    Returns:
        Layer by layer in the order of the model's modules, for each layer in the order of `curvatures`.

    Raises:
        RuntimeError: the metric depends on no layer.
    """
    choices = [_choice(curvature, conv_factors) for curvature in curvatures]
    layers = [unit for unit in build_units(model, choices[0])[0] if isinstance(unit, WeightUnit)]
    recorder = Recorder(recorded_modules(layers))
    with torch.enable_grad():
        with recorder.recording():
            losses = forward().losses()
        passes = backward_passes(losses, recorder.take())
    found: list[BlockError] = []
    for unit in layers:
        own = calls_of(unit.modules, passes)
        if not own:
            continue
        exact = WeightBatch(
            name=unit.name,
            map=unit.map,
            kind="expand",
            passes=own,
            weights=None,
            examples=losses.shape[1],
            thinning=EVERY_POSITION,
            dtype=torch.float64,
        )
        examples = ExampleGradients(exact)
        like = unit.parameters[0].new_empty(0, dtype=torch.float64)
        for choice in choices:
            block = choice.block(unit.name, unit.map.matrix_shape, like)
            for _ in range(2):  # scales are of the second round, in the basis that the first one made
                block.observe(dataclasses.replace(exact, kind=conv_factors), _REPLACE)
                block.refresh(0.0)
            relative, trace = examples.compared(block)
            found.append(BlockError(layer=unit.name, curvature=choice.curvature, relative=relative, trace=trace))
    if not found:
        raise RuntimeError("the metric depends on no layer of the model: build it from a forward pass with gradients")
    return found


class ExampleGradients:
    """The gradients P of a batch's losses, through which any block is compared with the exact one.

    Args:
        batch: of one weight, of kind "expand".
    """

    def __init__(self, batch: WeightBatch) -> None:
        self._rows = torch.cat(list(batch.gradients()))  # (M, b, o, i), M examples times passes
        self._weight = float(batch.total_weight())
        flat = self._rows.flatten(1)
        self._squared_norm = float((flat @ flat.T).square().sum()) / self._weight**2
        self._trace = float(flat.square().sum()) / self._weight

    def compared(self, block: WeightBlock) -> tuple[float, float]:
        """`|F̂ - F| / |F|`, and `tr F̂ / tr F`; both NaN where the exact block is 0."""
        inner = sum(float((row * block.multiply(row)).sum()) for row in self._rows) / self._weight
        squared_norm, trace = (float(value) for value in block.size())
        if self._squared_norm == 0:
            return math.nan, math.nan
        squared = self._squared_norm - 2 * inner + squared_norm
        return math.sqrt(max(squared, 0.0) / self._squared_norm), trace / self._trace


def _choice(curvature: Curvature, conv_factors: FactorKind) -> BlockChoice:
    return BlockChoice(
        curvature=curvature,
        structure="block-diagonal",
        damping_mode="exact",
        bias="joint",
        conv_factors=conv_factors,
        kfoc_steps=CONVERGED,
        kfoc_aggregation="running",
    )
