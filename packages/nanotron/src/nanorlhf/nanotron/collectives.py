"""Collectives that know their own backward (Shoeybi et al., arXiv:1909.08053, section 3).

Megatron's f and g are each other's transpose: where a replicated activation enters sharded work,
forward is the identity and backward sums; where partial results leave it, forward sums and
backward is the identity. All are no-ops when the group is None.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx


class _GroupContext(FunctionCtx):
    """What a backward needs to know."""

    group: dist.ProcessGroup


class _CopyToGroup(torch.autograd.Function):
    """Identity forward, sum over the group backward."""

    @staticmethod
    def forward(ctx: _GroupContext, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: _GroupContext, *grads: Tensor) -> tuple[Tensor, None]:
        # A copy: autograd may hand the same gradient to other branches of the graph.
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _ReduceFromGroup(torch.autograd.Function):
    """Sum over the group forward, identity backward."""

    @staticmethod
    def forward(ctx: _GroupContext, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: _GroupContext, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def copy_to_group(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return ``x``; its gradient is summed over the group (every rank must run the backward)."""
    return x if group is None else _CopyToGroup.apply(x, group)


def reduce_from_group(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return the sum of ``x`` over the group; its gradient passes as it is."""
    return x if group is None else _ReduceFromGroup.apply(x, group)


@torch.no_grad()
def gather_dim(x: Tensor, dim: int, group: dist.ProcessGroup | None) -> Tensor:
    """Return the slices of all ranks joined along ``dim``, on every rank; no gradient."""
    if group is None:
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, dim=dim)


def all_reduce_(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum ``x`` over the group in place and return it."""
    if group is not None:
        dist.all_reduce(x, group=group)
    return x
