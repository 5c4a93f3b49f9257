"""Log-probability of a target token and entropy of its distribution, straight from hidden states.

With ``z = h W^T / temperature`` over a vocabulary of V::

    logprob = z[target] - lse          lse = log sum exp z
    entropy = lse - sum p z            p   = exp(z - lse)

The logits of all T tokens are never held: ``chunk_tokens`` rows of them are, once in the forward
and, recomputed, once in the backward, where both outputs meet in one gradient::

    dz = g_logprob (onehot(target) - p)  -  g_entropy p (log p + entropy)

For 4,096 tokens and 151,936 words a chunk is 2.5 GB in float32; smaller chunks cost time, since the
float32 gradient of the weight is read and written once a chunk. Products of bfloat16 inputs come
out in float32 (rounding logits to bfloat16 moves log-probabilities by up to 0.06), and the gradient
of the weight is accumulated in float32 across chunks.

Vocabulary parallel: a rank holds rows ``[vocab_start, vocab_start + V)`` of the weight. It reduces
its own rows to four numbers a token; one max and one sum over the group finish the job, whatever
the vocabulary.

FLOPs: 2 T C V forward, 6 T C V backward. Shape legend: T = tokens, C = hidden size, V = vocabulary
rows on this rank.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import accumulator


class LogProbs(NamedTuple):
    """What a model says about each target token."""

    logprobs: Tensor
    """[T], the log-probability of the target; at most 0."""
    entropy: Tensor
    """[T], the entropy of the distribution in nats; between 0 and log V."""


def reference(
    hidden_TC: Tensor, weight_VC: Tensor, targets_T: Tensor, *, temperature: float = 1.0
) -> LogProbs:
    """Return both from a full [T, V] log-softmax, differentiable by autograd."""
    high = accumulator(hidden_TC.dtype)
    logits = hidden_TC.to(high) @ weight_VC.to(high).t() / temperature
    logp = logits.log_softmax(dim=-1)
    picked = logp.gather(1, targets_T[:, None]).squeeze(1)
    return LogProbs(picked, -(logp.exp() * logp).sum(dim=-1))


class _Shard(NamedTuple):
    """Constants of one call."""

    temperature: float
    vocab_start: int
    group: dist.ProcessGroup | None
    chunk_tokens: int


class _Partials(NamedTuple):
    """One rank's view of each token, [T]: enough to merge with the other ranks'."""

    peak: Tensor
    """The largest logit."""
    total: Tensor
    """The sum of ``exp(z - peak)``."""
    weighted: Tensor
    """The sum of ``exp(z - peak) * (z - peak)``."""
    target: Tensor
    """The target's logit, 0 on ranks that do not hold it."""


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b`` in the accumulator's dtype, without rounding to the inputs' on the way."""
    high = accumulator(a.dtype)
    if a.dtype == high:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=high)
    return a.to(high) @ b.to(high)


def _chunks(rows: int, size: int) -> Iterator[slice]:
    """Yield slices of at most ``size`` rows; an empty one for no rows."""
    for start in range(0, max(rows, 1), size):
        yield slice(start, min(start + size, rows))


def _owned(targets: Tensor, shard: _Shard, vocab: int) -> tuple[Tensor, Tensor]:
    """Return each target's row on this rank (clamped) and whether it lies here at all."""
    local = targets - shard.vocab_start
    return local.clamp(0, vocab - 1), (local >= 0) & (local < vocab)


def _partials(hidden: Tensor, weight: Tensor, targets: Tensor, shard: _Shard) -> _Partials:
    """Reduce one chunk's logits over this rank's rows of the vocabulary."""
    logits = _matmul(hidden, weight.t()).div_(shard.temperature)
    row, owned = _owned(targets, shard, weight.shape[0])
    target = logits.gather(1, row[:, None]).squeeze(1) * owned
    peak = logits.amax(dim=1)
    logits -= peak[:, None]
    exp = logits.exp()
    total = exp.sum(dim=1)
    return _Partials(peak, total, exp.mul_(logits).sum(dim=1), target)


def _merge(parts: _Partials, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return (logprob, entropy, lse) of each token over the whole vocabulary."""
    peak, total, weighted, target = parts
    if group is not None:
        highest = peak.clone()
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
        drop = peak - highest
        shrink = drop.exp()
        sums = torch.stack((total * shrink, shrink * (weighted + drop * total), target))
        dist.all_reduce(sums, group=group)
        peak, (total, weighted, target) = highest, sums.unbind(0)
    log_total = total.log()
    lse = peak + log_total
    # Rounding may leave a sure token a hair above 0, and a log-probability never is.
    return (target - lse).clamp(max=0.0), (log_total - weighted / total).clamp(min=0.0), lse


class _LinearLogProb(torch.autograd.Function):
    """Chunked forward and recomputing backward."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's context has no public type
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        shard: _Shard,
    ) -> tuple[Tensor, Tensor]:
        chunks = [
            _partials(hidden[c], weight, targets[c], shard)
            for c in _chunks(hidden.shape[0], shard.chunk_tokens)
        ]
        parts = _Partials(*(torch.cat(field) for field in zip(*chunks, strict=True)))
        logprobs, entropy, lse = _merge(parts, shard.group)
        ctx.save_for_backward(hidden, weight, targets, lse, entropy)
        ctx.shard = shard
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_logprobs: Tensor | None,
        grad_entropy: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, targets, lse, entropy = ctx.saved_tensors
        shard: _Shard = ctx.shard
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        high = accumulator(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=high) if wants_weight else None
        for c in _chunks(hidden.shape[0], shard.chunk_tokens):
            logp = _matmul(hidden[c], weight.t()).div_(shard.temperature).sub_(lse[c, None])
            dz = _grad_logits(
                logp,
                targets[c],
                None if grad_logprobs is None else grad_logprobs[c],
                None if grad_entropy is None else grad_entropy[c],
                entropy[c],
                shard,
            ).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[c] = dz @ weight
            if grad_weight is not None:
                grad_weight += _matmul(dz.t(), hidden[c])
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None


def _grad_logits(
    logp: Tensor,
    targets: Tensor,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    entropy: Tensor,
    shard: _Shard,
) -> Tensor:
    """Return the gradient of one chunk's ``h W^T``, [T, V], from its log-probabilities."""
    p = logp.exp()
    if grad_entropy is None:
        dz = p.mul_(0.0 if grad_logprobs is None else -grad_logprobs[:, None])
    else:
        dz = logp.add_(entropy[:, None]).mul_(-grad_entropy[:, None])
        if grad_logprobs is not None:
            dz -= grad_logprobs[:, None]
        dz *= p
    if grad_logprobs is not None:
        row, owned = _owned(targets, shard, logp.shape[1])
        dz.scatter_add_(1, row[:, None], (grad_logprobs * owned)[:, None])
    return dz.div_(shard.temperature)


def _check(hidden: Tensor, weight: Tensor, targets: Tensor, shard: _Shard) -> None:
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
    if not (math.isfinite(shard.temperature) and shard.temperature > 0):
        raise ValueError(f"temperature={shard.temperature} must be above 0; 1.0 is the model's own")
    if shard.chunk_tokens < 1:
        raise ValueError(f"chunk_tokens={shard.chunk_tokens} must be at least 1, such as 4096")
    if shard.group is None and not targets.is_cuda and targets.numel():
        low, high = (int(x) for x in targets.aminmax())
        end = shard.vocab_start + weight.shape[0]
        if low < shard.vocab_start or high >= end:
            raise ValueError(
                f"targets_T spans [{low}, {high}] and the weight holds rows "
                f"[{shard.vocab_start}, {end}); pass token ids of this vocabulary"
            )


def linear_logprob(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    targets_T: Tensor,
    *,
    temperature: float = 1.0,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
    chunk_tokens: int = 4096,
) -> LogProbs:
    """Return each target's log-probability and its distribution's entropy, without [T, V] logits.

    Both outputs are differentiable with respect to ``hidden_TC`` and ``weight_VC``. Same fusion as
    Apple's cut cross-entropy (arXiv:2411.09009), with chunks of tokens in place of tiles.

    Args:
        hidden_TC: [T, C], the final hidden state *before* each target.
        weight_VC: [V, C], rows of the output embedding; same dtype as ``hidden_TC``.
        targets_T: int64 [T], token ids of the whole vocabulary. Out of range is an error on CPU
            tensors; on CUDA it is not checked, since that would wait for the device.
        temperature: Divides the logits, above 0.
        vocab_start: First token id of this rank's rows.
        group: Ranks that share the vocabulary; every one of them must call. The gradient of
            ``hidden_TC`` is then this rank's part of a sum, which the caller reduces.
        chunk_tokens: Rows of logits held at a time.

    Returns:
        Float32 [T] each (float64 for float64 input).

    Raises:
        ValueError: Shapes or dtypes do not fit, or a number is out of range.

    >>> out = linear_logprob(torch.zeros(1, 4), torch.ones(8, 4), torch.tensor([3]))
    >>> bool(torch.isclose(out.entropy[0], torch.tensor(8.0).log()))
    True
    """
    shard = _Shard(temperature, vocab_start, group, chunk_tokens)
    _check(hidden_TC, weight_VC, targets_T, shard)
    return LogProbs(*_LinearLogProb.apply(hidden_TC, weight_VC, targets_T, shard))
