"""Backward of packed causal attention, in two passes that never add to the same memory.

With p recomputed from the saved log-sum-exp and ``do`` the gradient of the output::

    delta = sum(do * o)        dp = do v^T         ds = p (dp - delta)
    dv = p^T do                dk = scale ds^T q   dq = scale ds k

Pass 1 owns a tile of queries, walks over the keys it sees and writes dq (and delta on the way);
pass 2 owns a tile of keys of one KV head, walks over the queries that see it, of all GROUP query
heads in turn, and writes dk and dv::

    pass 1  query tile  x  keys ->         pass 2  key tile  x  queries of head 0, 1, ... ->

p is computed in both passes: 7 matrix products where one pass with atomic adds takes 5. In
exchange nothing is added atomically, so two runs agree to the last bit, and grouped KV heads need
no expanded copy. Tiles beyond the mask are skipped in both passes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from nanorlhf.nanokernels.attention.packed import Packed, Tile, as_rows
from nanorlhf.nanokernels.dispatch import allow_scratch, cdiv, jit, jit_varying, launch, tl

DQ_TILES = {
    (16, 2): Tile(block_m=128, block_n=64, num_warps=4, num_stages=2),
    (32, 2): Tile(block_m=128, block_n=64, num_warps=4, num_stages=2),
    (64, 2): Tile(block_m=128, block_n=64, num_warps=8, num_stages=2),
    (128, 2): Tile(block_m=128, block_n=64, num_warps=8, num_stages=2),
    (16, 4): Tile(block_m=64, block_n=32, num_warps=4, num_stages=1),
    (32, 4): Tile(block_m=64, block_n=32, num_warps=4, num_stages=1),
    (64, 4): Tile(block_m=64, block_n=32, num_warps=4, num_stages=1),
    (128, 4): Tile(block_m=16, block_n=32, num_warps=8, num_stages=1),
}
DKDV_TILES = {
    (16, 2): Tile(block_m=32, block_n=128, num_warps=4, num_stages=2),
    (32, 2): Tile(block_m=32, block_n=128, num_warps=4, num_stages=2),
    (64, 2): Tile(block_m=64, block_n=128, num_warps=8, num_stages=1),
    (128, 2): Tile(block_m=64, block_n=128, num_warps=8, num_stages=1),
    (16, 4): Tile(block_m=32, block_n=32, num_warps=4, num_stages=1),
    (32, 4): Tile(block_m=32, block_n=16, num_warps=4, num_stages=1),
    (64, 4): Tile(block_m=64, block_n=32, num_warps=8, num_stages=1),
    (128, 4): Tile(block_m=32, block_n=16, num_warps=8, num_stages=1),
}
"""Launch parameters by (head dimension, bytes of an element)."""


@jit
def _accumulate_dq(
    dq: tl.tensor,
    q: tl.tensor,
    do: tl.tensor,
    lse: tl.tensor,
    delta: tl.tensor,
    last: tl.tensor,
    k_rows: tl.tensor,
    v_rows: tl.tensor,
    column: tl.tensor,
    scale_log2: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """Add what keys [start, end) give to ``dq / scale`` of a tile of queries."""
    for first in tl.range(start, end, BLOCK_N):
        k = k_rows.load([first, column])
        v = v_rows.load([first, column])
        s = tl.dot(q, tl.trans(k), input_precision="tf32x3")
        p = tl.math.exp2(s * scale_log2 - lse[:, None])
        if MASKED:
            key = first + tl.arange(0, BLOCK_N)
            p = tl.where(key[None, :] <= last[:, None], p, 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision="tf32x3")
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="tf32x3")
    return dq


@jit_varying("tokens")
def _dq_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    o_ptr: tl.tensor,
    do_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    dq_ptr: tl.tensor,
    cu_q_ptr: tl.tensor,
    cu_k_ptr: tl.tensor,
    scale: tl.tensor,
    tokens: tl.tensor,
    stride_q: tl.tensor,
    stride_k: tl.tensor,
    stride_v: tl.tensor,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    sequence = tl.program_id(2)
    head = tl.program_id(1)
    q_start = tl.load(cu_q_ptr + sequence)
    q_len = tl.load(cu_q_ptr + sequence + 1) - q_start
    k_start = tl.load(cu_k_ptr + sequence)
    k_len = tl.load(cu_k_ptr + sequence + 1) - k_start
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    if tile * BLOCK_M >= q_len:
        return
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    dim = tl.arange(0, D)
    valid = (row < q_len)[:, None]
    token = q_start.to(tl.int64) + row
    flat = (token * tl.num_programs(1) + head)[:, None] * D + dim[None, :]
    column = head // GROUP * D
    width = tl.num_programs(1) // GROUP * D
    k_rows = tl.make_tensor_descriptor(
        k_ptr + k_start.to(tl.int64) * stride_k, [k_len, width], [stride_k, 1], [BLOCK_N, D]
    )
    v_rows = tl.make_tensor_descriptor(
        v_ptr + k_start.to(tl.int64) * stride_v, [k_len, width], [stride_v, 1], [BLOCK_N, D]
    )
    q_tile = q_ptr + token[:, None] * stride_q + (head * D + dim)[None, :]
    q = tl.load(q_tile, mask=valid, other=0.0)
    do = tl.load(do_ptr + flat, mask=valid, other=0.0)
    o = tl.load(o_ptr + flat, mask=valid, other=0.0)
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), axis=1)
    by_head = head.to(tl.int64) * tokens + token
    tl.store(delta_ptr + by_head, delta, mask=row < q_len)
    # +inf makes p of the rows past the end 0.
    lse = tl.load(lse_ptr + by_head, mask=row < q_len, other=float("inf")) * 1.4426950408889634

    offset = k_len - q_len
    last = row + offset
    end = tl.maximum(tl.minimum((tile + 1) * BLOCK_M + offset, k_len), 0)
    whole = tl.minimum(tl.maximum(tile * BLOCK_M + offset + 1, 0), k_len) // BLOCK_N * BLOCK_N
    scale_log2 = scale * 1.4426950408889634
    dq = tl.zeros((BLOCK_M, D), tl.float32)
    dq = _accumulate_dq(
        dq, q, do, lse, delta, last, k_rows, v_rows, column, scale_log2,
        0, whole, False, BLOCK_N,
    )  # fmt: skip
    dq = _accumulate_dq(
        dq, q, do, lse, delta, last, k_rows, v_rows, column, scale_log2,
        whole, end, True, BLOCK_N,
    )  # fmt: skip
    tl.store(dq_ptr + flat, (dq * scale).to(dq_ptr.dtype.element_ty), mask=valid)


@jit_varying("tokens")
def _dkdv_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    do_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    dk_ptr: tl.tensor,
    dv_ptr: tl.tensor,
    cu_q_ptr: tl.tensor,
    cu_k_ptr: tl.tensor,
    scale: tl.tensor,
    tokens: tl.tensor,
    stride_q: tl.tensor,
    stride_k: tl.tensor,
    stride_v: tl.tensor,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    sequence = tl.program_id(2)
    kv_head = tl.program_id(1)
    q_start = tl.load(cu_q_ptr + sequence)
    q_len = tl.load(cu_q_ptr + sequence + 1) - q_start
    k_start = tl.load(cu_k_ptr + sequence)
    k_len = tl.load(cu_k_ptr + sequence + 1) - k_start
    first = tl.program_id(0) * BLOCK_N
    if first >= k_len:
        return
    key = first + tl.arange(0, BLOCK_N)
    dim = tl.arange(0, D)
    valid = (key < k_len)[:, None]
    token = k_start.to(tl.int64) + key
    in_head = (kv_head * D + dim)[None, :]
    k = tl.load(k_ptr + token[:, None] * stride_k + in_head, mask=valid, other=0.0)
    v = tl.load(v_ptr + token[:, None] * stride_v + in_head, mask=valid, other=0.0)
    width = tl.num_programs(1) * GROUP * D
    q_rows = tl.make_tensor_descriptor(
        q_ptr + q_start.to(tl.int64) * stride_q, [q_len, width], [stride_q, 1], [BLOCK_M, D]
    )
    do_rows = tl.make_tensor_descriptor(
        do_ptr + q_start.to(tl.int64) * width, [q_len, width], [width, 1], [BLOCK_M, D]
    )

    offset = k_len - q_len
    # The first row that sees any key of the tile; from there on, one loop that always masks: with a
    # second loop for the rows that see the whole tile the kernel spills.
    start = tl.maximum(first - offset, 0) // BLOCK_M * BLOCK_M
    scale_log2 = scale * 1.4426950408889634
    dk = tl.zeros((BLOCK_N, D), tl.float32)
    dv = tl.zeros((BLOCK_N, D), tl.float32)
    for member in range(GROUP):
        head = kv_head * GROUP + member
        by_head = head.to(tl.int64) * tokens + q_start
        for top in tl.range(start, q_len, BLOCK_M):
            row = top + tl.arange(0, BLOCK_M)
            inside = row < q_len
            q = q_rows.load([top, head * D])
            # +inf makes p of the rows past the end 0.
            lse = tl.load(lse_ptr + by_head + row, mask=inside, other=float("inf"))
            s = tl.dot(k, tl.trans(q), input_precision="tf32x3") * scale_log2
            p = tl.math.exp2(s - (lse * 1.4426950408889634)[None, :])
            p = tl.where(key[:, None] <= (row + offset)[None, :], p, 0.0)
            do = do_rows.load([top, head * D])
            dv = tl.dot(p.to(do.dtype), do, dv, input_precision="tf32x3")
            delta = tl.load(delta_ptr + by_head + row, mask=inside, other=0.0)
            dp = tl.dot(v, tl.trans(do), input_precision="tf32x3")
            ds = p * (dp - delta[None, :])
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="tf32x3")
    flat = token[:, None] * (tl.num_programs(1) * D) + in_head
    tl.store(dk_ptr + flat, (dk * scale).to(dk_ptr.dtype.element_ty), mask=valid)
    tl.store(dv_ptr + flat, dv.to(dv_ptr.dtype.element_ty), mask=valid)


class Grads(NamedTuple):
    """Gradients of attention's three inputs."""

    q_THD: Tensor
    k_SKD: Tensor
    v_SKD: Tensor


def launch_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse_HT: Tensor,
    do: Tensor,
    *,
    queries: Packed,
    keys: Packed,
    scale: float,
    dq_tile: Tile | None = None,
    dkdv_tile: Tile | None = None,
) -> Grads:
    """Return the gradients of packed attention from what its forward saved."""
    tokens, heads, dim = q.shape
    kv_heads = k.shape[1]
    dq_tile = dq_tile or DQ_TILES[dim, q.element_size()]
    dkdv_tile = dkdv_tile or DKDV_TILES[dim, q.element_size()]
    q, k, v, do = as_rows(q), as_rows(k), as_rows(v), as_rows(do.contiguous())
    grads = Grads(*(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)))
    delta = torch.empty_like(lse_HT)
    shared = (
        queries.cu_seqlens,
        keys.cu_seqlens,
        scale,
        tokens,
        q.stride(0),
        k.stride(0),
        v.stride(0),
    )
    allow_scratch(q)
    if q.numel():
        launch(
            _dq_kernel, (cdiv(queries.max_seqlen, dq_tile.block_m), heads, queries.num_sequences),
            q, k, v, o, do, lse_HT, delta, grads.q_THD, *shared,
            GROUP=heads // kv_heads, D=dim, **_options(dq_tile),
        )  # fmt: skip
    if k.numel():
        launch(
            _dkdv_kernel, (cdiv(keys.max_seqlen, dkdv_tile.block_n), kv_heads, keys.num_sequences),
            q, k, v, do, lse_HT, delta, grads.k_SKD, grads.v_SKD, *shared,
            GROUP=heads // kv_heads, D=dim, **_options(dkdv_tile),
        )  # fmt: skip
    return grads


def _options(tile: Tile) -> dict[str, int]:
    """Return a tile as a kernel's keyword arguments."""
    return {
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }
