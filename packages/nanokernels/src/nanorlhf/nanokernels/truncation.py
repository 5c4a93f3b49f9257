"""Drawing from what a row's limits keep: one program, one row, no sort.

The cut of top-k comes first, then top-p's within what top-k left; min-p is a bound on the logit,
which the last pass applies. A search (:mod:`.selection`) reads the row until at most FEW elements
can still be kept; those are copied out, and it ends among them alone. Where more stay (min-p alone
asks, or many are equal) it ends in the row.

The last pass is the race: the Gumbel-max of what is kept, its probability and its number at once.
"""

from .dispatch import jit, tl
from .gumbel import noise
from .selection import compact, logit, ordered, search, weigh_above


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
def draw_truncated(
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
