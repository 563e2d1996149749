"""Match a model's parameters with curvature blocks, and turn captured calls into the blocks' statistics.

A unit is a block with the parameters it treats and the modules that use them. There are three sorts: Kronecker-factored
weights, parameters with per-example gradients from a module's formula (separate biases, normalisation layers) and
standalone parameters (a Gaussian's log-std) treated exactly through the metric's losses.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from acktr.kfac.averages import Share
from acktr.kfac.blocks import Block
from acktr.kfac.capture import Call
from acktr.kfac.kronecker import DampingMode, KroneckerBlock
from acktr.kfac.layers import (
    AFFINE_TYPES,
    NORM_TYPES,
    Affine,
    ParameterMap,
    gradient_rows,
    groups_of,
    input_rows,
    norm_gradients,
    output_positions,
)
from acktr.kfac.small_blocks import DiagonalBlock, FullBlock, IdentityBlock
from acktr.kfac.statistics import (
    EVERY_POSITION,
    FactorKind,
    Thinning,
    gradient_moment,
    per_example_gradients,
    second_moment,
    total_weight,
    weighted_rows,
)

BiasMode = Literal["joint", "separate"]
Gradients = Sequence[tuple[Call, Tensor]]
"""Calls of one parameter's modules with the gradients at their outputs, one set per backward pass."""

EXACT_SIZE = 64
"""A standalone parameter of at most this many entries gets its exact block: a double backward per entry."""
MAX_FACTOR = 16384
"""Longest side of a Kronecker factor: one of this size takes 1 GiB in float32, and minutes to decompose on a CPU."""
FULL_SIZE = 256
"""A bias or normalisation parameter of at most this many entries gets a full block, a longer one a diagonal."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """A block and the parameters it treats.

    Attributes:
        name: of the module or parameter, as in `model.named_parameters()`; the key in `state_dict`.
        parameters: the weight, with the bias behind it where joint; or the one parameter.
        block: the curvature.
    """

    name: str
    parameters: tuple[Tensor, ...]
    block: Block

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
class KroneckerUnit(Unit):
    """A weight shared by one or more Linear or Conv2d modules.

    Attributes:
        block: its Kronecker block.
        modules: the modules that use it.
        map: how the parameters form the matrix.
        kind: expand or reduce.
    """

    block: KroneckerBlock
    modules: tuple[Affine, ...]
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
        """Refuse factors of other sizes, and inverses of the other damping mode."""
        mode = self.block.mode
        if state["left"] is not None and (state["scales"] is None) != (mode == "factored"):
            other = "exact" if mode == "factored" else "factored"
            raise ValueError(f"this state was made with damping_mode '{other}', this optimizer has '{mode}'")
        groups, rows, columns = self.map.matrix_shape
        for side, size in (("outputs", rows), ("inputs", columns)):
            value = state[side].get("value")
            if value is not None and tuple(value.shape) != (groups, size, size):
                raise ValueError(
                    f"this state holds a factor of shape {tuple(value.shape)} for the {side} of {self.name}, the "
                    f"model's is {(groups, size, size)}"
                )

    def update_inputs(
        self, calls: Sequence[Call], weights: Tensor | None, share: Share, thinning: Thinning = EVERY_POSITION
    ) -> None:
        """Add a batch to A; several calls of the modules count as further positions.

        A grid of positions weighs in the average by what it holds: grids of one map differ in size, and were they all
        to weigh the same, a position on a small one would count for more.
        """
        homogeneous = self.map.bias is not None
        if self.kind == "reduce":
            thinning = EVERY_POSITION  # the second moment of a mean over fewer positions is another number
        examples = calls[0].inputs.shape[0]
        _of_rows(weights, calls[0].inputs, self.name)
        if any(call.inputs.shape[0] != examples for call in calls):
            numbers = ", ".join(str(call.inputs.shape[0]) for call in calls)
            raise ValueError(
                f"{self.name} was called with different numbers of examples ({numbers}) in one capture; capture each "
                "batch on its own"
            )
        positions = sum(output_positions(_affine(call), call.inputs, thinning) for call in calls)
        if thinning.every > 1:
            everywhere = sum(output_positions(_affine(call), call.inputs, EVERY_POSITION) for call in calls)
            share = share.times(positions * thinning.every**2 / everywhere)
        if self.kind == "reduce":
            mean = torch.stack([self._summed_rows(call, thinning) for call in calls]).sum(0) / positions
            total = second_moment(mean.unsqueeze(1), weights, homogeneous=homogeneous)
            positions = 1
        else:
            moments = [
                second_moment(rows, None if weights is None else weights[part], homogeneous=homogeneous)
                for call in calls
                for part, rows in self._rows(call, thinning)
            ]
            total = torch.stack(moments).sum(0) if len(moments) > 1 else moments[0]
        self.block.inputs.update(total, total_weight(examples, weights, total) * positions, share)

    def _rows(self, call: Call, thinning: Thinning) -> Iterator[tuple[slice, Tensor]]:
        return input_rows(_affine(call), call.checked_inputs().to(self.block.dtype), thinning)

    def _summed_rows(self, call: Call, thinning: Thinning) -> Tensor:
        return torch.cat([rows.sum(1) for _, rows in self._rows(call, thinning)])

    def update_outputs(
        self, passes: Sequence[Gradients], weights: Tensor | None, share: Share, *, examples: int
    ) -> None:
        """Add a batch to G, summed over backward passes and over positions.

        Args:
            passes: the modules' calls with their gradients.
            weights: (N,) or None.
            share: of the batch.
            examples: N of the metric's losses. The mean is over them, even where the layer's rows are others: frames
                folded into its first axis, or those of a part of the batch.
        """
        total: Tensor | None = None
        for gradients in passes:
            rows = [gradient_rows(_affine(call), gradient.to(self.block.dtype)) for call, gradient in gradients]
            together = torch.cat(rows, dim=1)
            moment = gradient_moment(together, _of_rows(weights, together, self.name), kind=self.kind)
            total = moment if total is None else total.add_(moment)
        if total is not None:
            self.block.outputs.update(total, total_weight(examples, weights, total), share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModuleUnit(Unit):
    """A parameter whose per-example gradient its module's formula gives: a separate bias, a norm's scale or shift."""

    block: FullBlock | DiagonalBlock
    modules: tuple[nn.Module, ...]
    role: Literal["weight", "bias"]

    def update(self, passes: Sequence[Gradients], weights: Tensor | None, share: Share, *, examples: int) -> None:
        """Add a batch of per-example gradients, summed over positions and calls, one row per backward pass.

        Args:
            passes: the modules' calls with their gradients.
            weights: (N,) or None.
            share: of the batch.
            examples: N of the metric's losses.
        """
        rows: list[Tensor] = []
        for gradients in passes:
            parts = [self._gradient(call, gradient.to(self.block.dtype)) for call, gradient in gradients]
            if all(len(part) == examples for part in parts):
                parts = [torch.stack(parts).sum(0)]  # else the calls are of different examples
            rows.extend(weighted_rows(part, _of_rows(weights, part, self.name)) for part in parts)
        if rows:
            stacked = torch.cat(rows)
            self.block.update(stacked, total_weight(examples, weights, stacked), share)

    def _gradient(self, call: Call, gradient: Tensor) -> Tensor:
        if isinstance(call.module, NORM_TYPES):
            scale, shift = norm_gradients(call.module, call.checked_inputs().to(gradient), gradient)
            return scale if self.role == "weight" else shift
        return gradient_rows(_affine(call), gradient).sum(1).flatten(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StandaloneUnit(Unit):
    """A small parameter that belongs to no module of a known type, with its exact block."""

    block: FullBlock

    def update(self, losses: Tensor, weights: Tensor | None, share: Share) -> None:
        """Add a batch.

        Args:
            losses: (C, N) exact per-example losses of the metric, with their graph.
            weights: (N,) or None.
            share: of the batch.
        """
        gradients = per_example_gradients(losses, self.parameters[0])
        if gradients is None:
            return
        rows = torch.cat([weighted_rows(gradient, weights) for gradient in gradients])
        self.block.update(rows, total_weight(losses.shape[1], weights, rows), share)


def build_units(
    model: nn.Module, *, damping_mode: DampingMode, bias: BiasMode, conv_factors: FactorKind
) -> tuple[list[Unit], list[str]]:
    """One unit for every parameter of the model that takes a gradient.

    Args:
        model: the network; it is not modified.
        damping_mode: of the Kronecker blocks.
        bias: "joint" or "separate".
        conv_factors: "expand" or "reduce".

    Returns:
        The units in the order of the model's modules, and the names of the parameters that get their plain gradient.

    Raises:
        ValueError: a layer whose factor would be larger than `MAX_FACTOR`.
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
            unit = _kronecker(name, modules, damping_mode=damping_mode, bias=bias, kind=conv_factors)
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
                block_type = FullBlock if parameter.numel() <= FULL_SIZE else DiagonalBlock
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
    found: dict[int, nn.Module] = {}
    for unit in units:
        if isinstance(unit, KroneckerUnit | ModuleUnit):
            found.update({id(module): module for module in unit.modules})
    return list(found.values())


def _users(model: nn.Module) -> Mapping[int, list[nn.Module]]:
    users: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(module)
    return users


def _kronecker(
    name: str, modules: tuple[Affine, ...], *, damping_mode: DampingMode, bias: BiasMode, kind: FactorKind
) -> KroneckerUnit:
    weight = modules[0].weight
    shared_bias = modules[0].bias
    joint = (
        bias == "joint"
        and shared_bias is not None
        and shared_bias.requires_grad
        and all(module.bias is shared_bias for module in modules)
    )
    parameter_map = ParameterMap(weight=weight, bias=shared_bias if joint else None, groups=groups_of(modules[0]))
    longest = max(parameter_map.matrix_shape[1:])
    if longest > MAX_FACTOR:
        raise ValueError(
            f"layer {name} would need a curvature factor of {longest} x {longest}, above the largest of {MAX_FACTOR}; "
            "make the layer narrower, put convolutions before it, or freeze it"
        )
    return KroneckerUnit(
        name=name,
        parameters=(weight, shared_bias) if joint and shared_bias is not None else (weight,),
        block=KroneckerBlock(_statistics_like(weight), mode=damping_mode),
        modules=modules,
        map=parameter_map,
        kind=kind,
    )


def _statistics_like(parameter: Tensor) -> Tensor:
    """An empty tensor on the parameter's device in the dtype of its statistics, at least float32."""
    return torch.empty(0, device=parameter.device, dtype=torch.promote_types(parameter.dtype, torch.float32))


def _of_rows(weights: Tensor | None, rows: Tensor, name: str) -> Tensor | None:
    if weights is not None and len(weights) != len(rows):
        raise ValueError(
            f"{name} was called on {len(rows)} rows, and there are {len(weights)} weights: weights go with layers that "
            "see one row per example"
        )
    return weights


def _affine(call: Call) -> Affine:
    assert isinstance(call.module, AFFINE_TYPES)
    return call.module
