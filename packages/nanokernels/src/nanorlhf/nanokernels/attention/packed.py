"""What the forward and the backward of attention share: where sequences lie, and how tiles do."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nanorlhf.nanokernels.dispatch import cdiv, descriptor, jit, tl

FAR = 1 << 30
"""Rows of a ragged descriptor, more than any tensor has; the kernels count on it."""


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


def as_rows(x: Tensor) -> Tensor:
    """Return ``x`` [T, H, D] as the tensor memory accelerator reads it; seldom a copy.

    Heads side by side, and rows on 16-byte boundaries. A slice of a fused projection already is so.
    """
    size = x.element_size()
    fits = x.stride()[1:] == (x.shape[2], 1) and x.stride(0) * size % 16 == 0
    return x if fits and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


def as_batch(x: Tensor) -> Tensor:
    """Return ``x`` [B, S, H, D] likewise: any strides on 16-byte boundaries but a unit last one."""
    aligned = all(step > 0 and step * x.element_size() % 16 == 0 for step in x.stride()[:-1])
    fits = aligned and x.stride(-1) == 1 and x.data_ptr() % 16 == 0
    return x if fits else x.clone(memory_format=torch.contiguous_format)


class Batch(NamedTuple):
    """Where the queries and the keys of a batch lie once both are flat, as kernels take it.

    Packed: where sequences start is in ``cu_q`` and ``cu_k``. Dense: all are equally long.
    """

    sequences: int
    cu_q: Tensor | None
    cu_k: Tensor | None
    q_length: int
    """Queries of a dense row."""
    k_length: int

    @property
    def dense(self) -> bool:
        """Whether all sequences are equally long."""
        return self.cu_q is None

    def tiles_of_queries(self, tokens: int, block: int) -> int:
        """Return how many tiles of ``block`` queries there are; see :func:`find_sequence`."""
        dense = self.sequences * cdiv(self.q_length, block)
        return dense if self.dense else tokens // block + self.sequences

    def tiles_of_keys(self, tokens: int, block: int) -> int:
        """Return how many tiles of ``block`` keys there are."""
        dense = self.sequences * cdiv(self.k_length, block)
        return dense if self.dense else tokens // block + self.sequences


class Mask(NamedTuple):
    """Which scores count, and what they are multiplied with."""

    batch: Batch
    scale: float
    causal: bool
    window: int | None
    """The last keys that a query sees; None for all."""


class Rows(NamedTuple):
    """What the backward reads as tiles, [T, H, D] or [S, K, D], from :func:`as_rows`."""

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor


def rows_of(x: Tensor, block: int) -> object:
    """Return a descriptor of [T, H, D] by row and column, for tiles of ``block`` rows of a head.

    A tile that crosses the end of its sequence reads the next one's rows.
    """
    return descriptor(x, [len(x), x.shape[1] * x.shape[2]], [x.stride(0), 1], [block, x.shape[2]])


def starting(x: Tensor, block: int) -> object:
    """Return a descriptor of [T, H, D] by first row of a sequence, row in it, and column.

    What lies before row 0 of the sequence is read as zeros.
    """
    stride, width = x.stride(0), x.shape[1] * x.shape[2]
    return descriptor(x, [len(x), len(x), width], [stride, stride, 1], [1, block, x.shape[2]])


@jit
def find_sequence(
    cu_ptr: tl.tensor, sequences: tl.tensor, tile: tl.tensor, BLOCK: tl.constexpr
) -> Any:  # noqa: ANN401 - what a kernel returns is Triton's
    """Return the sequence that a tile belongs to, when sequence n's begin at cu[n] // BLOCK + n.

    That is room enough for each, so tiles need no prefix sum: at most one a sequence is too many.
    """
    found = 0
    for first in range(0, sequences, 128):
        sequence = first + tl.arange(0, 128)
        real = sequence < sequences
        start = tl.load(cu_ptr + sequence, mask=real, other=0)
        found += tl.sum((real & (start // BLOCK + sequence <= tile)).to(tl.int32), axis=0)
    return found - 1


@jit
def spans(
    cu_q_ptr: tl.tensor,
    cu_k_ptr: tl.tensor,
    sequence: tl.tensor,
    q_length: tl.tensor,
    k_length: tl.tensor,
    DENSE: tl.constexpr,
) -> Any:  # noqa: ANN401
    """Return where a sequence's queries start, how many they are, and the same of its keys."""
    if DENSE:
        return sequence * q_length, q_length, sequence * k_length, k_length
    else:  # noqa: RET505 - only an else keeps the compiler from reading both
        q_start = tl.load(cu_q_ptr + sequence)
        k_start = tl.load(cu_k_ptr + sequence)
        q_len = tl.load(cu_q_ptr + sequence + 1) - q_start
        return q_start, q_len, k_start, tl.load(cu_k_ptr + sequence + 1) - k_start


@jit
def end_of_tiles(
    sequence: tl.tensor,
    end: tl.tensor,
    length: tl.tensor,
    DENSE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> Any:  # noqa: ANN401
    """Return the tile after the last one of a sequence whose tokens end at ``end``."""
    if DENSE:
        return (sequence + 1) * tl.cdiv(length, BLOCK)
    else:  # noqa: RET505 - as above
        return end // BLOCK + sequence + 1


class Geometry(NamedTuple):
    """What a tensor descriptor is made of, besides the memory."""

    shape: list[int]
    strides: list[int]
    """In elements."""
    block: list[int]


def ragged(x: Tensor, rows: int) -> Geometry:
    """Return the geometry in which a block of packed [T, H, D] ends where its sequence does.

    Row i of a sequence of n tokens that ends at token e is at [FAR, e, FAR - n + i, column]: rows
    past its end are past dimension 2's, so they read as 0 and are not written. Dimension 1 goes on
    to the end, and dimension 0 takes back FAR rows: its step is 2**34 - stride elements, and FAR
    steps are 2**64 elements, nothing in a 64-bit address, less FAR rows.
    """
    stride, endless = x.stride(0), 0x7FFF0000
    return Geometry(
        [endless, endless, FAR, x.shape[1] * x.shape[2]],
        [2**34 - stride, stride, stride, 1],
        [1, 1, rows, x.shape[2]],
    )


def batched(x: Tensor, rows: int) -> Geometry:
    """Return the geometry of a batch [B, S, H, D] of any strides; row i is at [b, i, head, 0]."""
    return Geometry(list(x.shape), list(x.stride()), [1, rows, 1, x.shape[3]])
