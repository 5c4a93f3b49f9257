"""Structs of the Arrow C data interface as types and compact arrays, over the same memory.

Memory of an imported array belongs to whoever made it; it is given back when the last numpy view
of it is gone. Views (``string_view``), 64-bit offsets and dates in milliseconds are what is copied.
"""

import ctypes
import struct
import sys
from itertools import pairwise
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Bools, Nulls, Numbers
from .arrow_abi import ArrowArray, ArrowSchema, release
from .arrow_types import NUMBERS, Node, dtype_of
from .bits import Bits, Mask
from .casts import flat
from .coded import coded
from .convert import all_null, concat, convert
from .errors import SchemaError
from .fixed import FixedLists, Tensors
from .gather import Ints, offsets_of, packed
from .nested import Bytes, Lists, Structs, Text
from .types import Date, Dictionary, DType, FixedList, Number, Struct, Tensor, Timestamp, Utf8

INLINE = 12
"""Bytes of a string that a view holds itself."""
RUN_ROWS = 4
"""Mean rows from one buffer from which it pays to copy them together."""
MS_PER_DAY = 86_400_000
BYTE = Number("uint8")


class Owner:
    """An array that was moved here; gives it back when nothing refers to it any more."""

    def __init__(self, array: ArrowArray) -> None:
        self.array = array

    def __del__(self) -> None:
        if not sys.is_finalizing():
            release(self.array)


class _Memory:
    """Bytes at an address, in numpy's protocol for them."""

    def __init__(self, address: int, size: int, owner: Owner) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "data": (address, True),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }


def node_at(schema: ArrowSchema) -> Node:
    """Return an ArrowSchema as Python values."""
    children = [schema.children[i].contents for i in range(schema.n_children)]
    return Node(
        schema.format.decode(),
        (schema.name or b"").decode(),
        decode_metadata(schema.metadata),
        tuple(map(node_at, children)),
        node_at(schema.dictionary.contents) if schema.dictionary else None,
    )


def decode_metadata(address: int | None) -> dict[str, str]:
    """Return metadata in the form of the C data interface as a dict."""
    if not address:
        return {}

    def integer() -> int:
        nonlocal address
        assert address is not None
        (found,) = struct.unpack("=i", ctypes.string_at(address, 4))
        address += 4
        return int(found)

    def text() -> str:
        nonlocal address
        assert address is not None
        size = integer()
        found = ctypes.string_at(address, size)
        address += size
        return found.decode(errors="replace")

    return {text(): text() for _ in range(integer())}


def read_array(node: Node, found: ArrowArray, owner: Owner) -> Array:
    """Return a compact array over the memory of an ArrowArray.

    Args:
        node: Its type.
        found: The array: ``owner.array``, or one inside it.
        owner: Keeps the memory.

    Raises:
        SchemaError: The type is none of ours, or offsets run backwards or out of their data.
    """
    return _Reading(node, found, owner).read()


class _Reading:
    """One array on its way in."""

    def __init__(self, node: Node, found: ArrowArray, owner: Owner) -> None:
        self.node = node
        self.found = found
        self.owner = owner
        self.length = int(found.length)
        self.offset = int(found.offset)
        self.stop = self.offset + self.length

    def read(self) -> Array:
        format = self.node.format
        if self.node.dictionary is not None:
            return self.dictionary()
        if format == "n":
            return Nulls(self.length)
        dtype = dtype_of(self.node)
        if isinstance(dtype, Struct):
            return self.struct(dtype)
        if format == "b":
            bits = Bits(self.view(1, "u1", (self.stop + 7) >> 3), np.array([self.offset]))
            return Bools(bits, length=self.length, valid=self.valid())
        if isinstance(dtype, Number | Date | Timestamp):
            return self.number(dtype)
        if format in ("vu", "vz"):
            return self.views(dtype)
        if isinstance(dtype, FixedList | Tensor):
            return self.fixed(dtype)
        return self.bytes(dtype) if not dtype.children else self.lists(dtype)

    def view(self, number: int, dtype: str, count: int) -> NDArray[Any]:
        """Return the first ``count`` elements of a buffer."""
        address = self.found.buffers[number]
        if count == 0 or not address:
            # An absent buffer is one of no elements; of offsets, even that has its first 0.
            return np.zeros(count, dtype)
        size = count * np.dtype(dtype).itemsize
        found = np.asarray(_Memory(address, size, self.owner)).view(dtype)
        return found if found.flags.aligned else found.copy()

    def valid(self) -> Bits | None:
        if self.found.null_count == 0 or not self.found.buffers[0]:
            return None
        return Bits(self.view(0, "u1", (self.stop + 7) >> 3), np.array([self.offset]))

    def mask(self) -> Mask | None:
        valid = self.valid()
        return None if valid is None else valid.run(0, 0, self.length)

    def child(self, number: int = 0) -> Array:
        inner = self.found.children[number].contents
        return read_array(self.node.children[number], inner, self.owner)

    def number(self, dtype: Number | Date | Timestamp) -> Array:
        if self.node.format == "tdm":
            days = self.view(1, "<i8", self.stop)[self.offset :] // MS_PER_DAY
            return flat(dtype, days.astype("<i4"), valid=self.valid())
        values = self.view(1, dtype.numpy.str, self.stop)[self.offset :]
        return flat(dtype, values, valid=self.valid())

    def edges(self, number: int, *, large: bool, limit: int | None) -> Ints:
        """Return offsets, and see that they run forwards and not beyond ``limit``."""
        edges = self.view(number, "<i8" if large else "<i4", self.stop + 1)[self.offset :]
        if edges[0] < 0 or (edges[1:] < edges[:-1]).any():
            raise SchemaError(self.node.name, "its Arrow offsets run backwards; mend the source")
        if limit is not None and edges[-1] > limit:
            rule = f"its Arrow offsets reach {edges[-1]} of {limit} elements; mend the source"
            raise SchemaError(self.node.name, rule)
        return edges

    def bytes(self, dtype: DType) -> Array:
        if self.node.format.startswith("w:"):
            width = int(self.node.format[2:])
            edges = np.arange(self.offset, self.stop + 1, dtype=np.int64) * width
            data = self.view(1, "u1", self.stop * width)
        else:
            edges = self.edges(1, large=self.node.format in ("U", "Z"), limit=None)
            data = self.view(2, "u1", int(edges[-1]))
        return self.text(dtype, edges, data)

    def text(self, dtype: DType, edges: Ints, data: NDArray[Any]) -> Array:
        kind = Text if isinstance(dtype, Utf8) else Bytes
        found = kind(dtype, edges, Numbers(BYTE, data), valid=self.valid())
        return found.window(0, 0, self.length)

    def views(self, dtype: DType) -> Array:
        """Copy strings out of the views and the buffers that those point into."""
        views = self.view(1, "<i4", 4 * self.stop).reshape(-1, 4)[self.offset :]
        mask = self.mask()
        lengths = views[:, 0].astype(np.int64)
        lengths = lengths if mask is None else np.where(mask, lengths, 0)
        is_inline = lengths <= INLINE
        source = np.where(is_inline, 0, views[:, 2].astype(np.int64) + 1)
        starts = np.where(is_inline, np.arange(self.length) * 16 + 4, views[:, 3])
        flat = np.ascontiguousarray(views).view("u1").reshape(-1)
        data = _strings([flat, *self.variadic()], source, starts, starts + lengths)
        return self.text(dtype, offsets_of(lengths), data)

    def variadic(self) -> list[NDArray[Any]]:
        """Return the data buffers of views, whose sizes are in the last buffer."""
        count = int(self.found.n_buffers) - 3
        sizes = self.view(count + 2, "<i8", count).tolist()
        return [self.view(n, "u1", size) for n, size in enumerate(sizes, 2)]

    def lists(self, dtype: DType) -> Array:
        child, large = self.child(), self.node.format in ("+L", "+vL")
        if self.node.format in ("+vl", "+vL"):
            return self.list_views(dtype, child, large=large)
        edges = self.edges(1, large=large, limit=child.length)
        return Lists(dtype, edges, child, valid=self.valid()).window(0, 0, self.length)

    def list_views(self, dtype: DType, child: Array, *, large: bool) -> Array:
        """Copy lists that may overlap and stand in any order."""
        kind = "<i8" if large else "<i4"
        starts = self.view(1, kind, self.stop)[self.offset :].astype(np.int64)
        sizes = self.view(2, kind, self.stop)[self.offset :].astype(np.int64)
        mask = self.mask()
        sizes = sizes if mask is None else np.where(mask, sizes, 0)
        used = sizes > 0
        if (sizes < 0).any() or (starts[used] < 0).any():
            raise SchemaError(self.node.name, "an Arrow list starts below 0; mend the source")
        if (starts + sizes)[used].max(initial=0) > child.length:
            rule = f"an Arrow list ends beyond its {child.length} elements; mend the source"
            raise SchemaError(self.node.name, rule)
        starts = np.where(used, starts, 0)
        items = child.spans(0, starts, starts + sizes)
        return Lists(dtype, offsets_of(sizes), items, valid=self.valid())

    def fixed(self, dtype: FixedList | Tensor) -> Array:
        child = self.child().window(0, self.offset * dtype.size, self.stop * dtype.size)
        plain = FixedList(dtype.item, dtype.size)
        found = FixedLists(plain, child, length=self.length, valid=self.valid())
        if not isinstance(dtype, Tensor):
            return found
        # Some fill a null tensor with null numbers; the conversion knows what to do with those.
        flat = cast(Tensors, convert(found, Tensor(dtype.item, (dtype.size,))))
        return Tensors(dtype, flat.child, length=self.length, valid=flat.valid)

    def struct(self, dtype: Struct) -> Array:
        found = [self.child(i) for i in range(len(dtype.fields))]
        windows = [child.window(0, self.offset, self.stop) for child in found]
        children = {f.name: child for f, child in zip(dtype.fields, windows, strict=True)}
        return Structs(dtype, children, length=self.length, valid=self.valid())

    def dictionary(self) -> Array:
        node = self.node.dictionary
        assert node is not None
        values = read_array(node, self.found.dictionary.contents, self.owner)
        kind = np.dtype(NUMBERS[self.node.format]).newbyteorder("<").str
        codes = self.view(1, kind, self.stop)[self.offset :].astype(np.int64)
        if isinstance(dtype_of(self.node), Dictionary):
            return coded(codes, values, valid=self.mask())
        return self.decoded(codes, values)

    def decoded(self, codes: Ints, values: Array) -> Array:
        """Copy values of a type that no dictionary of ours holds."""
        mask, present = self.mask(), values.validity()
        codes = codes if mask is None else np.where(mask, codes, values.length)
        if present is not None:
            codes = np.where(np.append(present, False)[codes], codes, values.length)
        # One null stands behind the values, for the codes of nulls.
        return concat([values, all_null(values.dtype, 1)]).take(0, codes)


def _strings(sources: list[NDArray[Any]], source: Ints, starts: Ints, stops: Ints) -> NDArray[Any]:
    """Return ranges of several buffers end to end."""
    edges = np.flatnonzero(np.diff(source, prepend=-1, append=-1)).tolist()
    if len(edges) * RUN_ROWS > len(source):
        rows = zip(source.tolist(), starts.tolist(), stops.tolist(), strict=True)
        pieces = [sources[number][start:stop] for number, start, stop in rows]
    else:
        runs = [(source[a], starts[a:b], stops[a:b]) for a, b in pairwise(edges)]
        pieces = [packed(sources[number], *bounds) for number, *bounds in runs]
    return np.concatenate([np.zeros(0, np.uint8), *pieces])
