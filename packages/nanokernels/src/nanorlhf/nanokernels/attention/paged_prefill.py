r"""Prefill over a paged KV cache: each sequence's last tokens attend to all that is cached of it.

The work of :mod:`.forward` with its keys on pages: a prompt after a cached prefix, or one chunk of
a long prompt. Nothing is gathered first. A program owns BLOCK_M queries of one head and walks over
the keys they see, BLOCK_N at a time, as :mod:`.forward` does::

              keys 0 .. m-1, on pages of P
            +----+----+----+----+\
    query 0 | p7 | p2 | p9 | p4 | \            whole pages  no mask, the first loop
            |    |    |   diagonal|  \  not    diagonal     masked, the second loop
    n - 1   |    |    |    |    |   \ visited
            +----+----+----+----+----+

Where a page is a multiple of BLOCK_N, a tile of keys is one piece of memory and the first loop
reads it through a tensor descriptor (TMA); other pages are gathered by pointers. Tiles of keys
start at multiples of BLOCK_N from the sequence's start, and what a query does not see changes
nothing: its result does not depend on how the prompt was cut into chunks.

FLOPs: 4 D a visible pair.

Shape legend: T = new tokens of all sequences, N = sequences, H = query heads, K = KV heads,
D = head dimension, P = pages.
"""

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from nanorlhf.nanokernels.attention.forward import CANDIDATES
from nanorlhf.nanokernels.configs import Config, table
from nanorlhf.nanokernels.dispatch import (
    allow_scratch,
    cdiv,
    jit,
    jit_varying,
    launch,
    next_power_of_2,
    tl,
)
from nanorlhf.nanokernels.registration import register

if TYPE_CHECKING:
    from nanorlhf.nanokernels.tune import Tunable


def reference(
    q_THD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    seq_lens: Tensor,
    cu_seqlens: Tensor,
    _max_seqlen: int,
    scale: float,
) -> Tensor:
    """Return attention in plain PyTorch, one sequence after another."""
    page_size = k_pages.shape[2]
    o = torch.zeros_like(q_THD)
    starts = cu_seqlens.tolist()
    for row, (first, end, length) in enumerate(
        zip(starts[:-1], starts[1:], seq_lens.tolist(), strict=True)
    ):
        pages = page_table[row, : cdiv(length, page_size)].long()
        # [K, length, D], the pages of one sequence in order.
        k, v = (x[pages].transpose(0, 1).flatten(1, 2)[:, :length] for x in (k_pages, v_pages))
        last = torch.arange(first - end, 0, device=q_THD.device) + length
        # Queries before the first key see nothing and stay 0.
        seen = first + min(max(end - first - length, 0), end - first)
        if seen == end:
            continue
        mask = torch.arange(length, device=q_THD.device) <= last[seen - first :, None]
        q = q_THD[seen:end].transpose(0, 1)
        o[seen:end] = F.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=True
        )[0].transpose(0, 1)
    return o


@jit
def _fold(
    acc: tl.tensor,
    peak: tl.tensor,
    total: tl.tensor,
    s: tl.tensor,
    v: tl.tensor,
    scale_log2: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Fold one tile of scores and its values into the running output.

    Which loop a tile falls into depends on the chunk, its bits must not: where a product meets a
    sum, the rounding is spelled out and not left to what the compiler fuses in either loop.
    """
    new_peak = tl.maximum(peak, tl.max(s, axis=1) * scale_log2)
    # Nothing seen yet: -inf - -inf would be NaN.
    shift = tl.where(new_peak == -float("inf"), 0.0, new_peak)
    p = tl.math.exp2(tl.math.fma(s, scale_log2, -shift[:, None]))
    shrink = tl.math.exp2(peak - shift)
    total = tl.math.fma(total, shrink, tl.sum(p, axis=1))
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="tf32x3")
    return acc, new_peak, total


@jit_varying("stride_table", "cells")
def _prefill_kernel(
    q_ptr: tl.tensor,
    k_pages_ptr: tl.tensor,
    v_pages_ptr: tl.tensor,
    table_ptr: tl.tensor,
    lens_ptr: tl.tensor,
    cu_q_ptr: tl.tensor,
    o_ptr: tl.tensor,
    scale: tl.tensor,
    cells: tl.tensor,
    stride_table: tl.tensor,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WHOLE: tl.constexpr,
) -> None:
    sequence = tl.program_id(2).to(tl.int64)
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    kv_head = head // GROUP
    kv_heads = heads // GROUP
    q_start = tl.load(cu_q_ptr + sequence)
    q_len = tl.load(cu_q_ptr + sequence + 1) - q_start
    k_len = tl.load(lens_ptr + sequence)
    # The longest rows start first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    if tile * BLOCK_M >= q_len:
        return
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    dim = tl.arange(0, BLOCK_D)
    real = (dim < D)[None, :]
    valid = (row < q_len)[:, None] & real
    at = (q_start.to(tl.int64) + row)[:, None] * (heads * D) + (head * D + dim)[None, :]
    q = tl.load(q_ptr + at, mask=valid, other=0.0)
    offset = k_len - q_len
    last = row + offset
    end = tl.maximum(tl.minimum((tile + 1) * BLOCK_M + offset, k_len), 0)
    whole = tl.minimum(tl.maximum(tile * BLOCK_M + offset + 1, 0), k_len) // BLOCK_N * BLOCK_N
    peak = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    scale_log2 = scale * 1.4426950408889634
    pages = table_ptr + sequence * stride_table
    start = 0
    if WHOLE:
        # The whole cache as rows of one matrix: a tile of a page is BLOCK_N of them.
        k_rows = tl.make_tensor_descriptor(k_pages_ptr, [cells, D], [D, 1], [BLOCK_N, BLOCK_D])
        v_rows = tl.make_tensor_descriptor(v_pages_ptr, [cells, D], [D, 1], [BLOCK_N, BLOCK_D])
        for first in tl.range(0, whole, BLOCK_N):
            page = tl.load(pages + first // PAGE)
            cell = (page * kv_heads + kv_head) * PAGE + first % PAGE
            k = k_rows.load([cell, 0])
            s = tl.dot(q, tl.trans(k), input_precision="tf32x3")
            acc, peak, total = _fold(acc, peak, total, s, v_rows.load([cell, 0]), scale_log2)
        start = whole
    for first in tl.range(start, end, BLOCK_N):
        key = first + tl.arange(0, BLOCK_N)
        inside = key < k_len
        page = tl.load(pages + key // PAGE, mask=inside, other=0).to(tl.int64)
        cell = ((page * kv_heads + kv_head) * PAGE + key % PAGE)[:, None] * D + dim[None, :]
        k = tl.load(k_pages_ptr + cell, mask=inside[:, None] & real, other=0.0)
        v = tl.load(v_pages_ptr + cell, mask=inside[:, None] & real, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="tf32x3")
        s = tl.where(key[None, :] <= last[:, None], s, -float("inf"))
        acc, peak, total = _fold(acc, peak, total, s, v, scale_log2)
    # A query that saw nothing returns 0.
    out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(o_ptr + at, out.to(o_ptr.dtype.element_ty), mask=valid)


def _has_whole_tiles(q: Tensor, page_size: int, block_n: int) -> bool:
    """Return whether the first loop reads through descriptors: rows on 16-byte boundaries."""
    # In float32 the second loop's registers do not leave room for it.
    return page_size % block_n == 0 and q.element_size() == 2 and q.shape[2] % 8 == 0


def _launch(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    seq_lens: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    config: Config | None = None,
) -> Tensor:
    heads, dim = q.shape[1:]
    block_d = next_power_of_2(dim)
    config = config or table("paged_prefill")[f"{max(64, block_d)}/{q.element_size()}"]
    pages, kv_heads, page_size = k_pages.shape[:3]
    q = q.contiguous()
    page_table = page_table if page_table.stride(1) == 1 else page_table.contiguous()
    o = torch.empty_like(q)
    if not q.numel():
        return o
    allow_scratch(q)
    launch(
        _prefill_kernel,
        (cdiv(max_seqlen, config["block_m"]), heads, seq_lens.shape[0]),
        q,
        k_pages,
        v_pages,
        page_table,
        seq_lens,
        cu_seqlens,
        o,
        scale,
        pages * kv_heads * page_size,
        page_table.stride(0),
        GROUP=heads // kv_heads,
        D=dim,
        BLOCK_D=block_d,
        PAGE=page_size,
        BLOCK_M=config["block_m"],
        BLOCK_N=config["block_n"],
        WHOLE=_has_whole_tiles(q, page_size, config["block_n"]),
        num_warps=config["num_warps"],
        num_stages=config["num_stages"],
    )
    return o


_prefill_op = register(
    "paged_prefill(Tensor q, Tensor k_pages, Tensor v_pages, Tensor page_table, Tensor seq_lens, "
    "Tensor cu_seqlens, SymInt max_seqlen, float scale) -> Tensor",
    _launch,
    fake=lambda q, *_: q.new_empty(q.shape),
)


def attend(
    q_THD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    seq_lens: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    *,
    is_kernel: bool,
) -> Tensor:
    """Return attention of checked arguments; :func:`.paged.paged_attention` is the public name."""
    run = _prefill_op if is_kernel else reference
    o: Tensor = run(q_THD, k_pages, v_pages, page_table, seq_lens, cu_seqlens, max_seqlen, scale)
    return o


def tunables() -> "Iterator[Tunable]":
    """Yield the choices of launch parameters of 16-bit inputs, for 4 prompts of 4,096 tokens."""
    from nanorlhf.nanokernels.tune import Tunable

    def prepare(dim: int) -> Callable[[Config], Tensor]:
        q = torch.randn(4 * 4096, 16, dim, device="cuda", dtype=torch.bfloat16)
        pages = torch.randn(2, 4 * 32, 8, 128, dim, device="cuda", dtype=torch.bfloat16)
        where = torch.randperm(4 * 32, device="cuda").int().view(4, 32)
        lens = torch.full((4,), 4096, dtype=torch.int32, device="cuda")
        starts = torch.arange(0, 5 * 4096, 4096, dtype=torch.int32, device="cuda")
        given = q, pages[0], pages[1], where, lens, starts, 4096, dim**-0.5
        return lambda config: _launch(*given, config)

    for dim in (64, 128, 256):
        yield Tunable("paged_prefill", f"{dim}/2", CANDIDATES, functools.partial(prepare, dim))
