"""Finding where a row is cut, without sorting it: the kernels' half of truncated sampling.

Every limit keeps a prefix of the row ordered by (logit from high to low, index from low to high),
so a cut is a logit and how many of its equals are kept. Logits are compared as integers that order
as they do, :func:`ordered`; a pass over the row weighs what lies at or above four thresholds, by
count for top-k and by probability for top-p, and leaves one fifth of the range::

    lo                t1       t2       t3       t4                hi
    |------- enough --|--------|--------|- too little -------------|
                          new lo^       ^new hi

Thresholds are even in the logit on one pass (few passes where logits are spread as usual) and even
in the integer on the next (few whatever the logits are). Once few elements are left
at or above ``lo`` they are copied out, :func:`compact`, and only they are read from then on.
"""

from .dispatch import jit, tl


@jit
def ordered(x: tl.tensor, SHIFT: tl.constexpr) -> tl.tensor:
    """Return int32 numbers that order as the float32 ``x`` does; SHIFT drops bits always alike."""
    x = tl.where(x == 0.0, 0.0, x)  # -0.0 is 0.0's equal
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> SHIFT


@jit
def logit(key: tl.tensor, SHIFT: tl.constexpr) -> tl.tensor:
    """Return the float32 that :func:`ordered` made ``key`` of."""
    full = (key << SHIFT) | tl.where(key < 0, (1 << SHIFT) - 1, 0)
    return (full ^ ((full >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@jit
def _threshold(
    lo: tl.tensor, hi: tl.tensor, by_logit: tl.tensor, FIFTHS: tl.constexpr, SHIFT: tl.constexpr
) -> tl.tensor:
    """Return a key FIFTHS of the way from ``lo`` to ``hi``, between the two."""
    step = (hi.to(tl.int64) - lo) * FIFTHS // 5
    low = logit(lo, SHIFT)
    even = ordered(low + (logit(hi, SHIFT) - low) * (FIFTHS * 0.2), SHIFT)
    key = tl.where(by_logit, even, (lo + step).to(tl.int32))
    return tl.minimum(tl.maximum(key, lo + 1), hi - 1)


@jit
def search(
    x_ptr: tl.tensor,
    count: tl.tensor,
    lo: tl.tensor,
    hi: tl.tensor,
    need: tl.tensor,
    peak: tl.tensor,
    inverse: tl.tensor,
    few: tl.tensor,
    BY_COUNT: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the highest key at or above which there is ``need``, as a range [lo, hi).

    Args:
        x_ptr: ``count`` logits.
        count: How many.
        lo: A key with enough at or above it; taken on trust.
        hi: A key without.
        need: The weight asked for: elements if BY_COUNT, else probability over the likeliest's.
        peak: The highest logit of the row.
        inverse: One over the temperature.
        few: Stop early when no more elements than this are at or above ``lo``; -1 never does.
        BY_COUNT: What is weighed.
        SHIFT: See :func:`ordered`.
        BLOCK: Elements of a step.

    Returns:
        The range, one key wide unless stopped early, and how many elements are at or above ``lo``,
        or more.
    """
    left = count
    turn = 0
    while (hi.to(tl.int64) - lo > 1) & (left > few):
        by_logit = turn % 2 == 0
        t1 = _threshold(lo, hi, by_logit, 1, SHIFT)
        t2 = _threshold(lo, hi, by_logit, 2, SHIFT)
        t3 = _threshold(lo, hi, by_logit, 3, SHIFT)
        t4 = _threshold(lo, hi, by_logit, 4, SHIFT)
        s1 = tl.zeros((BLOCK,), tl.float32)
        s2 = tl.zeros((BLOCK,), tl.float32)
        s3 = tl.zeros((BLOCK,), tl.float32)
        s4 = tl.zeros((BLOCK,), tl.float32)
        n0 = tl.zeros((BLOCK,), tl.float32)
        for first in tl.range(0, count, BLOCK):
            at = first + tl.arange(0, BLOCK)
            inside = at < count
            x = tl.load(x_ptr + at, mask=inside, other=-float("inf")).to(tl.float32)
            key = tl.where(inside, ordered(x, SHIFT), -(2**31))
            w = 1.0 if BY_COUNT else tl.exp((x - peak) * inverse)
            s1 += tl.where(key >= t1, w, 0.0)
            s2 += tl.where(key >= t2, w, 0.0)
            s3 += tl.where(key >= t3, w, 0.0)
            s4 += tl.where(key >= t4, w, 0.0)
            n0 += tl.where(key >= lo, 1.0, 0.0)
        left = tl.sum(n0, axis=0).to(tl.int32)
        is1, is2 = tl.sum(s1, axis=0) >= need, tl.sum(s2, axis=0) >= need
        is3, is4 = tl.sum(s3, axis=0) >= need, tl.sum(s4, axis=0) >= need
        lo = tl.where(is4, t4, tl.where(is3, t3, tl.where(is2, t2, tl.where(is1, t1, lo))))
        over = tl.where(is1, tl.where(is2, tl.where(is3, tl.where(is4, hi, t4), t3), t2), t1)
        hi = over
        turn += 1
    return lo, hi, left


@jit
def weigh_above(
    x_ptr: tl.tensor,
    count: tl.tensor,
    cut: tl.tensor,
    peak: tl.tensor,
    inverse: tl.tensor,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return how many keys are above ``cut``, and their probability over the likeliest's."""
    elements = tl.zeros((BLOCK,), tl.float32)
    mass = tl.zeros((BLOCK,), tl.float32)
    for first in tl.range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + at, mask=at < count, other=-float("inf")).to(tl.float32)
        above = (at < count) & (ordered(x, SHIFT) > cut)
        elements += tl.where(above, 1.0, 0.0)
        mass += tl.where(above, tl.exp((x - peak) * inverse), 0.0)
    return tl.sum(elements, axis=0), tl.sum(mass, axis=0)


@jit
def compact(
    x_ptr: tl.tensor,
    count: tl.tensor,
    lo: tl.tensor,
    found_ptr: tl.tensor,
    column_ptr: tl.tensor,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Copy the elements at or above ``lo`` and their columns, in order; return how many."""
    total = 0
    for first in tl.range(0, count, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < count
        x = tl.load(x_ptr + column, mask=inside, other=-float("inf"))
        found = inside & (ordered(x.to(tl.float32), SHIFT) >= lo)
        number = tl.sum(found.to(tl.int32), axis=0)
        if number > 0:
            at = total + tl.cumsum(found.to(tl.int32), axis=0) - 1
            tl.store(found_ptr + at, x, mask=found)
            tl.store(column_ptr + at, column, mask=found)
        total += number
    # What one thread wrote others read.
    tl.debug_barrier()
    return total
