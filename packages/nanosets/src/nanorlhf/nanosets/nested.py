"""Arrays over other arrays: lists, strings and bytes (lists of uint8), and structs.

An offset counts from the start of its own chunk's child, so the range of element ``l`` of chunk
``c`` is ``offsets[base[c] + l] .. offsets[base[c] + l + 1]`` of chunk ``c`` of the child.
"""

from collections.abc import Iterator
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Buffer, Numbers
from .bits import ZERO, Bits, Chunk, Mask
from .errors import SchemaError
from .gather import Ints, offsets_of
from .types import DType, LargeList, List, Struct

MAX_OFFSET = 2**31 - 1


class Bounds(NamedTuple):
    """Ranges in the chunks of a child, int64 [B]."""

    starts: Ints
    stops: Ints


class Lists(Array):
    """Lists of the elements of ``child``."""

    __slots__ = ("base", "child", "edges", "starts")

    def __init__(
        self,
        dtype: DType,
        edges: NDArray[Any],
        child: Array,
        *,
        length: int | None = None,
        valid: Bits | None = None,
        base: Ints = ZERO,
    ) -> None:
        super().__init__(dtype, len(edges) - 1 if length is None else length, valid)
        self.edges = edges
        self.child = child
        self.base = base
        self.starts: list[int] = base.tolist()

    def bounds(self, chunk: Chunk, local: Ints) -> Bounds:
        """Return the child's range of each of B positions, empty for a null."""
        at = self.base[chunk] + local
        starts = self.edges[at].astype(np.int64, copy=False)
        at += 1
        stops = self.edges[at].astype(np.int64, copy=False)
        mask = self.mask(chunk, local)
        return Bounds(starts, stops if mask is None else np.where(mask, stops, starts))

    def take(self, chunk: Chunk, local: Ints) -> "Lists":
        """Return a copy of the elements at B positions."""
        starts, stops = self.bounds(chunk, local)
        child = self.child.spans(chunk, starts, stops)
        valid = Bits.unless_all(self.mask(chunk, local))
        return type(self)(self.dtype, offsets_of(stops - starts), child, valid=valid)

    def window(self, chunk: int, start: int, stop: int) -> "Lists":
        """Return a range; the child is a view, and so are offsets that count from 0 already."""
        at = self.starts[chunk]
        edges = self.edges[at + start : at + stop + 1]
        first, last = int(edges[0]), int(edges[-1])
        if first:
            edges = edges - first
        child = self.child.window(chunk, first, last)
        return type(self)(self.dtype, edges, child, valid=self._valid_window(chunk, start))

    def item(self, chunk: int, local: int) -> Any:  # noqa: ANN401 - array, list or None
        """Return an array of numbers (a view), a list of anything else, or None."""
        if self.valid is not None and not self.valid.one(chunk, local):
            return None
        at = self.starts[chunk] + local
        start, stop = self.edges[at : at + 2].tolist()
        return self.child.run(chunk, start, stop)

    def rows(self, chunk: Chunk, local: Ints) -> list[Any]:
        """Return arrays of numbers (views), lists of anything else, and None."""
        starts, stops = self.bounds(chunk, local)
        return self._with_nulls(self.child.runs(chunk, starts, stops), chunk, local)

    def buffers(self) -> Iterator[Buffer]:
        """Yield validity, offsets (int32, int64 of a large list) and the child's buffers.

        Raises:
            SchemaError: The elements are too many for int32.
        """
        yield self._valid_buffer()
        edges = self.edges[: self.length + 1]
        large = isinstance(self.dtype, LargeList)
        if not large and edges[-1] > MAX_OFFSET:
            rule = f"holds {edges[-1]} elements in one chunk; ask for large_list or smaller chunks"
            raise SchemaError(str(self.dtype), rule)
        yield edges.astype("<i8" if large else "<i4", copy=False)
        yield from self._child_buffers()

    def _child_buffers(self) -> Iterator[Buffer]:
        return self.child.buffers()

    @property
    def nbytes(self) -> int:
        """Bytes in a file."""
        width = 8 if isinstance(self.dtype, LargeList) else 4
        return self._valid_bytes + width * (self.length + 1) + self.child.nbytes


class Bytes(Lists):
    """Byte strings: lists of uint8."""

    __slots__ = ()

    child: Numbers

    def item(self, chunk: int, local: int) -> Any:  # noqa: ANN401 - bytes, str or None
        """Return a value or None."""
        if self.valid is not None and not self.valid.one(chunk, local):
            return None
        at = self.starts[chunk] + local
        start, stop = self.edges[at : at + 2].tolist()
        first = self.child.starts[chunk]
        return self.decode(self.child.values.data[first + start : first + stop])

    def rows(self, chunk: Chunk, local: Ints) -> list[Any]:
        """Return values and None."""
        starts, stops = self.bounds(chunk, local)
        base = self.child.base[chunk]
        data, decode = self.child.values.data, self.decode
        pairs = zip((base + starts).tolist(), (base + stops).tolist(), strict=True)
        return self._with_nulls([decode(data[a:b]) for a, b in pairs], chunk, local)

    def decode(self, data: memoryview) -> Any:  # noqa: ANN401 - bytes or str
        """Return one value."""
        return data.tobytes()

    def _child_buffers(self) -> Iterator[Buffer]:
        yield self.child.values[: self.child.length]


class Text(Bytes):
    """Strings: lists of UTF-8 bytes."""

    __slots__ = ()

    def stretch(self, chunk: int, start: int, stop: int) -> list[Any]:
        """Return strings and None, each read off a file in memory."""
        at, base = self.starts[chunk], self.child.starts[chunk]
        edges = self.edges[at + start : at + stop + 1]
        data = self.child.values.data[base + int(edges[0]) : base + int(edges[-1])]
        each = map(BytesIO(data).read, (edges[1:] - edges[:-1]).tolist())
        if self.valid is None:
            return list(map(bytes.decode, each))
        # What lies under a null need not be UTF-8.
        mask = self.valid.run(chunk, start, stop).tolist()
        return [raw.decode() if full else None for raw, full in zip(each, mask, strict=True)]

    def decode(self, data: memoryview) -> str:
        """Return one string."""
        return str(data, "utf-8")


class Structs(Array):
    """Structs: one child per field, as long as this array."""

    __slots__ = ("children",)

    dtype: Struct

    def __init__(
        self, dtype: Struct, children: dict[str, Array], *, length: int, valid: Bits | None = None
    ) -> None:
        super().__init__(dtype, length, valid)
        self.children = children

    def take(self, chunk: Chunk, local: Ints) -> "Structs":
        """Return a copy of the elements at B positions."""
        children = {name: child.take(chunk, local) for name, child in self.children.items()}
        valid = Bits.unless_all(self.mask(chunk, local))
        return Structs(self.dtype, children, length=len(local), valid=valid)

    def window(self, chunk: int, start: int, stop: int) -> "Structs":
        """Return a range of every field."""
        children = {n: child.window(chunk, start, stop) for n, child in self.children.items()}
        valid = self._valid_window(chunk, start)
        return Structs(self.dtype, children, length=stop - start, valid=valid)

    def item(self, chunk: int, local: int) -> dict[str, Any] | None:
        """Return a dict or None."""
        if self.is_null(chunk, local):
            return None
        return {name: child.item(chunk, local) for name, child in self.children.items()}

    def rows(self, chunk: Chunk, local: Ints) -> list[Any]:
        """Return dicts and None."""
        columns = [child.rows(chunk, local) for child in self.children.values()]
        return self._with_nulls(self._dicts(columns, len(local)), chunk, local)

    def stretch(self, chunk: int, start: int, stop: int) -> list[Any]:
        """Return dicts and None."""
        columns = [child.stretch(chunk, start, stop) for child in self.children.values()]
        found = self._dicts(columns, stop - start)
        return (
            found if self.valid is None else self._with_nulls(found, chunk, np.arange(start, stop))
        )

    def _dicts(self, columns: list[list[Any]], count: int) -> list[Any]:
        names = list(self.children)
        if not names:
            return [{} for _ in range(count)]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def buffers(self) -> Iterator[Buffer]:
        """Yield validity and the buffers of each field."""
        yield self._valid_buffer()
        for child in self.children.values():
            yield from child.buffers()

    @property
    def nbytes(self) -> int:
        """Bytes in a file."""
        return sum(child.nbytes for child in self.children.values()) + self._valid_bytes


def lists(edges: Ints, child: Array, *, valid: Mask | None = None) -> Lists:
    """Return compact lists over ``child``, null where ``valid`` is False."""
    return Lists(List(child.dtype), edges, child, valid=Bits.unless_all(valid))
