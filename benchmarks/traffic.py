"""The model of docs/distributed.md: how many bytes processes send one another, from shapes and settings alone."""

from collections import Counter

import torch

from acktr.agents.acktr import ACKTRUpdater
from acktr.agents.learner import Learner
from acktr.agents.settings import Settings
from acktr.kfac.blocks import Decomposed
from acktr.kfac.chains import ChainUnit
from acktr.kfac.corrected import CorrectedBlock
from acktr.kfac.distributed import packed_entries
from acktr.kfac.kronecker import KroneckerBlock
from acktr.kfac.optimal_factors import COLD_STEPS, OptimalFactors
from acktr.kfac.small_blocks import DiagonalBlock, FullBlock
from acktr.kfac.units import Unit, WeightUnit

KINDS = ("gradients", "factors", "inverses", "directions")


def traffic_of(updater: ACKTRUpdater, settings: Settings, updates: int) -> Counter[str]:
    """Bytes of all messages in a policy's first updates, by kind, figures left out; in float32."""
    critic = updater.critic
    found = traffic(updater.actor, settings, updates, figures=3 if critic is None else 2)
    if critic is not None:
        found += traffic(critic, settings, updates * settings.critic_iterations, figures=1)
    return found


def factor_numbers(unit: Unit, *, thinned: bool, steps: int, has_basis: bool) -> int:
    """Numbers that a unit's statistics of one batch consist of.

    Args:
        unit: a weight's, or a small parameter's.
        thinned: whether positions are left out.
        steps: of K-FOC's power method.
        has_basis: whether EKFAC has one already.
    """
    block = unit.block
    if isinstance(block, FullBlock | DiagonalBlock):
        size = unit.matrix([torch.empty_like(parameter) for parameter in unit.parameters]).numel()
        return (size if isinstance(block, DiagonalBlock) else packed_entries(1, size)) + 1
    assert isinstance(unit, WeightUnit)
    assert isinstance(block, KroneckerBlock | CorrectedBlock)
    groups, rows, columns = unit.map.matrix_shape
    pair = packed_entries(groups, rows) + packed_entries(groups, columns)
    # of thinned positions also how much the batch tells
    number = steps * pair + 1 if isinstance(block.factors, OptimalFactors) else pair + 2 + 2 * thinned
    return number + (groups * rows * columns + 1) * (isinstance(block, CorrectedBlock) and has_basis)


def inverse_numbers(unit: Unit, settings: Settings) -> int:
    """Numbers of a unit's decomposition, with two on how it came out."""
    block = unit.block
    if isinstance(block, DiagonalBlock):
        return 0
    if isinstance(block, FullBlock):
        size = sum(parameter.numel() for parameter in unit.parameters)
        return size**2 + 2
    assert isinstance(unit, WeightUnit)
    groups, rows, columns = unit.map.matrix_shape
    entries, borders = groups * rows * columns, groups * (rows + columns)
    if isinstance(block, CorrectedBlock):
        null = borders * (2 if settings.damping_mode == "factored" else 1)
        return groups * (rows**2 + columns**2) + 2 + entries + 1 + null
    if settings.damping_mode == "exact":
        return groups * (rows**2 + columns**2) + 2 + entries
    return packed_entries(groups, rows) + packed_entries(groups, columns) + 2


def direction_numbers(unit: Unit) -> int:
    """Numbers of a unit's preconditioned gradient, where it comes from the process that has the inverse."""
    return sum(parameter.numel() for parameter in unit.parameters) if isinstance(unit.block, Decomposed) else 0


def traffic(learner: Learner, settings: Settings, updates: int, figures: int) -> Counter[str]:
    """Bytes of a learner's messages in its first updates, by kind.

    Args:
        learner: with its optimizer, whose parameters are float32.
        settings: of the run.
        updates: its steps so far.
        figures: numbers that travel with a gradient.
    """
    optimizer, found = learner.optimizer, Counter[str]()
    assert not any(isinstance(unit, ChainUnit) for unit in optimizer.units)
    parameters = sum(parameter.numel() for parameter in learner.optimizer.param_groups[0]["params"])
    refreshed: set[int] = set()
    for step in range(updates):
        found["gradients"] += 4 * (parameters + figures)
        if step % settings.stat_interval == 0:
            found["factors"] += 4 * sum(
                factor_numbers(
                    unit,
                    thinned=settings.position_stride > 1 and settings.conv_factors == "expand",
                    steps=settings.kfoc_steps if step else max(settings.kfoc_steps, COLD_STEPS),
                    has_basis=index in refreshed,
                )
                for index, unit in enumerate(optimizer.units)
            )
        number, pace = len(optimizer.units), optimizer.estimate.pace
        due = {index for index in range(number) if pace.is_due(index, number, steps=step)}
        due |= set(range(number)) - refreshed
        if settings.inverse_placement == "owner":
            found["directions"] += 4 * sum(map(direction_numbers, optimizer.units))
            found["inverses"] += 4 * sum(2 * isinstance(optimizer.units[index].block, Decomposed) for index in due)
        else:
            found["inverses"] += 4 * sum(inverse_numbers(optimizer.units[index], settings) for index in due)
        refreshed |= due
    return found
