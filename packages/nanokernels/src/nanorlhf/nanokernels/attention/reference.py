"""Attention in plain PyTorch, on packed sequences and dense batches: what the kernels must match.

Packed sequences are padded to [N, H, L, D] and given to PyTorch's own attention, with a mask only
where its causal flag says too little.

Shape legend: T = packed query tokens, N = sequences, L = longest sequence, H = query heads, D =
head dimension.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nanorlhf.nanokernels.attention.packed import Packed
from nanorlhf.nanokernels.dispatch import accumulator


class Attended(NamedTuple):
    """What attention returns inside this package."""

    o: Tensor
    """In the layout of the queries."""
    lse: Tensor | None
    """The same without its last dimension."""


class _Padded(NamedTuple):
    """A dense batch, and how many rows of each sequence count."""

    x_NHLD: Tensor
    lengths: Tensor
    """int64 [N], or [1] where all are the same."""
    slots: Tensor | None
    """Each packed row's index in the batch, [T]; None when rows are in order already."""


def _pad(x: Tensor, packed: Packed | None) -> _Padded:
    """Return packed [T, H, D], or dense [N, L, H, D], as [N, H, L, D], zeros on padding."""
    if packed is None:
        return _Padded(x.transpose(1, 2), torch.tensor([x.shape[1]], device=x.device), None)
    batch, longest = packed.num_sequences, packed.max_seqlen
    lengths = packed.cu_seqlens.diff().long()
    slots = None
    if len(x) != batch * longest:
        # Row t of sequence n stands at n L + t - starts[n].
        first = torch.arange(batch, device=x.device) * longest - packed.cu_seqlens[:-1].long()
        slots = first.repeat_interleave(lengths, output_size=len(x))
        slots = slots + torch.arange(len(x), device=x.device)
        x = x.new_zeros(batch * longest, *x.shape[1:]).index_copy(0, slots, x)
    return _Padded(x.view(batch, longest, *x.shape[1:]).transpose(1, 2), lengths, slots)


def _unpad(x: Tensor, packed: Packed | None, slots: Tensor | None) -> Tensor:
    """Return [N, H, L, ...] in the layout it came in."""
    x = x.transpose(1, 2)
    if packed is None:
        return x
    x = x.flatten(0, 1)
    return x if slots is None else x.index_select(0, slots)


def visible(q: _Padded, k: _Padded, *, causal: bool, window: int | None) -> Tensor:
    """Return which keys a query sees, bool [N, 1, Lq, Lk], aligned at the bottom right."""
    row = torch.arange(q.x_NHLD.shape[2], device=q.lengths.device)
    key = torch.arange(k.x_NHLD.shape[2], device=q.lengths.device)
    end = k.lengths[:, None]
    own = row + (end - q.lengths[:, None])
    last = torch.minimum(own, end - 1) if causal else (end - 1).expand_as(own)
    seen = key <= last[:, :, None]
    if window is not None:
        seen = seen & (key > (own - window)[:, :, None])
    return seen[:, None]


@torch.no_grad()
def _log_sum_exp(q: Tensor, k: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Return the log of each query's softmax denominator, [N, H, L]."""
    high = accumulator(q.dtype)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q.to(high) @ k.to(high).transpose(-1, -2) * scale
    return scores.masked_fill(~seen, -math.inf).logsumexp(dim=-1)


def _masked(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Return attention under an explicit mask; 0 where a query sees nothing."""
    # Such a row would be 0 / 0: it looks at every key and is cleared afterwards.
    blind = ~seen.any(dim=-1, keepdim=True)
    o = F.scaled_dot_product_attention(
        q, k, v, attn_mask=seen | blind, scale=scale, enable_gqa=True
    )
    return o.masked_fill(blind, 0.0)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    queries: Packed | None,
    keys: Packed | None,
    causal: bool,
    window: int | None,
    scale: float,
    return_lse: bool,
) -> Attended:
    """Return attention of packed [T, H, D], or of dense [B, S, H, D] with ``queries`` None.

    ``keys`` is None, too, where the keys lie as the queries do.
    """
    key_rows = queries if keys is None else keys
    padded_q, padded_k = _pad(q, queries), _pad(k, key_rows)
    q_NHLD, k_NHLD, v_NHLD = padded_q.x_NHLD, padded_k.x_NHLD, _pad(v, key_rows).x_NHLD
    # Then the padding lies behind every token that a causal mask lets through.
    flag_is_mask = causal and window is None and keys is None and q.shape[-3] == k.shape[-3]
    seen = None
    if return_lse or not flag_is_mask:
        seen = visible(padded_q, padded_k, causal=causal, window=window)
    if flag_is_mask:
        o = F.scaled_dot_product_attention(
            q_NHLD, k_NHLD, v_NHLD, is_causal=True, scale=scale, enable_gqa=True
        )
    else:
        assert seen is not None, "a mask is made unless the flag says it all"
        o = _masked(q_NHLD, k_NHLD, v_NHLD, seen, scale)
    lse = None
    if return_lse:
        assert seen is not None, "a mask is made for the sums"
        lse = _unpad(_log_sum_exp(q_NHLD, k_NHLD, seen, scale), queries, padded_q.slots)
    return Attended(_unpad(o, queries, padded_q.slots), lse)
