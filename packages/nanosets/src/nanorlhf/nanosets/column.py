"""A column: arrays in memory or in files, end to end, and the rows of them that are in use.

Nothing here copies a column. Concatenation adds parts; selection and shuffling give the column
``rows``, the numbers of its rows in the parts; both are undone element by element when rows come
out. A column and the parts it is made of are read together, so they share this file.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Bools, Nulls, Numbers
from .bits import Chunk
from .convert import concat, convert
from .errors import CorruptFileError
from .gather import Ints, Ragged, expand, offsets_of, packed, resolve
from .nested import Lists, Text
from .reader import File
from .types import DType

BLOCK_ROWS = 1024
"""Rows that iteration turns into Python values together."""


class Place(NamedTuple):
    """Rows of a part, as an array addresses them."""

    chunk: Chunk
    local: Ints


class Part(ABC):
    """Chunks of one array: what one buffer, or one mapped file, holds of a column."""

    chunk_rows: Ints

    @property
    @abstractmethod
    def array(self) -> Array:
        """The array over all chunks."""

    @property
    @abstractmethod
    def source(self) -> str:
        """Where the bytes are, for errors."""

    @cached_property
    def starts(self) -> Ints:
        """First row of each chunk, and the number of rows, int64 [chunks + 1]."""
        return offsets_of(self.chunk_rows)

    @cached_property
    def _even(self) -> int:
        """Rows of every chunk but the last, 0 when they differ."""
        rows = self.chunk_rows
        if len(rows) and (rows[:-1] == rows[0]).all() and rows[-1] <= rows[0]:
            return int(rows[0])
        return 0

    def locate(self, rows: Ints) -> Place:
        """Return where ``rows`` of this part lie."""
        if len(self.chunk_rows) == 1:
            return Place(0, rows)
        if self._even:
            chunk = rows // self._even
        else:
            chunk = np.searchsorted(self.starts, rows, side="right") - 1
        return Place(chunk, rows - self.starts[chunk])

    def item(self, row: int) -> Any:  # noqa: ANN401 - a value of any column type
        """Return one row as a Python value."""
        if len(self.chunk_rows) == 1:
            return self.array.item(0, row)
        if self._even:
            chunk = row // self._even
            return self.array.item(chunk, row - chunk * self._even)
        chunk = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.array.item(chunk, row - int(self.starts[chunk]))

    def windows(self, start: int, stop: int) -> Iterator[Array]:
        """Yield rows ``start .. stop`` as compact arrays, one for each chunk, without a copy."""
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        edges = self.starts.tolist()
        for chunk in range(first, len(self.chunk_rows)):
            if edges[chunk] >= stop:
                break
            low, high = max(start, edges[chunk]), min(stop, edges[chunk + 1])
            yield self.array.window(chunk, low - edges[chunk], high - edges[chunk])


class MemoryPart(Part):
    """One compact array in memory."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.chunk_rows = np.array([array.length])

    @property
    def array(self) -> Array:
        """The array."""
        return self._array

    @property
    def source(self) -> str:
        """Memory."""
        return "memory"


class FilePart(Part):
    """One column of a ``.nano`` file, found and checked when it is first touched."""

    def __init__(self, file: File, name: str) -> None:
        self.file = file
        self.name = name
        self.chunk_rows = file.chunk_rows

    def __reduce__(self) -> tuple[Any, ...]:
        return FilePart, (self.file, self.name)

    @cached_property
    def array(self) -> Array:
        """The array over all chunks of the file."""
        return self.file.array(self.name)

    @property
    def source(self) -> str:
        """The path."""
        return self.file.path


class Column(Sequence[Any]):
    """One column of a dataset: a sequence of Python values, and vectorised ways to many of them.

    Lists of numbers come out as numpy arrays (read-only views, no copy), strings as ``str``,
    structs as ``dict``, nulls as None. A list with a null inside comes out as a Python list.

    Args:
        dtype: Type of the values.
        parts: Where they lie; all of this type.
        rows: int64, numbers of the rows in use, counted through all parts; None for all in order.
    """

    def __init__(self, dtype: DType, parts: Sequence[Part], rows: Ints | None = None) -> None:
        self.dtype = dtype
        self.parts = tuple(parts)
        self.rows = rows
        totals = np.array([int(part.chunk_rows.sum()) for part in self.parts], np.int64)
        self._starts = offsets_of(totals)
        self._length = int(self._starts[-1]) if rows is None else len(rows)

    @classmethod
    def of(cls, array: Array) -> "Column":
        """Return a compact array as a column."""
        return cls(array.dtype, (MemoryPart(array),))

    def __reduce__(self) -> tuple[Any, ...]:
        return Column, (self.dtype, self.parts, self.rows)

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"Column({self.dtype}, {len(self)} rows)"

    @overload
    def __getitem__(self, key: int) -> Any: ...  # noqa: ANN401

    @overload
    def __getitem__(self, key: slice) -> list[Any]: ...

    def __getitem__(self, key: Any) -> Any:
        """Return one value, or the list of those that a slice or integer sequence picks."""
        if isinstance(key, int | np.integer) and not isinstance(key, bool):
            return self.item(int(key))
        return self.values(resolve(key, self._length))

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self._length, BLOCK_ROWS):
            yield from self.values(np.arange(start, min(start + BLOCK_ROWS, self._length)))

    def item(self, index: int) -> Any:  # noqa: ANN401 - a value of any column type
        """Return one value.

        Raises:
            IndexError: There is no such row.
        """
        if index < 0:
            index += self._length
        if not 0 <= index < self._length:
            rule = f"is not in a dataset of {self._length} rows; use 0 .. {self._length - 1}"
            raise IndexError(f"row {index} {rule}")
        row = index if self.rows is None else int(self.rows[index])
        number = 0
        if len(self.parts) > 1:
            number = int(np.searchsorted(self._starts, row, side="right")) - 1
            row -= int(self._starts[number])
        part = self.parts[number]
        try:
            return part.item(row)
        except UnicodeDecodeError:
            raise _bad_text(part) from None

    def values(self, indices: Ints) -> list[Any]:
        """Return the values at ``indices``, int64 [B], none of them negative."""

        def rows(part: Part, local: Ints) -> list[Any]:
            try:
                return part.array.rows(*part.locate(local))
            except UnicodeDecodeError:
                raise _bad_text(part) from None

        found = self._by_part(indices, rows)
        if isinstance(found, _Whole):
            values: list[Any] = found.result
            return values
        out: list[Any] = [None] * len(indices)
        for piece in found:
            for at, value in zip(piece.at.tolist(), piece.result, strict=True):
                out[at] = value
        return out

    def take(self, indices: Ints) -> Array:
        """Return the values at ``indices``, none of them negative, as a compact array."""
        found = self._by_part(indices, lambda part, rows: part.array.take(*part.locate(rows)))
        if isinstance(found, _Whole):
            array: Array = found.result
            return array
        order = np.concatenate([piece.at for piece in found])
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return concat([piece.result for piece in found]).take(0, back)

    def _by_part(self, indices: Ints, read: Callable[[Part, Ints], Any]) -> "_Whole | list[_Piece]":
        """Call ``read`` once for each part that ``indices`` touch."""
        rows = indices if self.rows is None else self.rows[indices]
        if len(self.parts) == 1:
            return _Whole(read(self.parts[0], rows))
        if len(rows) == 0:
            return _Whole(read(MemoryPart(convert(Nulls(0), self.dtype)), rows))
        number = np.searchsorted(self._starts, rows, side="right") - 1
        pieces = []
        for n in np.unique(number).tolist():
            at = np.flatnonzero(number == n)
            pieces.append(_Piece(at, read(self.parts[n], rows[at] - self._starts[n])))
        return pieces

    def block(self, start: int, stop: int) -> Array:
        """Return rows ``start .. stop`` as a compact array; a view when they lie in one chunk."""
        if self.rows is not None:
            return self.take(np.arange(start, stop))
        found: list[Array] = []
        for part, first in zip(self.parts, self._starts.tolist(), strict=False):
            size = int(part.starts[-1])
            low, high = max(start - first, 0), min(stop - first, size)
            if low < high:
                found.extend(part.windows(low, high))
        return concat(found) if found else convert(Nulls(0), self.dtype)

    def select(self, rows: Ints) -> "Column":
        """Return the column of other rows of the same parts."""
        return Column(self.dtype, self.parts, rows)

    def gather(self, indices: Any = slice(None)) -> Ragged:  # noqa: ANN401
        """Return rows of a list column packed end to end, as a copy; a null row is empty.

        Args:
            indices: A slice, range, list or array of row numbers [B]; default all rows.

        Raises:
            TypeError: The column does not hold lists of numbers or bools.
            ValueError: A list has a null inside.
        """
        return self._gather(resolve(indices, self._length))

    def _gather(self, indices: Ints) -> Ragged:
        found = self._by_part(indices, _gather)
        if isinstance(found, _Whole):
            ragged: Ragged = found.result
            return ragged
        values = np.concatenate([piece.result.values for piece in found])
        lengths = np.zeros(len(indices), np.int64)
        begins = np.zeros(len(indices), np.int64)
        shift = 0
        for at, (some, offsets) in found:
            lengths[at] = np.diff(offsets)
            begins[at] = offsets[:-1] + shift
            shift += len(some)
        return Ragged(_own(packed(values, begins, begins + lengths)), offsets_of(lengths))

    def padded(
        self,
        indices: Any = slice(None),  # noqa: ANN401
        *,
        pad_value: float = 0,
        length: int | None = None,
        left: bool = False,
    ) -> NDArray[Any]:
        """Return rows of a list column as a rectangle [B, L]; see ``Ragged.padded``."""
        return self.gather(indices).padded(pad_value=pad_value, length=length, left=left)

    def lengths(self, indices: Any = slice(None)) -> Ints:  # noqa: ANN401
        """Return the elements of each list, or UTF-8 bytes of each string; 0 for a null.

        Reads offsets only, so picking rows by length costs no data.

        Raises:
            TypeError: The column holds neither lists nor strings.
        """
        rows = resolve(indices, self._length)
        found = self._by_part(rows, _lengths)
        if isinstance(found, _Whole):
            result: Ints = found.result
            return result
        out = np.zeros(len(rows), np.int64)
        for piece in found:
            out[piece.at] = piece.result
        return out

    def numpy(self, indices: Any = slice(None)) -> NDArray[Any]:  # noqa: ANN401
        """Return rows of a column of numbers or bools as an array [B], a copy.

        Raises:
            TypeError: The column holds something else.
            ValueError: A row is null.
        """
        taken = self.take(resolve(indices, self._length))
        if taken.valid is not None:
            raise ValueError(f"a row of this {self.dtype} column is null; filter or fill it first")
        if isinstance(taken, Bools):
            return taken.flat()
        if isinstance(taken, Numbers):
            return _own(taken.values)
        raise TypeError(f"a column of {self.dtype} is no array of numbers; use gather or a slice")

    def to_list(self) -> list[Any]:
        """Return all values."""
        return list(self)

    def converted(self, dtype: DType, *, field: str) -> "Column":
        """Return the column in another type, in memory; the column itself if it has that type."""
        if dtype == self.dtype:
            return self
        return Column.of(convert(self.block(0, self._length), dtype, field=field))


class _Whole(NamedTuple):
    """What came out of the only part."""

    result: Any


class _Piece(NamedTuple):
    """What came out of one of several parts, and at which of the indices it belongs."""

    at: Ints
    result: Any


def _own(values: NDArray[Any]) -> NDArray[Any]:
    """Return values that share memory with nothing and may be written to."""
    return values if values.flags.owndata and values.flags.writeable else values.copy()


def _lengths(part: Part, rows: Ints) -> Ints:
    array = part.array
    if not isinstance(array, Lists):
        raise TypeError(f"a column of {array.dtype} has no lengths; use a list or utf8 column")
    starts, stops = array.bounds(*part.locate(rows))
    return stops - starts


def _gather(part: Part, rows: Ints) -> Ragged:
    array = part.array
    if not isinstance(array, Lists) or isinstance(array, Text):
        raise TypeError(f"gather takes lists of numbers, not {array.dtype}; use a slice instead")
    child, (chunk, local) = array.child, part.locate(rows)
    starts, stops = array.bounds(chunk, local)
    offsets = offsets_of(stops - starts)
    if isinstance(child, Numbers) and child.valid is None:
        base = child.base[chunk]
        return Ragged(_own(packed(child.values, base + starts, base + stops)), offsets)
    if isinstance(child, Bools) and child.valid is None:
        lengths = stops - starts
        chunks = chunk if isinstance(chunk, int) else np.repeat(chunk, lengths)
        return Ragged(child.bits.test(chunks, expand(starts, lengths)), offsets)
    inner = child.spans(chunk, starts, stops)
    if isinstance(inner, Nulls) and inner.length == 0:
        return Ragged(np.zeros(0, np.int64), offsets)
    if not isinstance(inner, Numbers | Bools):
        raise TypeError(f"gather takes lists of numbers, not {array.dtype}; use a slice instead")
    if inner.valid is not None:
        raise ValueError(f"a list of this {array.dtype} column has a null inside; filter it first")
    return Ragged(inner.flat() if isinstance(inner, Bools) else _own(inner.values), offsets)


def _bad_text(part: Part) -> Exception:
    where = "column data: a string is not UTF-8"
    if isinstance(part, FilePart):
        where = f"column {part.name!r}: a string is not UTF-8"
    return CorruptFileError(part.source, where)
