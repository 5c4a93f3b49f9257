"""RMSNorm of every query and key head and its rotary embedding, in one pass.

What Qwen3 does between the fused projection and attention, otherwise four kernels::

    q = rope(rms_norm(q, w_q))        k = rope(rms_norm(k, w_k))

A head is one row of D entries: its norm, the two halves of its weight and its rotation all happen
in registers, in float32, and the result is rounded once (the separate ops round twice).

::

    token t of the projection    [ q 0 .. q 7 | q 8 .. q 15 | k 0 .. k 7 | v 0 .. v 7 ]
                                   piece 0      piece 1       piece 2

One program is one piece, BLOCK_H heads, of one token. The backward turns the gradient back by the
same angles and then is RMSNorm's (see :mod:`.rms_norm`): a program keeps its piece, walks over
every G-th token with the next ones in flight, and holds its part of the weight's gradient in
registers; a second kernel adds the parts in a fixed order.

The file is long because an operator's reference, kernels, registration, checks and what tunes it
stand together, here as elsewhere.

Memory bound: 2 (H + K) D elements move per token forward, 3 (H + K) D backward, and D floats of the
table.

Shape legend: T = tokens, H = query heads, K = KV heads, D = head dimension.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .configs import Config, table
from .dispatch import (
    Impl,
    accumulator,
    cdiv,
    jit,
    jit_varying,
    launch,
    next_power_of_2,
    tl,
    use_triton,
)
from .partial_sums import add_pairs, sum_parts
from .registration import register
from .rms_norm import reference as norm_reference
from .rope import reference as rope_reference
from .rope import rope_table

if TYPE_CHECKING:
    from .tune import Tunable


class QK(NamedTuple):
    """Queries and keys, ready for attention."""

    q_THD: Tensor
    k_TKD: Tensor


def reference(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> QK:
    """Return normalised and rotated heads in plain PyTorch, in float32 (float64 stays)."""
    high = accumulator(q.dtype)
    pairs = ((q, q_weight), (k, k_weight))
    turned = (rope_reference(norm_reference(x.to(high), w, eps=eps), cos, sin) for x, w in pairs)
    return QK(*(x.to(q.dtype) for x in turned))


@jit
def turn_heads(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    out_ptr: tl.tensor,
    head: tl.tensor,
    heads: tl.tensor,
    stride_h: tl.tensor,
    stride_out: tl.tensor,
    eps: tl.tensor,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
) -> None:
    """Write those of one token's heads that exist, normalised and turned."""
    column = tl.arange(0, BLOCK_HALF)[None, :]
    inside = (head < heads) & (column < HALF)
    # The heads first: they come from memory, and what follows waits for them.
    x = x_ptr + head * stride_h + column
    low = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(x + HALF, mask=inside, other=0.0).to(tl.float32)
    w_low = tl.load(w_ptr + column, mask=column < HALF, other=0.0).to(tl.float32)
    w_high = tl.load(w_ptr + HALF + column, mask=column < HALF, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + column, mask=column < HALF, other=0.0)
    sin = tl.load(sin_ptr + column, mask=column < HALF, other=0.0)
    rstd = tl.math.rsqrt(tl.sum(low * low + high * high, axis=1) / (2 * HALF) + eps)[:, None]
    low, high = low * rstd * w_low, high * rstd * w_high
    out = out_ptr + head * stride_out + column
    tl.store(out, (low * cos - high * sin).to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(out + HALF, (high * cos + low * sin).to(out_ptr.dtype.element_ty), mask=inside)


@jit
def _forward_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    qw_ptr: tl.tensor,
    kw_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    q_out_ptr: tl.tensor,
    k_out_ptr: tl.tensor,
    stride_qt: tl.tensor,
    stride_qh: tl.tensor,
    stride_kt: tl.tensor,
    stride_kh: tl.tensor,
    eps: tl.tensor,
    H: tl.constexpr,
    K: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
) -> None:
    Q_PIECES: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    PIECES: tl.constexpr = Q_PIECES + (K + BLOCK_H - 1) // BLOCK_H
    D: tl.constexpr = 2 * HALF
    token = (tl.program_id(0) // PIECES).to(tl.int64)
    piece = tl.program_id(0) % PIECES
    query = piece < Q_PIECES
    head = (tl.where(query, piece, piece - Q_PIECES) * BLOCK_H + tl.arange(0, BLOCK_H))[:, None]
    turn_heads(
        tl.where(query, q_ptr + token * stride_qt, k_ptr + token * stride_kt),
        tl.where(query, qw_ptr, kw_ptr),
        cos_ptr + token * HALF,
        sin_ptr + token * HALF,
        tl.where(query, q_out_ptr + token * (H * D), k_out_ptr + token * (K * D)),
        head,
        tl.where(query, H, K),
        tl.where(query, stride_qh, stride_kh),
        D,
        eps,
        HALF,
        BLOCK_HALF,
    )


@jit_varying("tokens", "groups")
def _backward_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    dq_out_ptr: tl.tensor,
    dk_out_ptr: tl.tensor,
    qw_ptr: tl.tensor,
    kw_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    dq_ptr: tl.tensor,
    dk_ptr: tl.tensor,
    parts_ptr: tl.tensor,
    tokens: tl.tensor,
    groups: tl.tensor,
    stride_qt: tl.tensor,
    stride_qh: tl.tensor,
    stride_kt: tl.tensor,
    stride_kh: tl.tensor,
    eps: tl.tensor,
    H: tl.constexpr,
    K: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Program (group, piece) takes tokens group, group + groups, ... of its piece.

    Parts are [pieces, groups, D], those of the queries first.
    """
    Q_PIECES: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    PIECES: tl.constexpr = Q_PIECES + (K + BLOCK_H - 1) // BLOCK_H
    D: tl.constexpr = 2 * HALF
    group = tl.program_id(0) // PIECES
    piece = tl.program_id(0) % PIECES
    query = piece < Q_PIECES
    heads = tl.where(query, H, K)
    head = (tl.where(query, piece, piece - Q_PIECES) * BLOCK_H + tl.arange(0, BLOCK_H))[:, None]
    column = tl.arange(0, BLOCK_HALF)[None, :]
    inside = (head < heads) & (column < HALF)
    w_ptr = tl.where(query, qw_ptr, kw_ptr)
    w_low = tl.load(w_ptr + column, mask=column < HALF, other=0.0).to(tl.float32)
    w_high = tl.load(w_ptr + HALF + column, mask=column < HALF, other=0.0).to(tl.float32)
    stride_t = tl.where(query, stride_qt, stride_kt).to(tl.int64)
    x_ptr = tl.where(query, q_ptr, k_ptr) + head * tl.where(query, stride_qh, stride_kh) + column
    dy_ptr = tl.where(query, dq_out_ptr, dk_out_ptr) + head * D + column
    dx_ptr = tl.where(query, dq_ptr, dk_ptr) + head * D + column
    dw_low = tl.zeros((BLOCK_H, BLOCK_HALF), tl.float32)
    dw_high = tl.zeros((BLOCK_H, BLOCK_HALF), tl.float32)
    for step in tl.range(group, tokens, groups, num_stages=STAGES):
        token = tl.cast(step, tl.int64)
        flat = token * heads * D
        low = tl.load(x_ptr + token * stride_t, mask=inside, other=0.0).to(tl.float32)
        high = tl.load(x_ptr + token * stride_t + HALF, mask=inside, other=0.0).to(tl.float32)
        turned_low = tl.load(dy_ptr + flat, mask=inside, other=0.0).to(tl.float32)
        turned_high = tl.load(dy_ptr + flat + HALF, mask=inside, other=0.0).to(tl.float32)
        cos = tl.load(cos_ptr + token * HALF + column, mask=column < HALF, other=0.0)
        sin = tl.load(sin_ptr + token * HALF + column, mask=column < HALF, other=0.0)
        dy_low = turned_low * cos + turned_high * sin
        dy_high = turned_high * cos - turned_low * sin
        wdy_low, wdy_high = dy_low * w_low, dy_high * w_high
        squares, products = tl.reduce(
            (low * low + high * high, low * wdy_low + high * wdy_high), 1, add_pairs
        )
        rstd = tl.math.rsqrt(squares / D + eps)
        pull = (products / D * rstd * rstd)[:, None]
        rstd = rstd[:, None]
        dx_low, dx_high = (wdy_low - low * pull) * rstd, (wdy_high - high * pull) * rstd
        tl.store(dx_ptr + flat, dx_low.to(dq_ptr.dtype.element_ty), mask=inside)
        tl.store(dx_ptr + flat + HALF, dx_high.to(dq_ptr.dtype.element_ty), mask=inside)
        dw_low += low * rstd * dy_low
        dw_high += high * rstd * dy_high
    part = parts_ptr + (piece * groups + group) * D + tl.arange(0, BLOCK_HALF)
    exists = tl.arange(0, BLOCK_HALF) < HALF
    tl.store(part, tl.sum(dw_low, axis=0), mask=exists)
    tl.store(part + HALF, tl.sum(dw_high, axis=0), mask=exists)


def dense(x: Tensor) -> Tensor:
    """Return heads with unit stride within a head, a view where that is possible."""
    return x if x.stride(2) == 1 else x.contiguous()


class Cut(NamedTuple):
    """How the heads of a token are cut into pieces."""

    constants: dict[str, int]
    q_pieces: int
    k_pieces: int


def cut(q: Tensor, k: Tensor, config: Config) -> Cut:
    """Return the pieces that ``config`` cuts the heads of a token into."""
    heads, kv_heads, half = q.shape[1], k.shape[1], q.shape[2] // 2
    block = min(config["heads"], next_power_of_2(heads))
    constants = {"H": heads, "K": kv_heads, "HALF": half}
    constants |= {"BLOCK_H": block, "BLOCK_HALF": next_power_of_2(half)}
    return Cut(constants, cdiv(heads, block), cdiv(kv_heads, block))


def _launch_forward(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    config = config or table("qk_norm_rope")["forward"]
    q_out, k_out = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    if q_out.numel():
        q, k = dense(q), dense(k)
        shape = cut(q, k, config)
        launch(
            _forward_kernel,
            (len(q) * (shape.q_pieces + shape.k_pieces),),
            q,
            *(k, q_weight, k_weight, cos, sin, q_out, k_out, *q.stride()[:2], *k.stride()[:2], eps),
            **shape.constants,
            num_warps=config["num_warps"],
        )
    return q_out, k_out


def _launch_backward(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    dq_out: Tensor,
    dk_out: Tensor,
    eps: float,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and, [2, D], their weights."""
    config = config or table("qk_norm_rope")["backward"]
    dq, dk = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    if not dq.numel():
        return dq, dk, torch.zeros_like(torch.stack((q_weight, k_weight)))
    q, k = dense(q), dense(k)
    shape = cut(q, k, config)
    pieces = shape.q_pieces + shape.k_pieces
    groups = min(len(q), max(1, config["programs"] // pieces))
    parts = torch.empty(pieces * groups, q.shape[2], dtype=torch.float32, device=q.device)
    launch(
        _backward_kernel,
        (pieces * groups,),
        q,
        *(k, dq_out.contiguous(), dk_out.contiguous(), q_weight, k_weight, cos, sin),
        *(dq, dk, parts, len(q), groups, *q.stride()[:2], *k.stride()[:2], eps),
        **shape.constants,
        STAGES=config["num_stages"],
        num_warps=config["num_warps"],
    )
    dw = sum_parts(parts, q_weight.dtype, split=shape.q_pieces * groups)
    return dq, dk, dw


def _fake_forward(q: Tensor, k: Tensor, *_rest: object) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _fake_backward(
    q: Tensor, k: Tensor, q_weight: Tensor, *_rest: object
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), q_weight.new_empty(2, *q_weight.shape)


# Autograd's context has no type.
def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
    ctx.save_for_backward(*inputs[:6])
    ctx.eps = inputs[6]


def _backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    dq, dk, dw = _backward_op(*ctx.saved_tensors, dq, dk, ctx.eps)
    return dq, dk, dw[0], dw[1], None, None, None


ARGUMENTS = "Tensor q_weight, Tensor k_weight, Tensor cos, Tensor sin"
_backward_op = register(
    f"qk_norm_rope_backward(Tensor q, Tensor k, {ARGUMENTS}, Tensor dq, Tensor dk, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    _launch_backward,
    fake=_fake_backward,
)
_forward_op = register(
    f"qk_norm_rope(Tensor q, Tensor k, {ARGUMENTS}, float eps) -> (Tensor, Tensor)",
    _launch_forward,
    fake=_fake_forward,
    backward=_backward,
    save=_save,
)


def check(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor
) -> None:
    """Raise ``ValueError`` unless heads, weights and the table of angles fit together."""
    tokens, _, dim = q.shape if q.ndim == 3 else (0, 0, 1)
    if dim % 2 or k.ndim != 3 or (k.shape[0], k.shape[2]) != (tokens, dim):
        raise ValueError(
            f"q={tuple(q.shape)} and k={tuple(k.shape)} are not [T, H, D] and [T, K, D] with an "
            "even D; reshape them"
        )
    if q_weight.shape != (dim,) or k_weight.shape != (dim,) or q_weight.dtype != k_weight.dtype:
        raise ValueError(
            f"q_weight={q_weight.dtype}{tuple(q_weight.shape)} and k_weight={k_weight.dtype}"
            f"{tuple(k_weight.shape)} do not match D={dim}; pass two of [D] and one dtype"
        )
    if cos.shape != (tokens, dim // 2) or sin.shape != cos.shape:
        raise ValueError(
            f"cos={tuple(cos.shape)} and sin={tuple(sin.shape)} do not match q={tuple(q.shape)}; "
            f"pass rope_table of T positions, {(tokens, dim // 2)}"
        )


def qk_norm_rope(
    q_THD: Tensor,
    k_TKD: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float = 1e-6,
    impl: Impl = "auto",
) -> QK:
    """Return queries and keys normalised per head and rotated to their positions.

    Differentiable in queries, keys and weights.

    Args:
        q_THD: [T, H, D]; a slice of a fused projection is read in place.
        k_TKD: [T, K, D]; likewise.
        q_weight: [D], of the queries' RMSNorm.
        k_weight: [D].
        cos: float32 [T, D/2] of :func:`.rope_table`.
        sin: float32 [T, D/2].
        eps: Added to the mean square.
        impl: Which implementation runs; see :mod:`.dispatch`.

    Returns:
        Both in their shape and dtype, contiguous; computed in float32 and rounded once.

    Raises:
        ValueError: Shapes do not fit.

    >>> one, table = torch.ones(1, 1, 4), (torch.ones(1, 2), torch.zeros(1, 2))
    >>> qk_norm_rope(3 * one, one, torch.ones(4), torch.ones(4), *table, eps=0.0).q_THD
    tensor([[[1., 1., 1., 1.]]])
    """
    check(q_THD, k_TKD, q_weight, k_weight, cos, sin)
    if not use_triton(impl, q_THD):
        return reference(q_THD, k_TKD, q_weight, k_weight, cos, sin, eps)
    rest = (x.contiguous() for x in (q_weight, k_weight, cos, sin))
    return QK(*_forward_op(q_THD, k_TKD, *rest, eps))


SHAPES = [{"heads": 4, "num_warps": 2}] + [{"heads": 8, "num_warps": w} for w in (1, 2, 4)]
"""What tuning tries."""


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the inputs that tuning times on: queries, keys, weights, cosines and sines."""
    heads = torch.randn(16384, 24, 128, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(128, device="cuda", dtype=torch.bfloat16)
    angles = rope_table(torch.arange(16384, device="cuda"), head_dim=128, theta=1e6)
    return heads[:, :16], heads[:, 16:], weight, weight, angles.cos, angles.sin


def tunables() -> "Iterator[Tunable]":
    """Yield the choices of launch parameters, for 16 query and 8 KV heads of 128."""
    from .tune import Tunable

    def forward() -> Callable[[Config], Tensor]:
        given = inputs()
        return lambda config: _launch_forward(*given, 1e-6, config)[0]

    def backward() -> Callable[[Config], Tensor]:
        given = inputs()
        dq, dk = torch.randn_like(given[0]), torch.randn_like(given[1])
        return lambda config: _launch_backward(*given, dq, dk, 1e-6, config)[0]

    yield Tunable("qk_norm_rope", "forward", SHAPES, forward)
    loops = [{"num_stages": s, "programs": p} for s in (3, 4, 5) for p in (396, 528, 792)]
    yield Tunable("qk_norm_rope", "backward", [a | b for a in SHAPES for b in loops], backward)
