"""Attention by flash-attn's names, layouts and keywords, for code that calls that library.

What this package's attention does not have (dropout, alibi, soft caps) is an error when asked for,
never ignored. The backward is always deterministic.
"""

from torch import Tensor

from .attention.varlen import attention


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Return attention over a dense batch; differentiable in q, k and v.

    Args:
        q: [B, S, H, D].
        k: [B, Sk, K, D], with H a multiple of K; ``causal`` is aligned at the bottom right.
        v: [B, Sk, K, D].
        dropout_p: Only 0.
        softmax_scale: Multiplies the scores; D ** -0.5 when None.
        causal: Whether a query sees only keys up to its own position.
        window_size: Keys seen to the left and right of a query's own; (-1, -1) is no limit, and
            (n, 0) or (n, -1) with ``causal`` the only others.
        softcap: Only 0.
        alibi_slopes: Only None.
        deterministic: Either; gradients are deterministic.
        return_attn_probs: Also return the log-sum-exp, float32 [B, H, S], and None.

    Raises:
        ValueError: Shapes do not fit, or one of the above is asked for that is not there.
    """
    window = _window(window_size, causal=causal)
    _refuse(dropout_p=dropout_p, softcap=softcap, alibi_slopes=alibi_slopes)
    found = attention(
        q, k, v, causal=causal, window=window, scale=softmax_scale, return_lse=return_attn_probs
    )
    return (found[0], found[1].transpose(1, 2), None) if isinstance(found, tuple) else found


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """Return attention over packed sequences; differentiable in q, k and v.

    Args:
        q: [T, H, D].
        k: [Tk, K, D].
        v: [Tk, K, D].
        cu_seqlens_q: int32 [N + 1], where each sequence's queries start, and T.
        cu_seqlens_k: int32 [N + 1], the same for its keys.
        max_seqlen_q: Queries of the longest sequence.
        max_seqlen_k: Keys of the longest sequence.
        dropout_p: As in :func:`flash_attn_func`, like all that follow.
        softmax_scale: As there.
        causal: As there.
        window_size: As there.
        softcap: As there.
        alibi_slopes: As there.
        deterministic: As there.
        return_attn_probs: Also return the log-sum-exp, float32 [H, T], and None.
        block_table: Only None; ``paged_attention`` reads pages.

    Raises:
        ValueError: As :func:`flash_attn_func`.
    """
    window = _window(window_size, causal=causal)
    _refuse(
        dropout_p=dropout_p, softcap=softcap, alibi_slopes=alibi_slopes, block_table=block_table
    )
    same = cu_seqlens_k is cu_seqlens_q
    found = attention(
        q,
        k,
        v,
        cu_seqlens=cu_seqlens_q,
        max_seqlen=max_seqlen_q,
        cu_seqlens_k=None if same else cu_seqlens_k,
        max_seqlen_k=None if same else max_seqlen_k,
        causal=causal,
        window=window,
        scale=softmax_scale,
        return_lse=return_attn_probs,
    )
    return (found[0], found[1].t(), None) if isinstance(found, tuple) else found


def _refuse(**options: object) -> None:
    for name, value in options.items():
        if isinstance(value, Tensor):
            value = f"{value.dtype}{tuple(value.shape)}"
        if value:
            raise ValueError(f"{name}={value} is not supported here; leave it out")


def _window(size: tuple[int, int], *, causal: bool) -> int | None:
    """Return how many keys a query sees, its own among them; None for all."""
    left, right = size
    if left < 0 and (right < 0 or (causal and right == 0)):
        return None
    if causal and left >= 0 and right <= 0:
        return left + 1
    raise ValueError(
        f"window_size={size} with causal={causal} is not supported; use (n, 0) with causal=True"
    )
