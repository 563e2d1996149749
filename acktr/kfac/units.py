"""Match a model's parameters with curvature blocks, and turn captured calls into the blocks' statistics.

A unit is a block with the parameters it treats and the modules that use them. There are three sorts: Kronecker-factored
weights, parameters with per-example gradients from a module's formula (separate biases, normalisation layers) and
standalone parameters (a Gaussian's log-std) treated exactly through the metric's losses.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from acktr.kfac.averages import Share
from acktr.kfac.blocks import Block
from acktr.kfac.capture import Call
from acktr.kfac.curvatures import BlockChoice, WeightBlock, state_shapes
from acktr.kfac.layers import (
    AFFINE_TYPES,
    NORM_TYPES,
    Affine,
    ParameterMap,
    gradient_rows,
    groups_of,
    norm_gradients,
)
from acktr.kfac.moments import Gradients, WeightBatch, weights_of_rows
from acktr.kfac.small_blocks import DiagonalBlock, FullBlock, IdentityBlock
from acktr.kfac.statistics import (
    EVERY_POSITION,
    FactorKind,
    Thinning,
    per_example_gradients,
    total_weight,
    weighted_rows,
)
from acktr.kfac.sums import Sums

EXACT_SIZE = 64
"""A standalone parameter of at most this many entries gets its exact block: a double backward per entry."""
FULL_SIZE = 512
"""A bias or normalisation parameter of at most this many entries gets a full block, a longer one a diagonal."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """A block and the parameters it treats.

    Attributes:
        name: of the module or parameter, as in `model.named_parameters()`; the key in `state_dict`.
        parameters: the weight, with the bias behind it where joint; or the one parameter.
        block: the curvature.
        modules: those whose calls the statistics come from; none of a standalone parameter.
    """

    name: str
    parameters: tuple[Tensor, ...]
    block: Block
    modules: tuple[nn.Module, ...] = ()

    def matrix(self, tensors: Sequence[Tensor]) -> Tensor:
        """Arrange tensors shaped like `parameters` as the block's matrix."""
        return tensors[0].flatten()

    def split(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """Undo `matrix`."""
        return (matrix.reshape(self.parameters[0].shape),)

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse a block's state that was made for parameters of other shapes.

        Raises:
            ValueError: it was.
        """
        size = self.parameters[0].numel()
        if "moment" in state and state["moment"] and state["moment"]["value"].shape[-1] != size:
            found = state["moment"]["value"].shape[-1]
            raise ValueError(f"this state holds a block of {found} entries for {self.name}, the model's has {size}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightUnit(Unit):
    """A weight shared by one or more Linear or Conv2d modules.

    Attributes:
        block: its curvature.
        map: how the parameters form the matrix.
        kind: expand or reduce.
    """

    block: WeightBlock
    map: ParameterMap
    kind: FactorKind

    def matrix(self, tensors: Sequence[Tensor]) -> Tensor:
        """(b, o, i), the bias as the last column."""
        return self.map.matrix(tensors[0], tensors[1] if len(tensors) > 1 else None)

    def split(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """Undo `matrix`."""
        weight, bias = self.map.split(matrix)
        return (weight,) if bias is None else (weight, bias)

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse statistics of other sizes."""
        for key, shapes in state_shapes(self.map.matrix_shape).items():
            value = state.get(key, {}).get("value")
            if value is not None and tuple(value.shape) not in shapes:
                raise ValueError(
                    f"this state holds a factor of shape {tuple(value.shape)} for the {key} of {self.name}, the "
                    f"model's is {' or '.join(map(str, shapes))}"
                )

    def update(
        self,
        passes: Sequence[Gradients],
        weights: Tensor | None,
        share: Share,
        *,
        examples: int,
        thinning: Thinning = EVERY_POSITION,
    ) -> Sums[None]:
        """Add a batch.

        Args:
            passes: the modules' calls with their gradients, at least one.
            weights: (N,) or None.
            share: of the batch.
            examples: N of the metric's losses.
            thinning: of the positions of inputs.
        """
        batch = WeightBatch(
            name=self.name,
            map=self.map,
            kind=self.kind,
            passes=passes,
            weights=weights,
            examples=examples,
            thinning=thinning,
            dtype=statistics_dtype(self.parameters[0]),
        )
        return self.block.observe(batch, share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModuleUnit(Unit):
    """A parameter whose per-example gradient its module's formula gives: a separate bias, a norm's scale or shift."""

    block: FullBlock | DiagonalBlock
    role: Literal["weight", "bias"]

    def update(self, passes: Sequence[Gradients], weights: Tensor | None, share: Share, *, examples: int) -> Sums[None]:
        """Add a batch of per-example gradients, summed over positions and calls, one row per backward pass.

        Args:
            passes: the modules' calls with their gradients, at least one.
            weights: (N,) or None.
            share: of the batch.
            examples: N of the metric's losses.
        """
        rows: list[Tensor] = []
        for gradients in passes:
            dtype = statistics_dtype(self.parameters[0])
            parts = [self._gradient(call, gradient.to(dtype)) for call, gradient in gradients]
            if all(len(part) == examples for part in parts):
                parts = [torch.stack(parts).sum(0)]  # else the calls are of different examples
            rows.extend(weighted_rows(part, weights_of_rows(weights, part, self.name)) for part in parts)
        stacked = torch.cat(rows)
        return self.block.update(stacked, total_weight(examples, weights, stacked), share)

    def _gradient(self, call: Call, gradient: Tensor) -> Tensor:
        if isinstance(call.module, NORM_TYPES):
            scale, shift = norm_gradients(call.module, call.checked_inputs().to(gradient), gradient)
            return scale if self.role == "weight" else shift
        assert isinstance(call.module, AFFINE_TYPES)
        return gradient_rows(call.module, gradient).sum(1).flatten(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StandaloneUnit(Unit):
    """A small parameter that belongs to no module of a known type, with its exact block."""

    block: FullBlock

    def gradients(self, losses: Tensor | None) -> Tensor | None:
        """Those of the examples, (C, N, d); None where these do not depend on the parameter.

        Args:
            losses: (C, N) exact per-example losses of the metric, with their graph.
        """
        return None if losses is None else per_example_gradients(losses, self.parameters[0])

    def update(self, gradients: Tensor | None, weights: Tensor | None, share: Share, *, examples: int) -> Sums[None]:
        """Add a batch.

        Args:
            gradients: (C, N, d) of the examples; None counts them as 0.
            weights: (N,) or None.
            share: of the batch.
            examples: N.
        """
        like = torch.empty(0, self.parameters[0].numel()).to(self.parameters[0])
        rows = torch.cat(
            [like, *(weighted_rows(gradient, weights) for gradient in (() if gradients is None else gradients))]
        )
        return self.block.update(rows, total_weight(examples, weights, rows), share)


def build_units(model: nn.Module, choice: BlockChoice) -> tuple[list[Unit], list[str]]:
    """One unit for every parameter of the model that takes a gradient.

    Args:
        model: the network; it is not modified.
        choice: of the weights' blocks.

    Returns:
        The units in the order of the model's modules, and the names of the parameters that get their plain gradient.

    Raises:
        ValueError: a layer too large for the curvature chosen.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    users = _users(model)
    units: list[Unit] = []
    done: set[int] = set()
    for name, module in model.named_modules():
        # a weight that is no parameter of its own, such as one of torch's parametrizations, is computed anew each time
        if (
            isinstance(module, AFFINE_TYPES)
            and module.weight.requires_grad
            and id(module.weight) in names
            and id(module.weight) not in done
        ):
            modules = tuple(user for user in users[id(module.weight)] if isinstance(user, AFFINE_TYPES))
            unit = _weight_unit(name, modules, choice)
            units.append(unit)
            done.update(map(id, unit.parameters))
        if isinstance(module, (*AFFINE_TYPES, *NORM_TYPES)):
            roles: tuple[Literal["weight", "bias"], ...] = ("weight", "bias")
            for role in roles:
                parameter = getattr(module, role)
                if parameter is None or not parameter.requires_grad or id(parameter) in done:
                    continue
                if id(parameter) not in names:
                    continue
                done.add(id(parameter))
                whole = parameter.numel() <= FULL_SIZE and choice.curvature != "diagonal"
                block_type = FullBlock if whole else DiagonalBlock
                units.append(
                    ModuleUnit(
                        name=names[id(parameter)],
                        parameters=(parameter,),
                        block=block_type(_statistics_like(parameter)),
                        modules=tuple(
                            user for user in users[id(parameter)] if isinstance(user, (*AFFINE_TYPES, *NORM_TYPES))
                        ),
                        role=role,
                    )
                )
    plain: list[str] = []
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in done:
            continue
        if parameter.numel() <= EXACT_SIZE:
            block = FullBlock(_statistics_like(parameter))
            units.append(StandaloneUnit(name=parameter_name, parameters=(parameter,), block=block))
        else:
            units.append(Unit(name=parameter_name, parameters=(parameter,), block=IdentityBlock()))
            plain.append(parameter_name)
    return units, plain


def recorded_modules(units: Sequence[Unit]) -> list[nn.Module]:
    """The modules whose calls the units' statistics come from, each once."""
    return list({id(module): module for unit in units for module in unit.modules}.values())


def _users(model: nn.Module) -> Mapping[int, list[nn.Module]]:
    users: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(module)
    return users


def _weight_unit(name: str, modules: tuple[Affine, ...], choice: BlockChoice) -> WeightUnit:
    weight = modules[0].weight
    shared_bias = modules[0].bias
    joint = (
        choice.bias == "joint"
        and shared_bias is not None
        and shared_bias.requires_grad
        and all(module.bias is shared_bias for module in modules)
    )
    parameter_map = ParameterMap(weight=weight, bias=shared_bias if joint else None, groups=groups_of(modules[0]))
    return WeightUnit(
        name=name,
        parameters=(weight, shared_bias) if joint and shared_bias is not None else (weight,),
        block=choice.block(name, parameter_map.matrix_shape, _statistics_like(weight)),
        modules=modules,
        map=parameter_map,
        kind=choice.conv_factors,
    )


def _statistics_like(parameter: Tensor) -> Tensor:
    """An empty tensor on the parameter's device in the dtype of its statistics."""
    return torch.empty(0, device=parameter.device, dtype=statistics_dtype(parameter))


def statistics_dtype(parameter: Tensor) -> torch.dtype:
    """At least float32."""
    return torch.promote_types(parameter.dtype, torch.float32)
