"""What the forward and the backward of packed attention share."""

from typing import NamedTuple

import torch
from torch import Tensor


class Packed(NamedTuple):
    """Where the sequences of a packed batch lie."""

    cu_seqlens: Tensor
    """int32 [N + 1], where each sequence starts and the last one ends."""
    max_seqlen: int
    """Tokens of the longest sequence, or more."""

    @property
    def num_sequences(self) -> int:
        """Sequences in the batch."""
        return len(self.cu_seqlens) - 1


class Tile(NamedTuple):
    """Launch parameters of an attention kernel."""

    block_m: int
    """Queries of a tile."""
    block_n: int
    """Keys of a tile."""
    num_warps: int
    num_stages: int


def as_rows(x: Tensor) -> Tensor:
    """Return ``x`` [T, H, D] as the tensor memory accelerator reads it; seldom a copy.

    Heads side by side, and rows on 16-byte boundaries. A slice of a fused projection already is so.
    """
    size = x.element_size()
    fits = x.stride()[1:] == (x.shape[2], 1) and x.stride(0) * size % 16 == 0
    return x if fits and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)
