"""Importance weights from the policy that sampled to the policy that the step starts from.

The engine that samples is not quite the trainer: its weights may be a step old, and its arithmetic
differs. With mu for the policy that drew a token and old for the trainer's at the start of the
step, w = old / mu is what the loss of the token should be multiplied by; the ways to bound it are:

==========  =============================================  ============================
tis         min(w, cap)                                    Yao et al., off-policy RL
mis         w where 1/cap <= w <= cap, else 0              IcePop
sequence    1 where the geometric mean over a sequence's   SkyRL
            tokens is in [1/cap, cap], else 0
==========  =============================================  ============================

The trainer's ratio pi / old is another matter, which the loss clips (decoupled PPO, Hilton et al.,
arXiv:2110.00641). Weights are constants: no gradient flows through them.

Shape legend: T = packed tokens, N = sequences.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .algo import CorrectionMode
from .losses import LOG_RATIO_LIMIT


class Correction(NamedTuple):
    """What to multiply the policy loss with, and how far the two policies were apart."""

    weights: Tensor
    """float32 [T], 0 outside responses."""
    metrics: dict[str, float]
    """``kl``: mean k3 estimate of KL(mu || old), in nats a token. ``max_difference``: largest
    difference of two log-probabilities. ``ess``: effective share of the tokens were they weighted
    by w, 0 to 1. ``truncated_fraction``, ``masked_fraction``: tokens whose weight was capped, or
    set to 0."""


def importance_weights(
    old_logprobs_T: Tensor,
    rollout_logprobs_T: Tensor,
    *,
    response_T: Tensor,
    lengths_N: Tensor,
    mode: CorrectionMode,
    cap: float,
) -> Correction:
    """Return the weights of ``mode``, bounded by ``cap``.

    Args:
        old_logprobs_T: float [T], by the trainer.
        rollout_logprobs_T: float [T], by the engine, of the distribution drawn from.
        response_T: bool [T].
        lengths_N: int64 [N], tokens of each sequence.
        mode: See the module; ``none`` is 1 on each response token.
        cap: Largest weight, above 1.

    >>> both = {"response_T": torch.tensor([False, True, True]), "lengths_N": torch.tensor([3])}
    >>> old, mu = torch.tensor([0.0, -1.0, -2.0]), torch.tensor([0.0, -1.0, -4.0])
    >>> importance_weights(old, mu, **both, mode="tis", cap=2.0).weights
    tensor([0., 1., 2.])
    >>> importance_weights(old, mu, **both, mode="mis", cap=2.0).weights
    tensor([0., 1., 0.])
    """
    difference = (old_logprobs_T - rollout_logprobs_T).detach().double() * response_T
    difference = difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    raw = difference.exp() * response_T
    weights, inside = raw, response_T
    if mode == "none":
        weights = response_T.double()
    elif mode == "tis":
        weights = raw.clamp(max=cap)
    elif mode == "mis":
        inside = response_T & (raw >= 1 / cap) & (raw <= cap)
        weights = raw * inside
    elif mode == "sequence":
        mean = _sequence_mean(difference, response_T, lengths_N)
        inside = response_T & (mean.exp() >= 1 / cap) & (mean.exp() <= cap)
        weights = inside.double()
    count = max(int(response_T.sum()), 1)
    truncated = (raw > cap).sum() if mode == "tis" else 0
    metrics = _distance(difference, raw, response_T)
    metrics["truncated_fraction"] = float(truncated) / count
    metrics["masked_fraction"] = float((response_T & ~inside).sum()) / count
    return Correction(weights.float(), metrics)


def _sequence_mean(values_T: Tensor, mask_T: Tensor, lengths_N: Tensor) -> Tensor:
    """Return [T]: the mean over the masked tokens of each token's sequence."""
    sequence = torch.arange(len(lengths_N)).repeat_interleave(lengths_N)
    zeros = torch.zeros(len(lengths_N), dtype=torch.float64)
    counts = zeros.index_add(0, sequence, mask_T.double()).clamp(min=1)
    return (zeros.index_add(0, sequence, values_T) / counts)[sequence]


def _distance(difference_T: Tensor, raw_T: Tensor, response_T: Tensor) -> dict[str, float]:
    """Return how far old is from mu, see `Correction.metrics`."""
    if not bool(response_T.any()):
        return {"kl": 0.0, "max_difference": 0.0, "ess": 1.0}
    log_ratio, weights = difference_T[response_T], raw_T[response_T]
    return {
        "kl": float((torch.expm1(log_ratio) - log_ratio).mean()),
        "max_difference": float(log_ratio.abs().max()),
        "ess": float(weights.sum().square() / (len(weights) * weights.square().sum())),
    }
