"""In which order a persistent kernel takes the tiles of packed sequences: longest first.

Programs that take tiles from one list in turns finish together only if what is left at the end is
small. A tile's work is the keys it sees, in units of a tile ("level"): its place in the sequence,
and the tiles of a cached prefix before it::

    sequence 0   [0][1][2]          order: level 3: 1.3   level 2: 0.2, 1.2   level 1: 0.1, 1.1 ..
    sequence 1   [0][1][2][3]

A tile's position in that list has a closed form, a sum over sequences, so no sort is needed: one
program a tile counts the tiles of higher levels, and those of its level in sequences before its
own. N sequences cost N reads a tile.
"""

import torch
from torch import Tensor

from nanorlhf.nanokernels.attention.packed import Packed, find_sequence
from nanorlhf.nanokernels.dispatch import cdiv, jit, jit_varying, launch, tl


@jit
def tiles_of(
    cu_q_ptr: tl.tensor,
    cu_k_ptr: tl.tensor,
    sequence: tl.tensor,
    sequences: tl.tensor,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return how many tiles of queries sequences have, 0 past the last, and of cached prefix."""
    real = sequence < sequences
    q_start = tl.load(cu_q_ptr + sequence, mask=real, other=0)
    q_end = tl.load(cu_q_ptr + sequence + 1, mask=real, other=0)
    k_start = tl.load(cu_k_ptr + sequence, mask=real, other=0)
    k_end = tl.load(cu_k_ptr + sequence + 1, mask=real, other=0)
    prefix = tl.maximum(k_end - k_start - (q_end - q_start), 0) // BLOCK
    return tl.cdiv(q_end - q_start, BLOCK), prefix


@jit_varying("sequences", "slots")
def _order_kernel(
    order_ptr: tl.tensor,
    cu_q_ptr: tl.tensor,
    cu_k_ptr: tl.tensor,
    sequences: tl.tensor,
    slots: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    slot = tl.program_id(0)
    own = find_sequence(cu_q_ptr, sequences, slot, BLOCK)
    tile = slot - (tl.load(cu_q_ptr + own) // BLOCK + own)
    tiles, prefix = tiles_of(cu_q_ptr, cu_k_ptr, own, sequences, BLOCK)
    real = tile < tiles
    level = tile + prefix
    position = 0
    count = 0
    for first in range(0, sequences, 128):
        other = first + tl.arange(0, 128)
        theirs, begin = tiles_of(cu_q_ptr, cu_k_ptr, other, sequences, BLOCK)
        higher = tl.minimum(tl.maximum(begin + theirs - 1 - level, 0), theirs)
        equal = (begin <= level) & (level < begin + theirs) & (other < own)
        position += tl.sum(higher + equal.to(tl.int32), axis=0)
        count += tl.sum(theirs, axis=0)
    tl.store(order_ptr + 2 * position, own, mask=real)
    tl.store(order_ptr + 2 * position + 1, tile, mask=real)
    tl.store(order_ptr + 2 * slots, count, mask=slot == 0)


def longest_first(q: Tensor, queries: Packed, keys: Packed, block: int) -> Tensor:
    """Return the order of the tiles of packed queries [T, H, D], without waiting for the device.

    Returns:
        int32 [2 M + 1] for M = ceil(T / ``block``) + N: sequence and tile in it of each tile in
        order, as many as the last number says; what lies between is undefined.
    """
    slots = cdiv(len(q), block) + queries.num_sequences
    order = torch.empty(2 * slots + 1, dtype=torch.int32, device=q.device)
    launch(
        _order_kernel,
        (slots,),
        order,
        queries.cu_seqlens,
        keys.cu_seqlens,
        queries.num_sequences,
        slots,
        BLOCK=block,
        num_warps=1,
    )
    return order
