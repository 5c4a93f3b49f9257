"""Activation recomputation: keep a layer's input, run the layer again in the backward.

Chen et al., arXiv:1604.06174. A layer then holds [T, C] instead of every intermediate tensor, for
one more forward. Our layers draw no random numbers, so nothing needs to be restored before it.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

P = TypeVar("P")


class _Context(FunctionCtx):
    """What the backward needs to run the layer again."""

    run: Callable[[Tensor], Tensor]
    saved_tensors: tuple[Tensor, ...]


class _Recompute(torch.autograd.Function):
    """Forward without a graph; backward builds it, uses it and drops it."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.run = run
        ctx.save_for_backward(x)
        return run(x)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.run(x)
        # Adds to the gradients of the layer's parameters by itself.
        torch.autograd.backward(out, grads[0])
        return x.grad, None


def recompute(layer: Callable[[Tensor, P], Tensor], x: Tensor, extra: P) -> Tensor:
    """Return ``layer(x, extra)``; ``x`` must require a gradient, ``extra`` gets none."""
    return _Recompute.apply(x, lambda y: layer(y, extra))
