"""Causal attention over packed sequences, with grouped KV heads: what callers see.

:mod:`.forward` holds the reference and the kernel, with the drawing; :mod:`.backward` the two
passes of the gradient.

Shape legend: T = packed query tokens, S = packed key tokens, N = sequences, H = query heads, K = KV
heads, D = head dimension.
"""

from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanorlhf.nanokernels.attention.backward import launch_backward
from nanorlhf.nanokernels.attention.forward import launch_forward, reference
from nanorlhf.nanokernels.attention.packed import Packed
from nanorlhf.nanokernels.dispatch import Impl, use_triton

HEAD_DIMS = (16, 32, 64, 128)


class _Attention(torch.autograd.Function):
    """The forward launch and the two backward launches, joined."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's context has no public type
        q: Tensor,
        k: Tensor,
        v: Tensor,
        queries: Packed,
        keys: Packed,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        o, lse = launch_forward(q, k, v, queries=queries, keys=keys, scale=scale)
        ctx.save_for_backward(q, k, v, o, lse, queries.cu_seqlens, keys.cu_seqlens)
        ctx.lengths = (queries.max_seqlen, keys.max_seqlen)
        ctx.scale = scale
        lse_TH = lse.t()
        ctx.mark_non_differentiable(lse_TH)
        return o, lse_TH

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_o: Tensor,
        _grad_lse: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, o, lse, cu_q, cu_k = ctx.saved_tensors
        grads = launch_backward(
            q,
            k,
            v,
            o,
            lse,
            grad_o,
            queries=Packed(cu_q, ctx.lengths[0]),
            keys=Packed(cu_k, ctx.lengths[1]),
            scale=ctx.scale,
        )
        return *grads, None, None, None


def _check(q: Tensor, k: Tensor, v: Tensor, queries: Packed, keys: Packed | None) -> None:
    """Raise ``ValueError`` for arguments that do not fit together."""
    if q.ndim != 3 or k.ndim != 3 or k.shape != v.shape or k.shape[2] != q.shape[2]:
        raise ValueError(
            f"q={tuple(q.shape)}, k={tuple(k.shape)}, v={tuple(v.shape)} do not fit; "
            "pass [T, H, D], [S, K, D] and [S, K, D]"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"H={q.shape[1]} query heads do not divide among K={k.shape[1]} KV heads")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; cast them to one dtype")
    if keys is None and k.shape[0] != q.shape[0]:
        raise ValueError(f"T={q.shape[0]} and S={k.shape[0]} differ; pass cu_seqlens_k as well")
    for name, packed in (("cu_seqlens", queries), ("cu_seqlens_k", keys)):
        if packed is not None and (packed.cu_seqlens.dtype, packed.cu_seqlens.ndim) != (
            torch.int32,
            1,
        ):
            raise ValueError(
                f"{name}={packed.cu_seqlens.dtype}{tuple(packed.cu_seqlens.shape)} must be "
                "int32 [N + 1]; use .to(torch.int32)"
            )
    if keys is not None and keys.num_sequences != queries.num_sequences:
        raise ValueError(
            f"cu_seqlens counts {queries.num_sequences} sequences and cu_seqlens_k "
            f"{keys.num_sequences}; pass the same sequences in both"
        )


def _check_kernel(q: Tensor, queries: Packed, keys: Packed) -> None:
    """Raise ``ValueError`` for what only the kernel cannot do."""
    if q.shape[2] not in HEAD_DIMS:
        raise ValueError(
            f"D={q.shape[2]} has no Triton kernel; use one of {HEAD_DIMS}, or impl='reference'"
        )
    longest = max(queries.max_seqlen, keys.max_seqlen)
    if longest * q.stride(0) >= 1 << 31:
        raise ValueError(
            f"max_seqlen={longest} rows of {q.stride(0)} elements pass 2**31 offsets; "
            "split the sequence or use impl='reference'"
        )


@overload
def attention(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    *,
    cu_seqlens: Tensor,
    max_seqlen: int,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: int | None = None,
    scale: float | None = None,
    return_lse: Literal[False] = False,
    impl: Impl = "auto",
) -> Tensor: ...


@overload
def attention(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    *,
    cu_seqlens: Tensor,
    max_seqlen: int,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: int | None = None,
    scale: float | None = None,
    return_lse: Literal[True],
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]: ...


def attention(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    *,
    cu_seqlens: Tensor,
    max_seqlen: int,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: int | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Return causal attention within each packed sequence; differentiable in q, k and v.

    Args:
        q_THD: [T, H, D], queries of all sequences, one after another. The kernel takes D of 16, 32,
            64 and 128, and slices of a fused projection as they are.
        k_SKD: [S, K, D], with H a multiple of K: query head h reads KV head ``h // (H / K)``.
        v_SKD: [S, K, D].
        cu_seqlens: int32 [N + 1], where each sequence starts, and T.
        max_seqlen: Tokens of the longest sequence, or more.
        cu_seqlens_k: int32 [N + 1], where each sequence's keys start, and S, when a cached prefix
            makes them more than its queries. The last query sees all of them. A query that sees
            none (fewer keys than queries) returns 0.
        max_seqlen_k: The same bound for keys; needed with ``cu_seqlens_k``.
        scale: Multiplies the scores; D ** -0.5 when None.
        return_lse: Also return the log-sum-exp of each row of scores. It carries no gradient.
        impl: Which implementation runs; see :mod:`nanorlhf.nanokernels.dispatch`.

    Returns:
        [T, H, D] in the inputs' dtype, and with ``return_lse`` a float32 [T, H] besides.

    Raises:
        ValueError: Shapes or dtypes do not fit, or the kernel does not cover them.

    >>> x = torch.ones(3, 1, 16)
    >>> cu_seqlens = torch.tensor([0, 1, 3], dtype=torch.int32)
    >>> attention(x, x, x, cu_seqlens=cu_seqlens, max_seqlen=2).shape
    torch.Size([3, 1, 16])
    """
    queries, keys = Packed(cu_seqlens, max_seqlen), None
    if cu_seqlens_k is not None:
        if max_seqlen_k is None:
            raise ValueError("max_seqlen_k=None beside cu_seqlens_k; pass the longest key length")
        keys = Packed(cu_seqlens_k, max_seqlen_k)
    _check(q_THD, k_SKD, v_SKD, queries, keys)
    scale = q_THD.shape[-1] ** -0.5 if scale is None else scale
    if use_triton(impl, q_THD):
        _check_kernel(q_THD, queries, keys or queries)
        o, lse = _Attention.apply(q_THD, k_SKD, v_SKD, queries, keys or queries, scale)
        return (o, lse) if return_lse else o
    out = reference(
        q_THD, k_SKD, v_SKD, queries=queries, keys=keys, scale=scale, return_lse=return_lse
    )
    return out.o_THD if out.lse_TH is None else (out.o_THD, out.lse_TH)
