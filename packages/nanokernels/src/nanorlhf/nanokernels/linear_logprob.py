"""Log-probability of a target token and entropy of its distribution, straight from hidden states.

With ``z = h W^T / temperature`` over a vocabulary of V::

    logprob = z[target] - lse          lse = log sum exp z
    entropy = lse - sum p z            p   = exp(z - lse)

:mod:`.linear_share` makes them of the rows of one rank without storing [T, V] logits, and
:mod:`.vocab_parallel` joins the ranks of a split vocabulary.

Shape legend: T = tokens, C = hidden size, V = vocabulary rows on this rank.
"""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .dispatch import Impl
from .linear_share import share_of
from .vocab_parallel import join


class LogProbs(NamedTuple):
    """What a model says about each target token."""

    logprobs: Tensor
    """[T], the log-probability of the target; at most 0."""
    entropy: Tensor
    """[T], the entropy of the distribution in nats; between 0 and log V."""


def check_inputs(hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk_tokens: int) -> None:
    """Raise ``ValueError`` for arguments that do not fit together."""
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden_TC={tuple(hidden.shape)} and weight_VC={tuple(weight.shape)} do not multiply; "
            "pass [T, C] and [V, C]"
        )
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"targets_T={targets.dtype}{tuple(targets.shape)} does not match "
            f"T={hidden.shape[0]} rows; pass int64 [T]"
        )
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype}, weight {weight.dtype}; cast one to the other")
    if len({hidden.device, weight.device, targets.device}) > 1:
        raise ValueError(
            f"hidden is on {hidden.device}, weight on {weight.device}, targets on "
            f"{targets.device}; move them to one device"
        )
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens={chunk_tokens} must be at least 1, such as 4096")


def check_targets(targets: Tensor, start: int, end: int, *, counted: Tensor | None = None) -> None:
    """Raise ``ValueError`` for ids that count and lie outside [start, end).

    Only CPU tensors are looked at.
    """
    if targets.device.type != "cpu" or torch.compiler.is_compiling() or not targets.numel():
        return
    if counted is not None:
        targets = targets.where(counted, start)
    low, high = (int(x) for x in targets.aminmax())
    if low < start or high >= end:
        raise ValueError(
            f"targets_T spans [{low}, {high}] and the weight holds rows [{start}, {end}); "
            "pass token ids of this vocabulary"
        )


def check_temperature(temperature: float) -> None:
    """Raise ``ValueError`` unless logits can be divided by it."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature={temperature} must be above 0; 1.0 is the model's own")


def at_most_zero(x: Tensor) -> Tensor:
    """Return ``x`` without what rounding left above 0; the gradient is that of ``x``."""
    return x - x.detach().clamp(min=0.0)


def linear_logprob(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    targets_T: Tensor,
    *,
    temperature: float = 1.0,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
    chunk_tokens: int = 4096,
    impl: Impl = "auto",
) -> LogProbs:
    """Return each target's log-probability and its distribution's entropy, without [T, V] logits.

    Both outputs are differentiable with respect to ``hidden_TC`` and ``weight_VC``. Same fusion as
    Apple's cut cross-entropy (arXiv:2411.09009).

    Args:
        hidden_TC: [T, C], the final hidden state *before* each target.
        weight_VC: [V, C], rows of the output embedding; same dtype as ``hidden_TC``.
        targets_T: int64 [T], token ids of the whole vocabulary. Out of range is an error on CPU
            tensors; on CUDA it is not checked, since that would wait for the device.
        temperature: Divides the logits, above 0.
        vocab_start: First token id of this rank's rows.
        group: Ranks that share the vocabulary; every one of them must call. The gradient of
            ``hidden_TC`` is then this rank's part of a sum, which the caller reduces.
        chunk_tokens: Rows of logits held at a time, in the backward alone on CUDA.
        impl: Which implementation runs; see :mod:`.dispatch`.

    Returns:
        Float32 [T] each (float64 for float64 input).

    Raises:
        ValueError: Shapes or dtypes do not fit, or a number is out of range.

    >>> out = linear_logprob(torch.zeros(1, 4), torch.ones(8, 4), torch.tensor([3]))
    >>> bool(torch.isclose(out.entropy[0], torch.tensor(8.0).log()))
    True
    """
    check_inputs(hidden_TC, weight_VC, targets_T, chunk_tokens=chunk_tokens)
    check_temperature(temperature)
    if group is None:
        check_targets(targets_T, vocab_start, vocab_start + weight_VC.shape[0])
    share = share_of(
        *(hidden_TC, weight_VC, targets_T - vocab_start),
        temperature=temperature,
        chunk_tokens=chunk_tokens,
        impl=impl,
    )
    share = join(share, group)
    return LogProbs(at_most_zero(share.picked_T - share.lse_T), share.entropy_T)
