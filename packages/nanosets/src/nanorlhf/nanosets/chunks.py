"""Chunks of one column end to end: one array in memory, or one column of a file."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from .arrays import Array
from .bits import Chunk
from .gather import Ints, offsets_of
from .reader import File


class Place(NamedTuple):
    """Rows of a part, as an array addresses them."""

    chunk: Chunk
    local: Ints


class Part(ABC):
    """Chunks of one array: what one buffer, or one mapped file, holds of a column."""

    chunk_rows: Ints
    length: int
    """Rows of all chunks."""

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
    def _starts(self) -> list[int]:
        """``starts`` as a list, in which Python finds one row sooner."""
        found: list[int] = self.starts.tolist()
        return found

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
            return Place(chunk, rows - chunk * self._even)
        chunk = np.searchsorted(self.starts, rows, side="right") - 1
        return Place(chunk, rows - self.starts[chunk])

    def item(self, row: int) -> Any:  # noqa: ANN401 - a value of any column type
        """Return one row as a Python value."""
        if len(self.chunk_rows) == 1:
            return self.array.item(0, row)
        if self._even:
            chunk = row // self._even
            return self.array.item(chunk, row - chunk * self._even)
        chunk = bisect_right(self._starts, row) - 1
        return self.array.item(chunk, row - self._starts[chunk])

    def windows(self, start: int, stop: int) -> Iterator[Array]:
        """Yield rows ``start .. stop`` as compact arrays, one for each chunk, without a copy."""
        for run in self._runs(start, stop):
            yield self.array.window(*run)

    def stretch(self, start: int, stop: int) -> list[Any]:
        """Return rows ``start .. stop`` as Python values."""
        found: list[Any] = []
        for run in self._runs(start, stop):
            found += self.array.stretch(*run)
        return found

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield the chunk, first and last of rows ``start .. stop`` in each chunk they touch."""
        starts = self._starts
        for chunk in range(bisect_right(starts, start) - 1, len(starts) - 1):
            begin, end = starts[chunk], starts[chunk + 1]
            if begin >= stop:
                break
            yield chunk, max(start, begin) - begin, min(stop, end) - begin


class MemoryPart(Part):
    """One compact array in memory."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.length = array.length
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
    """One column of a ``.nano`` file, found and checked when it is first touched.

    Args:
        file: The file.
        name: The column.
        chunk: One chunk of it, read when it is touched; None for all of a file that ``is_whole``.
    """

    def __init__(self, file: File, name: str, chunk: int | None = None) -> None:
        self.file = file
        self.name = name
        self.chunk = chunk
        rows = file.chunk_rows
        self.chunk_rows = rows if chunk is None else rows[chunk : chunk + 1]
        self.length = file.footer.rows if chunk is None else int(rows[chunk])

    @classmethod
    def all_of(cls, file: File, name: str) -> "tuple[FilePart, ...]":
        """Return the parts that make up a column: one, or one a chunk where chunks are read."""
        if file.is_whole or not file.footer.chunks:
            return (cls(file, name),)
        return tuple(cls(file, name, chunk) for chunk in range(file.footer.chunks))

    def __reduce__(self) -> tuple[Any, ...]:
        return FilePart, (self.file, self.name, self.chunk)

    @property
    def array(self) -> Array:
        """The array over all chunks of this part."""
        if self.chunk is None:
            return self._array
        return self.file.chunk(self.name, self.chunk)

    @cached_property
    def _array(self) -> Array:
        return self.file.array(self.name)

    @property
    def source(self) -> str:
        """The path."""
        return self.file.path


class Whole(NamedTuple):
    """What came out of the only part."""

    result: Any


class Piece(NamedTuple):
    """What came out of one of several parts, and at which of the rows it belongs."""

    at: Ints
    result: Any


def by_part(
    parts: Sequence[Part], starts: Ints, rows: Ints, read: Callable[[Part, Ints], Any]
) -> Whole | list[Piece]:
    """Call ``read`` once for each part that some rows touch.

    Args:
        parts: The parts, end to end.
        starts: First row of each, int64 [parts + 1].
        rows: int64 [B], counted through all parts.
        read: Gets a part and rows of it.
    """
    if len(parts) == 1:
        return Whole(read(parts[0], rows))
    number = np.searchsorted(starts, rows, side="right") - 1
    pieces = []
    for n in np.unique(number).tolist():
        at = np.flatnonzero(number == n)
        pieces.append(Piece(at, read(parts[n], rows[at] - starts[n])))
    return pieces
