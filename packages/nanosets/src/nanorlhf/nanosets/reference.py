"""Files of the reference implementation, which start with ``NANO0``; for conversion only.

What is published of the layout: the magic, the length of the header as a little-endian uint32, a
JSON header with ``schema.fields``, ``batches[].columns[]`` and ``buffers[] {offset, length}``, then
the buffers end to end, unaligned. A column is primitive (bool, int32, int64, float32, float64),
string (UTF-8, int32 offsets), list (int32 offsets), struct or tensor; validity is one bit a value,
lowest first, absent without nulls; a column may be seen through int32 indices.

What is not published, and assumed here: the names in a column's entry (``KEYS``), that buffers
are numbered from 0, that bools are one byte each, and that offsets of buffers count from the end of
the header. Whatever does not fit these assumptions is refused and named, never guessed at; tensors,
which are torch's, are refused too.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Bools, Numbers
from .arrow import Table
from .bits import Bits
from .build import struct
from .errors import CorruptFileError, SchemaError
from .gather import Ints
from .nested import Lists, Structs, Text
from .types import List, Number, Schema, Utf8, unify_all

MAGIC = b"NANO0"
START = len(MAGIC) + 4
KEYS = {"type", "dtype", "validity", "indices", "offsets", "values", "child", "children"}
NUMBERS = ("int32", "int64", "float32", "float64")
BYTE = Number("uint8")

Entry = Mapping[str, Any]
"""A column in the header."""


def is_reference(path: str | Path) -> bool:
    """Return whether a file is one of the reference implementation."""
    with open(path, "rb") as handle:
        return handle.read(len(MAGIC)) == MAGIC


def read_reference(path: str | Path) -> Table:
    """Return the columns of a file of the reference and its rows, batch by batch.

    Raises:
        CorruptFileError: The file is cut short, or does not fit the assumptions above.
    """
    try:
        file = _File(path)
        blocks = [file.batch(entry) for entry in file.header["batches"]]
        wide = unify_all([struct({}, length=0).dtype, *(block.dtype for block in blocks)])
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        where = f"as a file of the reference: {type(error).__name__} {error}"
        raise CorruptFileError(path, where) from None
    return Table(Schema(wide), iter(blocks))


class _File:
    """The bytes of a file, and its header."""

    def __init__(self, path: str | Path) -> None:
        self.data = np.fromfile(path, np.uint8)
        size = int.from_bytes(self.data[len(MAGIC) : START].tobytes(), "little")
        self.blobs = self.data[START + size :]
        self.header: Entry = json.loads(self.data[START : START + size].tobytes())
        self.names: list[str] = [field["name"] for field in self.header["schema"]["fields"]]
        self.readers: dict[str, Callable[[Entry], Array]] = {
            "primitive": self.primitive,
            "string": self.string,
            "list": self.list,
            "struct": self.struct,
        }

    def batch(self, entry: Entry) -> Structs:
        columns = [self.column(column) for column in entry["columns"]]
        children = dict(zip(self.names, columns, strict=True))
        lengths = {child.length for child in columns}
        if len(lengths) > 1:
            raise ValueError(f"columns of one batch have {sorted(lengths)} rows")
        return struct(children, length=lengths.pop() if lengths else 0)

    def buffer(self, number: int, dtype: str) -> NDArray[Any]:
        """Return a buffer as an array, copied to be aligned."""
        place = self.header["buffers"][number]
        start, size = place["offset"], place["length"]
        if not 0 <= start <= start + size <= len(self.blobs):
            raise ValueError(f"buffer {number} is {start} + {size} of {len(self.blobs)} bytes")
        return np.frombuffer(self.blobs[start : start + size].tobytes(), dtype)

    def column(self, entry: Entry) -> Array:
        unknown = set(entry) - KEYS
        if unknown or entry["type"] not in self.readers:
            raise ValueError(f"column entry {dict(entry)} has {sorted(unknown)} or an unknown type")
        found = self.readers[entry["type"]](entry)
        if entry.get("validity") is not None:
            bits = self.buffer(entry["validity"], "u1")
            found.valid = Bits.unless_all(Bits(bits).run(0, 0, found.length))
        if entry.get("indices") is None:
            return found
        rows: Ints = self.buffer(entry["indices"], "<i4").astype(np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < found.length:
            raise ValueError(f"indices {rows.min()} .. {rows.max()} of {found.length} values")
        return found.take(0, rows)

    def primitive(self, entry: Entry) -> Array:
        if entry["dtype"] == "bool":
            values = self.buffer(entry["values"], "?")
            return Bools(Bits.pack(values), length=len(values))
        if entry["dtype"] not in NUMBERS:
            raise SchemaError(str(entry["dtype"]), f"is none of bool, {', '.join(NUMBERS)}")
        dtype = Number(entry["dtype"])
        return Numbers(dtype, self.buffer(entry["values"], dtype.numpy.str))

    def edges(self, entry: Entry, limit: int) -> Ints:
        edges: Ints = self.buffer(entry["offsets"], "<i4").astype(np.int64)
        if edges[0] != 0 or (edges[1:] < edges[:-1]).any() or edges[-1] != limit:
            raise ValueError(f"offsets do not run from 0 to {limit}")
        return edges

    def string(self, entry: Entry) -> Array:
        data = Numbers(BYTE, self.buffer(entry["values"], "u1"))
        return Text(Utf8(), self.edges(entry, data.length), data)

    def list(self, entry: Entry) -> Array:
        child = self.column(entry["child"])
        return Lists(List(child.dtype), self.edges(entry, child.length), child)

    def struct(self, entry: Entry) -> Array:
        children = {name: self.column(child) for name, child in entry["children"].items()}
        lengths = {child.length for child in children.values()}
        if len(lengths) != 1:
            raise ValueError(f"fields of one struct have {sorted(lengths)} values")
        return struct(children, length=lengths.pop())
