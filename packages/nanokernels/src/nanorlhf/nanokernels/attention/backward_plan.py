"""What the programs of :mod:`.gluon_dq` and :mod:`.gluon_dkdv` do in which round, as a table.

A row is one head's tile of queries or of keys, and says all that a program must know of it, so that
it keeps nothing else in its registers::

    0  head
    1  first row of the tile in its sequence
    2  where the sequence's queries end            3  how many they are
    4  where its keys end                          5  how many they are
    6  first row visited of the other side         7  blocks of STEP rows visited
    8  where the statistics of the sequence's rows begin

A tile's level is how many tiles it sees, or how many see it, but for the mask's edges. Tiles of
high levels come first, in rounds that go forth and back, so that no program always draws the longer
end (:mod:`.order` counts levels likewise)::

    round 0   program 0, 1, .. P-1       round 1   program P-1, .. 1, 0       round 2   0, 1, ..

Row ``round P + program`` is a program's work of a round; the last P numbers are its rounds.

Shape legend: T = packed tokens, H = heads, D = head dimension.
"""

import torch
from torch import Tensor

from nanorlhf.nanokernels.attention.order import tiles_of
from nanorlhf.nanokernels.attention.packed import Mask, find_sequence
from nanorlhf.nanokernels.dispatch import cdiv, jit, jit_varying, launch, next_power_of_2, tl

TILE = 128
"""Rows of a tile."""
STEP = 64
"""Rows of a block of what it visits."""
COLUMNS = 9
"""Numbers of a row of the table."""


@jit
def _levels(
    cu_q_ptr: tl.tensor,
    cu_k_ptr: tl.tensor,
    sequence: tl.tensor,
    sequences: tl.tensor,
    OF_KEYS: tl.constexpr,
    TILE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return how many tiles sequences have, 0 past the last, and the lowest level of them."""
    if OF_KEYS:
        tiles, lowest = tiles_of(cu_k_ptr, cu_q_ptr, sequence, sequences, TILE)
        lowest = lowest * 0
    else:
        tiles, lowest = tiles_of(cu_q_ptr, cu_k_ptr, sequence, sequences, TILE)
    return tiles, lowest


@jit_varying("sequences", "programs", "capacity", "window")
def _plan_kernel(
    plan_ptr: tl.tensor,
    cu_q_ptr: tl.tensor,
    cu_k_ptr: tl.tensor,
    sequences: tl.tensor,
    programs: tl.tensor,
    capacity: tl.tensor,
    window: tl.tensor,
    HEADS: tl.constexpr,
    OF_KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    slot = tl.program_id(0)
    cu_ptr = cu_k_ptr if OF_KEYS else cu_q_ptr
    own = find_sequence(cu_ptr, sequences, slot, TILE)
    tile = slot - (tl.load(cu_ptr + own) // TILE + own)
    tiles, lowest = _levels(cu_q_ptr, cu_k_ptr, own, sequences, OF_KEYS, TILE)
    level = tiles - 1 - tile if OF_KEYS else lowest + tile
    position = 0
    count = 0
    for begin in range(0, sequences, 128):
        other = begin + tl.arange(0, 128)
        theirs, bottom = _levels(cu_q_ptr, cu_k_ptr, other, sequences, OF_KEYS, TILE)
        higher = tl.minimum(tl.maximum(bottom + theirs - 1 - level, 0), theirs)
        equal = (bottom <= level) & (level < bottom + theirs) & (other < own)
        position += tl.sum(higher + equal.to(tl.int32), axis=0)
        count += tl.sum(theirs, axis=0)

    q_start = tl.load(cu_q_ptr + own)
    q_end = tl.load(cu_q_ptr + own + 1)
    k_end = tl.load(cu_k_ptr + own + 1)
    q_len = q_end - q_start
    k_len = k_end - tl.load(cu_k_ptr + own)
    first = tile * TILE
    # Query i is at the place of key i + offset, so key j at that of query j - offset.
    offset = q_len - k_len if OF_KEYS else k_len - q_len
    start = 0
    end = q_len if OF_KEYS else k_len
    if CAUSAL:
        if OF_KEYS:
            start = tl.maximum(first + offset, 0) // STEP * STEP
        else:
            end = tl.minimum(first + TILE + offset, end)
    if WINDOW:
        if OF_KEYS:
            end = tl.minimum(first + TILE - 1 + offset + window, end)
        else:
            start = tl.maximum(first + offset + 1 - window, 0) // STEP * STEP
    blocks = tl.cdiv(tl.maximum(end - start, 0), STEP)

    head = tl.arange(0, SPAN)
    item = position * HEADS + head
    place = item % programs
    place = tl.where(item // programs % 2 == 1, programs - 1 - place, place)
    row = plan_ptr + (item // programs * programs + place) * COLUMNS
    mine = head < tl.where(tile < tiles, HEADS, 0)
    tl.store(row, head, mask=mine)
    tl.store(row + 1, first, mask=mine)
    tl.store(row + 2, q_end, mask=mine)
    tl.store(row + 3, q_len, mask=mine)
    tl.store(row + 4, k_end, mask=mine)
    tl.store(row + 5, k_len, mask=mine)
    tl.store(row + 6, start, mask=mine)
    tl.store(row + 7, blocks, mask=mine)
    tl.store(row + 8, (q_start // TILE + own) * TILE, mask=mine)
    if slot == 0:
        whole = count * HEADS // programs
        for begin in range(0, programs, SPAN):
            program = begin + tl.arange(0, SPAN)
            place = tl.where(whole % 2 == 1, programs - 1 - program, program)
            rounds = whole + (place < count * HEADS - whole * programs).to(tl.int32)
            tl.store(plan_ptr + capacity + program, rounds, mask=program < programs)


def plan(x: Tensor, mask: Mask, *, programs: int, of_keys: bool) -> Tensor:
    """Return the table of the tiles of packed ``x``, [T, H, D], without waiting for the device.

    Args:
        x: The queries, or the keys.
        mask: Who sees whom, in a packed batch.
        programs: How many take turns.
        of_keys: Which of the two ``x`` is.

    Returns:
        int32, rows of :data:`COLUMNS` numbers, undefined where a round has no work for a program,
        and each program's rounds behind them.
    """
    heads = x.shape[1]
    slots = cdiv(len(x), TILE) + mask.batch.sequences
    capacity = cdiv(slots * heads, programs) * programs * COLUMNS
    table = torch.empty(capacity + programs, dtype=torch.int32, device=x.device)
    launch(
        _plan_kernel,
        (slots,),
        table,
        mask.batch.cu_q,
        mask.batch.cu_k,
        mask.batch.sequences,
        programs,
        capacity,
        mask.window or 0,
        HEADS=heads,
        OF_KEYS=of_keys,
        CAUSAL=mask.causal,
        WINDOW=mask.window is not None,
        TILE=TILE,
        STEP=STEP,
        COLUMNS=COLUMNS,
        SPAN=next_power_of_2(max(heads, 32)),
        num_warps=1,
    )
    return table
