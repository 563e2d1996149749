"""One forward pass per sample: what the layers gave while the rollout was made serves the update too.

The parameters that acted are those that learn, so the update's forward pass would compute the rollout's numbers once
more. `Recall` keeps the outputs of the Linear and Conv2d layers step by step, and in the update each of them takes its
output from there, with a graph for the backward pass; what lies between (activations, reshapes) is computed again.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from acktr.agents.networks import DictTorso
from acktr.agents.recalled_layers import Known, RecalledConv2d, RecalledLinear, RowSink
from acktr.kfac.products import linear

Use = tuple[int, int]
"""A weight's identity, and how often the forward pass had used it before."""


def recallable(torso: nn.Module) -> bool:
    """Whether the outputs of this torso's layers may be kept: each row's depend on that row alone, and they are dear.

    Of modules whose code is not known here nothing is assumed, nor of those with hooks. An activation in place
    overwrites what is kept, and may do so again, which is harmless for ReLU. Multi-layer perceptrons on vectors cost
    less than the bookkeeping.
    """
    modules = list(torso.modules())
    return all(map(_is_row_wise, modules)) and any(isinstance(module, nn.Conv2d) for module in modules)


def _is_row_wise(module: nn.Module) -> bool:
    if module._forward_hooks or module._forward_pre_hooks or (isinstance(module, nn.ELU) and module.inplace):
        return False
    if isinstance(module, nn.Conv2d) and isinstance(module.padding, str):  # perhaps more on one side than on the other
        return False
    known = (nn.Linear, nn.Conv2d, nn.ReLU, nn.Tanh, nn.ELU, nn.Flatten, nn.Sequential, nn.ModuleList, DictTorso)
    return type(module) in known


class Recall:
    """The outputs of a network's layers for one rollout.

    Args:
        num_steps: T.
        num_envs: N.
    """

    def __init__(self, *, num_steps: int, num_envs: int) -> None:
        self._shape = (num_steps, num_envs)
        self._outputs: dict[Use, Tensor] = {}  # (T, N, ...)
        self._counts: dict[Use, int] = {}  # steps kept of this rollout
        self._parameters: dict[int, tuple[Tensor, int]] = {}  # with their modification counts at the first step

    @contextlib.contextmanager
    def recording(self, step: int) -> Iterator[None]:
        """Keep what the layers give inside, as step `step`; they come in order, and step 0 begins a new rollout."""
        if step == 0:
            self._outputs = {use: self._outputs[use] for use in self._counts}  # of layers that are still there
            self._counts, self._parameters = {}, {}
        mode = _Recording()
        with mode:
            yield
        for weight, bias, number, output in mode.outputs:
            use = (id(weight), number)
            outputs = self._outputs.get(use)
            if outputs is None or outputs.dtype != output.dtype or outputs.shape[2:] != output.shape[1:]:
                outputs = self._outputs[use] = _storage(self._shape, output)
            outputs[step].copy_(output)
            self._counts[use] = self._counts.get(use, 0) + 1
            for parameter in (weight,) if bias is None else (weight, bias):
                self._parameters.setdefault(id(parameter), (parameter, parameter._version))

    @property
    def is_valid(self) -> bool:
        """Whether a whole rollout is kept, and no weight or bias has changed since it began, but by its `.data`."""
        whole = bool(self._counts) and all(count == self._shape[0] for count in self._counts.values())
        return whole and all(kept._version == version for kept, version in self._parameters.values())

    def replaying(
        self, rows: Tensor | slice, *, trains: bool = True, sink: RowSink | None = None
    ) -> contextlib.AbstractContextManager[Any]:
        """For a forward pass on these of the rollout's T · N rows, time-major: layers take their outputs from here.

        Those of which nothing is kept compute them.

        Args:
            rows: which.
            trains: whether backward passes give the layers' parameters their gradients, or go to outputs alone.
            sink: gets the gradients that it wants.
        """

        def find(weight: Tensor, number: int) -> Tensor | None:
            use = (id(weight), number)
            return _at(self._outputs[use], rows) if use in self._counts else None

        return _Replaying(find, trains, sink)


class _Layers(TorchFunctionMode):
    """Sees every use of a layer's weight, and counts those of the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self._uses: dict[int, int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not functional.linear and func is not functional.conv2d:
            return func(*args, **(kwargs or {}))
        weight: Tensor = args[1]
        number = self._uses.get(id(weight), 0)
        self._uses[id(weight)] = number + 1
        return self.use(func, number, *args, **(kwargs or {}))

    def use(
        self,
        func: Callable[..., Tensor],
        number: int,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Give the layer's output."""
        raise NotImplementedError


class _Recording(_Layers):
    """Computes, and lists the outputs.

    They are copied at the end of the pass alone: what activations in place have made of them is what serves later.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[tuple[Tensor, Tensor | None, int, Tensor]] = []

    def use(
        self,
        func: Callable[..., Tensor],
        number: int,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        computed = (
            linear(inputs, weight, bias) if func is functional.linear else func(inputs, weight, bias, *args, **kwargs)
        )
        self.outputs.append((weight, bias, number, computed.detach()))
        return computed


class _Replaying(_Layers):
    """Takes outputs from what `find` has.

    Args:
        find: from a weight and the number of its use to the output, None where there is none.
        trains: as in `Recall.replaying`.
        sink: likewise.
    """

    def __init__(self, find: Callable[[Tensor, int], Tensor | None], trains: bool, sink: RowSink | None) -> None:
        super().__init__()
        self._find = find
        self._trains = trains
        self._sink = sink

    def use(
        self,
        func: Callable[..., Tensor],
        number: int,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        output = self._find(weight, number)
        if output is None:
            return func(inputs, weight, bias, *args, **kwargs)
        known = Known(output, self._trains)
        found: Tensor
        if func is functional.linear:
            found = RecalledLinear.apply(inputs, weight, bias, known, self._sink)  # type: ignore[no-untyped-call]
        else:
            found = RecalledConv2d.apply(inputs, weight, bias, known, *args, **kwargs)  # type: ignore[no-untyped-call]
        return found


def _storage(shape: tuple[int, int], output: Tensor) -> Tensor:
    """Room for (T, N, ...) outputs like this one (N, ...), pictures with their channels last where its own are."""
    if output.dim() == 4 and output.is_contiguous(memory_format=torch.channels_last):
        channels, height, width = output.shape[1:]
        return output.new_empty(*shape, height, width, channels).permute(0, 1, 4, 2, 3)
    return output.new_empty(*shape, *output.shape[1:])


def _at(outputs: Tensor, rows: Tensor | slice) -> Tensor:
    """Some of the rows of (T, N, ...) as a tensor with storage shared or its own, and no view of any other.

    Autograd lets nothing in place happen to views that a Function returns.
    """
    if isinstance(rows, slice):
        chosen = outputs.flatten(0, 1)[rows]
    elif outputs.dim() == 5:  # whole rows are moved, channels last as they may be
        chosen = outputs.permute(0, 1, 3, 4, 2).flatten(0, 1).index_select(0, rows).permute(0, 3, 1, 2)
    else:
        chosen = outputs.flatten(0, 1).index_select(0, rows)
    storage, offset = chosen.untyped_storage(), chosen.storage_offset()
    return chosen.new_empty(0).set_(storage, offset, chosen.shape, chosen.stride())
