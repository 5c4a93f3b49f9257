r"""Forward of packed causal attention with grouped KV heads, as a reference and as a kernel.

FlashAttention-2 (Dao, arXiv:2307.08691): a program owns BLOCK_M queries of one head and walks over
the keys they see in steps of BLOCK_N, keeping a running maximum m, sum l and output in float32::

    s = scale log2(e) q k^T     m' = max(m, max s)     p = 2^(s - m')     a = 2^(m - m')
    l = l a + sum p             o = o a + p v          lse = (m + log2 l) / log2(e)

A sequence's queries are its last tokens: query i of n sees key j of m when ``j <= i + m - n``. With
a cached prefix (m > n) the mask is aligned at the bottom right::

              keys 0 .. m-1
            +---------+---------+\
    query 0 |  whole  |         | \            whole    no mask, the first loop
            |  tiles  |diagonal |  \  not      diagonal masked, the second loop
    n - 1   |         |         |   \ visited
            +---------+---------+----+

Programs of the longest rows start first. Nothing is saved but ``o`` and ``lse``; the backward
(:mod:`.backward`) recomputes p. FLOPs: 4 D a visible pair. Without skipping it would be twice that.

Shape legend: T = packed query tokens, S = packed key tokens, N = sequences, L = longest sequence,
H = query heads, K = KV heads, D = head dimension.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nanorlhf.nanokernels.attention.packed import Packed, Tile, as_rows
from nanorlhf.nanokernels.dispatch import (
    accumulator,
    allow_scratch,
    cdiv,
    jit,
    jit_varying,
    launch,
    tl,
)

FORWARD_TILES = {
    (16, 2): Tile(block_m=128, block_n=64, num_warps=4, num_stages=3),
    (32, 2): Tile(block_m=128, block_n=64, num_warps=4, num_stages=3),
    (64, 2): Tile(block_m=128, block_n=64, num_warps=4, num_stages=3),
    (128, 2): Tile(block_m=128, block_n=64, num_warps=8, num_stages=3),
    (16, 4): Tile(block_m=64, block_n=32, num_warps=4, num_stages=1),
    (32, 4): Tile(block_m=64, block_n=32, num_warps=4, num_stages=1),
    (64, 4): Tile(block_m=64, block_n=32, num_warps=4, num_stages=1),
    (128, 4): Tile(block_m=32, block_n=32, num_warps=8, num_stages=1),
}
"""Launch parameters by (head dimension, bytes of an element)."""


class Attended(NamedTuple):
    """What attention returns inside this package."""

    o_THD: Tensor
    lse_TH: Tensor | None


def _slots(packed: Packed, rows: int) -> Tensor:
    """Return each packed row's index in a batch padded to [N * L], int64 [rows]."""
    starts = packed.cu_seqlens[:-1].long()
    lengths = packed.cu_seqlens.diff().long()
    first = torch.arange(len(lengths), device=starts.device) * packed.max_seqlen - starts
    shift = first.repeat_interleave(lengths, output_size=rows)
    return shift + torch.arange(rows, device=starts.device)


def _slots_if_ragged(packed: Packed, rows: int) -> Tensor | None:
    """Return :func:`_slots`, or None when every sequence is L long and nothing need move."""
    return None if rows == packed.num_sequences * packed.max_seqlen else _slots(packed, rows)


def _pad(x: Tensor, packed: Packed, slots: Tensor | None) -> Tensor:
    """Return packed [T, H, D] as [N, H, L, D], zeros on padding; a view when nothing is padded."""
    heads, dim = x.shape[1:]
    if slots is not None:
        x = x.new_zeros(packed.num_sequences * packed.max_seqlen, heads, dim).index_copy(
            0, slots, x
        )
    return x.view(packed.num_sequences, packed.max_seqlen, heads, dim).transpose(1, 2)


def _unpad(x: Tensor, slots: Tensor | None) -> Tensor:
    """Return [N, H, L, ...] packed as [T, H, ...]."""
    x = x.transpose(1, 2).flatten(0, 1)
    return x if slots is None else x.index_select(0, slots)


def _visible(queries: Packed, keys: Packed) -> Tensor:
    """Return which keys a query sees, bool [N, 1, Lq, Lk], aligned at the bottom right."""
    device = queries.cu_seqlens.device
    query_lengths, key_lengths = queries.cu_seqlens.diff(), keys.cu_seqlens.diff()
    row = torch.arange(queries.max_seqlen, device=device)
    column = torch.arange(keys.max_seqlen, device=device)
    last = row + (key_lengths - query_lengths)[:, None]
    last = torch.minimum(last, key_lengths[:, None] - 1)
    return (column <= last[:, :, None])[:, None]


@torch.no_grad()
def _log_sum_exp(q: Tensor, k: Tensor, visible: Tensor, scale: float) -> Tensor:
    """Return the log of each query's softmax denominator, [N, H, L]."""
    high = accumulator(q.dtype)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q.to(high) @ k.to(high).transpose(-1, -2) * scale
    return scores.masked_fill(~visible, -math.inf).logsumexp(dim=-1)


def _masked_sdpa(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Tensor:
    """Return attention under an explicit mask; 0 where a query sees nothing."""
    # Such a row would be 0 / 0: it looks at every key and is cleared afterwards.
    blind = ~visible.any(dim=-1, keepdim=True)
    o = F.scaled_dot_product_attention(
        q, k, v, attn_mask=visible | blind, scale=scale, enable_gqa=True
    )
    return o.masked_fill(blind, 0.0)


def reference(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    *,
    queries: Packed,
    keys: Packed | None = None,
    scale: float,
    return_lse: bool = False,
) -> Attended:
    """Return attention by padding to [N, L] and one call of PyTorch's own.

    Without ``keys`` the padding lies behind every token a causal mask lets through, so the flag
    ``is_causal`` is mask enough and the fused CPU kernel runs.
    """
    slots = _slots_if_ragged(queries, q_THD.shape[0])
    key_slots = slots if keys is None else _slots_if_ragged(keys, k_SKD.shape[0])
    q = _pad(q_THD, queries, slots)
    k, v = (_pad(x, keys or queries, key_slots) for x in (k_SKD, v_SKD))
    if keys is None:
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    else:
        o = _masked_sdpa(q, k, v, _visible(queries, keys), scale)
    lse = None
    if return_lse:
        lse = _unpad(_log_sum_exp(q, k, _visible(queries, keys or queries), scale), slots)
    return Attended(_unpad(o, slots), lse)


@jit
def _attend(
    acc: tl.tensor,
    peak: tl.tensor,
    total: tl.tensor,
    q: tl.tensor,
    last: tl.tensor,
    k_rows: tl.tensor,
    v_rows: tl.tensor,
    column: tl.tensor,
    scale_log2: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Fold keys [start, end) into the running output, maximum and sum of a tile of queries."""
    for first in tl.range(start, end, BLOCK_N):
        k = k_rows.load([first, column])
        s = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale_log2
        if MASKED:
            key = first + tl.arange(0, BLOCK_N)
            s = tl.where(key[None, :] <= last[:, None], s, -float("inf"))
            new_peak = tl.maximum(peak, tl.max(s, axis=1))
            # Nothing seen yet: -inf - -inf would be NaN.
            shift = tl.where(new_peak == -float("inf"), 0.0, new_peak)
        else:
            new_peak = tl.maximum(peak, tl.max(s, axis=1))
            shift = new_peak
        p = tl.math.exp2(s - shift[:, None])
        shrink = tl.math.exp2(peak - shift)
        total = total * shrink + tl.sum(p, axis=1)
        v = v_rows.load([first, column])
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="tf32x3")
        peak = new_peak
    return acc, peak, total


@jit_varying("tokens")
def _forward_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    o_ptr: tl.tensor,
    lse_ptr: tl.tensor,
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
    column = head // GROUP * D
    width = tl.num_programs(1) // GROUP * D
    k_rows = tl.make_tensor_descriptor(
        k_ptr + k_start.to(tl.int64) * stride_k, [k_len, width], [stride_k, 1], [BLOCK_N, D]
    )
    v_rows = tl.make_tensor_descriptor(
        v_ptr + k_start.to(tl.int64) * stride_v, [k_len, width], [stride_v, 1], [BLOCK_N, D]
    )
    token = q_start.to(tl.int64) + row
    q_tile = q_ptr + token[:, None] * stride_q + (head * D + dim)[None, :]
    q = tl.load(q_tile, mask=valid, other=0.0)

    offset = k_len - q_len
    last = row + offset
    end = tl.maximum(tl.minimum((tile + 1) * BLOCK_M + offset, k_len), 0)
    whole = tl.minimum(tl.maximum(tile * BLOCK_M + offset + 1, 0), k_len) // BLOCK_N * BLOCK_N
    peak = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, D), tl.float32)
    scale_log2 = scale * 1.4426950408889634
    acc, peak, total = _attend(
        acc, peak, total, q, last, k_rows, v_rows, column, scale_log2,
        0, whole, False, BLOCK_N,
    )  # fmt: skip
    acc, peak, total = _attend(
        acc, peak, total, q, last, k_rows, v_rows, column, scale_log2,
        whole, end, True, BLOCK_N,
    )  # fmt: skip

    # A query that saw nothing returns 0, and -inf as its log-sum-exp.
    total = tl.where(total == 0.0, 1.0, total)
    out = acc / total[:, None]
    o_tile = o_ptr + (token * tl.num_programs(1) + head)[:, None] * D + dim[None, :]
    tl.store(o_tile, out.to(o_ptr.dtype.element_ty), mask=valid)
    lse = (peak + tl.math.log2(total)) * 0.6931471805599453
    tl.store(lse_ptr + head.to(tl.int64) * tokens + token, lse, mask=row < q_len)


class Saved(NamedTuple):
    """The output and the log-sum-exp of each row, float32 [H, T]."""

    o_THD: Tensor
    lse_HT: Tensor


def launch_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    queries: Packed,
    keys: Packed,
    scale: float,
    tile: Tile | None = None,
) -> Saved:
    """Return attention's output and log-sum-exp from the kernel."""
    tokens, heads, dim = q.shape
    tile = tile or FORWARD_TILES[dim, q.element_size()]
    q, k, v = as_rows(q), as_rows(k), as_rows(v)
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    if not tokens:
        return Saved(o, lse)
    allow_scratch(q)
    launch(
        _forward_kernel,
        (cdiv(queries.max_seqlen, tile.block_m), heads, queries.num_sequences),
        q,
        k,
        v,
        o,
        lse,
        queries.cu_seqlens,
        keys.cu_seqlens,
        scale,
        tokens,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        GROUP=heads // k.shape[1],
        D=dim,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return Saved(o, lse)
