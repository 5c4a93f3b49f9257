"""Backward passes that begin in the middle of the network.

`run_backward` starts one from a gradient that came from elsewhere (the next pipeline stage).
`recompute` keeps only a layer's input and runs the layer again in the backward (Chen et al.,
arXiv:1604.06174): a layer then holds [T, C] instead of every intermediate tensor, for one more
forward. Our layers draw no random numbers, so nothing needs to be restored before it.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

P = TypeVar("P")


class _Context(FunctionCtx):
    """What the backwards here need to know."""

    layer: Callable[[Tensor], Tensor]
    saved_tensors: tuple[Tensor, ...]


class _Inject(torch.autograd.Function):
    """A scalar whose gradient with respect to ``output`` is ``grad``."""

    @staticmethod
    def forward(ctx: _Context, output: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return output.new_zeros(())

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


class _Recompute(torch.autograd.Function):
    """Forward without a graph; backward builds it, uses it and drops it."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.layer(x)
            # Adds to the gradients of the layer's parameters by itself.
            run_backward(output, grads[0])
        return x.grad, None


def run_backward(output: Tensor, grad: Tensor | None) -> None:
    """Accumulate the gradients of a graph, given that of its output (None for a scalar loss).

    As ``output.backward(grad)``, whose check of ``grad`` imports sympy: seconds for every process.
    """
    seed = output if grad is None else cast(Tensor, _Inject.apply(output, grad))
    seed.backward()  # type: ignore[no-untyped-call]


def recompute(layer: Callable[[Tensor, P], Tensor], x: Tensor, extra: P) -> Tensor:
    """Return ``layer(x, extra)``; ``x`` must require a gradient, ``extra`` gets none."""
    return cast(Tensor, _Recompute.apply(x, lambda y: layer(y, extra)))
