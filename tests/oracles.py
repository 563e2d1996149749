"""Dense matrices by autograd, which the factored ones are compared with."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from acktr.kfac import KFAC
from acktr.kfac.units import Unit, WeightUnit


def example_gradients(losses: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """(C, N, d) gradients of each of (C, N) losses, the parameters flattened one behind the other."""
    rows = []
    for loss in losses.flatten():
        gradients = torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).flatten()
                    for g, p in zip(gradients, parameters, strict=True)
                ]
            )
        )
    return torch.stack(rows).reshape(*losses.shape, -1)


def dense_fisher(losses: Tensor, parameters: Sequence[Tensor], weights: Tensor | None = None) -> Tensor:
    """(d, d): the weighted mean over examples of the sum over rows of g gᵀ."""
    gradients = example_gradients(losses, parameters)
    weights = torch.ones(losses.shape[1], dtype=losses.dtype) if weights is None else weights
    return torch.einsum("n,cni,cnj->ij", weights, gradients, gradients) / weights.sum()


def block_order(unit: Unit) -> Tensor:
    """Where the entries of the block's flattened matrix stand among the unit's flattened parameters."""
    sizes = [parameter.numel() for parameter in unit.parameters]
    flat = torch.arange(sum(sizes), dtype=torch.float64)
    parts = [part.reshape(p.shape) for part, p in zip(flat.split(sizes), unit.parameters, strict=True)]
    return unit.matrix(parts).flatten().long()


def fisher_block(unit: Unit, losses: Tensor, weights: Tensor | None = None, *, between_groups: bool = False) -> Tensor:
    """The unit's block of the dense Fisher in the order of `unit.block.to_dense()`, zero between groups by default."""
    order = block_order(unit)
    dense = dense_fisher(losses, unit.parameters, weights)[order][:, order]
    if isinstance(unit, WeightUnit) and unit.map.groups > 1 and not between_groups:
        size = len(order) // unit.map.groups
        group = torch.arange(len(order)) // size
        dense = torch.where(group[:, None] == group[None, :], dense, 0.0)
    return dense


def unit_named(optimizer: KFAC, name: str) -> Unit:
    """The unit of that name."""
    return next(unit for unit in optimizer.units if unit.name == name)


def flat_parameters(model: nn.Module) -> Tensor:
    """All parameters, detached and flattened."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of `expected`."""
    return float((actual.detach() - expected.detach()).norm() / expected.detach().norm())
