"""A ``.nano`` file, mapped or read, and checked.

Opening reads the trailer, footer and directory, and checks all of them. A column's offsets and
codes are checked when it is first touched. Data checksums are compared on request (``verify``),
since that reads the whole file.
"""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Array
from .casts import first_not_utf8
from .checksum import function_of
from .convert import all_null
from .description import describe
from .directory import ABSENT, dictionaries_of, slots_of, value_slots
from .errors import CorruptFileError
from .format import FormatError
from .gather import Ints
from .kept import Kept
from .layout import Layout, Loaded, Mapped, Store
from .nested import Text
from .source import IO, Source
from .types import Schema
from .zstd import expand

CACHE_BYTES = 256 << 20
"""Bytes of chunks that a file which is not mapped keeps after they were read."""


class File:
    """One open ``.nano`` file; pickles as its path.

    Args:
        path: The file.
        verify: Also compare the checksum of every buffer, which reads the whole file.
        io: How to read it: see ``source``.
        end: Open it as it was when it had so many bytes, before something was appended.

    Raises:
        CorruptFileError: The file breaks a rule of the format.
        OSError: It cannot be opened.
        ValueError: There is no such ``io``.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        verify: bool = False,
        io: IO = "mmap",
        end: int | None = None,
    ) -> None:
        self.path = os.path.abspath(path)
        self.io = io
        self._arrays: dict[str, Array] = {}
        self._chunks = Kept(CACHE_BYTES)
        self._values: dict[int, Array] = {}
        self._source = Source(self.path, io)
        try:
            found = describe(self._source, end)
            self.uuid, self.end, self.footer, self._directory = found
            self.chunk_rows: Ints = self._directory.rows
            if verify:
                self.verify()
        except FormatError as error:
            self._source.close()
            raise CorruptFileError(path, str(error)) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen, (self.path, self.uuid, self.end, self.io)

    @property
    def schema(self) -> Schema:
        """The columns."""
        return self.footer.schema

    @property
    def entries(self) -> Ints:
        """The directory as it stands in the file, int64 [chunks, 1 + slots * 3 or 4]."""
        self._check_places()
        return self._directory.entries

    def _check_places(self) -> None:
        """Check where the buffers lie, those of dictionaries too, unless that is done."""
        _ = self._slots

    @cached_property
    def _slots(self) -> Ints:
        """Where buffers lie, int64 [chunks, slots, 3 or 4]."""
        try:
            return self._directory.slots
        except FormatError as error:
            raise CorruptFileError(self.path, str(error)) from None

    @property
    def is_whole(self) -> bool:
        """Whether columns lie over all chunks in one address space, ready for ``array``."""
        return self._source.whole is not None and self.footer.compression is None

    @cached_property
    def _first_slot(self) -> dict[str, int]:
        first, found = 0, {}
        for name, dtype in self.schema.items():
            found[name] = first
            first += len(slots_of(dtype))
        return found

    @cached_property
    def _store(self) -> Store:
        if self.is_whole:
            assert self._source.whole is not None
            return Mapped(self._source.whole)
        return Loaded(self._load)

    def _load(self, slot: Ints) -> NDArray[np.uint8]:
        """Return the bytes that a slot stands for."""
        offset, size = slot[:2].tolist()
        stored = self._source.read(offset, offset + size)
        if len(stored) != size:
            raise FormatError(f"the file ends before the buffer at {offset}")
        if self.footer.compression is None:
            return stored
        try:
            return expand(stored, int(slot[3]))
        except ValueError as error:
            raise FormatError(f"buffer at {offset}: {error}") from None

    def verify(self) -> None:
        """Compare every checksum, and check every column.

        Raises:
            CorruptFileError: A buffer is not what was written.
            ImportError: The checksums are xxh3_64 and xxhash is not installed.
        """
        for chunk, slots in enumerate(self._slots):
            for slot in self._unlike(slots):
                where = f"{self._slot_name(slot)} of chunk {chunk}: checksum does not match"
                raise CorruptFileError(self.path, where)
        for _ in self._unlike(value_slots(self.footer)):
            raise CorruptFileError(self.path, "values of a dictionary: checksum does not match")
        for name in self.schema:
            for chunk in range(min(1, self.footer.chunks) if self.is_whole else self.footer.chunks):
                self.chunk(name, chunk)

    def checksums(self, name: str, chunk: int | None = None) -> Ints:
        """Return what stands for a column's content: rows and checksums, int64 [chunks, n].

        Args:
            name: The column.
            chunk: One chunk of it; default all.
        """
        first, size = self._first_slot[name], len(slots_of(self.schema[name]))
        some = slice(None) if chunk is None else slice(chunk, chunk + 1)
        found = self._slots[some, first : first + size, 2]
        apart = [s[2] for n in self._dictionaries[name] for s in self.footer.dictionaries[n].slots]
        values = np.broadcast_to(np.array(apart, np.int64), (len(found), len(apart)))
        return np.concatenate([self.chunk_rows[some, None], found, values], axis=1)

    def _unlike(self, slots: Ints) -> list[int]:
        """Return which of some slots hold other bytes than were written."""
        checksum = function_of(self.footer.checksum)
        found = []
        for number, (offset, size, wanted, *_) in enumerate(slots.tolist()):
            if offset == ABSENT:
                continue
            data = self._source.read(offset, offset + size)
            if len(data) != size or checksum(data.data) != wanted:
                found.append(number)
        return found

    def _slot_name(self, slot: int) -> str:
        name = [n for n, first in self._first_slot.items() if first <= slot][-1]
        kind = slots_of(self.schema[name])[slot - self._first_slot[name]]
        return f"column {name!r}: {kind}"

    def array(self, name: str) -> Array:
        """Return a column over all chunks of a file that ``is_whole``, without a copy.

        Raises:
            CorruptFileError: A buffer has the wrong size, or offsets run backwards.
        """
        found = self._arrays.get(name)
        if not self.footer.chunks:
            return all_null(self.schema[name], 0)
        if found is None:
            assert self.is_whole, "the columns of this file are read chunk by chunk"
            found = self._arrays[name] = self._read(name, self._slots, self.chunk_rows)
        return found

    def chunk(self, name: str, number: int) -> Array:
        """Return a column's part in one chunk, compact: a view, or read and then kept a while.

        Raises:
            CorruptFileError: A buffer has the wrong size or bytes, or offsets run backwards.
        """
        if self.is_whole:
            return self.array(name).window(number, 0, int(self.chunk_rows[number]))
        return self._chunks.get((name, number), lambda: self._read_chunk(name, number))

    def _read_chunk(self, name: str, number: int) -> Array:
        some = slice(number, number + 1)
        return self._read(name, self._slots[some], self.chunk_rows[some])

    def _read(self, name: str, slots: Ints, rows: Ints) -> Array:
        values = iter(self._dictionaries[name])
        layout = Layout(
            self._store, slots, self._first_slot[name], lambda: self.values(next(values))
        )
        try:
            return layout.read(self.schema[name], rows)
        except FormatError as error:
            raise CorruptFileError(self.path, f"column {name!r}: {error}") from None

    @cached_property
    def _dictionaries(self) -> dict[str, list[int]]:
        """Numbers of the dictionaries of each column."""
        count, found = 0, {}
        for name, dtype in self.schema.items():
            size = len(dictionaries_of(dtype))
            found[name] = list(range(count, count + size))
            count += size
        return found

    def values(self, number: int) -> Array:
        """Return the values of a dictionary, counted through the schema.

        Raises:
            FormatError: A buffer is not what the type asks for.
        """
        found = self._values.get(number)
        if found is None:
            self._check_places()
            stored = self.footer.dictionaries[number]
            slots = np.array(stored.slots, np.int64)[None]
            layout = Layout(self._store, slots, 0, _no_values)
            types = dictionaries_of(self.schema.struct)
            found = layout.read(types[number].value, np.array([stored.rows]))
            found = found.window(0, 0, stored.rows)
            if found.valid is not None:
                raise FormatError(f"dictionary {number} holds a null")
            if isinstance(found, Text) and first_not_utf8(found) is not None:
                raise FormatError(f"dictionary {number}: a string is not UTF-8")
            self._values[number] = found
        return found


def _no_values() -> Array:
    raise FormatError("a dictionary has a dictionary")


def reopen(path: str, uuid: bytes, end: int, io: IO) -> File:
    """Return the file that a pickle named, as it was then.

    Raises:
        CorruptFileError: Another file has taken its place since.
    """
    file = File(path, io=io)
    if file.uuid != uuid or file.end < end:
        raise CorruptFileError(path, "header: the file was replaced after the dataset was pickled")
    return file if file.end == end else File(path, io=io, end=end)
