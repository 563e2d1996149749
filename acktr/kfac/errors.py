"""How far each curvature of the family is from the exact Fisher blocks of a batch, layer by layer, in Frobenius norm.

No block is formed, so that layers of any size can be compared. With the gradients P of the examples' losses `|F|²` is
the mean of their squared inner products, `⟨F, A ⊗ G⟩` the mean of `⟨P, G P A⟩`; a curvature that is diagonal in a
Kronecker basis is the orthogonal projection of the block, and needs no comparison with the gradients at all.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from acktr.kfac.capture import Recorder, backward_passes, calls_of
from acktr.kfac.checks import check_choice
from acktr.kfac.curvatures import BlockChoice, Curvature
from acktr.kfac.kronecker import size_of_products
from acktr.kfac.metrics import Metric, checked
from acktr.kfac.moments import InputMoment, Moment, WeightBatch
from acktr.kfac.optimal_factors import nearest_product
from acktr.kfac.statistics import EVERY_POSITION, FactorKind
from acktr.kfac.sums import alone
from acktr.kfac.units import WeightUnit, build_units, recorded_modules

APPROXIMATIONS: tuple[Curvature, ...] = ("kfac", "ekfac", "kfoc", "ekfoc", "diagonal")
"""All but "full", which is the block itself."""

_MOST_STEPS = 15
"""Pairs of power steps that K-FOC takes at most."""
_SETTLED = 1e-7
"""Of the square of K-FOC's norm: growth in a pair of power steps that ends them."""
_ROWS = 1024
"""Gradients whose inner products with all others are held at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockError:
    """One curvature of one layer beside the exact block.

    Attributes:
        layer: its name in the model.
        curvature: kfac, ekfac, kfoc, ekfoc or diagonal.
        conv_factors: expand, or reduce.
        relative: `|F̂ - F| / |F|` in Frobenius norm; NaN where the exact block is 0.
        trace: `tr F̂ / tr F`; likewise.
    """

    layer: str
    curvature: Curvature
    conv_factors: FactorKind
    relative: float
    trace: float


@torch.no_grad()
def block_errors(
    model: nn.Module, forward: Callable[[], Metric], *, conv_factors: FactorKind | Sequence[FactorKind] = "expand"
) -> list[BlockError]:
    """Estimate every curvature from one batch, and compare it with the exact blocks of that batch.

    Args:
        model: the network; it is not modified.
        forward: runs the model on the batch and returns the metric of its outputs; called once, with gradients
            enabled. The exact block is that of the metric's own losses: exact for kind "exact", of the draw for
            "sampled".
        conv_factors: "expand" or "reduce", or `("expand", "reduce")` for one after the other.

    Returns:
        Layer by layer in the order of the model's modules; for each of `conv_factors` kfac, ekfac, kfoc, ekfoc and
        diagonal, without what is there already under another of `conv_factors`. "full" is the block itself.

    Raises:
        TypeError: `forward` returns no metric.
        ValueError: other `conv_factors`.
        RuntimeError: the metric depends on no layer.
    """
    kinds: Sequence[FactorKind] = (conv_factors,) if isinstance(conv_factors, str) else conv_factors
    for kind in kinds:
        check_choice("conv_factors", kind, FactorKind)
    layers = [unit for unit in build_units(model, _ANY_CHOICE)[0] if isinstance(unit, WeightUnit)]
    recorder = Recorder(recorded_modules(layers))
    with torch.enable_grad():
        with recorder.recording():
            losses = checked(forward()).losses()
        passes = backward_passes(losses, recorder.take())
    found: list[BlockError] = []
    for unit in layers:
        own = calls_of(unit.modules, passes)
        if own:
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
            found += weight_errors(exact, kinds)
    if not found:
        raise RuntimeError("the metric depends on no layer of the model: build it from a forward pass with gradients")
    return found


@torch.no_grad()
def weight_errors(exact: WeightBatch, conv_factors: Sequence[FactorKind] = ("expand",)) -> list[BlockError]:
    """Every curvature of a weight, estimated from a batch and compared with the exact block of that batch.

    Args:
        exact: of kind "expand". The block of a grouped convolution is that of the whole weight, of which every
            curvature keeps the groups alone.
        conv_factors: of the estimates; beside "expand" what is the same under "reduce" is left out: the diagonal, and
            all of a weight with one position.

    Returns:
        For each of `conv_factors` in the order of `APPROXIMATIONS`.
    """
    squared_norm, trace = block_size(exact)
    found: list[BlockError] = []
    for kind in conv_factors:
        if kind == "reduce" and exact.positions == 1 and "expand" in conv_factors:
            continue
        for curvature, (inner, own_norm, own_trace) in _compared(exact, kind).items():
            if (kind, curvature) == ("reduce", "diagonal") and "expand" in conv_factors:
                continue
            relative = own_share = math.nan
            if squared_norm > 0:
                relative = math.sqrt(max(squared_norm - 2 * inner + own_norm, 0.0) / squared_norm)
                own_share = own_trace / trace
            found.append(
                BlockError(layer=exact.name, curvature=curvature, conv_factors=kind, relative=relative, trace=own_share)
            )
    return found


def block_size(batch: WeightBatch) -> tuple[float, float]:
    """Squared Frobenius norm and trace of the exact block, by inner products of the examples' gradients."""
    weight = float(batch.total_weight())
    norm = trace = 0.0
    if batch.positions == 1:  # P is g aᵀ and never formed
        pairs = [(g.squeeze(1), a.squeeze(1)) for g, a in batch.extended_pairs()]
        outputs, inputs = (torch.cat(rows).transpose(0, 1) for rows in zip(*pairs, strict=True))  # (b, n, k)
        for start in range(0, outputs.shape[1], _ROWS):
            part = slice(start, start + _ROWS)
            products = (outputs[:, part] @ outputs.mT) * (inputs[:, part] @ inputs.mT)
            norm += float(products.sum(0).square().sum())
        trace = float((outputs.square().sum(-1) * inputs.square().sum(-1)).sum())
    else:
        for index, gradients in enumerate(batch.gradients()):
            rows = gradients.flatten(1)
            trace += float(rows.square().sum())
            for other_index, other in enumerate(batch.gradients()):  # made anew: all at once may not fit
                if other_index >= index:
                    twice = 1 if other_index == index else 2
                    norm += twice * float((rows @ other.flatten(1).T).square().sum())
    return norm / weight**2, trace / weight


def optimal_product(batch: WeightBatch, start: Tensor) -> tuple[Tensor, Tensor]:
    """K-FOC's factors A (b, i, i) and G (b, o, o) of one batch, by power steps until they settle.

    Args:
        batch: of one weight.
        start: (b, i, i) for A, not 0.
    """
    A, norm = start, 0.0
    for _ in range(_MOST_STEPS):
        A, G, _ = alone(nearest_product(batch, A, steps=2))
        grown = float(size_of_products(G, A)[0])
        if grown - norm <= _SETTLED * grown:
            break
        norm = grown
    return A, G


def _compared(exact: WeightBatch, kind: FactorKind) -> Mapping[Curvature, tuple[float, float, float]]:
    """`⟨F, F̂⟩`, `|F̂|²` and `tr F̂` of every curvature."""
    used = dataclasses.replace(exact, kind=kind)
    A, G = _mean(used.of_inputs()), _mean(used.of_outputs())
    best_A, best_G = optimal_product(used, A)
    return {
        "kfac": _of_product(exact, A, G),
        "ekfac": _in_basis(exact, _basis(G), _basis(A)),
        "kfoc": _of_product(exact, best_A, best_G),
        "ekfoc": _in_basis(exact, _basis(best_G), _basis(best_A)),
        "diagonal": _in_basis(exact, None, None),
    }


def _of_product(exact: WeightBatch, A: Tensor, G: Tensor) -> tuple[float, float, float]:
    """Of A ⊗ G, group by group; its inner product with the block is the mean of `⟨P, G P A⟩`."""
    total = 0.0
    if exact.positions == 1:
        for outputs, inputs in exact.extended_pairs():
            g, a = outputs.squeeze(1).transpose(0, 1), inputs.squeeze(1).transpose(0, 1)  # (b, n, k)
            total += float((((g @ G) * g).sum(-1) * ((a @ A) * a).sum(-1)).sum())
    else:
        for part in exact.gradients():
            by_group = part.transpose(0, 1)  # (b, n, o, i)
            turned = (by_group.flatten(1, 2) @ A).reshape(by_group.shape)
            total += float(((turned @ by_group.mT).sum(1) * G).sum())
    norm, trace = size_of_products(G, A)
    return total / float(exact.total_weight()), float(norm), float(trace)


def _in_basis(exact: WeightBatch, left: Tensor | None, right: Tensor | None) -> tuple[float, float, float]:
    """Of the curvature that is diagonal in a Kronecker basis, the identity for None."""
    scales = _mean(exact.squares(left, right))
    squared_norm = float(scales.square().sum())
    return squared_norm, squared_norm, float(scales.sum())


def _mean(moment: Moment | InputMoment) -> Tensor:
    return moment.total / moment.weight


def _basis(factors: Tensor) -> Tensor:
    vectors: Tensor = torch.linalg.eigh(factors)[1]
    return vectors


_ANY_CHOICE = BlockChoice(
    curvature="kfac",
    structure="block-diagonal",
    damping_mode="exact",
    bias="joint",
    conv_factors="expand",
    kfoc_steps=1,
    kfoc_aggregation="running",
)
"""The blocks that units are built with are not used: what a weight is does not depend on them."""
