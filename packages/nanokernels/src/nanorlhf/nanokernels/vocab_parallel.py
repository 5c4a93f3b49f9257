"""What the ranks of a split vocabulary know of their rows, joined.

A rank holds some rows of the output embedding, and of each token three numbers: log-sum-exp and
entropy over its own rows, and the target's logit where the target is one of them (0 elsewhere).
One max and one sum over the group finish the job, whatever the vocabulary. With
``s_r = exp(lse_r - lse)``, the share of rank r::

    lse     = log sum_r exp lse_r              d lse / d lse_r     = s_r
    entropy = sum_r s_r (H_r - log s_r)        d entropy / d H_r   = s_r
    picked  = sum_r picked_r                   d entropy / d lse_r = s_r (H_r - log s_r - entropy)

Every rank computes the same loss from the joined numbers, and the gradient a rank returns is that
of its own: of the hidden states, a part of a sum. Shape legend: T = tokens.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


class Share(NamedTuple):
    """What is known of each token over some rows of the vocabulary, or over all; [T] each."""

    lse_T: Tensor
    """Log-sum-exp of the logits, in nats."""
    entropy_T: Tensor
    """Entropy of the softmax over these rows, in nats."""
    picked_T: Tensor
    """The target's logit, 0 where these rows do not hold it."""


class _Join(torch.autograd.Function):
    """Two all-reduces forward, none backward."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's context has no public type
        lse: Tensor,
        entropy: Tensor,
        picked: Tensor,
        group: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor, Tensor]:
        top = lse.clone()
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
        drop = lse - top
        weight = drop.exp()
        sums = torch.stack((weight, weight * (entropy - drop), picked))
        dist.all_reduce(sums, group=group)
        total, weighted, picked = sums.unbind(0)
        log_total = total.log()
        joined = Share(top + log_total, weighted / total + log_total, picked.clone())
        ctx.save_for_backward(lse, entropy, joined.lse_T, joined.entropy_T)
        return joined.lse_T, joined.entropy_T, joined.picked_T

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_lse: Tensor,
        grad_entropy: Tensor,
        grad_picked: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        lse, entropy, joined_lse, joined_entropy = ctx.saved_tensors
        log_share = lse - joined_lse
        share = log_share.exp()
        slope = entropy - log_share - joined_entropy
        return share * (grad_lse + grad_entropy * slope), share * grad_entropy, grad_picked, None


def join(share: Share, group: dist.ProcessGroup | None) -> Share:
    """Return what all ranks of ``group`` know together; every one of them must call.

    Without a group, the one share is all there is.
    """
    return share if group is None else Share(*_Join.apply(*share, group))
