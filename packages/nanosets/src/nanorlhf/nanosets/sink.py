"""The bytes of a ``.nano`` file being written, in the order of the file.

While a large buffer is written another thread computes its checksum; zstd runs before either.
"""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np

from .arrays import Array, Numbers
from .aside import Aside
from .checksum import Checksum
from .coded import CODE, Coded, Vocabulary
from .convert import all_null, concat
from .directory import ABSENT, dictionaries_of, slots_of
from .fixed import FixedLists
from .format import (
    TRAILER,
    Footer,
    Trailer,
    Values,
    encode_footer,
    encode_trailer,
    padding,
)
from .nested import Lists, Structs
from .pieces import Pieces, buffers_of
from .slabs import Slabs
from .types import Dictionary, Schema
from .zstd import Compression, Compressor

ZEROS = memoryview(bytes(64))


class Encoding(NamedTuple):
    """How buffers are stored."""

    checksum: Checksum
    compression: Compression | None


class Sink:
    """The bytes of a file being written: chunks, then the directory, footer and trailer.

    Args:
        file: Descriptor of the file, at its end; closed by this object.
        path: Its path.
        encoding: How buffers are stored.
        at: Bytes that it has, a multiple of 64.
        sync: Whether ``sync`` waits for the disk.
    """

    def __init__(
        self, file: int, path: str, encoding: Encoding, *, at: int, sync: bool = True
    ) -> None:
        self.path = path
        self.rows = 0
        self._file = file
        self._slabs = Slabs(file, at)
        self._encoding = encoding
        self._compressor = None if encoding.compression is None else Compressor()
        self._entries: list[Any] = []
        self._vocabularies: list[Vocabulary] = []
        self._aside = Aside()
        self._syncs = sync

    def _put(self, *data: memoryview) -> int:
        """Write pieces of a buffer end to end, and its padding; return its offset."""
        start = self._slabs.at
        for piece in (*data, ZEROS[: padding(_size(data))]):
            self._slabs.put(piece)
        return start

    def add(self, tables: Sequence[Structs]) -> None:
        """Append a chunk of rows, given as tables of one type to be put end to end."""
        types = dictionaries_of(tables[0].dtype)
        if types:
            tables = [cast(Structs, concat(tables))]
        while len(self._vocabularies) < len(types):
            self._vocabularies.append(Vocabulary())
        known = iter(self._vocabularies)
        fields = [[table.children[name] for table in tables] for name in tables[0].children]
        if types:
            fields = [[recoded(array, known) for array in field] for field in fields]
        slots = self._put_all(pieces for field in fields for pieces in buffers_of(field))
        rows = sum(table.length for table in tables)
        self._entries.append(np.array([rows, *(n for slot in slots for n in slot)], "<i8"))
        self.rows += rows

    def _put_all(self, buffers: Iterable[Pieces]) -> list[tuple[int, ...]]:
        """Append buffers; return the slot of each."""
        width = 3 if self._compressor is None else 4
        slots: list[tuple[tuple[int, ...], Callable[[], int]]] = []
        for pieces in buffers:
            if pieces is None:
                slots.append(((ABSENT,) * width, lambda: ABSENT))
                continue
            data = [np.ascontiguousarray(piece).view(np.uint8) for piece in pieces]
            stored = data
            if self._compressor is not None:
                stored = [self._compressor.shrink(np.concatenate(data))]
            raw = [piece.data for piece in stored]
            checksum = self._aside.begin(self._encoding.checksum, raw)
            slots.append(((self._put(*raw), _size(raw), ABSENT, _size(data))[:width], checksum))
        self._slabs.flush()
        return [(*slot[:2], checksum(), *slot[3:]) for slot, checksum in slots]

    def seal(self, schema: Schema, metadata: dict[str, Any]) -> None:
        """Write what comes after the chunks, and wait for the disk."""
        values = self._put_values(dictionaries_of(schema.struct))
        slots = len(slots_of(schema.struct)) - 1
        directory = np.array(self._entries, "<i8").reshape(-1).view(np.uint8)
        at = self._put(directory.data)
        chunks = len(self._entries)
        footer = Footer(schema, self.rows, chunks, slots, at, metadata, *self._encoding, values)
        raw = encode_footer(footer, f"nanosets {version()}")
        start = self._put(memoryview(raw))
        crcs = zlib.crc32(raw), zlib.crc32(directory.data)
        trailer = Trailer(start, len(raw), self._slabs.at + TRAILER.size, *crcs)
        self._put(memoryview(encode_trailer(trailer)))
        self._slabs.finish()
        self.sync()

    def sync(self) -> None:
        """Wait until all that was written is on the disk, if that is asked for."""
        if self._syncs:
            os.fsync(self._file)

    def _put_values(self, types: Sequence[Dictionary]) -> tuple[Values, ...]:
        found = []
        for number, dtype in enumerate(types):
            known = self._vocabularies[number].parts if self._entries else []
            values = concat(known or [all_null(dtype.value, 0)])
            found.append(Values(values.length, tuple(self._put_all(buffers_of([values])))))
        return tuple(found)

    def close(self) -> None:
        """Close the file as it is."""
        self._aside.close()
        os.close(self._file)


def _size(data: Sequence[Sized]) -> int:
    return sum(map(len, data))


@lru_cache(maxsize=1)
def version() -> str:
    """Return the version of this package, which each file names as its maker's."""
    from importlib import metadata  # 20 ms that reading never needs

    try:
        return metadata.version("nanosets")
    except metadata.PackageNotFoundError:
        return "0+source"


def recoded(array: Array, known: Iterator[Vocabulary]) -> Array:
    """Return a compact array whose codes are those of vocabularies; they take new values in.

    Args:
        array: Any array; one without dictionaries comes back as it is.
        known: A vocabulary for each dictionary type, in schema order.

    Raises:
        SchemaError: A vocabulary would hold more values than int32 counts.
    """
    if not dictionaries_of(array.dtype):
        return array
    if isinstance(array, Coded):
        codes = Numbers(CODE, next(known).recode(array).astype(np.int32))
        return Coded(codes, array.values, length=array.length, valid=array.valid)
    if isinstance(array, Structs):
        children = {name: recoded(child, known) for name, child in array.children.items()}
        return Structs(array.dtype, children, length=array.length, valid=array.valid)
    assert isinstance(array, Lists | FixedLists)
    child = recoded(array.child, known)
    if isinstance(array, FixedLists):
        return type(array)(array.dtype, child, length=array.length, valid=array.valid)
    return type(array)(array.dtype, array.edges, child, length=array.length, valid=array.valid)
