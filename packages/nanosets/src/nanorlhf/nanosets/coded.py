"""Dictionary arrays: codes into values that are stored once."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from .arrays import Array, Buffer, Numbers
from .bits import Bits, Chunk, Mask
from .errors import SchemaError
from .gather import Ints
from .types import Dictionary, Number

CODE = Number("int32")
MAX_VALUES = 2**31 - 1


class Coded(Array):
    """Element ``l`` is ``values`` number ``codes[l]``.

    Args:
        codes: int32, without validity of its own; 0 under a null.
        values: Compact, distinct, none of them null.
    """

    __slots__ = ("codes", "values")

    dtype: Dictionary

    def __init__(
        self, codes: Numbers, values: Array, *, length: int, valid: Bits | None = None
    ) -> None:
        super().__init__(Dictionary(values.dtype), length, valid)
        self.codes = codes
        self.values = values

    def take(self, chunk: Chunk, local: Ints) -> "Coded":
        """Return a copy of the codes at B positions, over the same values."""
        valid = Bits.unless_all(self.mask(chunk, local))
        codes = self.codes.take(chunk, local)
        return Coded(codes, self.values, length=len(local), valid=valid)

    def window(self, chunk: int, start: int, stop: int) -> "Coded":
        """Return a view of a range, over the same values."""
        codes = self.codes.window(chunk, start, stop)
        valid = self._valid_window(chunk, start)
        return Coded(codes, self.values, length=stop - start, valid=valid)

    def item(self, chunk: int, local: int) -> Any:  # noqa: ANN401 - a value of a flat type
        """Return the value, or None."""
        if self.is_null(chunk, local):
            return None
        return self.values.item(0, self.codes.item(chunk, local))

    def rows(self, chunk: Chunk, local: Ints) -> list[Any]:
        """Return values and None."""
        if self.values.length == 0:
            return [None] * len(local)
        codes = self.codes.values[self.codes.base[chunk] + local]
        return self._with_nulls(self.values.rows(0, codes.astype(np.int64)), chunk, local)

    def buffers(self) -> Iterator[Buffer]:
        """Yield validity and codes; the values are stored apart."""
        yield self._valid_buffer()
        yield self.codes.values[: self.length]

    @property
    def nbytes(self) -> int:
        """Bytes in a chunk of a file."""
        return self._valid_bytes + 4 * self.length


def coded(codes: Ints, values: Array, *, valid: Mask | None = None) -> Coded:
    """Return a compact dictionary array.

    Args:
        codes: Numbers of ``values`` [B]; anything under a null.
        values: Compact; may repeat, and may hold nulls, which then are nulls of the array.
        valid: Which codes are not null.

    Raises:
        SchemaError: A code is out of range.
    """
    mask = np.ones(len(codes), np.bool_) if valid is None else valid
    safe = np.where(mask, codes, 0)
    if len(safe) and (safe.min() < 0 or (mask.any() and safe.max() >= values.length)):
        low, high = int(safe.min()), int(safe.max())
        rule = f"the codes {low} .. {high} do not name {values.length} values; mend them"
        raise SchemaError("", rule)
    inner = values.validity()
    if inner is not None and values.length:
        mask = mask & inner[safe]
        safe, values = _without_nulls(np.where(mask, safe, 0), values, inner)
        safe = np.where(mask, safe, 0)
    data = Numbers(CODE, safe.astype("<i4"))
    return Coded(data, values, length=len(codes), valid=Bits.unless_all(mask))


def _without_nulls(codes: Ints, values: Array, present: Mask) -> tuple[Ints, Array]:
    moved = np.cumsum(present) - 1
    return np.maximum(moved[codes], 0), values.take(0, np.flatnonzero(present))


class Vocabulary:
    """Distinct values in the order of first sight, and the codes of others among them.

    Args:
        start: Values to begin with, compact; they keep their numbers even if one repeats.

    Attributes:
        parts: The values, as compact arrays end to end.
    """

    def __init__(self, start: Array | None = None) -> None:
        self.parts: list[Array] = []
        self._codes: dict[Any, int] = {}
        self._size = 0
        self._last: tuple[Array, Ints] | None = None
        if start is not None and start.length:
            for code, key in enumerate(_keys(start)):
                self._codes.setdefault(key, code)
            self.parts, self._size = [start], start.length

    def codes_of(self, values: Array) -> Ints:
        """Add what is new of a compact array without nulls; return the code of each, int64 [B].

        Raises:
            SchemaError: There are more distinct values than int32 counts.
        """
        if self._last is not None and self._last[0] is values:
            return self._last[1]
        codes, found = self._codes, np.zeros(values.length, np.int64)
        first: list[int] = []
        for at, key in enumerate(_keys(values)):
            code = codes.get(key)
            if code is None:
                code = codes[key] = self._size + len(first)
                first.append(at)
            found[at] = code
        self._size += len(first)
        if self._size > MAX_VALUES:
            raise SchemaError("", f"a dictionary holds {MAX_VALUES} values; store them plainly")
        if first:
            self.parts.append(values.take(0, np.array(first)))
        self._last = values, found
        return found

    def recode(self, array: Coded) -> Ints:
        """Add what is new of a compact dictionary array; return its codes in this vocabulary."""
        codes = array.codes.values[: array.length]
        if array.values.length == 0:
            return codes.astype(np.int64)
        new = self.codes_of(array.values)[codes]
        mask = array.validity()
        return new if mask is None else np.where(mask, new, 0)


def _keys(values: Array) -> list[Any]:
    """Return hashable keys, equal for equal values; floats by their bits, so NaN is itself."""
    if isinstance(values, Numbers):
        stored = np.ascontiguousarray(values.values[: values.length])
        keys: list[Any] = stored.view(f"<u{stored.itemsize}").tolist()
        return keys
    return values.pylist()
