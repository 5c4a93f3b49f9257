"""Buffers in a file into arrays, checked.

The same walk over a type serves both ways of reading: all chunks at once, as views of one file in
one address space, or one chunk whose buffers were read and decompressed one by one. Whatever the
bytes are, what comes out can be read without leaving them: sizes follow from types and counts in
integers that cannot overflow, offsets rise from 0 to the end of the child, codes name values.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Bools, Nulls, Numbers
from .bits import ZERO, Bits
from .casts import flat
from .coded import Coded
from .directory import ABSENT, is_weightless
from .fixed import FixedLists, Tensors
from .format import FormatError
from .gather import Ints
from .nested import Bytes, Lists, Structs, Text
from .types import (
    Binary,
    Bool,
    Date,
    Dictionary,
    DType,
    FixedList,
    LargeList,
    List,
    Null,
    Number,
    Struct,
    Tensor,
    Timestamp,
    Utf8,
)

MAX_COUNT = 2**62
"""Most elements of a buffer; below what int64 counts in bits."""
MAX_WEIGHTLESS = 1 << 20
"""Most elements inside lists of one chunk that take no bytes, such as nulls in a list<null>.

A file's size says nothing about how many there are, so a reader bounds their number, and a writer
keeps to the bound."""
BYTE = np.dtype("u1")


class Buffers(NamedTuple):
    """One buffer of each chunk: that of chunk ``c`` starts at ``data[base[c]]``."""

    data: NDArray[Any]
    base: Ints


class Store(ABC):
    """Where buffers lie."""

    @abstractmethod
    def load(self, slots: Ints, dtype: np.dtype[Any]) -> Buffers:
        """Return the buffers of ``slots``, int64 [chunks, 3 or 4]; all are present.

        Their sizes have been checked.
        """


class Mapped(Store):
    """A whole file in memory; any number of chunks."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self._data = data
        self._views: dict[str, NDArray[Any]] = {}

    def load(self, slots: Ints, dtype: np.dtype[Any]) -> Buffers:
        """Return a view of the whole file, and where in it the buffers start."""
        view = self._views.get(dtype.str)
        if view is None:
            whole = self._data[: len(self._data) // 64 * 64]
            view = self._views[dtype.str] = whole.view(dtype)
        return Buffers(view, slots[:, 0] // dtype.itemsize)


class Loaded(Store):
    """Buffers that are read, and decompressed, one by one; one chunk.

    Args:
        read: Returns the bytes that a slot stands for, of exactly the size it says.
    """

    def __init__(self, read: Callable[[Ints], NDArray[np.uint8]]) -> None:
        self._read = read

    def load(self, slots: Ints, dtype: np.dtype[Any]) -> Buffers:
        """Return one buffer."""
        assert len(slots) == 1, "one chunk is loaded at a time"
        return Buffers(self._read(slots[0]).view(dtype), ZERO)


class Layout:
    """Turns slots, in order, into one column.

    Args:
        store: Where the buffers lie.
        slots: int64 [chunks, slots, 3 or 4].
        first: The column's first slot.
        values: Returns the values of the next dictionary.
    """

    def __init__(self, store: Store, slots: Ints, first: int, values: Callable[[], Array]) -> None:
        self.store = store
        self.slots = slots
        self.next = first
        self.values = values

    def read(self, dtype: DType, counts: Ints) -> Array:
        """Return the next column: ``counts[c]`` elements in chunk ``c``.

        Raises:
            FormatError: A buffer is not what the type and the counts ask for.
        """
        length = sum(counts.tolist())
        if isinstance(dtype, Null):
            return Nulls(length)
        valid = self._validity(counts)
        if isinstance(dtype, Struct):
            children = {f.name: self.read(f.dtype, counts) for f in dtype.fields}
            return Structs(dtype, children, length=length, valid=valid)
        if isinstance(dtype, FixedList | Tensor):
            return self._fixed(dtype, counts, valid)
        if isinstance(dtype, Dictionary):
            return self._coded(dtype, counts, valid)
        if isinstance(dtype, Bool):
            data = self._buffer((counts + 7) >> 3, "data", BYTE)
            return Bools(Bits(data.data, data.base * 8), length=length, valid=valid)
        if isinstance(dtype, Number | Date | Timestamp):
            data = self._buffer(counts * dtype.numpy.itemsize, "data", dtype.numpy)
            return flat(dtype, data.data, length=length, valid=valid, base=data.base)
        return self._lists(dtype, counts, valid)

    def _lists(self, dtype: DType, counts: Ints, valid: Bits | None) -> Array:
        wide = np.dtype("<i8" if isinstance(dtype, LargeList) else "<i4")
        edges, base = self._buffer(wide.itemsize * (counts + 1), "offsets", wide)
        inner = last_edges(edges, base, counts)
        more: dict[str, Any] = {"length": sum(counts.tolist()), "valid": valid, "base": base}
        if isinstance(dtype, List | LargeList):
            _check_weight(dtype.item, inner)
            return Lists(dtype, edges, self.read(dtype.item, inner), **more)
        assert isinstance(dtype, Utf8 | Binary)
        data = self._buffer(inner, "data", BYTE)
        child = Numbers(Number("uint8"), data.data, length=sum(inner.tolist()), base=data.base)
        return (Text if isinstance(dtype, Utf8) else Bytes)(dtype, edges, child, **more)

    def _fixed(self, dtype: FixedList | Tensor, counts: Ints, valid: Bits | None) -> Array:
        inner = [count * dtype.size for count in counts.tolist()]
        if max(inner, default=0) > MAX_COUNT:
            raise FormatError(f"a chunk holds {max(inner)} elements of a {dtype}")
        sizes = np.array(inner, np.int64)
        _check_weight(dtype.item, sizes)
        child = self.read(dtype.item, sizes)
        if isinstance(dtype, Tensor) and child.valid is not None:
            raise FormatError("an element of a tensor is null")
        maker = Tensors if isinstance(dtype, Tensor) else FixedLists
        return maker(dtype, child, length=sum(counts.tolist()), valid=valid)

    def _coded(self, dtype: Dictionary, counts: Ints, valid: Bits | None) -> Array:
        values = self.values()
        data, base = self._buffer(4 * counts, "codes", np.dtype("<i4"))
        for chunk, (first, count) in enumerate(zip(base.tolist(), counts.tolist(), strict=True)):
            found = data[first : first + count]
            if count and not 0 <= found.min() <= found.max() < max(values.length, 1):
                raise FormatError(f"codes of chunk {chunk} name none of {values.length} values")
            if count and not values.length and (valid is None or valid.run(chunk, 0, count).any()):
                raise FormatError(f"codes of chunk {chunk} are not null and there is no value")
        codes = Numbers(Number("int32"), data, length=sum(counts.tolist()), base=base)
        return Coded(codes, values, length=codes.length, valid=valid)

    def _slot(self) -> Ints:
        found: Ints = self.slots[:, self.next]
        self.next += 1
        return found

    def _buffer(self, sizes: Ints, kind: str, dtype: np.dtype[Any]) -> Buffers:
        """Return the next buffer of each chunk, of the given bytes."""
        slot = self._slot()
        if (slot[:, 0] == ABSENT).any() or not np.array_equal(_bytes_of(slot), sizes):
            raise FormatError(f"{kind} has the wrong size in some chunk")
        return self.store.load(slot, dtype)

    def _validity(self, counts: Ints) -> Bits | None:
        slot = self._slot()
        present = slot[:, 0] != ABSENT
        if not present.any():
            return None
        if (_bytes_of(slot)[present] != (counts[present] + 7) >> 3).any():
            raise FormatError("validity has the wrong size in some chunk")
        data, base = self.store.load(slot, BYTE)
        return Bits(data, np.where(present, base * 8, -1))


def _bytes_of(slot: Ints) -> Ints:
    """Return the bytes of buffers once decompressed."""
    return slot[:, 3] if slot.shape[1] > 3 else slot[:, 1]


def _check_weight(item: DType, counts: Ints) -> None:
    if is_weightless(item) and counts.max(initial=0) > MAX_WEIGHTLESS:
        raise FormatError(f"a chunk has {counts.max()} elements of {item}, which take no bytes")


def last_edges(edges: NDArray[Any], base: Ints, counts: Ints) -> Ints:
    """Return how many elements the child of lists has in each chunk.

    Raises:
        FormatError: Offsets do not rise from 0.
    """
    last = np.zeros(len(base), np.int64)
    for chunk, (first, count) in enumerate(zip(base.tolist(), counts.tolist(), strict=True)):
        found = edges[first : first + count + 1]
        if found[0] != 0 or (found[1:] < found[:-1]).any() or found[-1] > MAX_COUNT:
            raise FormatError(f"offsets of chunk {chunk} run backwards or do not start at 0")
        last[chunk] = found[-1]
    return last


@lru_cache(maxsize=64)
def lists_weightless(dtype: DType) -> bool:
    """Return whether lists in a type hold values that take no bytes.

    >>> lists_weightless(List(Null())), lists_weightless(List(Utf8()))
    (True, False)
    """
    holds = isinstance(dtype, List | LargeList | FixedList)
    return any((holds and is_weightless(t)) or lists_weightless(t) for t in dtype.children)


def weightless(array: Array) -> int:
    """Return the most values without bytes in any lists of a compact array.

    >>> from .build import build
    >>> weightless(build([[None] * 3, [], [None]])), weightless(build([[1]]))
    (4, 0)
    """
    if isinstance(array, Structs):
        return max(map(weightless, array.children.values()), default=0)
    if not isinstance(array, Lists | FixedLists) or isinstance(array, Bytes):
        return 0
    if is_weightless(array.child.dtype):
        return array.child.length
    return weightless(array.child)
