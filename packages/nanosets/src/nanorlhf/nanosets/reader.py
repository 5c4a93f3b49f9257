"""A ``.nano`` file, mapped into memory and checked.

Opening reads the trailer, footer and directory, and checks all of them. A column's offsets are
checked when it is first touched. Data checksums are compared on request (``verify``), since that
reads the whole file.
"""

import mmap
import os
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Bools, Nulls, Numbers
from .bits import Bits
from .errors import CorruptFileError
from .format import (
    ALIGNMENT,
    HEADER,
    TRAILER,
    Footer,
    FormatError,
    check_directory,
    data_bytes,
    decode_footer,
    decode_header,
    decode_trailer,
    slots_of,
)
from .gather import Ints
from .nested import Lists, Structs, Text
from .types import Bool, DType, List, Null, Number, Schema, Struct


class File:
    """One open ``.nano`` file; pickles as its path.

    Args:
        path: The file.
        verify: Also compare the checksum of every buffer, which reads the whole file.

    Raises:
        CorruptFileError: The file breaks a rule of the format.
        OSError: It cannot be opened.
    """

    def __init__(self, path: str | Path, *, verify: bool = False) -> None:
        self.path = os.path.abspath(path)
        self._arrays: dict[str, Array] = {}
        self._views: dict[str, NDArray[Any]] = {}
        try:
            self._open()
            if verify:
                self.verify()
        except FormatError as error:
            raise CorruptFileError(path, str(error)) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen, (self.path, self.uuid)

    def _open(self) -> None:
        with open(self.path, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            if size < HEADER.size + TRAILER.size:
                raise FormatError(f"header: the file has {size} bytes, too few for a .nano file")
            self._map = mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_READ)
        self.uuid = decode_header(self._map[: HEADER.size])
        trailer = decode_trailer(self._map[size - TRAILER.size :], size)
        raw = self._map[trailer.footer : trailer.footer + trailer.footer_bytes]
        if zlib.crc32(raw) != trailer.footer_crc:
            raise FormatError("footer: checksum does not match")
        self.footer: Footer = decode_footer(raw)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._read_directory(trailer.footer, trailer.directory_crc)

    def _read_directory(self, footer_offset: int, crc: int) -> None:
        start, width = self.footer.directory, 1 + 3 * self.footer.slots
        stop = start + self.footer.chunks * width * 8
        if start % ALIGNMENT or start < HEADER.size or stop > footer_offset:
            raise FormatError(f"directory: {start} .. {stop} is not before the footer")
        raw = self._bytes[start:stop]
        if zlib.crc32(raw.data) != crc:
            raise FormatError("directory: checksum does not match")
        entries = raw.view("<i8").reshape(self.footer.chunks, width)
        check_directory(entries, self.footer, footer_offset)
        self.chunk_rows: Ints = np.ascontiguousarray(entries[:, 0], np.int64)
        self._slots: Ints = entries[:, 1:].reshape(self.footer.chunks, self.footer.slots, 3)

    @property
    def schema(self) -> Schema:
        """The columns."""
        return self.footer.schema

    @cached_property
    def _first_slot(self) -> dict[str, int]:
        first, found = 0, {}
        for name, dtype in self.schema.items():
            found[name] = first
            first += sum(1 for _ in slots_of(dtype))
        return found

    def verify(self) -> None:
        """Compare every checksum, and check every column.

        Raises:
            CorruptFileError: A buffer is not what was written.
        """
        for chunk, slots in enumerate(self._slots.tolist()):
            for slot, (offset, size, crc) in enumerate(slots):
                if offset >= 0 and zlib.crc32(self._bytes[offset : offset + size].data) != crc:
                    where = f"{self._slot_name(slot)} of chunk {chunk}: checksum does not match"
                    raise CorruptFileError(self.path, where)
        for name in self.schema:
            self.array(name)

    def _slot_name(self, slot: int) -> str:
        name = [n for n, first in self._first_slot.items() if first <= slot][-1]
        kind = list(slots_of(self.schema[name]))[slot - self._first_slot[name]]
        return f"column {name!r}: {kind}"

    def array(self, name: str) -> Array:
        """Return a column over all chunks of the file, without a copy.

        Raises:
            CorruptFileError: A buffer has the wrong size, or offsets run backwards.
        """
        found = self._arrays.get(name)
        if found is None:
            try:
                found = _Columns(self, self._slots, self._first_slot[name]).read(
                    self.schema[name], self.chunk_rows
                )
            except FormatError as error:
                raise CorruptFileError(self.path, f"column {name!r}: {error}") from None
            self._arrays[name] = found
        return found

    def view(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the whole file as one array of ``dtype``."""
        if dtype.str not in self._views:
            whole = self._bytes[: len(self._bytes) // ALIGNMENT * ALIGNMENT]
            self._views[dtype.str] = whole.view(dtype)
        return self._views[dtype.str]


def reopen(path: str, uuid: bytes) -> File:
    """Return the file that a pickle named.

    Raises:
        CorruptFileError: Another file has taken its place since.
    """
    file = File(path)
    if file.uuid != uuid:
        raise CorruptFileError(path, "header: the file was replaced after the dataset was pickled")
    return file


class _Columns:
    """Turns slots, in order, into one column."""

    def __init__(self, file: File, slots: Ints, first: int) -> None:
        self.file = file
        self.slots = slots
        self.next = first

    def read(self, dtype: DType, counts: Ints) -> Array:
        """Return the next column: ``counts[c]`` elements in chunk ``c``."""
        length = sum(counts.tolist())
        if isinstance(dtype, Null):
            return Nulls(length)
        valid = self.validity(counts)
        if isinstance(dtype, Struct):
            children = {f.name: self.read(f.dtype, counts) for f in dtype.fields}
            return Structs(dtype, children, length=length, valid=valid)
        if isinstance(dtype, Number | Bool):
            return self.flat(dtype, counts, length, valid)
        base = self.buffer(4 * (counts + 1), "offsets") // 4
        edges = self.file.view(np.dtype("<i4"))
        inner = self.check_edges(edges, base, counts)
        if isinstance(dtype, List):
            child = self.read(dtype.item, inner)
            return Lists(dtype, edges, child, length=length, valid=valid, base=base)
        data = self.buffer(inner, "data")
        size = sum(inner.tolist())
        child = Numbers(Number("uint8"), self.file.view(np.dtype("u1")), length=size, base=data)
        return Text(dtype, edges, child, length=length, valid=valid, base=base)

    def flat(self, dtype: Number | Bool, counts: Ints, length: int, valid: Bits | None) -> Array:
        start = self.buffer(data_bytes(dtype, counts), "data")
        if isinstance(dtype, Bool):
            return Bools(
                Bits(self.file.view(np.dtype("u1")), start * 8), length=length, valid=valid
            )
        values = self.file.view(dtype.numpy)
        base = start // dtype.numpy.itemsize
        return Numbers(dtype, values, length=length, valid=valid, base=base)

    def slot(self) -> Ints:
        found: Ints = self.slots[:, self.next]
        self.next += 1
        return found

    def buffer(self, sizes: Ints, kind: str) -> Ints:
        """Return the offset of the next buffer in each chunk, of the given sizes."""
        slot = self.slot()
        if not np.array_equal(slot[:, 1], sizes):
            raise FormatError(f"{kind} has the wrong size in some chunk")
        return slot[:, 0].copy()

    def validity(self, counts: Ints) -> Bits | None:
        slot = self.slot()
        present = slot[:, 0] >= 0
        if not present.any():
            return None
        if (slot[present, 1] != (counts[present] + 7) >> 3).any():
            raise FormatError("validity has the wrong size in some chunk")
        base = np.where(present, slot[:, 0] * 8, -1)
        return Bits(self.file.view(np.dtype("u1")), base)

    def check_edges(self, edges: NDArray[Any], base: Ints, counts: Ints) -> Ints:
        """Return how many elements the child has in each chunk."""
        last = np.zeros(len(base), np.int64)
        for chunk, (first, count) in enumerate(zip(base.tolist(), counts.tolist(), strict=True)):
            found = edges[first : first + count + 1]
            if found[0] != 0 or (found[1:] < found[:-1]).any():
                raise FormatError(f"offsets of chunk {chunk} run backwards or do not start at 0")
            last[chunk] = found[-1]
        return last
