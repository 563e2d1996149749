"""Collect, during a forward pass, each layer's input and the place in the graph where its output's gradient passes.

A forward hook takes `torch.autograd.graph.get_gradient_edge` of the output at once, before an in-place activation can
replace the output's history. Gradients asked of the stored output tensor would be those after such an activation, and
`register_full_backward_hook` forbids in-place activations altogether.

The input is kept without a copy. Autograd keeps it too, for the weight's gradient, and refuses its later modification;
the tensor's version is compared all the same, since a frozen weight would not be covered by autograd's check.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One use of a module in one forward pass.

    Attributes:
        module: the module.
        inputs: (N, ...) what it was called with, detached.
        version: the input's modification count at that time.
        edge: where the gradient of the output passes.
        output_shape: shape of the output, which that gradient is reshaped to.
    """

    module: nn.Module
    inputs: Tensor
    version: int
    edge: GradientEdge
    output_shape: tuple[int, ...]

    def checked_inputs(self) -> Tensor:
        """The inputs as the module saw them.

        Raises:
            RuntimeError: they were modified in place after the call.
        """
        if self.inputs._version != self.version:
            raise RuntimeError(
                f"the input of {self.module} was modified in place after the forward pass, so its statistics are lost; "
                "use an out-of-place operation there"
            )
        return self.inputs


class Recorder:
    """Forward hooks on some modules, alive only inside `recording`."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._open = False
        self.calls: list[Call] = []

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record every call of the modules made inside the context that can receive a gradient.

        Raises:
            RuntimeError: it is open already; each call would count twice.
        """
        if self._open:
            raise RuntimeError("capture() is open already: leave it before the next one")
        self._open, self.calls = True, []
        handles = [module.register_forward_hook(self._record, with_kwargs=True) for module in self._modules]
        try:
            yield
        except BaseException:
            self.calls = []  # half a forward pass, with its graph
            raise
        finally:
            self._open = False
            for handle in handles:
                handle.remove()

    def take(self) -> list[Call]:
        """Hand over the calls recorded and forget them."""
        calls, self.calls = self.calls, []
        return calls

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if not output.requires_grad:
            return
        inputs: Tensor = args[0] if args else kwargs["input"]
        self.calls.append(
            Call(
                module=module,
                inputs=inputs.detach(),
                version=inputs._version,
                edge=get_gradient_edge(_source(output)),
                output_shape=tuple(output.shape),
            )
        )


def backward_passes(losses: Tensor, calls: Sequence[Call]) -> list[list[tuple[Call, Tensor]]]:
    """Gradients of each row of per-example losses at the captured outputs that it reaches.

    Args:
        losses: (C, N) with their graph, which is kept.
        calls: captured calls.

    Returns:
        For each of the C rows its calls, each with a gradient shaped like its output.

    Raises:
        RuntimeError: the losses carry no graph.
    """
    if not losses.requires_grad:
        raise RuntimeError("the metric's losses carry no graph: compute them with gradients enabled")
    edges = [call.edge for call in calls]
    passes = []
    for row in losses:
        found = torch.autograd.grad(row.sum(), edges, retain_graph=True, allow_unused=True)
        passes.append(
            [
                (call, gradient.reshape(call.output_shape))
                for call, gradient in zip(calls, found, strict=True)
                if gradient is not None
            ]
        )
    return passes


def calls_of(
    modules: Sequence[nn.Module], passes: Sequence[Sequence[tuple[Call, Tensor]]]
) -> list[list[tuple[Call, Tensor]]]:
    """The part of each backward pass that belongs to some modules, without the passes that do not reach them."""
    own = [[pair for pair in gradients if any(pair[0].module is module for module in modules)] for gradients in passes]
    return [gradients for gradients in own if gradients]


def no_call(module: nn.Module, inputs: Tensor, gradient: Tensor) -> tuple[Call, Tensor]:
    """A use of a module that was not made, on no rows, with the gradient at its output: whose sums are all 0."""
    edge = get_gradient_edge(torch.zeros((), requires_grad=True))
    shape = tuple(gradient.shape)
    return Call(module=module, inputs=inputs, version=inputs._version, edge=edge, output_shape=shape), gradient


def _source(output: Tensor) -> Tensor:
    # A linear layer on more than two axes returns a reshaped view of a matrix product. Writing in place to a view
    # replaces the view's node by a new one hanging off the base, so the edge is taken at the base.
    base = output._base
    plain = base is not None and base.numel() == output.numel() and base.is_contiguous() and output.is_contiguous()
    if base is not None and plain and base.requires_grad:
        return base
    return output
