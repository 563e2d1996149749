"""From preconditioned gradients to the step: momentum and trust region, in our order and in the published code's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from acktr.kfac.averages import looks_are_free
from acktr.kfac.momentum import Momentum
from acktr.kfac.proposals import Proposal
from acktr.kfac.step import AppliedStep, quadratic_form
from acktr.kfac.trust_region import trust_region_scale


def natural_step(
    proposals: Sequence[Proposal],
    usable: Tensor,
    last: AppliedStep,
    momentum: Momentum,
    decay: float,
    max_kl: float | None,
) -> Tensor:
    """Average the directions, then bound the KL of the average, which is what moves the parameters.

    Args:
        proposals: directions of the units that got a gradient, all zero where the batch is not usable.
        usable: 0-d bool, whether the batch may move anything.
        last: takes the step; its `kl_predicted` is set if the trust region needs it anyway.
        momentum: the averages.
        decay: of the averages.
        max_kl: trust region in nats, or None for none.

    Returns:
        The trust region's factor, 0-d; 0 if no step was made.
    """
    grown = momentum.grown([proposal.position for proposal in proposals], decay, usable)
    unbiased = (1 / grown.clamp(min=torch.finfo(grown.dtype).tiny)).unbind()
    fresh = (1 - decay) * usable.to(grown)
    held = torch.where(momentum.mass > 0, 1 - fresh, 0.0).unbind()  # momentum without mass is to be forgotten
    full_steps: list[list[Tensor]] = []
    quadratic = torch.zeros_like(fresh)
    for position, unit, directions, rates in proposals:
        steps = []
        for parameter, direction, rate in zip(unit.parameters, directions, rates, strict=True):
            average = momentum.buffer(parameter).mul_(held[position]).addcmul_(direction, fresh)
            steps.append(average * (unbiased[position] * (0.0 if rate is None else rate)))
        full_steps.append(steps)
        # without a region to keep, the products with F wait until someone reads `kl_predicted`
        quadratic += _square(steps) if max_kl is None else quadratic_form(unit, steps)
    finite = torch.isfinite(quadratic)
    scale = torch.where(usable & finite, trust_region_scale(quadratic, max_kl), 0.0)
    for proposal, steps in zip(proposals, full_steps, strict=True):
        last.move(proposal.unit, [_shortened(step, scale) for step in steps], proposal.rates)
    momentum.mass = torch.where(finite, grown, 0.0)
    if max_kl is not None:
        last.kl_predicted = torch.where(scale > 0, scale.square() * quadratic / 2, 0.0)
    return scale


def slope(proposals: Sequence[Proposal]) -> Tensor:
    """`Σ lr² u·g` of the directions u and the gradients g, 0-d: what the published code takes for the KL."""
    terms = [
        (direction * parameter.grad).sum() * (0.0 if rate is None else rate) ** 2
        for _, unit, directions, rates in proposals
        for parameter, direction, rate in zip(unit.parameters, directions, rates, strict=True)
        if parameter.grad is not None
    ]
    return torch.stack(terms).sum()


def baselines_step(
    proposals: Sequence[Proposal], scale: Tensor, last: AppliedStep, momentum: Momentum, decay: float
) -> None:
    """Average the directions, each rescaled before: the order of OpenAI Baselines.

    Args:
        proposals: directions of the units that got a gradient, all zero where the batch is not usable.
        scale: the rescaling, 0-d, by `baselines_scale`; 0 leaves parameters and averages as they are.
        last: takes the step.
        momentum: the averages; their weights are not used, for Baselines does not unbias them.
        decay: of the averages.
    """
    fresh = (scale > 0).to(scale) * (1 - decay)
    for _, unit, directions, rates in proposals:
        changes = []
        for parameter, direction, rate in zip(unit.parameters, directions, rates, strict=True):
            average = momentum.buffer(parameter).mul_(1 - fresh).addcmul_(direction, scale)
            changes.append(average * (fresh * (0.0 if rate is None else rate)))
        last.move(unit, changes, rates)


def _square(tensors: list[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(tensor).square() for tensor in tensors]).sum()


def _shortened(step: Tensor, scale: Tensor) -> Tensor:
    """`step * scale` in its place; 0 for a scale (0-d) of 0, whatever the step holds."""
    if looks_are_free(scale):
        if scale == 1:
            return step
        return step.mul_(scale) if scale > 0 else step.zero_()
    return torch.where(scale > 0, step.mul_(scale), 0.0)
