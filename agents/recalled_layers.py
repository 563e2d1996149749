"""Layers whose output is known already: no forward pass, the usual backward pass."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from acktr.agents.threads import summed_over_parts
from acktr.kfac.products import product

Pair = int | tuple[int, int]


class Known(NamedTuple):
    """An output, wrapped: a tensor that a Function took and returned as it is could not be changed in place."""

    tensor: Tensor
    trains: bool = True
    """Whether backward passes are to give the parameters' gradients; a Function is not told what a pass asks for."""


class RowSink(Protocol):
    """Takes the gradient of a weight and its bias as rows, in place of their `.grad`; such as `KFAC.rows`."""

    def wants(self, weight: Tensor, bias: Tensor | None, rows: int) -> bool:
        """Whether it does so for this layer and that many rows."""
        ...

    def add(self, weight: Tensor, gradients: Tensor, inputs: Tensor) -> None:
        """Take (N, o) and (N, i)."""
        ...


class RecalledLinear(torch.autograd.Function):
    """`functional.linear` of rows (M, ..., i), weight (o, i) and bias (o,), with its output (M, ..., o) given.

    Rows and output may be of lower precision than the weight; gradients of the parameters are then computed in that
    precision, with sums in float32, as under autocast. A sink that wants the parameters' gradients gets them.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, output: Known, sink: RowSink | None = None
    ) -> Tensor:
        """Give the output."""
        ctx.save_for_backward(inputs, weight)
        ctx.bias, ctx.sink, ctx.trains = bias, sink, output.trains
        return output.tensor

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of inputs, weight and bias."""
        inputs, weight = ctx.saved_tensors
        to_inputs, to_weight, to_bias = _wanted(ctx)
        shape = inputs.shape
        gradient, inputs = gradient.flatten(0, -2), inputs.flatten(0, -2)
        if to_weight and ctx.sink is not None and ctx.sink.wants(weight, ctx.bias, len(gradient)):
            ctx.sink.add(weight, gradient, inputs)
            to_weight = to_bias = False
        return (
            product(gradient[None], weight.to(gradient)[None])[0].view(shape) if to_inputs else None,
            product(gradient.mT[None], inputs.to(gradient)[None])[0].to(weight) if to_weight else None,
            gradient.sum(0, dtype=weight.dtype) if to_bias else None,
            None,
            None,
        )


class RecalledConv2d(torch.autograd.Function):
    """`functional.conv2d` likewise, of (M, C, H, W), its geometry after the output."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        output: Known,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
    ) -> Tensor:
        """Give the output."""
        ctx.save_for_backward(inputs, weight)
        ctx.geometry, ctx.trains = (stride, padding, dilation, groups), output.trains
        return output.tensor

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of inputs, weight and bias."""
        inputs, weight = ctx.saved_tensors
        stride, padding, dilation = (_pair(value) for value in ctx.geometry[:3])
        inputs, rounded = inputs.to(gradient), weight.to(gradient.dtype)

        def backward(rows: slice, *wanted: bool) -> tuple[Tensor | None, ...]:
            found: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
                gradient[rows],
                inputs[rows],
                rounded,
                [len(weight)],
                stride,
                padding,
                dilation,
                False,  # transposed
                [0, 0],  # output padding, of transposed ones
                ctx.geometry[3],
                list(wanted),
            )
            return found

        def of_parameters(rows: slice) -> tuple[Tensor | None, ...]:
            with torch.no_grad():
                return tuple(
                    None if found is None else found.to(weight) for found in backward(rows, False, *wanted[1:])
                )

        wanted = _wanted(ctx)
        everything = slice(0, len(gradient))
        if gradient.device.type != "cpu" or gradient.dtype == weight.dtype:
            return (*backward(everything, *wanted), *[None] * 5)
        # oneDNN's weight gradients in bfloat16: a hundred times slower on busy cores when left to share themselves out
        to_inputs = backward(everything, True, False, False)[0] if wanted[0] else None
        if not any(wanted[1:]):
            return (to_inputs, *[None] * 7)
        return (to_inputs, *summed_over_parts(of_parameters, len(gradient))[1:], *[None] * 5)


def _wanted(ctx: Any) -> tuple[bool, bool, bool]:
    """Whether the gradients of inputs, weight and bias are."""
    to_inputs, to_weight, to_bias = ctx.needs_input_grad[:3]
    return to_inputs, to_weight and ctx.trains, to_bias and ctx.trains


def _pair(value: Pair) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
