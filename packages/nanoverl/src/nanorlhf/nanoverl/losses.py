"""Losses as sums over tokens, and their weights.

A loss here is a sum: the trainer divides it by one denominator, counted over all microbatches of
all ranks, so that neither changes a gradient. What *kind* of mean that is, is decided by two
numbers for each token, see `aggregation`: its share of the denominator, and its factor in the loss.

Shape legend: T = packed tokens, N = sequences.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nanorlhf.nanotron import Loss, Microbatch, TokenOutputs

from .algo import Aggregate, AlgoConfig, Estimator

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to this before they are exponentiated."""


class Aggregation(NamedTuple):
    """Two weights for each token, 0 outside responses; both float32 [T]."""

    shares: Tensor
    """They add up to the denominator, and weigh what is reported."""
    loss_weights: Tensor
    """Factor of the token's policy loss."""


def aggregation(
    response_T: Tensor, lengths_N: Tensor, *, aggregate: Aggregate, max_length: int
) -> Aggregation:
    """Return the weights that make ``sum(loss_weights * loss) / sum(shares)`` the asked mean.

    ``token``: mean over tokens (DAPO). ``sequence``: mean over sequences of the mean over their
    tokens (GRPO). ``constant``: mean over sequences of the sum over their tokens divided by
    ``max_length`` (Dr. GRPO, arXiv:2503.20783), so that a long response is not played down.

    >>> response = torch.tensor([False, True, True, False, True])
    >>> aggregation(response, torch.tensor([3, 2]), aggregate="sequence", max_length=8).shares
    tensor([0.0000, 0.5000, 0.5000, 0.0000, 1.0000])
    """
    ones = response_T.float()
    if aggregate == "token":
        return Aggregation(ones, ones)
    sequence = torch.arange(len(lengths_N)).repeat_interleave(lengths_N)
    counts = torch.zeros(len(lengths_N)).index_add(0, sequence, ones)
    shares = ones / counts.clamp(min=1)[sequence]
    return Aggregation(shares, shares if aggregate == "sequence" else ones / max_length)


def kl_penalty(logprobs_T: Tensor, ref_logprobs_T: Tensor, estimator: Estimator) -> Tensor:
    """Return [T] estimates of KL(policy || reference) from tokens drawn from the policy.

    With d = log p - log q (Schulman, http://joschu.net/blog/kl-approx.html): k1 = d is unbiased
    and noisy, k2 = d^2 / 2 is biased, k3 = exp(-d) - 1 + d is unbiased and never negative. As a
    *loss* only k2 has the gradient of the divergence; ``k3+`` has the value of k3 and the gradient
    of k2 (verl, core_algos.py).
    """
    d = (logprobs_T - ref_logprobs_T).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if estimator == "k1":
        return d
    k2 = d.square() / 2
    if estimator == "k2":
        return k2
    k3 = torch.expm1(-d) + d
    return k3 if estimator == "k3" else k2 + (k3 - k2).detach()


class PolicyTokens(NamedTuple):
    """The policy objective before it is weighed and summed; all [T]."""

    loss: Tensor
    ratio: Tensor
    """Of the current policy to the old one, for the token or its sequence."""
    clipped: Tensor
    """bool: the ratio was beyond a bound that held it back."""


def ppo_tokens(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyTokens:
    """Return the clipped surrogate, eq. 7 of Schulman et al., arXiv:1707.06347.

    Args:
        logprobs_T: float [T], differentiable.
        old_logprobs_T: float [T].
        advantages_T: float [T].
        clip_low: The ratio counts down to 1 - clip_low.
        clip_high: The ratio counts up to 1 + clip_high (DAPO, arXiv:2503.14476, raises it).
        dual_clip: With a negative advantage the loss is at most -dual_clip * advantage
            (Ye et al., arXiv:1912.09729).
    """
    ratio = _exp(logprobs_T - old_logprobs_T)
    return _clipped(
        ratio, advantages_T, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )


def gspo_tokens(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    *,
    mask_T: Tensor,
    cu_seqlens: Tensor,
    clip_low: float,
    clip_high: float,
) -> PolicyTokens:
    """Return the surrogate with the ratio of whole sequences, Zheng et al., arXiv:2507.18071.

    The ratio is the geometric mean over a sequence's response tokens; each token passes on its own
    gradient (the paper's GSPO-token), which with equal advantages sums to that of the sequence.

    Args:
        logprobs_T: float [T], differentiable.
        old_logprobs_T: float [T].
        advantages_T: float [T].
        mask_T: bool [T], response tokens.
        cu_seqlens: int [N + 1].
        clip_low: The ratio counts down to 1 - clip_low; the paper uses 3e-4.
        clip_high: The ratio counts up to 1 + clip_high; the paper uses 4e-4.
    """
    lengths = cu_seqlens.diff().long()
    rows = torch.arange(len(lengths), device=lengths.device)
    # The output size is given so that a GPU does not have to report it first.
    sequence = rows.repeat_interleave(lengths, output_size=len(mask_T))
    weights = mask_T.to(logprobs_T.dtype)
    difference = ((logprobs_T - old_logprobs_T) * weights).detach()
    zeros = torch.zeros(len(lengths), dtype=logprobs_T.dtype, device=lengths.device)
    counts = zeros.index_add(0, sequence, weights).clamp(min=1)
    mean = zeros.index_add(0, sequence, difference) / counts
    ratio = _exp(mean[sequence] + logprobs_T - logprobs_T.detach())
    return _clipped(ratio, advantages_T, clip_low=clip_low, clip_high=clip_high)


def cispo_tokens(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> PolicyTokens:
    """Return REINFORCE with clipped importance weights, MiniMax-M1, arXiv:2506.13585, eq. 4.

    No token loses its gradient: the weight is clipped and detached, the log-probability is not.
    """
    ratio = _exp(logprobs_T - old_logprobs_T)
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -bounded.detach() * advantages_T * logprobs_T
    return PolicyTokens(loss, ratio, bounded != ratio)


def _exp(log_ratio_T: Tensor) -> Tensor:
    return log_ratio_T.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def _clipped(
    ratio_T: Tensor,
    advantages_T: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyTokens:
    free = -advantages_T * ratio_T
    bounded = -advantages_T * ratio_T.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(free, bounded)
    clipped = bounded > free
    if dual_clip is not None:
        limit = -advantages_T * dual_clip
        held = (advantages_T < 0) & (limit < loss)
        loss, clipped = torch.where(held, limit, loss), clipped | held
    return PolicyTokens(loss, ratio_T, clipped)


def value_tokens(
    values_T: Tensor, old_values_T: Tensor, returns_T: Tensor, *, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Return the squared error of the values, halved, and where clipping decided it; both [T].

    The error counts as if the value had moved from its old one by at most ``clip``, where that is
    the larger error (PPO's reference implementation, openai/baselines ppo2).
    """
    free = (values_T - returns_T).square()
    if clip is None:
        return free / 2, torch.zeros_like(free, dtype=torch.bool)
    near = old_values_T + (values_T - old_values_T).clamp(-clip, clip)
    bounded = (near - returns_T).square()
    return torch.maximum(free, bounded) / 2, bounded > free


def policy_loss(algo: AlgoConfig) -> Callable[[TokenOutputs, Microbatch], Loss]:
    """Return the loss of the policy as the trainer takes it.

    It reads the microbatch's fields ``old_logprobs`` and ``advantages``, ``ref_logprobs`` where the
    KL penalty is in the loss, and, where they are given, ``corrections``, ``shares`` and
    ``loss_weights``. Metrics are weighed by ``shares``.
    """

    def loss(out: TokenOutputs, batch: Microbatch) -> Loss:
        assert out.logprobs is not None, "the policy's loss needs a language model head"
        assert out.entropy is not None, "the policy's loss needs a language model head"
        fields = batch.fields
        tokens = _policy_tokens(algo, out.logprobs, batch)
        shares = fields.get("shares", batch.mask)
        weights = fields.get("loss_weights", shares)
        log_ratio = out.logprobs.detach() - fields["old_logprobs"]
        policy = (tokens.loss * fields.get("corrections", 1.0) * weights).sum()
        metrics = {
            "policy_loss": policy,
            "clip_fraction": (tokens.clipped * shares).sum(),
            "ratio": (tokens.ratio * shares).sum(),
            "kl_to_old": ((torch.expm1(log_ratio) - log_ratio) * shares).sum(),
            "entropy": (out.entropy * shares).sum(),
        }
        total = policy
        if algo.entropy_coef:
            total = total - algo.entropy_coef * (out.entropy * weights).sum()
        if algo.kl.where == "loss" and algo.kl.coef > 0:
            kl = kl_penalty(out.logprobs, fields["ref_logprobs"], algo.kl.estimator)
            total = total + algo.kl.coef * (kl * weights).sum()
            metrics["kl_to_ref"] = (kl * shares).sum()
        return Loss(total, {name: value.detach() for name, value in metrics.items()})

    return loss


def _policy_tokens(algo: AlgoConfig, logprobs_T: Tensor, batch: Microbatch) -> PolicyTokens:
    old, advantages = batch.fields["old_logprobs"], batch.fields["advantages"]
    low, high = algo.clip_low, algo.clip_high
    if algo.loss == "gspo":
        return gspo_tokens(
            logprobs_T,
            old,
            advantages,
            mask_T=batch.mask,
            cu_seqlens=batch.cu_seqlens,
            clip_low=low,
            clip_high=high,
        )
    if algo.loss == "cispo":
        return cispo_tokens(logprobs_T, old, advantages, clip_low=low, clip_high=high)
    return ppo_tokens(
        logprobs_T, old, advantages, clip_low=low, clip_high=high, dual_clip=algo.dual_clip
    )


def value_loss(algo: AlgoConfig) -> Callable[[TokenOutputs, Microbatch], Loss]:
    """Return the loss of the critic as the trainer takes it.

    It reads the microbatch's fields ``values``, ``returns`` and, where it is given, ``shares``.
    """

    def loss(out: TokenOutputs, batch: Microbatch) -> Loss:
        assert out.values is not None, "the critic's loss needs a value head"
        fields = batch.fields
        shares = fields.get("shares", batch.mask)
        error, clipped = value_tokens(
            out.values, fields["values"], fields["returns"], clip=algo.value_clip
        )
        metrics = {
            "clip_fraction": (clipped * shares).sum(),
            "value": (out.values.detach() * shares).sum(),
            "return": (fields["returns"] * shares).sum(),
        }
        return Loss((error * shares).sum(), metrics)

    return loss
