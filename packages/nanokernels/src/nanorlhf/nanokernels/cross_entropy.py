"""Cross-entropy, log-probabilities and entropy from logits that are already there.

::

    logprob = z[target] - lse          lse = log sum exp z
    loss    = -logprob                 entropy = lse - sum p z

:mod:`.token_share` makes the three numbers a row in one pass; what is left is arithmetic on [T].

Shape legend: T = tokens, V = vocabulary.
"""

from typing import Literal

import torch
from torch import Tensor

from .dispatch import Impl
from .linear_logprob import LogProbs, at_most_zero, check_targets, check_temperature
from .token_share import rows_of, share_of

Reduction = Literal["mean", "sum", "none"]


def _check(logits: Tensor, targets: Tensor, *, in_place: bool = False) -> None:
    """Raise ``ValueError`` for arguments that do not fit together."""
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(
            f"logits={logits.dtype}{tuple(logits.shape)} is no matrix of scores; "
            "pass floating point [T, V]"
        )
    if targets.shape != logits.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"targets_T={targets.dtype}{tuple(targets.shape)} does not match "
            f"T={logits.shape[0]} rows; pass int64 [T]"
        )
    if in_place and rows_of(logits) is not logits:
        raise ValueError(
            f"in_place=True needs rows of adjacent numbers and logits has strides "
            f"{logits.stride()}; pass logits.contiguous()"
        )


def check_reduction(reduction: str) -> None:
    """Raise ``ValueError`` unless ``reduction`` is known."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction={reduction!r} is unknown; use 'mean', 'sum' or 'none'")


def reduce_losses(losses_T: Tensor, counted_T: Tensor, reduction: Reduction) -> Tensor:
    """Return the losses that count, reduced; the mean of none is 0.

    >>> reduce_losses(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False]), "mean")
    tensor(1.5000)
    """
    losses = losses_T.where(counted_T, 0.0)
    if reduction == "none":
        return losses
    return losses.sum() / counted_T.sum().clamp(min=1) if reduction == "mean" else losses.sum()


def cross_entropy(
    logits_TV: Tensor,
    targets_T: Tensor,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    in_place: bool = False,
    impl: Impl = "auto",
) -> Tensor:
    """Return the cross-entropy of logits against targets; differentiable.

    Args:
        logits_TV: [T, V], in any floating dtype.
        targets_T: int64 [T]. Out of range is an error on CPU tensors; on CUDA such a token has a
            loss of 0.
        ignore_index: Tokens of this target have loss and gradients of 0 and do not count.
        reduction: "mean" over the tokens that count (0 where none does), "sum", or "none": [T].
        in_place: Kernels write the gradient over the logits instead of beside them. The logits'
            values are gone after the backward, which can run once.
        impl: Which implementation runs; see :mod:`.dispatch`.

    Returns:
        Float32 (float64 for float64 input).

    Raises:
        ValueError: Shapes, dtypes, strides or the reduction do not fit.

    >>> cross_entropy(torch.zeros(2, 8), torch.tensor([3, -100])) == torch.tensor(8.0).log()
    tensor(True)
    """
    _check(logits_TV, targets_T, in_place=in_place)
    check_reduction(reduction)
    counted = targets_T != ignore_index
    check_targets(targets_T, 0, logits_TV.shape[1], counted=counted)
    rows = targets_T.where(counted, -1)
    share = share_of(logits_TV, rows, temperature=1.0, in_place=in_place, impl=impl)
    return reduce_losses(-at_most_zero(share.picked_T - share.lse_T), counted, reduction)


def token_logprobs(
    logits_TV: Tensor, targets_T: Tensor, *, temperature: float = 1.0, impl: Impl = "auto"
) -> LogProbs:
    """Return each target's log-probability and its distribution's entropy; both differentiable.

    Args:
        logits_TV: [T, V], in any floating dtype; -inf forbids a word.
        targets_T: int64 [T]. Out of range is an error on CPU tensors and gives zeros on CUDA.
        temperature: Divides the logits, above 0.
        impl: Which implementation runs; see :mod:`.dispatch`.

    Returns:
        Float32 [T] each (float64 for float64 input).

    Raises:
        ValueError: Shapes or dtypes do not fit, or the temperature is out of range.

    >>> token_logprobs(torch.tensor([[0.0, 0.0]]), torch.tensor([1])).logprobs.exp()
    tensor([0.5000])
    """
    _check(logits_TV, targets_T)
    check_temperature(temperature)
    check_targets(targets_T, 0, logits_TV.shape[1])
    share = share_of(logits_TV, targets_T, temperature=temperature, in_place=False, impl=impl)
    return LogProbs(at_most_zero(share.picked_T - share.lse_T), share.entropy_T)
