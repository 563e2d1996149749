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
        self.calls: list[Call] = []

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record every call of the modules made inside the context that can receive a gradient."""
        self.calls = []
        handles = [module.register_forward_hook(self._record, with_kwargs=True) for module in self._modules]
        try:
            yield
        finally:
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


def _source(output: Tensor) -> Tensor:
    # A linear layer on more than two axes returns a reshaped view of a matrix product. Writing in place to a view
    # replaces the view's node by a new one hanging off the base, so the edge is taken at the base.
    base = output._base
    plain = base is not None and base.numel() == output.numel() and base.is_contiguous() and output.is_contiguous()
    if base is not None and plain and base.requires_grad:
        return base
    return output
