"""A chain of layers as one unit: which layer follows which is read off the graph of the first forward pass."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from acktr.kfac.averages import Share
from acktr.kfac.capture import Call
from acktr.kfac.chain_block import ChainBlock
from acktr.kfac.moments import Gradients, WeightBatch
from acktr.kfac.statistics import EVERY_POSITION, total_weight
from acktr.kfac.sums import Sums
from acktr.kfac.units import Unit, WeightUnit, statistics_dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChainUnit(Unit):
    """All weights of a network whose layers form a chain, the last link perhaps several heads on one input.

    Attributes:
        block: of the whole chain.
        layers: one unit for each weight, in the order of the model; their own blocks are not used.
    """

    block: ChainBlock
    layers: tuple[WeightUnit, ...]

    def matrix(self, tensors: Sequence[Tensor]) -> Tensor:
        """(d,): the layers' matrices in the order of the chain, one behind the other."""
        per_layer: list[Sequence[Tensor]] = []
        start = 0
        for layer in self.layers:
            per_layer.append(tensors[start : start + len(layer.parameters)])
            start += len(layer.parameters)
        return torch.cat([self.layers[index].matrix(per_layer[index]).flatten() for index in self._order()])

    def split(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """Undo `matrix`."""
        order = self._order()
        parts = torch.split(matrix, [rows * columns for rows, columns in map(self._shape, order)])
        found = {
            index: self.layers[index].split(part.reshape(1, *self._shape(index)))
            for index, part in zip(order, parts, strict=True)
        }
        return tuple(part for index in range(len(self.layers)) for part in found[index])

    def _order(self) -> list[int]:
        return [index for link in self.block.order for index in link] or list(range(len(self.layers)))

    def _shape(self, index: int) -> tuple[int, int]:
        return self.layers[index].map.matrix_shape[1:]

    def _link_shape(self, link: Sequence[int]) -> tuple[int, int]:
        return sum(self._shape(index)[0] for index in link), self._shape(link[0])[1]

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse the state of a chain of other layers."""
        found = [tuple(shape) for shape in state["shapes"]]
        known = sorted(index for link in state["order"] for index in link) == list(range(len(self.layers)))
        expected = [self._link_shape(link) for link in state["order"]] if known else []
        if found and found != expected:
            raise ValueError(f"this state holds a chain of layers {found}, the model's are other ones: {self.name}")

    def update(self, passes: Sequence[Gradients], weights: Tensor | None, share: Share, *, examples: int) -> Sums[None]:
        """Add a batch.

        Args:
            passes: calls of the network with their gradients, one set for each backward pass.
            weights: (N,) or None.
            share: of the batch.
            examples: N of the metric's losses.

        Raises:
            ValueError: the layers form no chain, or a link of it is not reached; the message says where.
        """
        own = [self._by_layer(gradients) for gradients in passes]
        calls = {index: call for found in own for index, (call, _) in found.items()}
        if not calls:
            return
        if not self.block.order:
            order = chain_order(calls, [layer.name for layer in self.layers], examples=examples)
            self.block.arrange(order, [self._link_shape(link) for link in order])

        def batch(index: int, pair: tuple[Call, Tensor]) -> WeightBatch:
            layer = self.layers[index]
            return WeightBatch(
                name=layer.name,
                map=layer.map,
                kind="reduce",
                passes=[[pair]],
                weights=weights,
                examples=examples,
                thinning=EVERY_POSITION,
                dtype=statistics_dtype(layer.parameters[0]),
            )

        missing = [self.layers[link[0]].name for link in self.block.order if not set(link) & set(calls)]
        if missing:
            raise ValueError(_no_chain(f"the metric's losses do not reach layer {', '.join(missing)}"))
        first = {index: next(found[index] for found in own if index in found) for index in calls}
        reached = [next(index for index in link if index in first) for link in self.block.order]  # heads share inputs
        inputs = [batch(index, first[index]).mean_inputs() for index in reached]
        gradients = []
        for link in self.block.order:
            rows = []
            for found in own:
                heads = [
                    batch(index, found[index]).summed_outputs()
                    if index in found
                    else inputs[0].new_zeros(examples, self._shape(index)[0])
                    for index in link
                ]
                rows.append(torch.cat(heads, dim=1))
            gradients.append(torch.cat(rows))
        yield from self.block.update(inputs, gradients, total_weight(examples, weights, inputs[0]), share)

    def _by_layer(self, gradients: Gradients) -> dict[int, tuple[Call, Tensor]]:
        found: dict[int, tuple[Call, Tensor]] = {}
        for call, gradient in gradients:
            index = self._layer_of(call.module)
            if index is None:
                continue
            if index in found:
                raise ValueError(_no_chain(f"layer {self.layers[index].name} is used more than once in a forward pass"))
            found[index] = (call, gradient)
        return found

    def _layer_of(self, module: nn.Module) -> int | None:
        return next((index for index, layer in enumerate(self.layers) if module in layer.modules), None)


def chained(units: Sequence[Unit]) -> list[Unit]:
    """The units with those of weights put together into one of a chain, and that one first.

    Raises:
        ValueError: a layer that no chain can hold: a grouped convolution, or a weight that several modules share.
    """
    layers = tuple(unit for unit in units if isinstance(unit, WeightUnit))
    if not layers:
        return list(units)
    for layer in layers:
        if layer.map.groups > 1:
            raise ValueError(_no_chain(f"layer {layer.name} is a grouped convolution"))
        if len(layer.modules) > 1:
            raise ValueError(_no_chain(f"the weight of layer {layer.name} is shared by {len(layer.modules)} modules"))
    chain = ChainUnit(
        name=" - ".join(layer.name for layer in layers),
        parameters=tuple(parameter for layer in layers for parameter in layer.parameters),
        block=ChainBlock(layers[0].parameters[0].new_empty(0, dtype=statistics_dtype(layers[0].parameters[0]))),
        modules=tuple(module for layer in layers for module in layer.modules),
        layers=layers,
    )
    return [chain, *(unit for unit in units if not isinstance(unit, WeightUnit))]


def chain_order(calls: Mapping[int, Call], names: Sequence[str], *, examples: int) -> list[list[int]]:
    """The order in which layers follow one another, by the graph of their outputs.

    Args:
        calls: of each layer that the losses reach, by its position in `names`.
        names: of all layers.
        examples: N of the metric's losses.

    Returns:
        Positions in `names`, link by link from the input on; several in the last link where heads share an input.

    Raises:
        ValueError: a layer is not reached, sees other rows than the examples, takes its input from several layers or
            gives its output to several that go on.
    """
    missing = [name for index, name in enumerate(names) if index not in calls]
    if missing:
        raise ValueError(_no_chain(f"the metric's losses do not reach layer {', '.join(missing)}"))
    for index, call in calls.items():
        if call.inputs.shape[0] != examples:
            raise ValueError(
                _no_chain(f"layer {names[index]} sees {call.inputs.shape[0]} rows for {examples} examples")
            )
    nodes = {call.edge.node: index for index, call in calls.items()}
    before = {index: _feeding(call, nodes) for index, call in calls.items()}
    after: dict[int, list[int]] = {index: [] for index in calls}
    for index, sources in before.items():
        if len(sources) > 1:
            raise ValueError(_no_chain(f"layer {names[index]} takes its input from {_listed(names, sources)}"))
        for source in sources:
            after[source].append(index)
    first = [index for index, sources in before.items() if not sources]
    if len(first) > 1:
        raise ValueError(_no_chain(f"{_listed(names, first)} take their inputs from no other layer"))
    order = [first]
    while following := after[order[-1][0]]:
        going_on = [index for index in following if after[index]]
        if len(following) > 1 and going_on:
            raise ValueError(
                _no_chain(f"layer {names[order[-1][0]]} gives its output to {_listed(names, following)}, which go on")
            )
        if len({(calls[index].inputs.data_ptr(), calls[index].inputs.shape) for index in following}) > 1:
            raise ValueError(_no_chain(f"{_listed(names, following)} take different functions of one layer's output"))
        order.append(sorted(following))
    return order


def _feeding(call: Call, nodes: Mapping[Any, int]) -> list[int]:
    """Layers whose outputs the call's input is computed from with no other layer in between."""
    found: set[int] = set()
    seen: set[Any] = set()
    waiting = [node for node, _ in call.edge.node.next_functions]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in nodes:
            found.add(nodes[node])
        else:
            waiting.extend(following for following, _ in node.next_functions)
    return sorted(found)


def _listed(names: Sequence[str], positions: Sequence[int]) -> str:
    return "layers " + " and ".join(names[index] for index in positions)


def _no_chain(reason: str) -> str:
    return (
        f"structure 'block-tridiagonal' needs layers in a chain, and {reason}; use structure 'block-diagonal' for this "
        "network"
    )
