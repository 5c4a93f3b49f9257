"""Drawing one token per row, reproducibly and independently of the batch.

A draw is the arg-max of ``log p + g`` with Gumbel noise g (Gumbel 1954; the "Gumbel-max trick").
The noise of vocabulary entry i in a row is a hash of (seed, step, i): no generator state, so a row
draws the same token alone or among others, on a CPU or a GPU, and whatever was drawn before.

Truncation works on the row sorted from likely to unlikely, where top-k, top-p and min-p all keep a
prefix; the shortest of the three is kept. Rows are sorted only if one of them asks for it.

Shape legend: B = rows, V = vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

INT32_WRAP = 1 << 32


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


def _mix(x: Tensor) -> Tensor:
    """Scramble int32 words in place and return them: the ``lowbias32`` hash of C. Wellons.

    PyTorch's integer products wrap and its right shifts carry the sign, hence the masks.
    """
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x846CA68B - INT32_WRAP
    x ^= (x >> 16) & 0xFFFF
    return x


def _word(x: Tensor, shift: int) -> Tensor:
    """Return 32 bits of int64 words, as int32."""
    bits = (x >> shift) & 0xFFFFFFFF
    return torch.where(bits >= 1 << 31, bits - INT32_WRAP, bits).to(torch.int32)


def random_bits(seeds_B: Tensor, steps_B: Tensor, *, count: int) -> Tensor:
    """Return ``count`` random words for each (seed, step), int32 [B, count].

    Entry i of a row depends on nothing but (seed, step, i).
    """
    seeds, steps = seeds_B.long(), steps_B.long()
    key = _mix(_word(seeds, 0) ^ 0x3C6EF372)
    key = _mix(key ^ _word(seeds, 32))
    key = _mix(key ^ _word(steps, 0))
    key = _mix(key ^ _word(steps, 32))
    second = _mix(key ^ 0x5BD1E995)
    counter = torch.arange(count, device=seeds.device, dtype=torch.int32)
    # Two keyed rounds: with one, two rows would be shifts of each other.
    words = _mix(counter * (0x9E3779B9 - INT32_WRAP) + key[:, None])
    return _mix(words ^ second[:, None])


def gumbel_noise(seeds_B: Tensor, steps_B: Tensor, *, count: int) -> Tensor:
    """Return standard Gumbel noise, float32 [B, count], as a function of (seed, step, column)."""
    bits = random_bits(seeds_B, steps_B, count=count) & 0x7FFFFFFF
    # The winners are the smallest of these exponentials, and float32 is finest next to 0.
    uniform = bits.to(torch.float32).add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


class _Truncation(NamedTuple):
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


def _kept_count(p_BV: Tensor, before_BV: Tensor, limits: _Truncation) -> Tensor:
    """Return how long a prefix of the sorted probabilities each row keeps, int64 [B], >= 1.

    Args:
        p_BV: Probabilities, sorted from high to low.
        before_BV: Their exclusive running sum.
        limits: top-p counts within what top-k left, as in vLLM and transformers.
    """
    vocab = p_BV.shape[1]
    kept = torch.full((p_BV.shape[0],), vocab, device=p_BV.device)
    if limits.top_k is not None:
        top_k = limits.top_k.long()
        kept = torch.where(top_k > 0, top_k, vocab).clamp(max=vocab)
    if limits.top_p is not None:
        last = (kept - 1)[:, None]
        mass = before_BV.gather(1, last) + p_BV.gather(1, last)
        inside = (before_BV < limits.top_p[:, None] * mass) | (limits.top_p >= 1)[:, None]
        kept = torch.minimum(kept, inside.sum(dim=1))
    if limits.min_p is not None:
        kept = torch.minimum(kept, (p_BV >= limits.min_p[:, None] * p_BV[:, :1]).sum(dim=1))
    return kept.clamp(min=1)


def _truncate(logp_BV: Tensor, limits: _Truncation) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities with -inf where a row's limits cut, and the mass kept, [B]."""
    ordered, order = logp_BV.sort(dim=1, descending=True, stable=True)
    p = ordered.exp()
    through = p.cumsum(dim=1)
    kept = _kept_count(p, through - p, limits)
    rank = torch.arange(logp_BV.shape[1], device=logp_BV.device)
    cut = torch.empty_like(order, dtype=torch.bool).scatter_(1, order, rank >= kept[:, None])
    mass = through.gather(1, (kept - 1)[:, None]).squeeze(1)
    # A row that keeps everything keeps exactly 1, not a sum's rounding of it.
    mass = torch.where(kept == logp_BV.shape[1], 1.0, mass).clamp(max=1.0)
    return logp_BV.masked_fill(cut, -torch.inf), mass


def _check(logits: Tensor, rows: dict[str, Tensor | None]) -> None:
    """Raise ``ValueError`` for shapes that do not fit."""
    if logits.ndim != 2 or not logits.is_floating_point() or logits.shape[1] == 0:
        raise ValueError(
            f"logits_BV={logits.dtype}{tuple(logits.shape)} must be float [B, V]; pass a row each"
        )
    for name, row in rows.items():
        if row is not None and row.shape != logits.shape[:1]:
            raise ValueError(
                f"{name}={tuple(row.shape)} does not match B={logits.shape[0]}; pass one per row"
            )


def sample(
    logits_BV: Tensor,
    *,
    temperature_B: Tensor,
    top_k_B: Tensor | None = None,
    top_p_B: Tensor | None = None,
    min_p_B: Tensor | None = None,
    seeds_B: Tensor,
    steps_B: Tensor,
) -> Sampled:
    """Draw one token per row.

    Args:
        logits_BV: Float [B, V].
        temperature_B: float32 [B], at least 0; 0 takes the most likely token.
        top_k_B: Integer [B], tokens to keep; 0 keeps all. None keeps all in every row.
        top_p_B: float32 [B], in (0, 1]: the fewest likely tokens that reach this mass; 1 keeps all.
        min_p_B: float32 [B], in [0, 1]: tokens at least this share of the likeliest; 0 keeps all.
        seeds_B: Integer [B], a row's own seed.
        steps_B: Integer [B], how many tokens the row has drawn before.

    Returns:
        Tokens, their log-probabilities in both senses, and the mass kept.

    Raises:
        ValueError: Shapes do not fit.

    >>> one = torch.ones(1)
    >>> logits = torch.tensor([[0.0, 9.0, 0.0]])
    >>> drawn = sample(logits, temperature_B=0 * one, seeds_B=one, steps_B=one)
    >>> drawn.tokens.tolist(), drawn.logprobs.tolist()
    ([1], [0.0])
    """
    limits = _Truncation(top_k_B, top_p_B, min_p_B)
    rows: dict[str, Tensor | None] = {
        "temperature_B": temperature_B,
        "seeds_B": seeds_B,
        "steps_B": steps_B,
    }
    limits_by_name = {"top_k_B": top_k_B, "top_p_B": top_p_B, "min_p_B": min_p_B}
    _check(logits_BV, rows | limits_by_name)
    logits = logits_BV.to(torch.float32)
    # log_softmax reduces every row by itself: a plain sum may split one long row among threads, and
    # then a row's last bit would depend on how many rows stand beside it.
    raw = logits.log_softmax(dim=1)
    greedy = temperature_B == 0
    scale = torch.where(greedy, 1.0, temperature_B).to(torch.float32)
    logp = (logits / scale[:, None]).log_softmax(dim=1)
    mass = torch.ones_like(scale)
    allowed = logp
    if limits.is_wanted():
        allowed, mass = _truncate(logp, limits)
    noise = gumbel_noise(seeds_B, steps_B, count=logits.shape[1])
    drawn = torch.where(greedy, raw.argmax(dim=1), noise.add_(allowed).argmax(dim=1))
    picked = drawn[:, None]
    logprobs = (logp.gather(1, picked).squeeze(1) - mass.log()).clamp(max=0.0)
    return Sampled(
        tokens=drawn,
        logprobs=torch.where(greedy, 0.0, logprobs),
        raw_logprobs=raw.gather(1, picked).squeeze(1),
        kept_mass=torch.where(greedy, 1.0, mass),
    )
