"""What a draw is, and the draw in plain PyTorch: a sort, and the prefix that every limit keeps.

Shape legend: B = rows, V = vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .gumbel import gumbel_noise


class Sampled(NamedTuple):
    """One drawn token per row, and how likely it was."""

    tokens: Tensor
    """int64 [B]."""
    logprobs: Tensor
    """float32 [B], under the distribution drawn from: after temperature, and renormalised over
    what truncation kept. 0 for a greedy row: the log of the point mass."""
    raw_logprobs: Tensor
    """float32 [B], under the model's own distribution: temperature 1, full vocabulary."""
    kept_mass: Tensor
    """float32 [B], probability, after temperature, of what truncation kept; 1 without it."""


class Limits(NamedTuple):
    """The limits of each row; None switches one off for all rows."""

    top_k: Tensor | None
    top_p: Tensor | None
    min_p: Tensor | None

    def is_wanted(self) -> bool:
        """Return whether any row asks for any limit (waits for the device)."""
        asks = (
            None if self.top_k is None else self.top_k > 0,
            None if self.top_p is None else self.top_p < 1,
            None if self.min_p is None else self.min_p > 0,
        )
        wanted = [ask for ask in asks if ask is not None]
        return bool(torch.stack(wanted).any()) if wanted else False


def _kept_count(logits_BV: Tensor, through_BV: Tensor, scale: Tensor, limits: Limits) -> Tensor:
    """Return how long a prefix of the sorted logits each row keeps, int64 [B], at least 1.

    Args:
        logits_BV: Sorted from high to low.
        through_BV: The running sum of their probabilities.
        scale: float32 [B], the temperature.
        limits: What each row asks for.
    """
    vocab = logits_BV.shape[1]
    kept = torch.full((logits_BV.shape[0],), vocab, device=logits_BV.device)
    if limits.top_k is not None:
        top_k = limits.top_k.long()
        kept = torch.where(top_k > 0, top_k, vocab).clamp(max=vocab)
    if limits.top_p is not None:
        target = limits.top_p.double() * through_BV.gather(1, (kept - 1)[:, None]).squeeze(1)
        short = (through_BV < target[:, None]).sum(dim=1) + 1
        kept = torch.where(limits.top_p < 1, torch.minimum(kept, short), kept)
    if limits.min_p is not None:
        bound = logits_BV[:, 0] + scale * limits.min_p.log()
        kept = torch.minimum(kept, (logits_BV >= bound[:, None]).sum(dim=1))
    return kept.clamp(min=1)


def _truncate(
    logits: Tensor, weights: Tensor, scale: Tensor, limits: Limits
) -> tuple[Tensor, Tensor]:
    """Return where a row's limits cut, bool [B, V], and the share of the weights kept, [B]."""
    ordered_logits, order = logits.sort(dim=1, descending=True, stable=True)
    # The sum of float32 weights in float64 is exact enough to be called so.
    through = weights.gather(1, order).double().cumsum(dim=1)
    kept = _kept_count(ordered_logits, through, scale, limits)
    rank = torch.arange(logits.shape[1], device=logits.device)
    cut = torch.empty_like(order, dtype=torch.bool).scatter_(1, order, rank >= kept[:, None])
    mass = through.gather(1, (kept - 1)[:, None]).squeeze(1) / through[:, -1]
    # A row that keeps everything keeps exactly 1, not a sum's rounding of it.
    mass = torch.where(kept == logits.shape[1], 1.0, mass).clamp(max=1.0)
    return cut, mass.float()


def reference(
    logits_BV: Tensor, temperature: Tensor, limits: Limits, seeds: Tensor, steps: Tensor
) -> Sampled:
    """Return the draws in plain PyTorch, by a sort where a row asks for limits."""
    logits = logits_BV.to(torch.float32)
    greedy = temperature == 0
    scale = torch.where(greedy, 1.0, temperature).to(torch.float32)
    below = logits - logits.amax(dim=1, keepdim=True)
    scaled = below * (1.0 / scale)[:, None]
    # log_softmax reduces every row by itself: a plain sum may split one long row among threads, and
    # then a row's last bit would depend on how many rows stand beside it.
    raw, logp = below.log_softmax(dim=1), scaled.log_softmax(dim=1)
    mass = torch.ones_like(scale)
    if limits.is_wanted():
        cut, mass = _truncate(logits, scaled.exp(), scale, limits)
        scaled = scaled.masked_fill(cut, -torch.inf)
    random = gumbel_noise(seeds, steps, count=logits.shape[1])
    drawn = torch.where(greedy, logits.argmax(dim=1), random.add_(scaled).argmax(dim=1))
    picked = drawn[:, None]
    logprobs = (logp.gather(1, picked).squeeze(1) - mass.log()).clamp(max=0.0)
    return Sampled(
        tokens=drawn,
        logprobs=torch.where(greedy, 0.0, logprobs),
        raw_logprobs=raw.gather(1, picked).squeeze(1),
        kept_mass=torch.where(greedy, 1.0, mass),
    )
