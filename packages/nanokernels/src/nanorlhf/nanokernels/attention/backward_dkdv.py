"""Second pass of attention's backward: the gradients of the keys and the values.

A program owns BLOCK_N keys of one KV head and walks over the queries that see them, of all GROUP
query heads one after another in a single loop; :mod:`.backward` has the formulas. It works on the
transposes, ``p^T = exp(scale k q^T - lse)`` and ``ds^T``: they come out of one product as the left
factor of the next, so they stay in registers. Rows of queries are visited in tiles that end where
the sequence does, like the slots of the statistics (:mod:`.backward_dq`); before row 0 a tile reads
zeros, and +inf as lse, which makes p 0. Only tiles that the mask cuts are masked; a window is
causal.

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
from nanorlhf.nanokernels.dispatch import descriptor, jit_varying, launch, tl


@jit_varying("sequences", "slots", "q_length", "k_length", "window")
def _dkdv_kernel(
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    dk_ptr: tl.tensor,
    dv_ptr: tl.tensor,
    q_rows: tl.tensor,
    do_rows: tl.tensor,
    k_rows: tl.tensor,
    v_rows: tl.tensor,
    stats: tl.tensor,
    cu_q_ptr: tl.tensor,
    cu_k_ptr: tl.tensor,
    scale: tl.tensor,
    sequences: tl.tensor,
    slots: tl.tensor,
    q_length: tl.tensor,
    k_length: tl.tensor,
    window: tl.tensor,
    stride_k: tl.tensor,
    stride_v: tl.tensor,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    DENSE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    kv_heads = tl.num_programs(0)
    kv_head = tl.program_id(0)
    # The first tiles of a sequence are seen by the most queries, and start first.
    tile = tl.program_id(1)
    if DENSE:
        sequence = tile // tl.cdiv(k_length, BLOCK_N)
    else:
        sequence = find_sequence(cu_k_ptr, sequences, tile, BLOCK_N)
    q_start, q_len, k_start, k_len = spans(cu_q_ptr, cu_k_ptr, sequence, q_length, k_length, DENSE)
    if DENSE:
        first = tile % tl.cdiv(k_length, BLOCK_N) * BLOCK_N
    else:
        first = (tile - k_start // BLOCK_N - sequence) * BLOCK_N
    if first >= k_len:
        return
    if k_ptr.dtype.element_ty.primitive_bitwidth == 16:
        k = k_rows.load([k_start + first, kv_head * D])
        v = v_rows.load([k_start + first, kv_head * D])
    else:
        # As in the first pass: it spares registers where factors are split in two.
        key = first + tl.arange(0, BLOCK_N)
        token = (k_start.to(tl.int64) + key)[:, None]
        here = (kv_head * D + tl.arange(0, D))[None, :]
        k = tl.load(k_ptr + token * stride_k + here, mask=(key < k_len)[:, None], other=0.0)
        v = tl.load(v_ptr + token * stride_v + here, mask=(key < k_len)[:, None], other=0.0)

    # Rows [start, end) are visited; ``own`` is the first that sees the tile's first key.
    own = first - (k_len - q_len)
    start = 0
    end = q_len
    if CAUSAL:
        start = tl.minimum(tl.maximum(own, 0), q_len)
    if WINDOW:
        end = tl.minimum(tl.maximum(own + BLOCK_N - 1 + window, 0), q_len)
    start = q_len - tl.cdiv(q_len - start, BLOCK_M) * BLOCK_M
    end = q_len - (q_len - end) // BLOCK_M * BLOCK_M
    steps = tl.maximum(end - start, 0) // BLOCK_M * GROUP
    slot = end_of_tiles(sequence, q_start + q_len, q_length, DENSE, SLOTS) * SLOTS - q_len
    scale_log2 = scale * 1.4426950408889634
    dk = tl.zeros((BLOCK_N, D), tl.float32)
    dv = tl.zeros((BLOCK_N, D), tl.float32)
    head = kv_head * GROUP
    top = start
    for _ in tl.range(steps):
        q = tl.reshape(q_rows.load([q_start, top, head * D]), (BLOCK_M, D))
        do = tl.reshape(do_rows.load([q_start, top, head * D]), (BLOCK_M, D))
        s = tl.dot(k, tl.trans(q), input_precision="tf32x3")
        lse = stats.load([head * slots + slot + top])
        p = tl.math.exp2(s * scale_log2 - lse[None, :])
        if CAUSAL:
            # All a mask needs is how far the rows lie past the keys: it spares registers.
            past = top - own
            cut = past < BLOCK_N - 1
            if WINDOW:
                cut = cut | (past + BLOCK_M > window)
            if cut:
                ago = past + tl.arange(0, BLOCK_M)[None, :] - tl.arange(0, BLOCK_N)[:, None]
                seen = ago >= 0
                if WINDOW:
                    seen = seen & (ago < window)
                p = tl.where(seen, p, 0.0)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision="tf32x3")
        dp = tl.dot(v, tl.trans(do), input_precision="tf32x3")
        delta = stats.load([(kv_heads * GROUP + head) * slots + slot + top])
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="tf32x3")
        top += BLOCK_M
        head += tl.where(top >= end, 1, 0)
        top = tl.where(top >= end, start, top)
    # Only now, so that these take no registers in the loop.
    key = first + tl.arange(0, BLOCK_N)
    token = (k_start.to(tl.int64) + key)[:, None]
    flat = (token * kv_heads + kv_head) * D + tl.arange(0, D)[None, :]
    valid = (key < k_len)[:, None]
    tl.store(dk_ptr + flat, (dk * scale).to(dk_ptr.dtype.element_ty), mask=valid)
    tl.store(dv_ptr + flat, dv.to(dv_ptr.dtype.element_ty), mask=valid)


def launch_dkdv(
    rows: Rows, stats: Tensor, mask: Mask, config: Config, *, slots: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the keys and the values, [S, K, D].

    Args:
        rows: The inputs, and the gradient of the output.
        stats: What the first pass wrote, float32 [2, H, any].
        mask: Who sees whom.
        config: ``block_m`` and ``block_n``, ``num_warps`` and ``num_stages``.
        slots: Queries of a tile of the first pass, a multiple of ``block_m``.
    """
    kv_heads, dim = rows.k.shape[1:]
    block_m, block_n = config["block_m"], config["block_n"]
    assert slots % block_m == 0, f"block_m={block_m} does not divide slots={slots}"
    dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (rows.k, rows.v))
    launch(
        _dkdv_kernel,
        (kv_heads, mask.batch.tiles_of_keys(len(rows.k), block_n)),
        rows.k,
        rows.v,
        dk,
        dv,
        starting(rows.q, block_m),
        starting(rows.do, block_m),
        rows_of(rows.k, block_n),
        rows_of(rows.v, block_n),
        descriptor(stats, [stats.numel()], [1], [block_m]),
        mask.batch.cu_q,
        mask.batch.cu_k,
        mask.scale,
        mask.batch.sequences,
        stats.shape[2],
        mask.batch.q_length,
        mask.batch.k_length,
        mask.window or 0,
        rows.k.stride(0),
        rows.v.stride(0),
        GROUP=rows.q.shape[1] // kv_heads,
        D=dim,
        DENSE=mask.batch.dense,
        CAUSAL=mask.causal,
        WINDOW=mask.window is not None,
        SLOTS=slots,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=config["num_warps"],
        num_stages=config["num_stages"],
    )
    return dk, dv
