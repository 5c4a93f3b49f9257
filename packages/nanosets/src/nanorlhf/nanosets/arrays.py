"""Columnar values: typed views over buffers, and how rows come out of them.

An array may lie in many chunks of one file, all reached through one view of the whole file: the
element ``l`` of chunk ``c`` of a flat array is ``values[base[c] + l]``, so a random batch needs no
loop over chunks. An array in memory is the same thing with one chunk at base 0, and is called
*compact* when in addition its buffers hold its own elements only. Everything here speaks in
``(chunk, local)`` positions; numbers of rows are turned into those by ``column``.

Shape legend: B = positions asked for.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bits import ZERO, Bits, Chunk, Mask
from .gather import Ints, expand, packed
from .types import Bool, Date, DType, Null, Number, Timestamp

Buffer = NDArray[Any] | None


class Array(ABC):
    """Values of one type.

    Attributes:
        dtype: Their type.
        length: How many there are, over all chunks.
        valid: One bit each, 0 for a null; None when nothing is null.
    """

    __slots__ = ("dtype", "length", "valid")

    def __init__(self, dtype: DType, length: int, valid: Bits | None) -> None:
        self.dtype = dtype
        self.length = length
        self.valid = valid

    @abstractmethod
    def take(self, chunk: Chunk, local: Ints) -> "Array":
        """Return a compact array of the elements at B positions."""

    @abstractmethod
    def window(self, chunk: int, start: int, stop: int) -> "Array":
        """Return elements ``start .. stop`` of a chunk as a compact array, without a copy.

        The ``buffers`` of a whole chunk's window are views of what the chunk lies in, a file's
        offsets and bits included; those of a part of a chunk copy offsets and bits.
        """

    @abstractmethod
    def item(self, chunk: int, local: int) -> Any:  # noqa: ANN401 - a value of any column type
        """Return one element as a Python value, None for a null."""

    @abstractmethod
    def rows(self, chunk: Chunk, local: Ints) -> list[Any]:
        """Return the elements at B positions as Python values."""

    @abstractmethod
    def buffers(self) -> Iterator[Buffer]:
        """Yield the buffers of a compact array in file order, None for an absent one."""

    def stretch(self, chunk: int, start: int, stop: int) -> list[Any]:
        """Return elements ``start .. stop`` of a chunk as Python values, as ``rows`` does."""
        return self.rows(chunk, np.arange(start, stop))

    def spans(self, chunk: Chunk, starts: Ints, stops: Ints) -> "Array":
        """Return the elements of B ranges end to end, as a compact array."""
        lengths = stops - starts
        chunks = chunk if isinstance(chunk, int) else np.repeat(chunk, lengths)
        return self.take(chunks, expand(starts, lengths))

    def run(self, chunk: int, start: int, stop: int) -> Any:  # noqa: ANN401 - array or list
        """Return one range as the value of a list: an array of numbers, else a list."""
        return self.stretch(chunk, start, stop)

    def runs(self, chunk: Chunk, starts: Ints, stops: Ints) -> list[Any]:
        """Return B ranges, each as the value of a list."""
        flat = self.spans(chunk, starts, stops).pylist()
        edges = np.cumsum(stops - starts).tolist()
        return [flat[a:b] for a, b in zip([0, *edges], edges, strict=False)]

    def _run_each(self, chunk: Chunk, starts: Ints, stops: Ints) -> list[Any]:
        chunks = np.broadcast_to(np.asarray(chunk), starts.shape).tolist()
        return list(map(self.run, chunks, starts.tolist(), stops.tolist()))

    def pylist(self) -> list[Any]:
        """Return the elements of a one-chunk array as Python values."""
        return self.stretch(0, 0, self.length)

    @property
    def nbytes(self) -> int:
        """Bytes that the buffers of a compact array take in a file."""
        return sum(b.nbytes for b in self.buffers() if b is not None)

    @property
    def _valid_bytes(self) -> int:
        """Bytes of the validity, counted even where a file will drop it."""
        return 0 if self.valid is None else (self.length + 7) >> 3

    def mask(self, chunk: Chunk, local: Ints) -> Mask | None:
        """Return which of B positions are not null; None when all are."""
        return None if self.valid is None else self.valid.test(chunk, local)

    def is_null(self, chunk: int, local: int) -> bool:
        """Return whether one element is null."""
        return self.valid is not None and not self.valid.one(chunk, local)

    def validity(self) -> Mask | None:
        """Return which elements of a one-chunk array are not null; None when all are."""
        return None if self.valid is None else self.valid.run(0, 0, self.length)

    def _valid_buffer(self) -> Buffer:
        return None if self.valid is None else self.valid.buffer_unless_all(self.length)

    def _valid_window(self, chunk: int, start: int) -> Bits | None:
        return None if self.valid is None else self.valid.window(chunk, start)

    def _with_nulls(self, values: list[Any], chunk: Chunk, local: Ints) -> list[Any]:
        """Put None over the values whose element is null, in place."""
        mask = self.mask(chunk, local)
        if mask is not None:
            for i in np.flatnonzero(~mask).tolist():
                values[i] = None
        return values


class Nulls(Array):
    """Nothing but nulls, in no buffers."""

    __slots__ = ()

    def __init__(self, length: int) -> None:
        super().__init__(Null(), length, None)

    def take(self, chunk: Chunk, local: Ints) -> "Nulls":
        """Return as many nulls as there are positions."""
        return Nulls(len(local))

    def window(self, chunk: int, start: int, stop: int) -> "Nulls":
        """Return ``stop - start`` nulls."""
        return Nulls(stop - start)

    def item(self, chunk: int, local: int) -> None:
        """Return None."""

    def rows(self, chunk: Chunk, local: Ints) -> list[Any]:
        """Return a list of None."""
        return [None] * len(local)

    def buffers(self) -> Iterator[Buffer]:
        """Yield nothing."""
        return iter(())

    def validity(self) -> Mask:
        """Return all False."""
        return np.zeros(self.length, np.bool_)


class Numbers(Array):
    """Integers or floats: ``values[base[c] + l]``.

    Subclasses hold what is stored as a number and is none, and say what it is in ``python`` and
    ``as_numpy``.
    """

    __slots__ = ("base", "starts", "values")

    dtype: Number | Date | Timestamp

    def __init__(
        self,
        dtype: Number | Date | Timestamp,
        values: NDArray[Any],
        *,
        length: int | None = None,
        valid: Bits | None = None,
        base: Ints = ZERO,
    ) -> None:
        super().__init__(dtype, len(values) if length is None else length, valid)
        if values.flags.writeable:
            # Rows come out as views: writing to one must fail on memory as it does on a file.
            values = values.view()
            values.flags.writeable = False
        self.values = values
        self.base = base
        self.starts: list[int] = base.tolist()

    def python(self, values: NDArray[Any]) -> list[Any]:
        """Return stored values as Python values."""
        found: list[Any] = values.tolist()
        return found

    def as_numpy(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return stored values as numpy has them; the same array where it can."""
        return values

    def take(self, chunk: Chunk, local: Ints) -> "Numbers":
        """Return a copy of the elements at B positions."""
        valid = Bits.unless_all(self.mask(chunk, local))
        return type(self)(self.dtype, self.values[self.base[chunk] + local], valid=valid)

    def spans(self, chunk: Chunk, starts: Ints, stops: Ints) -> Array:
        """Return the elements of B ranges; a view when they follow one another."""
        if self.valid is not None:
            return super().spans(chunk, starts, stops)
        base = self.base[chunk]
        return type(self)(self.dtype, packed(self.values, base + starts, base + stops))

    def window(self, chunk: int, start: int, stop: int) -> "Numbers":
        """Return a view of a range."""
        first = self.starts[chunk]
        values = self.values[first + start : first + stop]
        return type(self)(self.dtype, values, valid=self._valid_window(chunk, start))

    def item(self, chunk: int, local: int) -> Any:  # noqa: ANN401 - int, float or None
        """Return an int, a float or None."""
        if self.valid is not None and not self.valid.one(chunk, local):
            return None
        return self.values[self.starts[chunk] + local].item()

    def rows(self, chunk: Chunk, local: Ints) -> list[Any]:
        """Return ints, floats and None."""
        values = self.python(self.values[self.base[chunk] + local])
        return self._with_nulls(values, chunk, local)

    def run(self, chunk: int, start: int, stop: int) -> Any:  # noqa: ANN401 - array or list
        """Return a view of a range; a list when one of it is null."""
        if self.valid is not None and not self.valid.run(chunk, start, stop).all():
            return super().run(chunk, start, stop)
        first = self.starts[chunk]
        return self.values[first + start : first + stop]

    def runs(self, chunk: Chunk, starts: Ints, stops: Ints) -> list[Any]:
        """Return a view for each range; a list for one with a null in it."""
        if self.valid is None:
            base, values = self.base[chunk], self.values
            pairs = zip((base + starts).tolist(), (base + stops).tolist(), strict=True)
            return [values[a:b] for a, b in pairs]
        return self._run_each(chunk, starts, stops)

    def buffers(self) -> Iterator[Buffer]:
        """Yield validity and values."""
        yield self._valid_buffer()
        yield self.values[: self.length]

    @property
    def nbytes(self) -> int:
        """Bytes in a file."""
        return self._valid_bytes + self.length * self.values.itemsize


class Bools(Array):
    """Booleans, one bit each."""

    __slots__ = ("bits",)

    def __init__(self, bits: Bits, *, length: int, valid: Bits | None = None) -> None:
        super().__init__(Bool(), length, valid)
        self.bits = bits

    def take(self, chunk: Chunk, local: Ints) -> "Bools":
        """Return a copy of the elements at B positions."""
        valid = Bits.unless_all(self.mask(chunk, local))
        return Bools(Bits.pack(self.bits.test(chunk, local)), length=len(local), valid=valid)

    def window(self, chunk: int, start: int, stop: int) -> "Bools":
        """Return a range over the same bytes."""
        bits = self.bits.window(chunk, start)
        assert bits is not None, "the bits of values are never absent"
        return Bools(bits, length=stop - start, valid=self._valid_window(chunk, start))

    def item(self, chunk: int, local: int) -> bool | None:
        """Return True, False or None."""
        return None if self.is_null(chunk, local) else self.bits.one(chunk, local)

    def rows(self, chunk: Chunk, local: Ints) -> list[Any]:
        """Return True, False and None."""
        return self._with_nulls(self.bits.test(chunk, local).tolist(), chunk, local)

    def run(self, chunk: int, start: int, stop: int) -> Any:  # noqa: ANN401 - array or list
        """Return a bool array, unpacked; a list when one of it is null."""
        if self.valid is not None and not self.valid.run(chunk, start, stop).all():
            return super().run(chunk, start, stop)
        return self.bits.run(chunk, start, stop)

    def runs(self, chunk: Chunk, starts: Ints, stops: Ints) -> list[Any]:
        """Return a bool array for each range; a list for one with a null in it."""
        return self._run_each(chunk, starts, stops)

    def flat(self) -> Mask:
        """Return the elements of a one-chunk array as bool, unpacked."""
        return self.bits.run(0, 0, self.length)

    def buffers(self) -> Iterator[Buffer]:
        """Yield validity and packed values."""
        yield self._valid_buffer()
        yield self.bits.buffer(self.length)

    @property
    def nbytes(self) -> int:
        """Bytes in a file."""
        return self._valid_bytes + ((self.length + 7) >> 3)
