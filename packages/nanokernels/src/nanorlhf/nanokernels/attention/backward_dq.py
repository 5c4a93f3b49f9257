"""First pass of attention's backward: the gradient of the queries, and each row's statistics.

A program owns BLOCK_M queries of one head and walks over the keys they see; :mod:`.backward` has
the formulas. On the way it writes what the second pass needs of each row, ``lse log2(e)`` and
``delta``, float32 [2, H, slots]. Tiles end where their sequence does, and tile t of the launch
fills slots [t BLOCK_M, (t + 1) BLOCK_M), so whole tiles of statistics can be read wherever a
sequence starts. Only a sequence's first tile sticks out, before row 0; there lse is +inf, which
makes p 0::

    slots   | 0 .. 3 | 4 .. 7 | 8 .. 11 | 12 .. 15 | 16 .. 19 |      BLOCK_M = 4
    rows    |   0 1 2| 3 .. 6 | (none)  |         0| 1 .. 4   |
            | sequence of 7   |         | sequence of 5       |

K and V come through tensor descriptors (:func:`.packed.starting`). Their tiles end at the diagonal,
and of what lies before the first key they read zeros.

Shape legend: T = query tokens, S = key tokens, H = query heads, K = KV heads, D = head dimension.
"""

import torch
from torch import Tensor

from nanorlhf.nanokernels.attention.packed import (
    Mask,
    Rows,
    end_of_tiles,
    find_sequence,
    rows_of,
    spans,
    starting,
)
from nanorlhf.nanokernels.configs import Config
from nanorlhf.nanokernels.dispatch import jit, jit_varying, launch, tl


@jit
def _walk(
    dq: tl.tensor,
    q: tl.tensor,
    do: tl.tensor,
    lse: tl.tensor,
    delta: tl.tensor,
    shift: tl.tensor,
    window: tl.tensor,
    k_rows: tl.tensor,
    v_rows: tl.tensor,
    k_start: tl.tensor,
    column: tl.tensor,
    scale_log2: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    begin: tl.tensor,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CUT: tl.constexpr,
) -> tl.tensor:
    """Add what keys [start, end) give to ``dq / scale``.

    Row i of the tile sees keys up to ``shift + i``, and of these the last ``window``: tiles before
    ``begin`` are masked, and all tiles where the diagonal CUTs them.
    """
    for first in tl.range(start, end, BLOCK_N):
        k = tl.reshape(k_rows.load([k_start, first, column]), (BLOCK_N, D))
        v = tl.reshape(v_rows.load([k_start, first, column]), (BLOCK_N, D))
        s = tl.dot(q, tl.trans(k), input_precision="tf32x3")
        p = tl.math.exp2(s * scale_log2 - lse[:, None])
        dp = tl.dot(do, tl.trans(v), input_precision="tf32x3")
        if CUT or (first < begin):
            # Made here, and not before the loop, where they would take registers all along.
            key = first + tl.arange(0, BLOCK_N)[None, :]
            last = shift + tl.arange(0, BLOCK_M)[:, None]
            seen = key >= 0
            if CAUSAL:
                seen = seen & (key <= last)
            if WINDOW:
                seen = seen & (key > last - window)
            p = tl.where(seen, p, 0.0)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="tf32x3")
    return dq


@jit_varying("sequences", "tokens", "q_length", "k_length", "window")
def _dq_kernel(
    q_ptr: tl.tensor,
    o_ptr: tl.tensor,
    do_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    stats_ptr: tl.tensor,
    dq_ptr: tl.tensor,
    q_rows: tl.tensor,
    do_rows: tl.tensor,
    k_rows: tl.tensor,
    v_rows: tl.tensor,
    cu_q_ptr: tl.tensor,
    cu_k_ptr: tl.tensor,
    scale: tl.tensor,
    sequences: tl.tensor,
    tokens: tl.tensor,
    q_length: tl.tensor,
    k_length: tl.tensor,
    window: tl.tensor,
    stride_q: tl.tensor,
    stride_do: tl.tensor,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    DENSE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    HALF: tl.constexpr = o_ptr.dtype.element_ty.primitive_bitwidth == 16
    heads = tl.num_programs(0)
    tiles = tl.num_programs(1)
    head = tl.program_id(0)
    # The last tiles of a sequence see the most keys: they start first.
    tile = tiles - 1 - tl.program_id(1)
    if DENSE:
        sequence = tile // tl.cdiv(q_length, BLOCK_M)
    else:
        sequence = find_sequence(cu_q_ptr, sequences, tile, BLOCK_M)
    q_start, q_len, k_start, k_len = spans(cu_q_ptr, cu_k_ptr, sequence, q_length, k_length, DENSE)
    tile_end = end_of_tiles(sequence, q_start + q_len, q_length, DENSE, BLOCK_M)
    top = q_len - (tile_end - tile) * BLOCK_M
    if top + BLOCK_M <= 0:
        return
    row = top + tl.arange(0, BLOCK_M)
    inside = row >= 0
    token = q_start.to(tl.int64) + row
    in_head = (head * D + tl.arange(0, D))[None, :]
    flat = token[:, None] * (heads * D) + in_head
    valid = inside[:, None]
    if HALF:
        # Selected, q and do are no longer plain loads: Triton then keeps them in registers, as the
        # left factors of their products, and spares the shared memory's bandwidth.
        q = tl.where(valid, q_rows.load([q_start + top, head * D]), 0.0)
        do = tl.where(valid, do_rows.load([q_start + top, head * D]), 0.0)
    else:
        # A float32 factor is split in two; from plain loads that happens in shared memory.
        q = tl.load(q_ptr + token[:, None] * stride_q + in_head, mask=valid, other=0.0)
        do = tl.load(do_ptr + token[:, None] * stride_do + in_head, mask=valid, other=0.0)
    o = tl.load(o_ptr + flat, mask=valid, other=0.0)
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), axis=1)
    lse = tl.load(lse_ptr + head.to(tl.int64) * tokens + token, mask=inside, other=float("inf"))
    lse *= 1.4426950408889634
    slots = tiles.to(tl.int64) * BLOCK_M
    slot = head * slots + tile * BLOCK_M + tl.arange(0, BLOCK_M)
    tl.store(stats_ptr + slot, lse)
    tl.store(stats_ptr + heads * slots + slot, delta)

    # Keys [start, end) are visited; those of [begin, whole) are seen by every row.
    offset = k_len - q_len
    start = 0
    begin = 0
    end = k_len
    whole = k_len
    if CAUSAL:
        end = tl.maximum(tl.minimum(top + BLOCK_M + offset, k_len), 0)
        whole = top + offset + 1
    if WINDOW:
        start = tl.maximum(top + offset + 1 - window, 0)
        begin = tl.maximum(top + BLOCK_M + offset - window, 0)
    start = end - tl.cdiv(tl.maximum(end - start, 0), BLOCK_N) * BLOCK_N
    cut = start
    column = head // GROUP * D
    scale_log2 = scale * 1.4426950408889634
    dq = tl.zeros((BLOCK_M, D), tl.float32)
    if HALF:
        # Twice the same: into a single user, Triton would move the loading of these registers.
        cut = tl.maximum(end - tl.cdiv(tl.maximum(end - whole, 0), BLOCK_N) * BLOCK_N, start)
        dq = _walk(
            dq, q, do, lse, delta, top + offset, window, k_rows, v_rows, k_start, column,
            scale_log2, start, cut, begin, D, CAUSAL, WINDOW, BLOCK_M, BLOCK_N, False,
        )  # fmt: skip
    dq = _walk(
        dq, q, do, lse, delta, top + offset, window, k_rows, v_rows, k_start, column, scale_log2,
        cut, end, begin, D, CAUSAL, WINDOW, BLOCK_M, BLOCK_N, True,
    )  # fmt: skip
    tl.store(dq_ptr + flat, (dq * scale).to(dq_ptr.dtype.element_ty), mask=valid)


def launch_dq(
    rows: Rows, o: Tensor, lse_HT: Tensor, mask: Mask, config: Config
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the queries, [T, H, D], and the statistics of their rows.

    Args:
        rows: The inputs, and the gradient of the output.
        o: The output, contiguous.
        lse_HT: Log-sum-exp of each row, float32.
        mask: Who sees whom.
        config: ``block_m`` and ``block_n``, ``num_warps`` and ``num_stages``.
    """
    tokens, heads, dim = rows.q.shape
    block_m, block_n = config["block_m"], config["block_n"]
    tiles = mask.batch.tiles_of_queries(tokens, block_m)
    dq = torch.empty(rows.q.shape, dtype=rows.q.dtype, device=rows.q.device)
    stats = torch.empty(2, heads, tiles * block_m, dtype=torch.float32, device=rows.q.device)
    launch(
        _dq_kernel,
        (heads, tiles),
        rows.q,
        o,
        rows.do,
        lse_HT,
        stats,
        dq,
        rows_of(rows.q, block_m),
        rows_of(rows.do, block_m),
        starting(rows.k, block_n),
        starting(rows.v, block_n),
        mask.batch.cu_q,
        mask.batch.cu_k,
        mask.scale,
        mask.batch.sequences,
        tokens,
        mask.batch.q_length,
        mask.batch.k_length,
        mask.window or 0,
        rows.q.stride(0),
        rows.do.stride(0),
        GROUP=heads // rows.k.shape[1],
        D=dim,
        DENSE=mask.batch.dense,
        CAUSAL=mask.causal,
        WINDOW=mask.window is not None,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=config["num_warps"],
        num_stages=config["num_stages"],
    )
    return dq, stats
