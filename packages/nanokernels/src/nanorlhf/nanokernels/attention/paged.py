r"""Decode attention: one query per sequence over a paged KV cache.

Decoding reads every cached key and value once and computes little: the work is to read memory at
full speed with few sequences. Two passes (FlashDecoding, Dao et al., 2023)::

    sequence b   [ split 0: 256 keys ][ split 1: 256 keys ][ split 2: 70 ]
                         |                    |                  |
                  program (k, b, 0)    program (k, b, 1)  program (k, b, 2)     pass 1
                         \--------- o, lse of each split --------/
                                              |
                                        program (b, h)                          pass 2

A program of pass 1 serves all query heads of one KV head at once, as the rows of a matrix product
(padded to the 16 rows the tensor cores want), so nothing is read twice. How a sequence is split is
its own length's business: splits have a fixed length, which grows only past MAX_SPLITS of them, and
pass 2 adds them in order. So a row's result does not depend on how many rows, or how wide a page
table, stand around it. With one split there is no pass 2.

A CUDA graph needs one width of the page table for all lengths. Programs therefore stride over a
row's splits where the table is wide, and those behind a row's end return after one load.

Memory bound: 2 K D elements move per cached token.

Shape legend: B = sequences, H = query heads, K = KV heads, D = head dimension, P = pages, T = new
tokens, N = sequences of a prefill.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from nanorlhf.nanokernels.attention import paged_prefill
from nanorlhf.nanokernels.attention.kv_cache import check_pages
from nanorlhf.nanokernels.configs import Config, table
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
from nanorlhf.nanokernels.registration import register

if TYPE_CHECKING:
    from nanorlhf.nanokernels.tune import Tunable

MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 256
MIN_PAGE_SIZE = 16
MAX_SPLITS = 64
"""Partial outputs of a row, so that no table makes the scratch memory large."""
MIN_STRIDE, MIN_PROGRAMS = 8, 4096
"""Programs that share the splits of a row, at least, and programs of all rows together."""


def reference(
    q_BHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    seq_lens: Tensor,
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
def _span(length: tl.tensor, SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr) -> tl.tensor:
    """Return the keys of one split: SPLIT, or the fewest times SPLIT that need few enough."""
    return tl.maximum(tl.cdiv(length, SPLIT * MAX_SPLITS), 1) * SPLIT


@jit_varying("stride_table", "splits")
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
    splits: tl.tensor,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    FINAL: tl.constexpr,
) -> None:
    kv_head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    sequence = tl.program_id(1).to(tl.int64)
    length = tl.load(lens_ptr + sequence)
    span = _span(length, SPLIT, MAX_SPLITS)
    # The only split of a row is written even if it is empty: as zeros.
    used = tl.maximum(tl.cdiv(length, span), 1 if FINAL else 0)
    if tl.program_id(2) >= used:
        return
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, BLOCK_D)
    real = (dim < D)[None, :]
    used_rows = (row < GROUP)[:, None] & real
    first_head = (sequence * kv_heads + kv_head) * GROUP
    tile = (first_head + row)[:, None] * D + dim[None, :]
    q = tl.load(q_ptr + tile, mask=used_rows, other=0.0)
    scale_log2 = scale * 1.4426950408889634
    for split in tl.range(tl.program_id(2), used, tl.num_programs(2)):
        start = split * span
        end = tl.minimum(start + span, length)
        peak = tl.full((ROWS,), -float("inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        acc = tl.zeros((ROWS, BLOCK_D), tl.float32)
        for first in tl.range(start, end, BLOCK):
            key = first + tl.arange(0, BLOCK)
            seen = key < end
            if PAGE % BLOCK == 0:
                page = tl.load(table_ptr + sequence * stride_table + first // PAGE).to(tl.int64)
            else:
                page = tl.load(
                    table_ptr + sequence * stride_table + key // PAGE, mask=seen, other=0
                )
                page = page.to(tl.int64)
            at = (page * kv_heads + kv_head) * (PAGE * D) + (key % PAGE) * D
            cell = at[:, None] + dim[None, :]
            k = tl.load(k_pages_ptr + cell, mask=seen[:, None] & real, other=0.0)
            v = tl.load(v_pages_ptr + cell, mask=seen[:, None] & real, other=0.0)
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
            tl.store(o_ptr + tile, out.to(o_ptr.dtype.element_ty), mask=used_rows)
        else:
            part = (first_head + row) * splits + split
            tl.store(o_ptr + part[:, None] * D + dim[None, :], out, mask=used_rows)
            tl.store(lse_ptr + part, peak + tl.math.log2(total), mask=row < GROUP)


@jit_varying("splits")
def _combine_kernel(
    parts_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    lens_ptr: tl.tensor,
    o_ptr: tl.tensor,
    splits: tl.tensor,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    sequence = tl.program_id(1).to(tl.int64)
    head = sequence * tl.num_programs(0) + tl.program_id(0)
    length = tl.load(lens_ptr + sequence)
    used = tl.cdiv(length, _span(length, SPLIT, MAX_SPLITS))
    lse_row = lse_ptr + head * splits
    split = tl.arange(0, MAX_SPLITS)
    lse = tl.load(lse_row + split, mask=split < used, other=-float("inf"))
    peak = tl.where(used > 0, tl.max(lse, axis=0), 0.0)
    total = tl.sum(tl.math.exp2(lse - peak), axis=0)
    dim = tl.arange(0, BLOCK_D)
    acc = tl.zeros((BLOCK_D,), tl.float32)
    # Blocks of one size in one order, however wide the table is.
    for first in tl.range(0, used, CHUNK):
        part = first + tl.arange(0, CHUNK)
        inside = part < used
        share = tl.math.exp2(tl.load(lse_row + part, mask=inside, other=-float("inf")) - peak)
        cell = (head * splits + part)[:, None] * D + dim[None, :]
        tile = tl.load(parts_ptr + cell, mask=inside[:, None] & (dim < D)[None, :], other=0.0)
        acc += tl.sum(tile * share[:, None], axis=0)
    out = acc / tl.where(used > 0, total, 1.0)
    tl.store(o_ptr + head * D + dim, out.to(o_ptr.dtype.element_ty), mask=dim < D)


def _config_key(q: Tensor) -> str:
    return f"{max(64, next_power_of_2(q.shape[2]))}/{q.element_size()}"


def _launch(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    seq_lens: Tensor,
    scale: float,
    config: Config | None = None,
) -> Tensor:
    config = config or table("paged")[_config_key(q)]
    rows, heads, dim = q.shape
    kv_heads, page_size = k_pages.shape[1:3]
    splits = min(MAX_SPLITS, max(1, cdiv(page_table.shape[1] * page_size, config["split"])))
    q, page_table = q.contiguous(), _with_unit_stride(page_table)
    o = torch.empty_like(q)
    if not q.numel():
        return o
    parts, lse = o, o
    if splits > 1:
        parts = torch.empty(rows, heads, splits, dim, dtype=torch.float32, device=q.device)
        lse = torch.empty(rows, heads, splits, dtype=torch.float32, device=q.device)
    sizes = {"D": dim, "BLOCK_D": next_power_of_2(dim)}
    sizes |= {"SPLIT": config["split"], "MAX_SPLITS": MAX_SPLITS}
    launch(
        _split_kernel,
        (kv_heads, rows, min(splits, max(MIN_STRIDE, cdiv(MIN_PROGRAMS, rows * kv_heads)))),
        q,
        k_pages,
        v_pages,
        page_table,
        seq_lens,
        parts,
        lse,
        scale,
        page_table.stride(0),
        splits,
        GROUP=heads // kv_heads,
        ROWS=max(16, next_power_of_2(heads // kv_heads)),
        PAGE=page_size,
        BLOCK=config["block"],
        FINAL=splits == 1,
        num_warps=config["num_warps"],
        num_stages=config["num_stages"],
        **sizes,
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
            CHUNK=config["chunk"],
            num_warps=config["combine_warps"],
            **sizes,
        )
    return o


def _with_unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


_decode_op = register(
    "paged_decode(Tensor q, Tensor k_pages, Tensor v_pages, Tensor page_table, Tensor seq_lens, "
    "float scale) -> Tensor",
    _launch,
    fake=lambda q, *_: q.new_empty(q.shape),
)


def _check(q: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
    """Raise ``ValueError`` unless queries and cache fit together."""
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


def _check_rows(q: Tensor, table: Tensor, lens: Tensor, cu_seqlens: Tensor | None) -> None:
    """Raise ``ValueError`` unless there is a row of each for every sequence."""
    rows = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    named = [("page_table", table, 2, rows), ("seq_lens", lens, 1, rows)]
    if cu_seqlens is not None:
        named.append(("cu_seqlens", cu_seqlens, 1, rows + 1))
    for name, x, ndim, size in named:
        if x.dtype != torch.int32 or x.ndim != ndim or x.shape[0] != size:
            raise ValueError(
                f"{name}={x.dtype}{tuple(x.shape)} does not match B={rows}; "
                f"pass int32 with {ndim} dimension(s) and {size} rows"
            )


def paged_attention(
    q_BHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    seq_lens: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Return attention of each sequence's newest queries over its cached keys and values.

    Without ``cu_seqlens`` one query per sequence (decode), with them several (a prefill over a
    cached prefix, or a chunk of one): a sequence's queries are its last tokens, and each sees the
    keys up to its own. No gradient. A row is bit for bit the same whatever other rows the batch
    holds, however wide the table is, and however a prefill is cut into chunks (on CUDA).

    Args:
        q_BHD: [B, H, D], or [T, H, D] with ``cu_seqlens``; the kernels take D from 16 to 256.
        k_pages: [P, K, page_size, D], contiguous, page_size at least 16. Allocate them as zeros:
            the reference also multiplies what no sequence reaches, by 0.
        v_pages: The same.
        page_table: int32 [B, max_pages], each sequence's pages in order. Entries behind a
            sequence's end are not read by the kernels.
        seq_lens: int32 [B], tokens cached, the queries' own among them. 0 gives a row of zeros.
        cu_seqlens: int32 [B + 1], where each sequence's queries start in T.
        max_seqlen: Queries of the sequence that has most, or more; needed with ``cu_seqlens``.
        scale: Multiplies the scores, more than 0; D ** -0.5 when None.
        impl: Which implementation runs; see :mod:`nanorlhf.nanokernels.dispatch`.

    Raises:
        ValueError: Shapes or dtypes do not fit, or the kernel does not cover them.

    >>> pages = torch.ones(1, 1, 16, 16)
    >>> table, seq_lens = torch.zeros(1, 1, dtype=torch.int32), torch.tensor([3], dtype=torch.int32)
    >>> paged_attention(torch.ones(1, 2, 16), pages, pages, table, seq_lens)[0, 0, :2]
    tensor([1., 1.])
    """
    _check(q_BHD, k_pages, v_pages)
    _check_rows(q_BHD, page_table, seq_lens, cu_seqlens)
    if (cu_seqlens is None) != (max_seqlen is None):
        raise ValueError("cu_seqlens and max_seqlen go together; pass both, or neither to decode")
    scale = q_BHD.shape[-1] ** -0.5 if scale is None else scale
    if not scale > 0:
        raise ValueError(f"scale={scale} must be above 0; negate q for the other sign")
    arguments = q_BHD, k_pages, v_pages, page_table, seq_lens
    is_kernel = use_triton(impl, q_BHD)
    if is_kernel and not MIN_HEAD_DIM <= q_BHD.shape[2] <= MAX_HEAD_DIM:
        raise ValueError(
            f"D={q_BHD.shape[2]} has no Triton kernel; use {MIN_HEAD_DIM} to {MAX_HEAD_DIM}, or "
            "impl='reference'"
        )
    if cu_seqlens is None or max_seqlen is None:
        decoded: Tensor = (_decode_op if is_kernel else reference)(*arguments, scale)
        return decoded
    return paged_prefill.attend(*arguments, cu_seqlens, max_seqlen, scale, is_kernel=is_kernel)


def tunables() -> "Iterator[Tunable]":
    """Yield the choices of launch parameters, for 16 query and 8 KV heads of 128."""
    from nanorlhf.nanokernels.tune import Tunable

    used = table("paged")["128/2"]
    candidates = [
        {**used, "block": block, "num_warps": warps, "num_stages": stages}
        for block in (32, 64, 128)
        for warps in (2, 4, 8)
        for stages in (2, 3, 4)
    ]

    def prepare() -> Callable[[Config], Tensor]:
        q = torch.randn(256, 16, 128, device="cuda", dtype=torch.bfloat16)
        pages = torch.randn(2, 256 * 5, 8, 128, 128, device="cuda", dtype=torch.bfloat16)
        where = torch.randperm(256 * 5, device="cuda").int().view(256, 5)
        lens = torch.full((256,), 640, dtype=torch.int32, device="cuda")
        return lambda config: _launch(q, pages[0], pages[1], where, lens, 128**-0.5, config)

    yield Tunable("paged", "128/2", candidates, prepare)
