r"""Forward of attention with grouped KV heads, over packed sequences or a dense batch: the kernel.

FlashAttention-2 (Dao, arXiv:2307.08691): a program owns BLOCK_M queries of one head and walks over
the keys they see in steps of BLOCK_N, keeping a running maximum m, sum l and output in float32::

    s = q k^T     m' = max(m, c max s)     p = 2^(c s - m')     a = 2^(m - m')     c = scale log2(e)
    l = l a + sum p          o = o a + p v          lse = (m + log2 l) / log2(e)

A sequence's queries are its last tokens: query i of n sees key j of m when ``j <= i + m - n``. With
a cached prefix (m > n) the mask is aligned at the bottom right, a window leaves the last w of these
keys, and only the tiles that the mask cuts are masked::

              keys 0 .. m-1
            +---------+---------+\
    query 0 |  whole  |         | \            whole    no mask
            |  tiles  |diagonal |  \  not      diagonal masked
    n - 1   |         |         |   \ visited
            +---------+---------+----+

K and V come through one tensor descriptor each, made on the host. Of packed rows it is a ragged one
(:func:`.packed.ragged`), so that a tile that crosses the end of its sequence reads zeros there, not
the neighbour. FLOPs: 4 D a visible pair. Nothing is saved for the backward (:mod:`.backward`) but
``o`` and ``lse``. On Hopper 16-bit inputs go to :mod:`.gluon_forward`.

Shape legend: T = packed query tokens, B = batch, S = tokens of a sequence, H = query heads, K = KV
heads, D = head dimension.
"""

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from nanorlhf.nanokernels.attention.packed import (
    Packed,
    as_batch,
    as_rows,
    batched,
    find_sequence,
    ragged,
)
from nanorlhf.nanokernels.configs import Config, table
from nanorlhf.nanokernels.dispatch import cdiv, descriptor, jit, jit_varying, launch, tl

if TYPE_CHECKING:
    from nanorlhf.nanokernels.tune import Tunable

GLUON_HEAD_DIMS = (64, 128)
"""Head dimensions of :mod:`.gluon_forward`."""


@jit
def _rows(
    rows: tl.tensor,
    sequence: tl.tensor,
    end: tl.tensor,
    length: tl.tensor,
    head: tl.tensor,
    first: tl.tensor,
    DENSE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    D: tl.constexpr,
) -> Any:  # noqa: ANN401
    """Return rows [first, first + BLOCK_N) of one sequence and head, zeros past its length."""
    if DENSE:
        x = rows.load([sequence, first, head, 0])
    else:
        x = rows.load([1 << 30, end, (1 << 30) - length + first, head * D])
    return tl.reshape(x, (BLOCK_N, D))


@jit_varying("sequences", "tokens", "q_length", "k_length", "window")
def _forward_kernel(
    q_ptr: tl.tensor,
    k_rows: tl.tensor,
    v_rows: tl.tensor,
    o_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    cu_q_ptr: tl.tensor,
    cu_k_ptr: tl.tensor,
    scale: tl.tensor,
    sequences: tl.tensor,
    tokens: tl.tensor,
    q_length: tl.tensor,
    k_length: tl.tensor,
    window: tl.tensor,
    stride_qb: tl.tensor,
    stride_qt: tl.tensor,
    stride_qh: tl.tensor,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    DENSE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    head = tl.program_id(0) % HEADS
    # The last tiles of a sequence see the most keys: they start first.
    tile = tl.num_programs(0) // HEADS - 1 - tl.program_id(0) // HEADS
    if DENSE:
        sequence = tile // tl.cdiv(q_length, BLOCK_M)
        tile = tile % tl.cdiv(q_length, BLOCK_M)
        q_start = sequence * q_length
        q_len = q_length
        k_end = 0
        k_len = k_length
        q_ptr += sequence.to(tl.int64) * stride_qb
    else:
        sequence = find_sequence(cu_q_ptr, sequences, tile, BLOCK_M)
        q_start = tl.load(cu_q_ptr + sequence)
        q_len = tl.load(cu_q_ptr + sequence + 1) - q_start
        k_end = tl.load(cu_k_ptr + sequence + 1)
        k_len = k_end - tl.load(cu_k_ptr + sequence)
        tile -= q_start // BLOCK_M + sequence
        q_ptr += q_start.to(tl.int64) * stride_qt
        if tile * BLOCK_M >= q_len:
            return
    kv_head = head // GROUP
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    dim = tl.arange(0, D)
    inside = row < q_len
    q_tile = q_ptr + row.to(tl.int64)[:, None] * stride_qt + head.to(tl.int64) * stride_qh
    q = tl.load(q_tile + dim[None, :], mask=inside[:, None], other=0.0)

    # Keys [start, end) are visited; those of [begin, whole) are seen by every row.
    offset = k_len - q_len
    start = 0
    begin = 0
    if CAUSAL:
        end = tl.maximum(tl.minimum((tile + 1) * BLOCK_M + offset, k_len), 0)
        whole = tl.maximum(tl.minimum(tile * BLOCK_M + offset + 1, k_len), 0)
        last = tl.minimum(row + offset, k_len - 1)
    else:
        end = k_len
        whole = k_len
        last = tl.zeros((BLOCK_M,), tl.int32) + (k_len - 1)
    if WINDOW:
        start = tl.maximum(tile * BLOCK_M + offset + 1 - window, 0) // BLOCK_N * BLOCK_N
        begin = (tile + 1) * BLOCK_M + offset - window
    peak = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, D), tl.float32)
    scale_log2 = scale * 1.4426950408889634
    for first in tl.range(start, end, BLOCK_N):
        k = _rows(k_rows, sequence, k_end, k_len, kv_head, first, DENSE, BLOCK_N, D)
        s = tl.dot(q, tl.trans(k), input_precision="tf32x3")
        # One loop with a branch keeps the loads running where two loops would start them anew.
        if (first + BLOCK_N > whole) | (first < begin):
            key = first + tl.arange(0, BLOCK_N)
            seen = key[None, :] <= last[:, None]
            if WINDOW:
                seen = seen & (key[None, :] > (row + offset - window)[:, None])
            s = tl.where(seen, s, -float("inf"))
        new_peak = tl.maximum(peak, tl.max(s, axis=1) * scale_log2)
        # Nothing seen yet: -inf - -inf would be NaN.
        shift = tl.where(new_peak == -float("inf"), 0.0, new_peak)
        p = tl.math.exp2(s * scale_log2 - shift[:, None])
        shrink = tl.math.exp2(peak - shift)
        total = total * shrink + tl.sum(p, axis=1)
        v = _rows(v_rows, sequence, k_end, k_len, kv_head, first, DENSE, BLOCK_N, D)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="tf32x3")
        peak = new_peak

    # A query that saw nothing returns 0, and -inf as its log-sum-exp.
    total = tl.where(total == 0.0, 1.0, total)
    token = q_start.to(tl.int64) + row
    o_tile = o_ptr + (token * HEADS + head)[:, None] * D + dim[None, :]
    tl.store(o_tile, (acc / total[:, None]).to(o_ptr.dtype.element_ty), mask=inside[:, None])
    lse = (peak + tl.math.log2(total)) * 0.6931471805599453
    tl.store(lse_ptr + head.to(tl.int64) * tokens + token, lse, mask=inside)


class Saved(NamedTuple):
    """What the backward needs of the forward."""

    o: Tensor
    """In the layout of the queries, [T, H, D] or [B, S, H, D]."""
    lse_HT: Tensor
    """Log-sum-exp of each row, float32 [H, T], T being B S of a dense batch."""


def suits_gluon(q: Tensor) -> bool:
    """Return whether :mod:`.gluon_forward` takes these queries: Hopper, 16 bits, D of 64 or 128.

    Never their number or lengths, so that a sequence's result does not depend on its neighbours.
    """
    return (
        q.is_cuda
        and q.element_size() == 2
        and q.shape[-1] in GLUON_HEAD_DIMS
        and torch.cuda.get_device_capability(q.device) == (9, 0)
    )


def launch_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    queries: Packed | None,
    keys: Packed | None,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    config: Config | None = None,
) -> Saved:
    """Return attention's output and log-sum-exp from the kernel.

    Packed [T, H, D] with ``queries`` and ``keys``, dense [B, S, H, D] with neither.
    """
    heads, dim = q.shape[-2:]
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, o.numel() // (heads * dim), dtype=torch.float32, device=q.device)
    if not k.numel() or not q.numel():
        return Saved(o.zero_(), lse.fill_(-torch.inf))
    if config is None and suits_gluon(q):
        from nanorlhf.nanokernels.attention import gluon_forward

        gluon_forward.launch(
            q, k, v, o, lse, queries=queries, keys=keys, scale=scale, causal=causal, window=window
        )
        return Saved(o, lse)
    config = config or table("attention_forward")[f"{dim}/{q.element_size()}"]
    block_m, block_n = config["block_m"], config["block_n"]
    q = q if q.stride(-1) == 1 else q.contiguous()
    if queries is None or keys is None:
        k, v = as_batch(k), as_batch(v)
        batch, tiles, geometry = q.shape[0], q.shape[0] * cdiv(q.shape[1], block_m), batched
    else:
        k, v = as_rows(k), as_rows(v)
        batch, geometry = queries.num_sequences, ragged
        tiles = cdiv(len(q), block_m) + batch
    launch(
        _forward_kernel,
        (heads * tiles,),
        q,
        descriptor(k, *geometry(k, block_n)),
        descriptor(v, *geometry(v, block_n)),
        o,
        lse,
        None if queries is None else queries.cu_seqlens,
        None if keys is None else keys.cu_seqlens,
        scale,
        batch,
        lse.shape[1],
        q.shape[-3],
        k.shape[-3],
        window or 0,
        q.stride(0),
        q.stride(-3),
        q.stride(-2),
        HEADS=heads,
        GROUP=heads // k.shape[-2],
        D=dim,
        DENSE=queries is None,
        CAUSAL=causal,
        WINDOW=window is not None,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=config["num_warps"],
        num_stages=config["num_stages"],
    )
    return Saved(o, lse)


CANDIDATES: list[Config] = [
    {"block_m": 16 * warps, "block_n": block_n, "num_warps": warps, "num_stages": stages}
    for warps in (4, 8)
    for block_n in (32, 64)
    for stages in (2, 3)
]
"""What tuning tries, here and in :mod:`.paged_prefill`."""


def tunables() -> "Iterator[Tunable]":
    """Yield the choices of launch parameters of 16-bit inputs, for 4 sequences of 4,096 tokens.

    Those of :mod:`.gluon_forward` fill shared memory and registers to the brim: they are not tuned.
    """
    from nanorlhf.nanokernels.tune import Tunable

    def prepare(dim: int) -> Callable[[Config], Tensor]:
        q, k, v = (
            torch.randn(4, 4096, heads, dim, device="cuda", dtype=torch.bfloat16)
            for heads in (16, 8, 8)
        )
        at = {"queries": None, "keys": None, "scale": dim**-0.5}
        return lambda config: launch_forward(q, k, v, config=config, **at).o

    for dim in (16, 32, 64, 128, 256):
        yield Tunable("attention_forward", f"{dim}/2", CANDIDATES, functools.partial(prepare, dim))
