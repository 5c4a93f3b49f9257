"""The bytes of a ``.nano`` file, version 1, little-endian.

::

    0     header 64 B: magic 89 'NANO' 0D 0A 1A | u16 major | u16 minor | u32 flags | 16 B uuid
          | u64 committed bytes, 0 until somebody appends | u32 crc32 of those 8 B | 0
    64    chunks: buffers in schema order, each at a multiple of 64 B, zero padded (see layout)
          then the values of dictionaries, as one chunk each
    D     directory: int64 [chunks, 1 + w * slots]: rows, then (offset, bytes, checksum) of each
          buffer, w = 3, -1 -1 -1 for an absent one; in a compressed file also its bytes when
          decompressed, w = 4; bytes as many as those mean that it is stored as it is
    F     footer: JSON
    -64   trailer: u64 F | u64 footer bytes | u64 file bytes | u32 crc32(footer)
          | u32 crc32(directory) | u32 crc32(the 32 bytes before) | 0 | magic 8 B

The layout of the buffers is Arrow's (https://arrow.apache.org/docs/format/Columnar.html). The
trailer is written last, so a file without one was never finished; the magic has a byte above 127
and both kinds of line end, so a transfer as text shows.

Appending writes new chunks, directory, footer and trailer behind the old trailer, and as its last
act the new length into the header: committed bytes. Bytes behind those are what an append left
that did not finish, and are no part of the file. So at every moment the file reads as it was
before or after, and one that was open, or pickled, before still reads as it was then.
"""

import json
import struct
import zlib
from functools import lru_cache
from typing import Any, NamedTuple

from .checksum import CHECKSUMS, Checksum
from .types import Schema
from .zstd import Compression

MAGIC = b"\x89NANO\r\n\x1a"
MAJOR, MINOR = 1, 1
ALIGNMENT = 64
HEADER = struct.Struct("<8sHHI16sQI20x")
COMMITTED = struct.Struct("<QI")
COMMITTED_AT = 32
"""Where in the header the committed bytes stand."""
TRAILER = struct.Struct("<QQQIII20x8s")
TRAILER_CHECKED = 32
"""Bytes of the trailer that its own checksum covers."""
MAX_FOOTER_BYTES = 64 << 20


class FormatError(Exception):
    """A rule of the format is broken; the reader adds the path."""


class Values(NamedTuple):
    """Where the values of one dictionary lie."""

    rows: int
    slots: tuple[tuple[int, ...], ...]
    """As in the directory, for each buffer."""


class Footer(NamedTuple):
    """What the footer's JSON says."""

    schema: Schema
    rows: int
    chunks: int
    slots: int
    directory: int
    """Offset of the directory."""
    metadata: dict[str, Any]
    checksum: Checksum = "crc32"
    compression: Compression | None = None
    dictionaries: tuple[Values, ...] = ()
    """In the order of their types in the schema."""

    @property
    def slot_width(self) -> int:
        """Integers for one buffer in the directory."""
        return 3 if self.compression is None else 4

    @property
    def directory_bytes(self) -> int:
        """Size of the directory."""
        return self.chunks * (1 + self.slot_width * self.slots) * 8


class Header(NamedTuple):
    """What the first 64 bytes say."""

    uuid: bytes
    committed: int
    """Bytes of the file that count; 0 for all."""


class Trailer(NamedTuple):
    """Where the footer lies, and the checksums."""

    footer: int
    footer_bytes: int
    file_bytes: int
    footer_crc: int
    directory_crc: int


def padding(size: int) -> int:
    """Return the zero bytes that bring ``size`` to the next multiple of 64.

    >>> padding(64), padding(65)
    (0, 63)
    """
    return -size % ALIGNMENT


def encode_header(uuid: bytes) -> bytes:
    """Return the first 64 bytes of a new file."""
    return HEADER.pack(MAGIC, MAJOR, MINOR, 0, uuid, 0, 0)


def encode_committed(size: int) -> bytes:
    """Return what ``COMMITTED_AT`` says that the first ``size`` bytes count."""
    return COMMITTED.pack(size, zlib.crc32(size.to_bytes(8, "little")))


def decode_header(data: bytes) -> Header:
    """Return what the first 64 bytes of a file say.

    Raises:
        FormatError: They are not a header that this version can read.
    """
    magic, major, _, flags, uuid, committed, crc = HEADER.unpack(data)
    if magic != MAGIC:
        raise FormatError(f"header: starts with {magic!r}, not {MAGIC!r}, so it is no .nano file")
    if major != MAJOR:
        raise FormatError(f"header: format version {major}, this reader knows {MAJOR}")
    if flags:
        raise FormatError(f"header: flags {flags:#x} ask for features this reader does not know")
    if (committed or crc) and crc != zlib.crc32(committed.to_bytes(8, "little")):
        raise FormatError("header: checksum of the committed bytes does not match")
    return Header(bytes(uuid), committed)


def encode_footer(footer: Footer, writer: str) -> bytes:
    """Return the footer's JSON, the same bytes for the same content."""
    schema = [
        {"name": name, "type": str(dtype), "nullable": True, "meta": {}}
        for name, dtype in footer.schema.items()
    ]
    content = {
        "schema": schema,
        "rows": footer.rows,
        "chunks": footer.chunks,
        "slots": footer.slots,
        "directory": [footer.directory, footer.directory_bytes],
        "checksum": footer.checksum,
        "compression": footer.compression,
        "dictionaries": [{"rows": v.rows, "slots": v.slots} for v in footer.dictionaries],
        "metadata": footer.metadata,
        "writer": writer,
    }
    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


def decode_footer(data: bytes) -> Footer:
    """Return what the footer's JSON says.

    Raises:
        FormatError: It is not the JSON of a footer, or asks for what this reader does not know.
    """
    try:
        raw = json.loads(data.decode())
        offset, size = raw["directory"]
        named = tuple((column["name"], column["type"]) for column in raw["schema"])
        schema = _schema(named)
        rows, chunks, slots = raw["rows"], raw["chunks"], raw["slots"]
        checksum, compression, metadata = raw["checksum"], raw["compression"], raw["metadata"]
        values = tuple(
            Values(v["rows"], tuple(tuple(slot) for slot in v["slots"]))
            for v in raw.get("dictionaries", ())
        )
        metadata = dict(metadata)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"footer: {type(error).__name__} {error}") from None
    if len(schema) != len(named):
        raise FormatError(f"footer: the column names {[n for n, _ in named]} are not distinct")
    counts = (rows, chunks, slots, offset, size, *(v.rows for v in values))
    if not all(type(n) is int and 0 <= n < 2**63 for n in counts):
        raise FormatError(f"footer: one of {counts} is no count")
    if checksum not in CHECKSUMS or compression not in (None, "zstd"):
        known = f"{', '.join(CHECKSUMS)}, without compression or with zstd"
        raise FormatError(f"footer: {(checksum, compression)} is asked, this reader knows {known}")
    footer = Footer(schema, rows, chunks, slots, offset, metadata, checksum, compression, values)
    if size != footer.directory_bytes:
        raise FormatError(f"footer: {slots} slots and a directory of {size} bytes do not fit it")
    return footer


@lru_cache(maxsize=64)
def _schema(named: tuple[tuple[str, str], ...]) -> Schema:
    """Return a schema; the files of one dataset have the same, so it is kept."""
    if not all(isinstance(word, str) for pair in named for word in pair):
        raise TypeError("a column's name or type is no string")
    return Schema.of(dict(named))


def encode_trailer(trailer: Trailer) -> bytes:
    """Return the last 64 bytes of a file."""
    checked = TRAILER.pack(*trailer, 0, MAGIC)[:TRAILER_CHECKED]
    return TRAILER.pack(*trailer, zlib.crc32(checked), MAGIC)


def decode_trailer(data: bytes, file_bytes: int) -> Trailer:
    """Return what the last 64 bytes of a file of ``file_bytes`` say.

    Raises:
        FormatError: They are no trailer, or one of another file.
    """
    *fields, crc, magic = TRAILER.unpack(data)
    trailer = Trailer(*fields)
    if magic != MAGIC:
        raise FormatError("trailer: missing, so the file is incomplete or cut short")
    if zlib.crc32(data[:TRAILER_CHECKED]) != crc:
        raise FormatError("trailer: checksum does not match")
    if trailer.file_bytes != file_bytes:
        raise FormatError(f"trailer: says {trailer.file_bytes} bytes, the file has {file_bytes}")
    end = file_bytes - TRAILER.size
    if trailer.footer_bytes > MAX_FOOTER_BYTES or trailer.footer + trailer.footer_bytes > end:
        raise FormatError(f"trailer: footer of {trailer.footer_bytes} bytes at {trailer.footer}")
    return trailer
