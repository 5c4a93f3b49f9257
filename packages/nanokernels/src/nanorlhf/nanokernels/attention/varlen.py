"""Attention with grouped KV heads, over packed sequences or a dense batch: what callers see.

:mod:`.forward` holds the kernel, with the drawing, :mod:`.reference` the same in plain PyTorch and
:mod:`.backward` the two passes of the gradient. Both directions are operators, so they stand in a
compiled graph as they are.

Shape legend: T = packed query tokens, Tk = packed key tokens, N = sequences, B = batch, S and Sk =
tokens and keys of a dense row, H = query heads, K = KV heads, D = head dimension.
"""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from nanorlhf.nanokernels.attention.backward import launch_backward
from nanorlhf.nanokernels.attention.forward import launch_forward
from nanorlhf.nanokernels.attention.packed import Packed
from nanorlhf.nanokernels.attention.reference import reference
from nanorlhf.nanokernels.dispatch import Impl, use_triton
from nanorlhf.nanokernels.registration import register

HEAD_DIMS = (16, 32, 64, 128, 256)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    max_q: int,
    max_k: int,
    scale: float,
    causal: bool,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    queries = None if cu_q is None else Packed(cu_q, max_q)
    keys = None if cu_k is None else Packed(cu_k, max_k)
    return launch_forward(
        q, k, v, queries=queries, keys=keys, scale=scale, causal=causal, window=window
    )


def _forward_fake(q: Tensor, *_others: object) -> tuple[Tensor, Tensor]:
    heads, dim = q.shape[-2:]
    rows = q.numel() // (heads * dim)
    return q.new_empty(q.shape), q.new_empty(heads, rows, dtype=torch.float32)


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    grad_o: Tensor,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    max_q: int,
    max_k: int,
    scale: float,
    causal: bool,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    queries = None if cu_q is None else Packed(cu_q, max_q)
    keys = None if cu_k is None else Packed(cu_k, max_k)
    return launch_backward(
        q,
        k,
        v,
        o,
        lse,
        grad_o,
        queries=queries,
        keys=keys,
        scale=scale,
        causal=causal,
        window=window,
    )


def _backward_fake(
    q: Tensor, k: Tensor, v: Tensor, *_others: object
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
    q, k, v, cu_q, cu_k, *ctx.rest = inputs
    ctx.save_for_backward(q, k, v, *output, cu_q, cu_k)


def _differentiate(ctx: Any, grad_o: Tensor, _grad_lse: Tensor | None) -> tuple[Any, ...]:  # noqa: ANN401
    q, k, v, o, lse, cu_q, cu_k = ctx.saved_tensors
    grads = _backward_op(q, k, v, o, lse, grad_o, cu_q, cu_k, *ctx.rest)
    return *grads, *(None,) * (2 + len(ctx.rest))


_OPTIONS = (
    "Tensor? cu_q, Tensor? cu_k, SymInt max_q, SymInt max_k, float scale, bool causal, "
    "SymInt? window"
)
_backward_op = register(
    "attention_backward(Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor grad_o, "
    f"{_OPTIONS}) -> (Tensor, Tensor, Tensor)",
    _backward,
    fake=_backward_fake,
)
_forward_op = register(
    f"attention(Tensor q, Tensor k, Tensor v, {_OPTIONS}) -> (Tensor, Tensor)",
    _forward,
    fake=_forward_fake,
    backward=_differentiate,
    save=_save,
)


def _check(q: Tensor, k: Tensor, v: Tensor, *, packed: bool) -> None:
    """Raise ``ValueError`` for tensors that do not fit together."""
    layout = "[T, H, D], [Tk, K, D] twice" if packed else "[B, S, H, D], [B, Sk, K, D] twice"
    ndim = 3 if packed else 4
    if not (q.ndim == k.ndim == ndim and k.shape == v.shape and k.shape[-1] == q.shape[-1]):
        raise ValueError(
            f"q={tuple(q.shape)}, k={tuple(k.shape)}, v={tuple(v.shape)} do not fit; pass {layout} "
            f"{'with' if packed else 'without'} cu_seqlens"
        )
    if not packed and q.shape[0] != k.shape[0]:
        raise ValueError(f"B={q.shape[0]} rows of queries and {k.shape[0]} of keys; pass as many")
    if k.shape[-2] == 0 or q.shape[-2] % k.shape[-2]:
        raise ValueError(
            f"H={q.shape[-2]} query heads do not divide among K={k.shape[-2]} KV heads"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; cast them to one dtype")


def _packing(
    name: str, cu_seqlens: Tensor | None, longest: int | None, bound: str
) -> Packed | None:
    """Return where sequences lie, None without ``cu_seqlens``."""
    if cu_seqlens is None:
        if longest is not None:
            raise ValueError(f"{bound}={longest} without {name}; pass both, or neither if dense")
        return None
    if (cu_seqlens.dtype, cu_seqlens.ndim) != (torch.int32, 1):
        raise ValueError(
            f"{name}={cu_seqlens.dtype}{tuple(cu_seqlens.shape)} must be int32 [N + 1]; "
            "use .to(torch.int32)"
        )
    if longest is None:
        raise ValueError(f"{bound}=None beside {name}; pass the longest length")
    return Packed(cu_seqlens, longest)


def _check_packing(q: Tensor, k: Tensor, queries: Packed | None, keys: Packed | None) -> None:
    """Raise ``ValueError`` for sequences that do not fit the tensors."""
    if keys is not None and queries is None:
        raise ValueError("cu_seqlens_k without cu_seqlens; pass both, or neither if dense")
    if queries is not None and keys is None and k.shape[0] != q.shape[0]:
        raise ValueError(f"T={q.shape[0]} and Tk={k.shape[0]} differ; pass cu_seqlens_k as well")
    if queries is not None and keys is not None and queries.num_sequences != keys.num_sequences:
        raise ValueError(
            f"cu_seqlens counts {queries.num_sequences} sequences and cu_seqlens_k "
            f"{keys.num_sequences}; pass the same sequences in both"
        )


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: int | None = None,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    return_lse: Literal[False] = False,
    impl: Impl = "auto",
) -> Tensor: ...


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: int | None = None,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    return_lse: bool,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]: ...


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: int | None = None,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Return attention within each sequence; differentiable in q, k and v.

    Args:
        q: [T, H, D], queries of all sequences, one after another, with ``cu_seqlens``; or dense
            [B, S, H, D] without. The kernel takes D of 16, 32, 64, 128 and 256, slices of a fused
            projection as they are, and dense batches of any strides.
        k: [Tk, K, D] or [B, Sk, K, D], with H a multiple of K: query head h reads KV head
            ``h // (H / K)``. Keys more than the queries are a cached prefix: the last query sees
            all of them. A query that sees none (fewer keys than queries) returns 0.
        v: As ``k``.
        cu_seqlens: int32 [N + 1], where each packed sequence starts, and T.
        max_seqlen: Tokens of the longest packed sequence, or more.
        cu_seqlens_k: int32 [N + 1], where each sequence's keys start, and Tk, when they are not as
            many as its queries.
        max_seqlen_k: The same bound for keys; needed with ``cu_seqlens_k``.
        causal: Whether a query sees only keys up to its own position.
        window: How many keys a query sees, its own and those before; None for all. Causal only.
        scale: Multiplies the scores, more than 0; D ** -0.5 when None.
        return_lse: Also return the log-sum-exp of each row of scores. It carries no gradient.
        impl: Which implementation runs; see :mod:`nanorlhf.nanokernels.dispatch`.

    Returns:
        A tensor like ``q``, and with ``return_lse`` a float32 [T, H] or [B, S, H] besides.

    Raises:
        ValueError: Shapes or dtypes do not fit, or the kernel does not cover them.

    >>> x = torch.ones(3, 1, 16)
    >>> cu_seqlens = torch.tensor([0, 1, 3], dtype=torch.int32)
    >>> attention(x, x, x, cu_seqlens=cu_seqlens, max_seqlen=2).shape
    torch.Size([3, 1, 16])
    >>> attention(x[None], x[None], x[None]).shape
    torch.Size([1, 3, 1, 16])
    """
    queries = _packing("cu_seqlens", cu_seqlens, max_seqlen, "max_seqlen")
    keys = _packing("cu_seqlens_k", cu_seqlens_k, max_seqlen_k, "max_seqlen_k")
    _check(q, k, v, packed=queries is not None)
    _check_packing(q, k, queries, keys)
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"window={window} with causal={causal}; pass 1 or more, causal, or None")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if not scale > 0:
        raise ValueError(f"scale={scale} must be above 0; negate q for the other sign")
    if not use_triton(impl, q):
        out = reference(
            q, k, v, queries=queries, keys=keys, causal=causal, window=window, scale=scale,
            return_lse=return_lse,
        )  # fmt: skip
        return out.o if out.lse is None else (out.o, out.lse)
    if q.shape[-1] not in HEAD_DIMS:
        raise ValueError(
            f"D={q.shape[-1]} has no Triton kernel; use one of {HEAD_DIMS}, or impl='reference'"
        )
    keys = keys or queries
    o, lse = _forward_op(
        q,
        k,
        v,
        None if queries is None else queries.cu_seqlens,
        None if keys is None else keys.cu_seqlens,
        q.shape[-3] if queries is None else queries.max_seqlen,
        k.shape[-3] if keys is None else keys.max_seqlen,
        scale,
        causal,
        window,
    )
    return (o, _rows_first(lse.detach(), q)) if return_lse else o


def _rows_first(lse_HT: Tensor, q: Tensor) -> Tensor:
    """Return the log-sum-exp as the queries lie, [T, H] or [B, S, H]."""
    return lse_HT.view(q.shape[-2], *q.shape[:-2]).movedim(0, -1)
