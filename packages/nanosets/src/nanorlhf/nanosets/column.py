"""A column: arrays in memory or in files, end to end, and the rows of them that are in use.

Nothing here copies a column. Concatenation adds parts; selection and shuffling give the column
``rows``, the numbers of its rows in the parts; both are undone element by element when rows come
out.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Bools, Numbers
from .chunks import FilePart, MemoryPart, Part, Piece, Whole, by_part
from .convert import all_null, concat, convert
from .errors import CorruptFileError
from .exchange import Exchange
from .fixed import FixedLists
from .gather import Ints, Ragged, offsets_of, resolve
from .ragged import all_lengths, gathered, interleaved, lengths_of, owned
from .reader import File
from .types import DType

INTEGER = (int, np.integer)
BLOCK_ROWS = 1024
"""Rows that iteration turns into Python values together."""


class Column(Exchange, Sequence[Any]):
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
        self._length = sum([part.length for part in self.parts]) if rows is None else len(rows)

    @cached_property
    def _starts(self) -> Ints:
        """First row of each part, and the number of rows, int64 [parts + 1]."""
        return offsets_of(np.array([part.length for part in self.parts], np.int64))

    @classmethod
    def of(cls, array: Array) -> "Column":
        """Return a compact array as a column."""
        return cls(array.dtype, (MemoryPart(array),))

    @classmethod
    def of_file(cls, file: File, name: str) -> "Column":
        """Return a column of a file; no data is read."""
        return cls(file.schema[name], FilePart.all_of(file, name))

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
        if isinstance(key, INTEGER) and not isinstance(key, bool):
            return self.item(int(key))
        some = self._range(key)
        return self.values(resolve(key, self._length)) if some is None else self.stretch(*some)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self._length, BLOCK_ROWS):
            yield from self.stretch(start, min(start + BLOCK_ROWS, self._length))

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
        if isinstance(found, Whole):
            values: list[Any] = found.result
            return values
        out: list[Any] = [None] * len(indices)
        for piece in found:
            for at, value in zip(piece.at.tolist(), piece.result, strict=True):
                out[at] = value
        return out

    def stretch(self, start: int, stop: int) -> list[Any]:
        """Return the values of rows ``start .. stop``."""
        some = self._stored(start, stop)
        if some is None:
            return self.values(np.arange(start, stop))
        found: list[Any] = []
        for part, low, high in self._touched(*some):
            try:
                found += part.stretch(low, high)
            except UnicodeDecodeError:
                raise _bad_text(part) from None
        return found

    def take(self, indices: Ints) -> Array:
        """Return the values at ``indices``, none of them negative, as a compact array."""
        found = self._by_part(indices, lambda part, rows: part.array.take(*part.locate(rows)))
        if isinstance(found, Whole):
            array: Array = found.result
            return array
        order = np.concatenate([piece.at for piece in found])
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return concat([piece.result for piece in found]).take(0, back)

    def _by_part(self, indices: Ints, read: Callable[[Part, Ints], Any]) -> Whole | list[Piece]:
        rows = indices if self.rows is None else self.rows[indices]
        if not self.parts or (len(rows) == 0 and len(self.parts) > 1):
            return Whole(read(MemoryPart(all_null(self.dtype, 0)), rows))
        return by_part(self.parts, self._starts, rows, read)

    def block(self, start: int, stop: int) -> Array:
        """Return rows ``start .. stop`` as a compact array; a view when they lie in one chunk."""
        some = self._stored(start, stop)
        if some is None:
            return self.take(np.arange(start, stop))
        found = list(self._windows(*some))
        return concat(found) if found else all_null(self.dtype, 0)

    def _stored(self, start: int, stop: int) -> tuple[int, int] | None:
        """Return where rows ``start .. stop`` lie in the parts if they follow one another there."""
        if self.rows is None:
            return start, stop
        rows = self.rows[start:stop]
        if not len(rows) or rows[-1] - rows[0] != len(rows) - 1 or (np.diff(rows) != 1).any():
            return None
        return int(rows[0]), int(rows[-1]) + 1

    def _windows(self, start: int, stop: int) -> Iterator[Array]:
        """Yield rows of a column that are not numbered, a view of each chunk."""
        for part, low, high in self._touched(start, stop):
            yield from part.windows(low, high)

    def _touched(self, start: int, stop: int) -> Iterator[tuple[Part, int, int]]:
        """Yield the parts that rows, not numbered ones, lie in, and where in them."""
        for part, first in zip(self.parts, self._starts.tolist(), strict=False):
            low, high = max(start - first, 0), min(stop - first, part.length)
            if low < high:
                yield part, low, high

    def _range(self, indices: object) -> tuple[int, int] | None:
        """Return first and last of rows that follow one another as they are stored, else None."""
        if self.rows is not None or not isinstance(indices, slice):
            return None
        start, stop, step = indices.indices(self._length)
        return (start, max(start, stop)) if step == 1 else None

    def blocks(self, max_rows: int) -> Iterator[Array]:
        """Yield all rows in order as compact arrays of at most ``max_rows``.

        Views of the chunks, without a copy, unless the column's rows are numbered; then gathered.

        Raises:
            ValueError: ``max_rows`` is not positive.
        """
        if max_rows < 1:
            raise ValueError(f"max_rows={max_rows} is not positive; use 1 or more")
        if self.rows is not None:
            for start in range(0, self._length, max_rows):
                yield self.take(np.arange(start, min(start + max_rows, self._length)))
            return
        for window in self._windows(0, self._length):
            for start in range(0, window.length, max_rows):
                stop = min(start + max_rows, window.length)
                yield window if stop - start == window.length else window.window(0, start, stop)

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
        found = self._by_part(indices, lambda part, rows: gathered(part.array, *part.locate(rows)))
        if isinstance(found, Whole):
            ragged: Ragged = found.result
            return ragged
        return interleaved(found, len(indices))

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
        some = self._range(indices)
        if some is not None:
            windows = self._windows(*some)
            return np.concatenate([np.zeros(0, np.int64), *map(all_lengths, windows)])
        rows = resolve(indices, self._length)
        found = self._by_part(rows, lambda part, at: lengths_of(part.array, *part.locate(at)))
        if isinstance(found, Whole):
            result: Ints = found.result
            return result
        out = np.zeros(len(rows), np.int64)
        for piece in found:
            out[piece.at] = piece.result
        return out

    def numpy(self, indices: Any = slice(None)) -> NDArray[Any]:  # noqa: ANN401
        """Return rows of a column of one shape as an array, a copy.

        Numbers, bools and times give [B] (times as datetime64, in UTC; bfloat16 as float32),
        tensors [B, *shape], lists of one size [B, size].

        Raises:
            TypeError: The column holds something else.
            ValueError: A row is null.
        """
        some = self._range(indices)
        taken = self.block(*some) if some else self.take(resolve(indices, self._length))
        mask = taken.validity()
        if mask is not None and not mask.all():
            raise ValueError(f"a row of this {self.dtype} column is null; filter or fill it first")
        if isinstance(taken, Bools):
            return taken.flat()
        if isinstance(taken, Numbers):
            return owned(taken.as_numpy(taken.values[: taken.length]))
        if isinstance(taken, FixedLists):
            return owned(taken.dense())
        raise TypeError(f"a column of {self.dtype} is no array of numbers; use gather or a slice")

    def to_list(self) -> list[Any]:
        """Return all values."""
        return list(self)

    def converted(self, dtype: DType, *, field: str) -> "Column":
        """Return the column in another type, in memory; the column itself if it has that type."""
        if dtype == self.dtype:
            return self
        return Column.of(convert(self.block(0, self._length), dtype, field=field))


def _bad_text(part: Part) -> Exception:
    where = "column data: a string is not UTF-8"
    if isinstance(part, FilePart):
        where = f"column {part.name!r}: a string is not UTF-8"
    return CorruptFileError(part.source, where)
