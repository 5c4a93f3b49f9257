"""Rows of a list array packed end to end, and how long they are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Bools, Nulls, Numbers
from .bits import Chunk
from .chunks import Piece
from .fixed import FixedLists, Tensors
from .gather import Ints, Ragged, expand, offsets_of, packed
from .nested import Lists, Text


def owned(values: NDArray[Any]) -> NDArray[Any]:
    """Return values that share memory with nothing and may be written to."""
    return values if values.flags.owndata and values.flags.writeable else values.copy()


def lengths_of(array: Array, chunk: Chunk, local: Ints) -> Ints:
    """Return the elements of lists, or bytes of strings, at B positions; 0 for a null.

    Raises:
        TypeError: The array holds neither.
    """
    if not isinstance(array, Lists | FixedLists):
        raise TypeError(f"a column of {array.dtype} has no lengths; use a list or utf8 column")
    starts, stops = array.bounds(chunk, local)
    return stops - starts


def all_lengths(array: Array) -> Ints:
    """Return what ``lengths_of`` all elements of a compact array are, without numbering them.

    Raises:
        TypeError: The array holds neither lists nor strings.
    """
    if not isinstance(array, Lists):
        return lengths_of(array, 0, np.arange(array.length))
    lengths = np.diff(array.edges[: array.length + 1]).astype(np.int64)
    mask = array.validity()
    return lengths if mask is None else lengths * mask


def gathered(array: Array, chunk: Chunk, local: Ints) -> Ragged:
    """Return the lists at B positions end to end, as a copy; a null is empty.

    Raises:
        TypeError: The array does not hold lists of numbers, bools or times.
        ValueError: A list has a null inside.
    """
    rule = f"gather takes lists of numbers, not {array.dtype}; use a slice instead"
    if not isinstance(array, Lists | FixedLists) or isinstance(array, Text | Tensors):
        raise TypeError(rule)
    child = array.child
    starts, stops = array.bounds(chunk, local)
    offsets = offsets_of(stops - starts)
    if isinstance(child, Numbers) and child.valid is None:
        base = child.base[chunk]
        values = packed(child.values, base + starts, base + stops)
        return Ragged(owned(child.as_numpy(values)), offsets)
    if isinstance(child, Bools) and child.valid is None:
        lengths = stops - starts
        chunks = chunk if isinstance(chunk, int) else np.repeat(chunk, lengths)
        return Ragged(child.bits.test(chunks, expand(starts, lengths)), offsets)
    inner = child.spans(chunk, starts, stops)
    if isinstance(inner, Nulls) and inner.length == 0:
        return Ragged(np.zeros(0, np.int64), offsets)
    if not isinstance(inner, Numbers | Bools):
        raise TypeError(rule)
    if inner.valid is not None:
        raise ValueError(f"a list of this {array.dtype} column has a null inside; filter it first")
    if isinstance(inner, Bools):
        return Ragged(inner.flat(), offsets)
    return Ragged(owned(inner.as_numpy(inner.values)), offsets)


def interleaved(pieces: Sequence[Piece], count: int) -> Ragged:
    """Return what was gathered from several parts as ``count`` lists in the order of their rows."""
    values = np.concatenate([piece.result.values for piece in pieces])
    lengths = np.zeros(count, np.int64)
    begins = np.zeros(count, np.int64)
    shift = 0
    for at, (some, offsets) in pieces:
        lengths[at] = np.diff(offsets)
        begins[at] = offsets[:-1] + shift
        shift += len(some)
    return Ragged(owned(packed(values, begins, begins + lengths)), offsets_of(lengths))
