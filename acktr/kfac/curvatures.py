"""The family of curvatures of a weight, by name: which block stands for which, and what fits which layer."""

import dataclasses
from typing import Any, Literal, Protocol

from torch import Tensor

from acktr.kfac.averages import Share
from acktr.kfac.blocks import Block
from acktr.kfac.checks import check_choice, check_count
from acktr.kfac.corrected import CorrectedBlock
from acktr.kfac.factors import Factors, MomentFactors
from acktr.kfac.kronecker import DampingMode, KroneckerBlock
from acktr.kfac.moments import WeightBatch
from acktr.kfac.optimal_factors import Aggregation, OptimalFactors
from acktr.kfac.small_blocks import DiagonalBlock, FullBlock
from acktr.kfac.statistics import FactorKind
from acktr.kfac.sums import Sums

Curvature = Literal["kfac", "ekfac", "kfoc", "ekfoc", "diagonal", "full"]
Structure = Literal["block-diagonal", "block-tridiagonal"]
BiasMode = Literal["joint", "separate"]

MAX_FACTOR = 16384
"""Longest side of a Kronecker factor: one of this size takes 1 GiB in float32, and minutes to decompose on a CPU."""
MAX_FULL = 5000
"""Parameters of a layer up to which its whole block is kept: 25 million entries, inverted by Cholesky."""


class TooWideError(ValueError):
    """A layer whose Kronecker factors would not fit."""


class WeightBlock(Block, Protocol):
    """A block of a weight, which takes its statistics from the layer's inputs and gradients."""

    def observe(self, batch: WeightBatch, share: Share) -> Sums[None]:
        """Add a batch."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockChoice:
    """How weights are treated; each field as in `KFAC`."""

    curvature: Curvature
    structure: Structure
    damping_mode: DampingMode
    bias: BiasMode
    conv_factors: FactorKind
    kfoc_steps: int
    kfoc_aggregation: Aggregation

    def __post_init__(self) -> None:
        check_choice("damping_mode", self.damping_mode, DampingMode)
        check_choice("bias", self.bias, BiasMode)
        check_choice("conv_factors", self.conv_factors, FactorKind)
        check_choice("curvature", self.curvature, Curvature)
        check_choice("structure", self.structure, Structure)
        check_count("kfoc_steps", self.kfoc_steps, 1)
        check_choice("kfoc_aggregation", self.kfoc_aggregation, Aggregation)
        if self.structure == "block-tridiagonal":
            if self.curvature != "kfac":
                raise ValueError(f"structure 'block-tridiagonal' needs curvature 'kfac', got '{self.curvature}'")
            if self.damping_mode != "factored":
                raise ValueError(
                    f"structure 'block-tridiagonal' needs damping_mode 'factored', got '{self.damping_mode}'"
                )

    def block(self, name: str, shape: tuple[int, int, int], like: Tensor) -> WeightBlock:
        """The block of a layer whose matrix is `shape` (b, o, i), with statistics in the device and dtype of `like`.

        Raises:
            TooWideError: the layer's factors would be too large.
            ValueError: the layer's whole block would be.
        """
        groups, rows, columns = shape
        if self.curvature == "diagonal":
            return DiagonalBlock(like)
        if self.curvature == "full":
            size = groups * rows * columns
            if size > MAX_FULL:
                raise ValueError(
                    f"layer {name} has {size} parameters, and curvature 'full' keeps whole blocks of at most "
                    f"{MAX_FULL}; use 'ekfac' or 'kfac'"
                )
            return FullBlock(like)
        if max(rows, columns) > MAX_FACTOR:
            raise TooWideError(
                f"layer {name} would need a curvature factor of {max(rows, columns)} x {max(rows, columns)}, above the "
                f"largest of {MAX_FACTOR}; make the layer narrower, put convolutions before it, or freeze it"
            )
        factors: Factors = MomentFactors()
        if self.curvature in ("kfoc", "ekfoc"):
            factors = OptimalFactors(steps=self.kfoc_steps, aggregation=self.kfoc_aggregation)
        if self.curvature in ("ekfac", "ekfoc"):
            return CorrectedBlock(factors, like, mode=self.damping_mode)
        return KroneckerBlock(factors, like, mode=self.damping_mode)


def state_shapes(shape: tuple[int, int, int]) -> dict[str, Any]:
    """Shapes of the averages that a weight's blocks may keep, by their names in `state_dict`, for (b, o, i)."""
    groups, rows, columns = shape
    size = groups * rows * columns
    return {
        "inputs": {(groups, columns, columns)},
        "outputs": {(groups, rows, rows)},
        "scales": {shape},
        "moment": {shape, (1, size, size)},
    }
