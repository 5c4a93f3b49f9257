"""QK-norm, rotary embedding and the store into a paged cache in one pass: what decoding needs.

What :mod:`.qk_norm_rope` does, with the keys and values written straight into their slots of the
cache (see :mod:`.attention.kv_cache`) instead of a tensor that :func:`.store_kv` would read again.

::

    token t of the projection    [ q 0 .. q 7 | q 8 .. q 15 | k 0 .. k 7      | v 0 .. v 7     ]
                                   piece 0      piece 1       piece 2           piece 3
                                   -> q         -> q          -> k_pages[slot]  -> v_pages[slot]

One program is one piece of one token: a token's result does not depend on its batch. Memory bound:
2 (H + 2 K) D elements move per token, and D floats of the table.

Shape legend: T = tokens, H = query heads, K = KV heads, D = head dimension, P = pages.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .attention.kv_cache import check_store
from .attention.kv_cache import reference as store_reference
from .configs import Config, table
from .dispatch import Impl, jit, launch, tl, use_triton
from .qk_norm_rope import ARGUMENTS, SHAPES, check, cut, dense, inputs, turn_heads
from .qk_norm_rope import reference as turn_reference
from .registration import register

if TYPE_CHECKING:
    from .tune import Tunable


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slots: Tensor,
    eps: float,
) -> Tensor:
    """Return the queries and store keys and values in plain PyTorch."""
    turned = turn_reference(q, k, q_weight, k_weight, cos, sin, eps)
    store_reference(turned.k_TKD, v, k_pages, v_pages, slots)
    return turned.q_THD


@jit
def _store_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    qw_ptr: tl.tensor,
    kw_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    q_out_ptr: tl.tensor,
    k_pages_ptr: tl.tensor,
    v_pages_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    stride_qt: tl.tensor,
    stride_qh: tl.tensor,
    stride_kt: tl.tensor,
    stride_kh: tl.tensor,
    stride_vt: tl.tensor,
    stride_vh: tl.tensor,
    eps: tl.tensor,
    H: tl.constexpr,
    K: tl.constexpr,
    HALF: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
) -> None:
    Q_PIECES: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    K_PIECES: tl.constexpr = (K + BLOCK_H - 1) // BLOCK_H
    D: tl.constexpr = 2 * HALF
    token = (tl.program_id(0) // (Q_PIECES + 2 * K_PIECES)).to(tl.int64)
    piece = tl.program_id(0) % (Q_PIECES + 2 * K_PIECES)
    query = piece < Q_PIECES
    slot = tl.load(slots_ptr + token)
    # Padding has a negative slot: of its keys and values no head exists.
    kv_heads = tl.where(slot < 0, 0, K)
    target = (slot // PAGE) * (K * PAGE * D) + (slot % PAGE) * D
    cached = tl.where(query, piece, (piece - Q_PIECES) % K_PIECES)
    head = (cached * BLOCK_H + tl.arange(0, BLOCK_H))[:, None]
    if piece < Q_PIECES + K_PIECES:
        turn_heads(
            tl.where(query, q_ptr + token * stride_qt, k_ptr + token * stride_kt),
            tl.where(query, qw_ptr, kw_ptr),
            cos_ptr + token * HALF,
            sin_ptr + token * HALF,
            tl.where(query, q_out_ptr + token * (H * D), k_pages_ptr + target),
            head,
            tl.where(query, H, kv_heads),
            tl.where(query, stride_qh, stride_kh),
            tl.where(query, D, PAGE * D),
            eps,
            HALF,
            BLOCK_HALF,
        )
    else:
        column = tl.arange(0, 2 * BLOCK_HALF)[None, :]
        inside = (head < kv_heads) & (column < D)
        v = tl.load(v_ptr + token * stride_vt + head * stride_vh + column, mask=inside)
        tl.store(v_pages_ptr + target + head * (PAGE * D) + column, v, mask=inside)


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slots: Tensor,
    eps: float,
    config: Config | None = None,
) -> Tensor:
    config = config or table("qk_norm_rope")["store"]
    q_out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if q_out.numel():
        q, k, v = dense(q), dense(k), dense(v)
        shape = cut(q, k, config)
        launch(
            _store_kernel,
            (len(q) * (shape.q_pieces + 2 * shape.k_pieces),),
            q,
            *(k, v, q_weight, k_weight, cos, sin, q_out, k_pages, v_pages, slots),
            *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], eps),
            **shape.constants,
            PAGE=k_pages.shape[2],
            num_warps=config["num_warps"],
        )
    return q_out


def _fake(q: Tensor, *_rest: object) -> Tensor:
    return q.new_empty(q.shape)


_op = register(
    f"qk_norm_rope_store(Tensor q, Tensor k, Tensor v, {ARGUMENTS}, Tensor(a!) k_pages, "
    "Tensor(b!) v_pages, Tensor slots, float eps) -> Tensor",
    _launch,
    fake=_fake,
)


def qk_norm_rope_store(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slots: Tensor,
    *,
    eps: float = 1e-6,
    impl: Impl = "auto",
) -> Tensor:
    """Return the queries of :func:`qk_norm_rope`; keys and values go into the pages of a cache.

    For inference: not differentiable. A token's result does not depend on the other tokens.

    Args:
        q_THD: [T, H, D]; a slice of a fused projection is read in place.
        k_TKD: [T, K, D].
        v_TKD: [T, K, D], stored as it is.
        q_weight: [D].
        k_weight: [D].
        cos: float32 [T, D/2].
        sin: float32 [T, D/2].
        k_pages: [P, K, page_size, D], contiguous, in the queries' dtype; written in place.
        v_pages: The same.
        slots: int64 [T], as in :func:`.store_kv`: a token with a negative one is not stored.
        eps: Added to the mean square.
        impl: Which implementation runs; see :mod:`.dispatch`.

    Raises:
        ValueError: Shapes or dtypes do not fit.
    """
    check(q_THD, k_TKD, q_weight, k_weight, cos, sin)
    check_store(k_TKD, v_TKD, k_pages, v_pages, slots)
    qw, kw, cos, sin = (x.contiguous() for x in (q_weight, k_weight, cos, sin))
    run = _op if use_triton(impl, q_THD) else reference
    q: Tensor = run(
        q_THD, k_TKD, v_TKD, qw, kw, cos, sin, k_pages, v_pages, slots.contiguous(), eps
    )
    return q


def tunables() -> "Iterator[Tunable]":
    """Yield the choices of launch parameters, for 16 query and 8 KV heads of 128."""
    from .tune import Tunable

    def prepare() -> Callable[[Config], Tensor]:
        q, k, *rest = inputs()
        qw, kw, cos, sin = rest
        slots = torch.randperm(len(q), device="cuda")
        k_pages, v_pages = torch.empty(2, len(q) // 16, 8, 16, 128, device="cuda", dtype=q.dtype)
        return lambda c: _launch(q, k, k, qw, kw, cos, sin, k_pages, v_pages, slots, 1e-6, c)

    yield Tunable("qk_norm_rope", "store", SHAPES, prepare)
