r"""Drawing one token per row, reproducibly and independently of the batch.

A draw is the arg-max of ``log p + g`` with Gumbel noise g (Gumbel 1954; the "Gumbel-max trick"),
where the noise is a hash of (seed, step, token): :mod:`.gumbel`. A row draws the same token alone
or among others, whatever was drawn before.

Truncation works on the row ordered by logit from high to low, equals by index, where top-k, top-p
and min-p all keep a prefix; the shortest of the three is kept. top-p counts within what top-k left,
as in vLLM and transformers. The kernels find the cut without sorting (:mod:`.selection`)::

    logits [B, V]   | chunk 0 | chunk 1 | chunk 2 | ...     program (chunk, row): maximum, sums,
                         \         |        /               the best token of a row without limits
                          \        |       /
                     program (row): put together; find the cut, draw from what is kept

Memory bound where no row has limits: V elements are read once. A row with limits is read again two
to ten times, and its program alone reads it.

What is promised at a cut: counts and order are exact, so top-k keeps what a stable sort keeps. Sums
of probabilities are float32, added in an order that depends on V alone; so the cut of top-p is that
of exact sums unless a sum comes within about 1e-6 of ``top_p`` (relative), and min-p's is likewise
exact to a few units in the last place of ``log(min_p)``. Either way one row gives one answer.

Shape legend: B = rows, V = vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .configs import Config, table
from .dispatch import Impl, cdiv, jit, launch, next_power_of_2, tl, use_triton
from .gumbel import gumbel_noise, noise, row_keys
from .registration import register
from .selection import compact, logit, ordered, search, weigh_above

KEY_SHIFT = {torch.float32: 0, torch.bfloat16: 16, torch.float16: 13}
"""Low bits of a float32 that are 0 in every number of the dtype."""


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


@jit
def _row(
    temperature_ptr: tl.tensor,
    top_k_ptr: tl.tensor,
    top_p_ptr: tl.tensor,
    min_p_ptr: tl.tensor,
    row: tl.tensor,
    vocab: tl.tensor,
    HAS_K: tl.constexpr,
    HAS_P: tl.constexpr,
    HAS_MIN: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return a row's temperature, top-k (0 for none), top-p and min-p."""
    temperature = tl.load(temperature_ptr + row).to(tl.float32)
    top_k = tl.load(top_k_ptr + row).to(tl.int32) if HAS_K else 0
    top_k = tl.where(top_k < vocab, top_k, 0)
    top_p = tl.load(top_p_ptr + row).to(tl.float32) if HAS_P else 1.0
    min_p = tl.load(min_p_ptr + row).to(tl.float32) if HAS_MIN else 0.0
    return temperature, top_k, top_p, min_p


@jit
def _scan_kernel(
    logits_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    top_k_ptr: tl.tensor,
    top_p_ptr: tl.tensor,
    min_p_ptr: tl.tensor,
    seeds_ptr: tl.tensor,
    steps_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    picks_ptr: tl.tensor,
    vocab: tl.tensor,
    stride_row: tl.tensor,
    HAS_K: tl.constexpr,
    HAS_P: tl.constexpr,
    HAS_MIN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    row = tl.program_id(1).to(tl.int64)
    temperature, top_k, top_p, min_p = _row(
        temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row, vocab, HAS_K, HAS_P, HAS_MIN
    )
    column = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = column < vocab
    x = tl.load(logits_ptr + row * stride_row + column, mask=inside, other=-float("inf"))
    x = x.to(tl.float32)
    peak = tl.max(x, axis=0)
    highest = tl.min(tl.where(inside & (x == peak), column, vocab), axis=0)
    below = x - tl.where(peak == -float("inf"), 0.0, peak)
    finite = x > -float("inf")
    sums = sums_ptr + row * 6 * chunks + chunk
    tl.store(sums, peak)
    tl.store(sums + chunks, tl.sum(tl.exp(below), axis=0))
    is_drawn = temperature > 0.0
    best = -float("inf")
    winner = highest
    if is_drawn:
        scaled = below / temperature
        tl.store(sums + 2 * chunks, tl.sum(tl.exp(scaled), axis=0))
        tl.store(sums + 3 * chunks, tl.min(tl.where(finite, x, float("inf")), axis=0))
        tl.store(sums + 4 * chunks, tl.sum(finite.to(tl.float32), axis=0))
        if (top_k == 0) & (top_p >= 1.0) & (min_p <= 0.0):
            first, second = row_keys(tl.load(seeds_ptr + row), tl.load(steps_ptr + row))
            score = scaled + noise(first, second, column)
            best = tl.max(score, axis=0)
            winner = tl.min(tl.where(inside & (score == best), column, vocab), axis=0)
    tl.store(sums + 5 * chunks, best)
    tl.store(picks_ptr + row * 2 * chunks + chunk, highest)
    tl.store(picks_ptr + row * 2 * chunks + chunks + chunk, winner)


@jit
def _race(
    x_ptr: tl.tensor,
    column_ptr: tl.tensor,
    count: tl.tensor,
    cut: tl.tensor,
    ties: tl.tensor,
    bound: tl.tensor,
    peak: tl.tensor,
    inverse: tl.tensor,
    first_key: tl.tensor,
    second_key: tl.tensor,
    COMPACT: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return a token drawn from what is kept, its probability over the likeliest's, and its number.

    Kept are the keys above ``cut`` and the first ``ties`` equal to it, where they reach ``bound``.
    """
    best = -float("inf")
    token = 0
    seen = 0
    kept = 0
    mass = tl.zeros((BLOCK,), tl.float32)
    for first in tl.range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < count
        x = tl.load(x_ptr + at, mask=inside, other=-float("inf")).to(tl.float32)
        key = ordered(x, SHIFT)
        tied = (inside & (key == cut)).to(tl.int32)
        number = tl.sum(tied, axis=0)
        keep = inside & (key > cut)
        if number > 0:
            keep = keep | ((tied > 0) & (seen + tl.cumsum(tied, axis=0) <= ties))
        seen += number
        keep = keep & (x >= bound)
        scaled = (x - peak) * inverse
        mass += tl.where(keep, tl.exp(scaled), 0.0)
        number = tl.sum(keep.to(tl.int32), axis=0)
        kept += number
        if number > 0:
            column = tl.load(column_ptr + at, mask=inside, other=0) if COMPACT else at
            score = scaled + noise(first_key, second_key, column)
            score = tl.where(keep, score, -float("inf"))
            top = tl.max(score, axis=0)
            if top > best:
                token = tl.min(tl.where(keep & (score == top), column, 2**31 - 1), axis=0)
                best = top
    return token, tl.sum(mass, axis=0), kept


@jit
def _kept(
    x_ptr: tl.tensor,
    column_ptr: tl.tensor,
    count: tl.tensor,
    lo: tl.tensor,
    hi: tl.tensor,
    total: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    bound: tl.tensor,
    peak: tl.tensor,
    inverse: tl.tensor,
    first_key: tl.tensor,
    second_key: tl.tensor,
    COMPACT: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return :func:`_race` of what a row's limits keep of ``count`` elements.

    ``[lo, hi)`` is where the search for the row's first limit stands; ``total`` is the probability
    of the whole row over the likeliest's.
    """
    cut = lo
    ties = count
    mass = total
    if top_k > 0:
        cut, hi, _left = search(
            x_ptr, count, lo, hi, top_k.to(tl.float64), peak, inverse, -1, True, SHIFT, BLOCK
        )
        elements, above = weigh_above(x_ptr, count, cut, peak, inverse, SHIFT, BLOCK)
        ties = top_k - elements.to(tl.int32)
        mass = above + ties * tl.exp((logit(cut, SHIFT) - peak) * inverse)
        lo = cut
        hi = ordered(peak, SHIFT) + 1
    if top_p < 1.0:
        need = top_p.to(tl.float64) * mass.to(tl.float64)
        reached, hi, _left = search(
            x_ptr, count, lo, hi, need, peak, inverse, -1, False, SHIFT, BLOCK
        )
        _elements, above = weigh_above(x_ptr, count, reached, peak, inverse, SHIFT, BLOCK)
        each = tl.exp((logit(reached, SHIFT) - peak) * inverse).to(tl.float64)
        some = tl.maximum(tl.ceil((need - above) / each), 1.0)
        some = tl.minimum(some, count.to(tl.float64)).to(tl.int32)
        ties = tl.where(reached == cut, tl.minimum(ties, some), some)
        cut = reached
    token, mass, kept = _race(
        x_ptr, column_ptr, count, cut, ties, bound, peak, inverse, first_key, second_key,
        COMPACT, SHIFT, BLOCK,
    )  # fmt: skip
    return token, mass, kept


@jit
def _truncated(
    x_ptr: tl.tensor,
    found_ptr: tl.tensor,
    column_ptr: tl.tensor,
    vocab: tl.tensor,
    low: tl.tensor,
    finite: tl.tensor,
    total: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    peak: tl.tensor,
    temperature: tl.tensor,
    first_key: tl.tensor,
    second_key: tl.tensor,
    FEW: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return :func:`_race` of a row: narrowed until few elements are left, and then those alone."""
    inverse = 1.0 / temperature
    bound = -float("inf")
    if min_p > 0.0:
        bound = peak + temperature * tl.log(min_p)
    top_k = tl.where(top_k < finite, top_k, tl.where(top_k > 0, finite, 0))
    lo = ordered(low, SHIFT)
    hi = ordered(peak, SHIFT) + 1
    left = vocab
    if top_k > 0:
        lo, hi, left = search(
            x_ptr, vocab, lo, hi, top_k.to(tl.float64), peak, inverse, FEW, True, SHIFT, BLOCK
        )
    elif top_p < 1.0:
        # Each below this is so unlikely that all of them together miss less than 1 - top_p.
        floor = peak + temperature * (tl.log((1.0 - top_p) * total / vocab) - 1.0)
        lo = tl.maximum(lo, ordered(floor, SHIFT))
        need = top_p.to(tl.float64) * total.to(tl.float64)
        lo, hi, left = search(x_ptr, vocab, lo, hi, need, peak, inverse, FEW, False, SHIFT, BLOCK)
    else:
        lo = tl.maximum(lo, ordered(bound, SHIFT))
    if left <= FEW:
        count = compact(x_ptr, vocab, lo, found_ptr, column_ptr, SHIFT, BLOCK)
        token, mass, kept = _kept(
            found_ptr, column_ptr, count, lo, hi, total, top_k, top_p, bound, peak, inverse,
            first_key, second_key, True, SHIFT, BLOCK,
        )  # fmt: skip
    else:
        token, mass, kept = _kept(
            x_ptr, column_ptr, vocab, lo, hi, total, top_k, top_p, bound, peak, inverse,
            first_key, second_key, False, SHIFT, BLOCK,
        )  # fmt: skip
    return token, mass, kept


@jit
def _draw_kernel(
    logits_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    top_k_ptr: tl.tensor,
    top_p_ptr: tl.tensor,
    min_p_ptr: tl.tensor,
    seeds_ptr: tl.tensor,
    steps_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    picks_ptr: tl.tensor,
    found_ptr: tl.tensor,
    column_ptr: tl.tensor,
    token_ptr: tl.tensor,
    logprob_ptr: tl.tensor,
    raw_ptr: tl.tensor,
    share_ptr: tl.tensor,
    vocab: tl.tensor,
    chunks: tl.tensor,
    stride_row: tl.tensor,
    HAS_K: tl.constexpr,
    HAS_P: tl.constexpr,
    HAS_MIN: tl.constexpr,
    CHUNKS: tl.constexpr,
    FEW: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    temperature, top_k, top_p, min_p = _row(
        temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row, vocab, HAS_K, HAS_P, HAS_MIN
    )
    x_ptr = logits_ptr + row * stride_row
    chunk = tl.arange(0, CHUNKS)
    real = chunk < chunks
    sums = sums_ptr + row * 6 * chunks + chunk
    picks = picks_ptr + row * 2 * chunks + chunk
    peaks = tl.load(sums, mask=real, other=-float("inf"))
    peak = tl.max(peaks, axis=0)
    highest = tl.load(picks, mask=real & (peaks == peak), other=2**31 - 1)
    token = tl.min(highest, axis=0)
    behind = peaks - peak
    raw = tl.sum(tl.load(sums + chunks, mask=real, other=0.0) * tl.exp(behind), axis=0)
    logprob = 0.0
    share = 1.0
    if temperature > 0.0:
        inverse = 1.0 / temperature
        scaled = tl.load(sums + 2 * chunks, mask=real, other=0.0)
        total = tl.sum(scaled * tl.exp(behind * inverse), axis=0)
        mass = total
        if (top_k == 0) & (top_p >= 1.0) & (min_p <= 0.0):
            score = tl.load(sums + 5 * chunks, mask=real, other=-float("inf")) + behind * inverse
            winners = tl.load(picks + chunks, mask=real, other=2**31 - 1)
            token = tl.min(tl.where(score == tl.max(score, axis=0), winners, 2**31 - 1), axis=0)
        else:
            if HAS_K or HAS_P or HAS_MIN:
                low = tl.min(tl.load(sums + 3 * chunks, mask=real, other=float("inf")), axis=0)
                finite = tl.sum(tl.load(sums + 4 * chunks, mask=real, other=0.0), axis=0)
                first, second = row_keys(tl.load(seeds_ptr + row), tl.load(steps_ptr + row))
                token, mass, kept = _truncated(
                    x_ptr, found_ptr + row * FEW, column_ptr + row * FEW, vocab, low,
                    finite.to(tl.int32), total, top_k, top_p, min_p, peak, temperature,
                    first, second, FEW, SHIFT, BLOCK,
                )  # fmt: skip
                share = tl.where(kept == vocab, 1.0, tl.minimum(mass / total, 1.0))
        x = tl.load(x_ptr + token).to(tl.float32)
        logprob = tl.minimum((x - peak) * inverse - tl.log(mass), 0.0)
    x = tl.load(x_ptr + token).to(tl.float32)
    tl.store(token_ptr + row, token.to(tl.int64))
    tl.store(logprob_ptr + row, logprob)
    tl.store(raw_ptr + row, tl.minimum(x - peak - tl.log(raw), 0.0))
    tl.store(share_ptr + row, share)


def _launch(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seeds: Tensor,
    steps: Tensor,
    config: Config | None = None,
) -> tuple[Tensor, ...]:
    config = config or table("sampling")[str(logits.element_size())]
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    rows, vocab = logits.shape
    chunks = cdiv(vocab, config["chunk"])
    device = logits.device
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    numbers = tuple(torch.empty(rows, dtype=torch.float32, device=device) for _ in range(3))
    if not rows:
        return tokens, *numbers
    sums = torch.empty(rows, 6, chunks, dtype=torch.float32, device=device)
    picks = torch.empty(rows, 2, chunks, dtype=torch.int32, device=device)
    found = torch.empty(rows, config["few"], dtype=logits.dtype, device=device)
    columns = torch.empty(rows, config["few"], dtype=torch.int32, device=device)
    seeds, steps = seeds.long().contiguous(), steps.long().contiguous()
    limits = tuple(temperature if x is None else x.contiguous() for x in (top_k, top_p, min_p))
    shared = (temperature.contiguous(), *limits, seeds, steps, sums, picks)
    has = {"HAS_K": top_k is not None, "HAS_P": top_p is not None, "HAS_MIN": min_p is not None}
    launch(
        _scan_kernel,
        (chunks, rows),
        logits,
        *shared,
        vocab,
        logits.stride(0),
        BLOCK=config["chunk"],
        num_warps=config["scan_warps"],
        **has,
    )
    launch(
        _draw_kernel,
        (rows,),
        logits,
        *shared,
        found,
        columns,
        tokens,
        *numbers,
        vocab,
        chunks,
        logits.stride(0),
        CHUNKS=next_power_of_2(chunks),
        FEW=config["few"],
        SHIFT=KEY_SHIFT[logits.dtype],
        BLOCK=config["block"],
        num_warps=config["num_warps"],
        **has,
    )
    return tokens, *numbers


def _fake(logits: Tensor, temperature: Tensor, *_rest: Tensor | None) -> tuple[Tensor, ...]:
    rows = logits.shape[:1]
    numbers = tuple(logits.new_empty(rows, dtype=torch.float32) for _ in range(3))
    return logits.new_empty(rows, dtype=torch.int64), *numbers


_op = register(
    "sample(Tensor logits, Tensor temperature, Tensor? top_k, Tensor? top_p, Tensor? min_p, "
    "Tensor seeds, Tensor steps) -> (Tensor, Tensor, Tensor, Tensor)",
    _launch,
    fake=_fake,
)


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
    impl: Impl = "auto",
) -> Sampled:
    """Draw one token per row.

    The kernel waits for nothing and allocates the same whatever is asked, so a CUDA graph can hold
    it; the reference waits for the device to learn whether any row has limits.

    Args:
        logits_BV: Float [B, V], finite or -inf (never drawn); at least one finite in a row.
        temperature_B: float32 [B], at least 0; 0 takes the most likely token, of equals the first.
        top_k_B: Integer [B], tokens to keep; 0 keeps all. None keeps all in every row.
        top_p_B: float32 [B], in (0, 1]: the fewest likely tokens that reach this mass; 1 keeps all.
        min_p_B: float32 [B], in [0, 1]: tokens at least this share of the likeliest; 0 keeps all.
        seeds_B: Integer [B], a row's own seed.
        steps_B: Integer [B], how many tokens the row has drawn before.
        impl: Which implementation runs; see :mod:`.dispatch`.

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
    limits = Limits(top_k_B, top_p_B, min_p_B)
    rows: dict[str, Tensor | None] = {
        "temperature_B": temperature_B,
        "seeds_B": seeds_B,
        "steps_B": steps_B,
    }
    limits_by_name = {"top_k_B": top_k_B, "top_p_B": top_p_B, "min_p_B": min_p_B}
    _check(logits_BV, rows | limits_by_name)
    if not use_triton(impl, logits_BV):
        return reference(logits_BV, temperature_B, limits, seeds_B, steps_B)
    return Sampled(*_op(logits_BV, temperature_B, *limits, seeds_B, steps_B))
