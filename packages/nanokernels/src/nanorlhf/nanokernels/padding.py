"""Between a padded batch and its tokens packed end to end, by flash-attn's names and signatures.

::

    [ a b . ]                                  indices     where each kept token stood
    [ c . . ]   -- unpad_input -->  a b c d e f      cu_seqlens  0 2 3 6
    [ d e f ]   <-- pad_input --               max_seqlen  3

Shape legend: B = rows, S = padded length, T = tokens kept.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Unpadded(NamedTuple):
    """The kept tokens and where they stood."""

    hidden_states: Tensor
    """[T, ...]."""
    indices: Tensor
    """int64 [T], positions in the flattened [B * S]."""
    cu_seqlens: Tensor
    """int32 [B + 1], where each row's tokens start, and T."""
    max_seqlen: int
    """Tokens of the longest row."""
    seqused: Tensor
    """int32 [B], tokens of each row."""


def unpad_input(hidden_states: Tensor, attention_mask: Tensor) -> Unpadded:
    """Return the tokens that the mask keeps, row after row; differentiable.

    Waits for the device: how many there are is a shape.

    Args:
        hidden_states: [B, S, ...].
        attention_mask: bool or integer [B, S], nonzero on tokens to keep.

    Raises:
        ValueError: The mask does not match.

    >>> mask = torch.tensor([[1, 1], [0, 1]])
    >>> unpad_input(torch.arange(4.0).view(2, 2, 1), mask).hidden_states.flatten().tolist()
    [0.0, 1.0, 3.0]
    """
    if attention_mask.shape != hidden_states.shape[:2]:
        raise ValueError(
            f"attention_mask={tuple(attention_mask.shape)} does not match hidden_states="
            f"{tuple(hidden_states.shape)}; pass [B, S] for [B, S, ...]"
        )
    lengths = attention_mask.ne(0).sum(dim=1, dtype=torch.int32)
    indices = attention_mask.flatten().nonzero().squeeze(1)
    cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    longest = int(lengths.max()) if lengths.numel() else 0
    packed = hidden_states.flatten(0, 1).index_select(0, indices)
    return Unpadded(packed, indices, cu_seqlens, longest, lengths)


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """Return packed tokens at their places in [batch, seqlen, ...], zeros elsewhere.

    The inverse of :func:`unpad_input`; differentiable.

    >>> pad_input(torch.ones(1, 1), torch.tensor([2]), 2, 2).flatten().tolist()
    [0.0, 0.0, 1.0, 0.0]
    """
    padded = hidden_states.new_zeros(batch * seqlen, *hidden_states.shape[1:])
    return padded.index_copy(0, indices, hidden_states).view(
        batch, seqlen, *hidden_states.shape[1:]
    )
