"""The bytes of a ``.nano`` file being written, in the order of the file."""

import os
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from .arrays import Buffer
from .format import (
    ABSENT,
    HEADER,
    Footer,
    Trailer,
    encode_footer,
    encode_header,
    encode_trailer,
    padding,
    slots_of,
)
from .types import Schema


class Sink:
    """The bytes of a file being written: chunks, then the directory, footer and trailer."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.rows = 0
        self._entries: list[list[int]] = []
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - closed by seal or discard
        self._at = 0
        self._put(encode_header(os.urandom(16)))

    def _put(self, data: Any) -> int:  # noqa: ANN401 - any buffer
        """Write all of ``data``, bytes or uint8, and its padding; return its offset."""
        start, view = self._at, memoryview(data)
        size = view.nbytes
        while len(view):
            view = view[self._file.write(view) :]
        self._at += size + padding(size)
        rest = padding(size)
        while rest:
            rest -= self._file.write(bytes(rest))
        return start

    def add(self, rows: int, buffers: Iterable[Buffer]) -> None:
        """Append a chunk of ``rows`` rows."""
        entry = [rows]
        for buffer in buffers:
            if buffer is None:
                entry.extend(ABSENT)
                continue
            data = np.ascontiguousarray(buffer).view(np.uint8)
            entry.extend((self._put(data), data.nbytes, zlib.crc32(data.data)))
        self._entries.append(entry)
        self.rows += rows

    def seal(self, schema: Schema, metadata: dict[str, Any]) -> None:
        """Finish the file and bring it to the disk."""
        slots = sum(1 for _ in slots_of(schema.struct)) - 1
        directory = np.array(self._entries, "<i8").reshape(-1).view(np.uint8)
        at = self._put(directory)
        footer = Footer(schema, self.rows, len(self._entries), slots, at, metadata)
        raw = encode_footer(footer, directory.nbytes, f"nanosets {_version()}")
        start = self._put(raw)
        crcs = zlib.crc32(raw), zlib.crc32(directory.data)
        self._put(encode_trailer(Trailer(start, len(raw), self._at + HEADER.size, *crcs)))
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Drop the file."""
        self._file.close()
        os.unlink(self.path)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # 20 ms that reading never needs

    try:
        return version("nanosets")
    except PackageNotFoundError:
        return "0+source"
