"""The bytes of a ``.nano`` file being written, in the order of the file.

A buffer is read from memory once, for its checksum and the write. xxh3_64 takes a small part of
the time of the write, so it runs over some bytes just before they are written, which then lie in
the processor's cache. crc32 takes as long as the write, so another thread computes it meanwhile:
both leave Python to itself. zstd runs before either.
"""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from .arrays import Array, Buffer, Numbers
from .checksum import Checksum, Xxh3, function_of
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
from .types import Dictionary, Schema
from .zstd import Compression, Compressor

ASIDE_BYTES = 64 << 10
"""Size from which a buffer's checksum is worth more than one call beside the write."""
SLAB_BYTES = 512 << 10
"""Bytes written at a time, which a fast cache holds."""
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
        self._at = at
        self._encoding = encoding
        self._checksum = function_of(encoding.checksum)
        self._compressor = None if encoding.compression is None else Compressor()
        self._entries: list[Any] = []
        self._vocabularies: list[Vocabulary] = []
        self._aside = ThreadPoolExecutor(1)
        self._syncs = sync

    def _put(self, data: memoryview, look: Callable[[memoryview], object] | None = None) -> int:
        """Write all of ``data`` and its padding; return its offset.

        Args:
            data: Bytes.
            look: Called with some bytes at a time before they are written.
        """
        start, gap = self._at, padding(len(data))
        self._at += len(data) + gap
        rest = len(data) % SLAB_BYTES
        for at in range(0, len(data) - rest, SLAB_BYTES):
            self._write([data[at : at + SLAB_BYTES]], look)
        self._write([data[len(data) - rest :], ZEROS[:gap]], look)
        return start

    def _write(self, left: list[memoryview], look: Callable[[memoryview], object] | None) -> None:
        if look is not None:
            look(left[0])
        left = [part for part in left if len(part)]
        while left:
            done = os.writev(self._file, left)
            while left and done >= len(left[0]):
                done -= len(left.pop(0))
            if left:
                left[0] = left[0][done:]

    def add(self, rows: Structs) -> None:
        """Append a chunk of rows."""
        types = dictionaries_of(rows.dtype)
        while len(self._vocabularies) < len(types):
            self._vocabularies.append(Vocabulary())
        known = iter(self._vocabularies)
        fields = [recoded(child, known) for child in rows.children.values()]
        slots = self._put_all(buffer for field in fields for buffer in field.buffers())
        self._entries.append(np.array([rows.length, *(n for slot in slots for n in slot)], "<i8"))
        self.rows += rows.length

    def _put_all(self, buffers: Iterable[Buffer]) -> list[tuple[int, ...]]:
        """Append buffers; return the slot of each."""
        width = 3 if self._compressor is None else 4
        slots: list[tuple[tuple[int, ...], Callable[[], int]]] = []
        for buffer in buffers:
            if buffer is None:
                slots.append(((ABSENT,) * width, lambda: ABSENT))
                continue
            data = np.ascontiguousarray(buffer).view(np.uint8)
            stored = data if self._compressor is None else self._compressor.shrink(data)
            at, checksum = self._put_checked(stored.data)
            slots.append(((at, len(stored), ABSENT, len(data))[:width], checksum))
        return [(*slot[:2], checksum(), *slot[3:]) for slot, checksum in slots]

    def _put_checked(self, data: memoryview) -> tuple[int, Callable[[], int]]:
        """Write a buffer; return its offset, and what returns its checksum when it is there."""
        if len(data) < ASIDE_BYTES:
            return self._put(data), partial(int, self._checksum(data))
        if self._encoding.checksum == "crc32":
            aside = self._aside.submit(self._checksum, data)
            return self._put(data), aside.result
        seen = Xxh3()
        return self._put(data, seen.update), lambda: seen.value

    def seal(self, schema: Schema, metadata: dict[str, Any]) -> None:
        """Write what comes after the chunks, and wait for the disk."""
        values = self._put_values(dictionaries_of(schema.struct))
        slots = len(slots_of(schema.struct)) - 1
        directory = np.array(self._entries, "<i8").reshape(-1).view(np.uint8)
        at = self._put(directory.data)
        chunks = len(self._entries)
        footer = Footer(schema, self.rows, chunks, slots, at, metadata, *self._encoding, values)
        raw = encode_footer(footer, f"nanosets {_version()}")
        start = self._put(memoryview(raw))
        crcs = zlib.crc32(raw), zlib.crc32(directory.data)
        trailer = Trailer(start, len(raw), self._at + TRAILER.size, *crcs)
        self._put(memoryview(encode_trailer(trailer)))
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
            found.append(Values(values.length, tuple(self._put_all(values.buffers()))))
        return tuple(found)

    def close(self) -> None:
        """Close the file as it is."""
        self._aside.shutdown()
        os.close(self._file)


@lru_cache(maxsize=1)
def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # 20 ms that reading never needs

    try:
        return version("nanosets")
    except PackageNotFoundError:
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
