"""Writing keys and values into the pages of a cache, and reading them back packed.

A cache is ``[P, K, page_size, D]``: pages of ``page_size`` tokens, and in a page each KV head's
keys side by side, so that a decode program, which reads one head, reads them as one piece. A *slot*
is ``page * page_size + offset``.

::

    slot 37, page_size 16  ->  page 2, offset 5      k_pages[2, :, 5, :] = k[token]

Memory bound: 4 K D elements move per token.

Shape legend: T = new tokens, S = packed cached tokens, K = KV heads, D = head dimension, P = pages,
B = sequences.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from nanorlhf.nanokernels.dispatch import Impl, jit, launch, next_power_of_2, tl, use_triton
from nanorlhf.nanokernels.registration import register


class PackedKV(NamedTuple):
    """Keys and values of several sequences, one after another."""

    k_SKD: Tensor
    v_SKD: Tensor


def reference(
    k_TKD: Tensor, v_TKD: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor
) -> None:
    """Write rows into their slots in plain PyTorch; rows with a negative slot are skipped."""
    kept = slots >= 0
    slots = slots[kept]
    page_size = k_pages.shape[2]
    page, offset = slots // page_size, slots % page_size
    k_pages[page, :, offset] = k_TKD[kept]
    v_pages[page, :, offset] = v_TKD[kept]


@jit
def _store_kernel(
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    k_pages_ptr: tl.tensor,
    v_pages_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    stride_kt: tl.tensor,
    stride_kh: tl.tensor,
    stride_vt: tl.tensor,
    stride_vh: tl.tensor,
    K: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    if slot < 0:
        return
    index = tl.arange(0, BLOCK)
    head = index // D
    dim = index % D
    inside = index < K * D
    k = tl.load(k_ptr + token * stride_kt + head * stride_kh + dim, mask=inside)
    v = tl.load(v_ptr + token * stride_vt + head * stride_vh + dim, mask=inside)
    target = (slot // PAGE) * (K * PAGE * D) + head * (PAGE * D) + (slot % PAGE) * D + dim
    tl.store(k_pages_ptr + target, k, mask=inside)
    tl.store(v_pages_ptr + target, v, mask=inside)


def _launch(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    tokens, heads, dim = k.shape
    k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (k, v))
    if not k.numel():
        return
    launch(
        _store_kernel,
        (tokens,),
        k,
        v,
        k_pages,
        v_pages,
        slots,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        K=heads,
        D=dim,
        PAGE=k_pages.shape[2],
        BLOCK=next_power_of_2(heads * dim),
        num_warps=4,
    )


def _fake(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    return None


_store_op = register(
    "store_kv(Tensor k, Tensor v, Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor slots) -> ()",
    _launch,
    fake=_fake,
)


def check_pages(k_pages: Tensor, v_pages: Tensor, *, kv_heads: int, dim: int) -> None:
    """Raise ``ValueError`` unless the two caches are [P, kv_heads, page_size, dim]."""
    shape = k_pages.shape
    if k_pages.ndim != 4 or shape != v_pages.shape or (shape[1], shape[3]) != (kv_heads, dim):
        raise ValueError(
            f"k_pages={tuple(shape)} and v_pages={tuple(v_pages.shape)} do not fit K={kv_heads}, "
            f"D={dim}; pass two of [P, {kv_heads}, page_size, {dim}]"
        )
    if not (k_pages.is_contiguous() and v_pages.is_contiguous()):
        raise ValueError("k_pages and v_pages must be contiguous; allocate each on its own")


def check_store(
    k_TKD: Tensor, v_TKD: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor
) -> None:
    """Raise ``ValueError`` unless the rows fit the pages and each has a slot."""
    if k_TKD.ndim != 3 or k_TKD.shape != v_TKD.shape:
        raise ValueError(
            f"k={tuple(k_TKD.shape)} and v={tuple(v_TKD.shape)} differ; pass two of [T, K, D]"
        )
    if slots.shape != k_TKD.shape[:1] or slots.dtype != torch.int64:
        raise ValueError(
            f"slots={slots.dtype}{tuple(slots.shape)} does not match T={k_TKD.shape[0]}; "
            "pass int64 [T]"
        )
    if k_TKD.dtype != k_pages.dtype:
        raise ValueError(f"k is {k_TKD.dtype}, the cache {k_pages.dtype}; cast k and v first")
    check_pages(k_pages, v_pages, kv_heads=k_TKD.shape[1], dim=k_TKD.shape[2])


def store_kv(
    k_TKD: Tensor,
    v_TKD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slots: Tensor,
    *,
    impl: Impl = "auto",
) -> None:
    """Write each token's keys and values into its slot of the cache, in place.

    Args:
        k_TKD: [T, K, D], in the cache's dtype.
        v_TKD: [T, K, D].
        k_pages: [P, K, page_size, D], contiguous.
        v_pages: The same.
        slots: int64 [T], ``page * page_size + offset``. A negative one skips its token, as the
            padding of a batch needs; no two may be equal.
        impl: Which implementation runs; see :mod:`nanorlhf.nanokernels.dispatch`.

    Raises:
        ValueError: Shapes or dtypes do not fit.

    >>> k, pages = torch.ones(1, 1, 16), torch.zeros(2, 1, 16, 16)
    >>> store_kv(k, k, pages, torch.zeros_like(pages), torch.tensor([19]))
    >>> pages.nonzero()[0].tolist()
    [1, 0, 3, 0]
    """
    check_store(k_TKD, v_TKD, k_pages, v_pages, slots)
    if use_triton(impl, k_TKD):
        _store_op(k_TKD, v_TKD, k_pages, v_pages, slots.contiguous())
    else:
        reference(k_TKD, v_TKD, k_pages, v_pages, slots)


def gather_kv(
    k_pages: Tensor, v_pages: Tensor, page_table: Tensor, seq_lens: Tensor, *, total: int
) -> PackedKV:
    """Return the cached keys and values of several sequences, packed one after another.

    What a prefill over a cached prefix attends to. Does not wait for the device.

    Args:
        k_pages: [P, K, page_size, D].
        v_pages: [P, K, page_size, D].
        page_table: int32 [B, max_pages], each sequence's pages in order.
        seq_lens: int32 [B], tokens of each sequence.
        total: S, their sum.

    >>> pages = torch.arange(64.0).view(2, 1, 16, 2)
    >>> table = torch.tensor([[1], [0]], dtype=torch.int32)
    >>> gather_kv(pages, pages, table, torch.tensor([1, 2]), total=3).k_SKD[:, 0, 0]
    tensor([32.,  0.,  2.])
    """
    page_size = k_pages.shape[2]
    lengths = seq_lens.long()
    device = lengths.device
    row = torch.arange(len(lengths), device=device).repeat_interleave(lengths, output_size=total)
    starts = lengths.cumsum(0) - lengths
    position = torch.arange(total, device=device) - starts[row]
    page = page_table[row, position // page_size].long()
    offset = position % page_size
    return PackedKV(k_pages[page, :, offset], v_pages[page, :, offset])
