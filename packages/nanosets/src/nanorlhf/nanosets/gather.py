"""The hot path: many ranges of one flat buffer at once, without a Python loop over elements.

Shape legend: B = ranges (rows), T = elements of all of them, L = elements of the longest.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

LOOP_MEAN_LENGTH = 16
"""Mean elements of a range from which slicing beats index arithmetic, about."""
JOINED_MEAN_BYTES = 2048
"""Mean bytes of a range up to which a second, short copy costs less than a numpy slice."""
JOINED_ROWS = 512
"""Ranges joined at a time: what Python's garbage collector does not notice, in a fast cache."""


class Ragged(NamedTuple):
    """Rows of different lengths, end to end: row ``i`` is ``values[offsets[i]:offsets[i + 1]]``.

    >>> Ragged(np.array([7, 8, 9]), np.array([0, 1, 1, 3])).padded(pad_value=-1)
    array([[ 7, -1],
           [-1, -1],
           [ 8,  9]])
    """

    values: NDArray[Any]
    """[T], the elements."""
    offsets: Ints
    """int64 [B + 1], from 0 to T; what varlen attention calls cu_seqlens."""

    @property
    def lengths(self) -> Ints:
        """Elements of each row, int64 [B]."""
        return np.diff(self.offsets)

    def rows(self) -> list[NDArray[Any]]:
        """Return each row as a view of ``values``."""
        edges = self.offsets.tolist()
        return [self.values[a:b] for a, b in pairwise(edges)]

    def padded(
        self, *, pad_value: float = 0, length: int | None = None, left: bool = False
    ) -> NDArray[Any]:
        """Return the rows as one rectangle [B, L], filled up on the right, or on the left.

        Args:
            pad_value: What fills the rest of a row.
            length: L; default the longest row.
            left: Put the fill before the row rather than after it.

        Raises:
            ValueError: A row is longer than ``length``.
        """
        lengths = self.lengths
        longest = int(lengths.max(initial=0))
        width = longest if length is None else length
        if longest > width:
            raise ValueError(f"length={width} is below the longest row, {longest}; raise it")
        out = np.full((len(lengths), width), pad_value, dtype=self.values.dtype)
        column = np.arange(width)
        gap = (width - lengths)[:, None]
        out[column >= gap if left else column < lengths[:, None]] = self.values
        return out


def offsets_of(lengths: Ints) -> Ints:
    """Return int64 [B + 1], the running total of ``lengths`` from 0."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    lengths.cumsum(out=offsets[1:])
    return offsets


def expand(starts: Ints, lengths: Ints) -> Ints:
    """Return every position of the ranges ``starts[i] .. starts[i] + lengths[i]``, in order.

    >>> expand(np.array([5, 2]), np.array([2, 1])).tolist()
    [5, 6, 2]
    """
    offsets = offsets_of(lengths)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])


def packed(values: NDArray[Any], starts: Ints, stops: Ints) -> NDArray[Any]:
    """Return the ranges ``values[starts[i]:stops[i]]`` end to end.

    A view when the ranges follow one another in ``values``, else a copy.
    """
    if len(starts) == 0:
        return values[:0]
    if np.array_equal(starts[1:], stops[:-1]):
        return values[int(starts[0]) : int(stops[-1])]
    lengths = stops - starts
    total = int(lengths.sum())
    # A slice costs the same for any length, an index costs per element: long rows are sliced.
    if total < LOOP_MEAN_LENGTH * len(starts):
        return values[expand(starts, lengths)]
    if total * values.itemsize <= JOINED_MEAN_BYTES * len(starts):
        return _joined(values, starts, stops, total)
    pairs = zip(starts.tolist(), stops.tolist(), strict=True)
    return np.concatenate([values[a:b] for a, b in pairs])


def _joined(values: NDArray[Any], starts: Ints, stops: Ints, total: int) -> NDArray[Any]:
    """Return ranges of ``total`` elements end to end: slices of memory are lighter than arrays."""
    out = np.empty(total, values.dtype)
    source, target = values.view(np.uint8).data, out.view(np.uint8).data
    firsts, lasts = (starts * values.itemsize).tolist(), (stops * values.itemsize).tolist()
    done = 0
    for some in range(0, len(firsts), JOINED_ROWS):
        stop = some + JOINED_ROWS
        pairs = zip(firsts[some:stop], lasts[some:stop], strict=True)
        data = b"".join([source[a:b] for a, b in pairs])
        target[done : done + len(data)] = data
        done += len(data)
    return out


def resolve(key: object, size: int) -> Ints:
    """Return the row numbers that a slice, range, list or integer array picks of ``size`` rows.

    Raises:
        IndexError: A number lies outside ``-size .. size - 1``.
        TypeError: The key is none of these (a bool mask is not).
    """
    if isinstance(key, slice):
        return np.arange(*key.indices(size), dtype=np.int64)
    if isinstance(key, range):
        rows = np.arange(key.start, key.stop, key.step, dtype=np.int64)
    else:
        rows = _numbers(key)
    if len(rows) == 0:
        return rows
    # One pass tells for the usual case: as uint64 a negative number is larger than any size.
    unsigned = rows.view(np.uint64)
    if unsigned.item(unsigned.argmax()) < size:  # a third of the time of max
        return rows
    low, high = int(rows.min()), int(rows.max())
    if low < -size or high >= size:
        bad = low if low < -size else high
        raise IndexError(f"row {bad} is not in a dataset of {size} rows; use 0 .. {size - 1}")
    return np.where(rows < 0, rows + size, rows)


def _listed(key: object) -> object:
    return list(key) if isinstance(key, map | filter | zip) else key


def _numbers(key: object) -> Ints:
    array = key if type(key) is np.ndarray else np.asarray(_listed(key))
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(
            f"rows are picked by a slice, range, list or array of integers, not by "
            f"{type(key).__name__} of {array.dtype}, {array.ndim}-d; for a mask use np.flatnonzero"
        )
    return array.astype(np.int64, copy=False)
