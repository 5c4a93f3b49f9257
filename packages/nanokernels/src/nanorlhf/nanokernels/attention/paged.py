r"""Decode attention: one query per sequence over a paged KV cache.

Decoding reads every cached key and value once and computes little: the work is to read memory at
full speed with few sequences. Two passes (FlashDecoding, Dao et al., 2023)::

    sequence b   [ split 0: 512 keys ][ split 1: 512 keys ][ split 2: 70 ]
                         |                    |                  |
                  program (k, b, 0)    program (k, b, 1)  program (k, b, 2)     pass 1
                         \--------- o, lse of each split --------/
                                              |
                                        program (b, h)                          pass 2

A program of pass 1 serves all query heads of one KV head at once, as the rows of a matrix product
(padded to the 16 rows the tensor cores want), so nothing is read twice. Splits have a fixed
*length*, not a fixed number, and pass 2 adds them in order: a row's result does not depend on how
many rows, or how wide a page table, stand around it. With one split there is no pass 2.

Memory bound: 2 K D elements move per cached token.

Shape legend: B = sequences, H = query heads, K = KV heads, D = head dimension, P = pages.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nanorlhf.nanokernels.attention.kv_cache import check_pages
from nanorlhf.nanokernels.dispatch import (
    Impl,
    cdiv,
    jit,
    jit_varying,
    launch,
    next_power_of_2,
    tl,
    use_triton,
)

HEAD_DIMS = (16, 32, 64, 128)
MIN_PAGE_SIZE = 16


class Config(NamedTuple):
    """Launch parameters."""

    split: int
    """Keys of a program; a multiple of ``block``."""
    block: int
    """Keys of a step."""
    num_warps: int
    num_stages: int


CONFIGS = {
    2: Config(split=512, block=64, num_warps=4, num_stages=2),
    4: Config(split=512, block=16, num_warps=4, num_stages=1),
}
"""By bytes of an element."""


def reference(
    q_BHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
) -> Tensor:
    """Return decode attention in plain PyTorch: gather the pages, then one masked call."""
    rows, heads, dim = q_BHD.shape
    kv_heads, page_size = k_pages.shape[1:3]
    longest = int(seq_lens.max()) if rows else 0
    if longest == 0:
        return torch.zeros_like(q_BHD)
    width = cdiv(longest, page_size)
    pages = page_table[:, None, :width].clamp(min=0) * kv_heads
    cells = (pages + torch.arange(kv_heads, device=pages.device)[:, None]).flatten().long()

    def gather(cache: Tensor) -> Tensor:
        """Return [B, K, width * page_size, D], one copy."""
        flat = cache.view(-1, page_size * dim).index_select(0, cells)
        return flat.view(rows, kv_heads, -1, dim)

    empty = (seq_lens == 0)[:, None, None]
    position = torch.arange(width * page_size, device=q_BHD.device)
    mask = (position < seq_lens[:, None])[:, None, None, :] | empty[..., None]
    # The query heads of one KV head are the rows of one small matrix, so no key is read twice.
    q = q_BHD.reshape(rows, kv_heads, heads // kv_heads, dim)
    o = F.scaled_dot_product_attention(
        q, gather(k_pages), gather(v_pages), attn_mask=mask, scale=scale
    )
    return o.reshape(rows, heads, dim).masked_fill(empty, 0.0)


@jit
def _split_kernel(
    q_ptr: tl.tensor,
    k_pages_ptr: tl.tensor,
    v_pages_ptr: tl.tensor,
    table_ptr: tl.tensor,
    lens_ptr: tl.tensor,
    o_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    scale: tl.tensor,
    stride_table: tl.tensor,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    FINAL: tl.constexpr,
) -> None:
    kv_head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    sequence = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    length = tl.load(lens_ptr + sequence)
    start = split * SPLIT
    if not FINAL:  # noqa: SIM102 - decided at compile time, the other when it runs
        if start >= length:
            return
    end = tl.minimum(start + SPLIT, length)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, D)
    used = (row < GROUP)[:, None]
    first_head = (sequence * kv_heads + kv_head) * GROUP
    q_tile = q_ptr + (first_head + row)[:, None] * D + dim[None, :]
    q = tl.load(q_tile, mask=used, other=0.0)
    peak = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, D), tl.float32)
    scale_log2 = scale * 1.4426950408889634
    for first in tl.range(start, end, BLOCK):
        key = first + tl.arange(0, BLOCK)
        seen = key < end
        if PAGE % BLOCK == 0:
            page = tl.load(table_ptr + sequence * stride_table + first // PAGE).to(tl.int64)
        else:
            page = tl.load(table_ptr + sequence * stride_table + key // PAGE, mask=seen, other=0)
            page = page.to(tl.int64)
        at = (page * kv_heads + kv_head) * (PAGE * D) + (key % PAGE) * D
        cell = at[:, None] + dim[None, :]
        k = tl.load(k_pages_ptr + cell, mask=seen[:, None], other=0.0)
        v = tl.load(v_pages_ptr + cell, mask=seen[:, None], other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale_log2
        s = tl.where(seen[None, :], s, -float("inf"))
        # Finite: the first key of a step is always seen.
        new_peak = tl.maximum(peak, tl.max(s, axis=1))
        p = tl.math.exp2(s - new_peak[:, None])
        shrink = tl.math.exp2(peak - new_peak)
        total = total * shrink + tl.sum(p, axis=1)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="tf32x3")
        peak = new_peak
    total = tl.where(total == 0.0, 1.0, total)
    out = acc / total[:, None]
    if FINAL:
        o_tile = o_ptr + (first_head + row)[:, None] * D + dim[None, :]
        tl.store(o_tile, out.to(o_ptr.dtype.element_ty), mask=used)
    else:
        part = (first_head + row) * tl.num_programs(2) + split
        tl.store(o_ptr + part[:, None] * D + dim[None, :], out, mask=used)
        tl.store(lse_ptr + part, peak + tl.math.log2(total), mask=row < GROUP)


@jit_varying("splits")
def _combine_kernel(
    parts_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    lens_ptr: tl.tensor,
    o_ptr: tl.tensor,
    splits: tl.tensor,
    D: tl.constexpr,
    SPLIT: tl.constexpr,
) -> None:
    sequence = tl.program_id(1).to(tl.int64)
    head = sequence * tl.num_programs(0) + tl.program_id(0)
    dim = tl.arange(0, D)
    used = tl.cdiv(tl.load(lens_ptr + sequence), SPLIT)
    acc = tl.zeros((D,), tl.float32)
    total = 0.0
    peak = -float("inf")
    for split in tl.range(0, used):
        lse = tl.load(lse_ptr + head * splits + split)
        part = tl.load(parts_ptr + (head * splits + split) * D + dim)
        new_peak = tl.maximum(peak, lse)
        shrink = tl.math.exp2(peak - new_peak)
        share = tl.math.exp2(lse - new_peak)
        acc = acc * shrink + part * share
        total = total * shrink + share
        peak = new_peak
    out = acc / tl.where(used > 0, total, 1.0)
    tl.store(o_ptr + head * D + dim, out.to(o_ptr.dtype.element_ty))


def _launch(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    config: Config | None = None,
) -> Tensor:
    config = config or CONFIGS[q.element_size()]
    rows, heads, dim = q.shape
    kv_heads, page_size = k_pages.shape[1:3]
    group = heads // kv_heads
    splits = max(1, cdiv(page_table.shape[1] * page_size, config.split))
    q = q.contiguous()
    o = torch.empty_like(q)
    if not q.numel():
        return o
    parts, lse = o, o
    if splits > 1:
        parts = torch.empty(rows, heads, splits, dim, dtype=torch.float32, device=q.device)
        lse = torch.empty(rows, heads, splits, dtype=torch.float32, device=q.device)
    launch(
        _split_kernel,
        (kv_heads, rows, splits),
        q,
        k_pages,
        v_pages,
        page_table,
        seq_lens,
        parts,
        lse,
        scale,
        page_table.stride(0),
        GROUP=group,
        ROWS=max(16, next_power_of_2(group)),
        D=dim,
        PAGE=page_size,
        SPLIT=config.split,
        BLOCK=config.block,
        FINAL=splits == 1,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if splits > 1:
        launch(
            _combine_kernel,
            (heads, rows),
            parts,
            lse,
            seq_lens,
            o,
            splits,
            D=dim,
            SPLIT=config.split,
            num_warps=1,
        )
    return o


def _check(q: Tensor, k_pages: Tensor, v_pages: Tensor, table: Tensor, lens: Tensor) -> None:
    """Raise ``ValueError`` for arguments that do not fit together."""
    if q.ndim != 3 or k_pages.ndim != 4 or k_pages.shape[1] == 0 or q.shape[1] % k_pages.shape[1]:
        raise ValueError(
            f"q_BHD={tuple(q.shape)} does not fit k_pages={tuple(k_pages.shape)}; "
            "pass [B, H, D] and [P, K, page_size, D] with H a multiple of K"
        )
    check_pages(k_pages, v_pages, kv_heads=k_pages.shape[1], dim=q.shape[2])
    if k_pages.shape[2] < MIN_PAGE_SIZE:
        raise ValueError(f"page_size={k_pages.shape[2]} must be at least {MIN_PAGE_SIZE}")
    if q.dtype != k_pages.dtype:
        raise ValueError(f"q is {q.dtype}, the cache {k_pages.dtype}; cast q first")
    for name, x, ndim in (("page_table", table, 2), ("seq_lens", lens, 1)):
        if x.dtype != torch.int32 or x.ndim != ndim or x.shape[0] != q.shape[0]:
            raise ValueError(
                f"{name}={x.dtype}{tuple(x.shape)} does not match B={q.shape[0]}; "
                f"pass int32 with {ndim} dimension(s)"
            )


def paged_attention(
    q_BHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Return attention of one new query per sequence over its cached keys and values.

    No gradient. Bit for bit the same whatever other rows the batch holds (on CUDA).

    Args:
        q_BHD: [B, H, D]; the kernel takes D of 16, 32, 64 and 128.
        k_pages: [P, K, page_size, D], contiguous, page_size at least 16. Allocate them as zeros:
            the reference also multiplies what no sequence reaches, by 0.
        v_pages: The same.
        page_table: int32 [B, max_pages], each sequence's pages in order. Its width bounds the
            launch, so a narrower one is faster.
        seq_lens: int32 [B], tokens cached, the query's own among them. 0 gives a row of zeros.
        scale: Multiplies the scores; D ** -0.5 when None.
        impl: Which implementation runs; see :mod:`nanorlhf.nanokernels.dispatch`.

    Raises:
        ValueError: Shapes or dtypes do not fit, or the kernel does not cover them.

    >>> pages = torch.ones(1, 1, 16, 16)
    >>> table, seq_lens = torch.zeros(1, 1, dtype=torch.int32), torch.tensor([3], dtype=torch.int32)
    >>> paged_attention(torch.ones(1, 2, 16), pages, pages, table, seq_lens)[0, 0, :2]
    tensor([1., 1.])
    """
    _check(q_BHD, k_pages, v_pages, page_table, seq_lens)
    scale = q_BHD.shape[-1] ** -0.5 if scale is None else scale
    if not use_triton(impl, q_BHD):
        return reference(q_BHD, k_pages, v_pages, page_table, seq_lens, scale=scale)
    if q_BHD.shape[2] not in HEAD_DIMS:
        raise ValueError(
            f"D={q_BHD.shape[2]} has no Triton kernel; use one of {HEAD_DIMS}, or impl='reference'"
        )
    return _launch(q_BHD, k_pages, v_pages, page_table, seq_lens, scale=scale)
