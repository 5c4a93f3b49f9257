"""What describes a ``.nano`` file: header, trailer, footer and directory, each checked.

They are read before anything else of the file is looked at, and none of them is believed beyond
its checksum and the rules of the format. The last bytes of a usual file hold all but the header.
"""

import zlib
from typing import NamedTuple

import numpy as np

from .directory import Directory
from .format import (
    ALIGNMENT,
    HEADER,
    TRAILER,
    Footer,
    FormatError,
    Trailer,
    decode_footer,
    decode_header,
    decode_trailer,
)
from .source import Source

TAIL_BYTES = 16 << 10
"""Bytes at the end of a file that are read at once: most often all that describes it."""


class Description(NamedTuple):
    """What a file says of itself."""

    uuid: bytes
    end: int
    """Bytes that count; what an append that was killed left behind does not."""
    footer: Footer
    directory: Directory


def describe(source: Source, end: int | None) -> Description:
    """Load a file and return what describes it.

    Args:
        source: The file, not loaded yet.
        end: Take it as it was when it had so many bytes; None for all that count.

    Raises:
        FormatError: The file breaks a rule of the format.
    """
    if source.size < HEADER.size + TRAILER.size:
        raise FormatError(f"header: the file has {source.size} bytes, too few for a .nano file")
    header = decode_header(source.peek(0, HEADER.size))
    end = end or header.committed or source.size
    if not HEADER.size + TRAILER.size <= end <= source.size:
        raise FormatError(f"header: {end} bytes count, the file has {source.size}")
    # One read for all that describes a usual file: it costs less than touching mapped pages.
    tail = _Tail(source, end)
    source.load(end)
    trailer = decode_trailer(tail.read(end - TRAILER.size, end), end)
    raw = tail.read(trailer.footer, trailer.footer + trailer.footer_bytes)
    if zlib.crc32(raw) != trailer.footer_crc:
        raise FormatError("footer: checksum does not match")
    footer = decode_footer(raw)
    return Description(header.uuid, end, footer, _directory(tail, footer, trailer))


def _directory(tail: "_Tail", footer: Footer, trailer: Trailer) -> Directory:
    start = footer.directory
    stop = start + footer.directory_bytes
    if start % ALIGNMENT or start < HEADER.size or stop > trailer.footer:
        raise FormatError(f"directory: {start} .. {stop} is not before the footer")
    raw = tail.read(start, stop)
    if zlib.crc32(raw) != trailer.directory_crc:
        raise FormatError("directory: checksum does not match")
    return Directory(np.frombuffer(raw, "<i8"), footer, trailer.footer)


class _Tail:
    """The last bytes of a file, and the way to those before them."""

    def __init__(self, source: Source, end: int) -> None:
        self._source = source
        self._first = max(0, end - TAIL_BYTES)
        self._bytes = source.peek(self._first, end)

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes ``start .. stop``, from the file if they lie before its tail."""
        if start >= self._first:
            return self._bytes[start - self._first : stop - self._first]
        return self._source.read(start, stop).tobytes()
