"""The bytes of a ``.nano`` file, version 1, little-endian.

::

    0     header 64 B: magic 89 'NANO' 0D 0A 1A | u16 major | u16 minor | u32 flags | 16 B uuid | 0
    64    chunks: buffers in schema order, each at a multiple of 64 B, zero padded
          validity (bits, absent without nulls) | int32 offsets, from 0 in each chunk | data
    D     directory: int64 [chunks, 1 + 3 * slots]: rows, then (offset, length, crc32) of each
          buffer, -1 -1 -1 for an absent one
    F     footer: JSON
    -64   trailer: u64 F | u64 footer bytes | u64 file bytes | u32 crc32(footer)
          | u32 crc32(directory) | u32 crc32(the 32 bytes before) | 0 | magic 8 B

The layout of the buffers is Arrow's (https://arrow.apache.org/docs/format/Columnar.html). The
trailer is written last, so a file without one was never finished; the magic has a byte above 127
and both kinds of line end, so a transfer as text shows.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .gather import Ints
from .types import Bool, DType, List, Null, Number, Schema, Struct, Utf8, parse

MAGIC = b"\x89NANO\r\n\x1a"
MAJOR = 1
ALIGNMENT = 64
HEADER = struct.Struct("<8sHHI16s32x")
TRAILER = struct.Struct("<QQQIII20x8s")
TRAILER_CHECKED = 32
"""Bytes of the trailer that its own checksum covers."""
MAX_FOOTER_BYTES = 64 << 20
MAX_CHUNK_ROWS = 2**31 - 1
ABSENT = (-1, -1, -1)


class FormatError(Exception):
    """A rule of the format is broken; the reader adds the path."""


class Footer(NamedTuple):
    """What the footer's JSON says."""

    schema: Schema
    rows: int
    chunks: int
    slots: int
    directory: int
    """Offset of the directory."""
    metadata: dict[str, Any]


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


def slots_of(dtype: DType) -> Iterator[str]:
    """Yield what each buffer of a column of this type is, in file order.

    >>> list(slots_of(parse("list<int32>")))
    ['validity', 'offsets', 'validity', 'data']
    """
    if isinstance(dtype, Null):
        return
    yield "validity"
    if isinstance(dtype, List):
        yield "offsets"
        yield from slots_of(dtype.item)
    elif isinstance(dtype, Struct):
        for field in dtype.fields:
            yield from slots_of(field.dtype)
    else:
        yield from ("offsets", "data") if isinstance(dtype, Utf8) else ("data",)


def data_bytes(dtype: Bool | Number, counts: Ints) -> Ints:
    """Return the bytes of the data buffer of ``counts`` numbers or bools."""
    sizes: Ints = (counts + 7) >> 3 if isinstance(dtype, Bool) else counts * dtype.numpy.itemsize
    return sizes


def encode_header(uuid: bytes) -> bytes:
    """Return the first 64 bytes of a file."""
    return HEADER.pack(MAGIC, MAJOR, 0, 0, uuid)


def decode_header(data: bytes) -> bytes:
    """Return the uuid in the first 64 bytes of a file.

    Raises:
        FormatError: They are not a header that this version can read.
    """
    magic, major, _, flags, uuid = HEADER.unpack(data)
    if magic != MAGIC:
        raise FormatError(f"header: starts with {magic!r}, not {MAGIC!r}, so it is no .nano file")
    if major != MAJOR:
        raise FormatError(f"header: format version {major}, this reader knows {MAJOR}")
    if flags:
        raise FormatError(f"header: flags {flags:#x} ask for features this reader does not know")
    return bytes(uuid)


def encode_footer(footer: Footer, directory_bytes: int, writer: str) -> bytes:
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
        "directory": [footer.directory, directory_bytes],
        "checksum": "crc32",
        "compression": None,
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
        raw = json.loads(data)
        known = (raw["checksum"], raw["compression"])
        offset, size = raw["directory"]
        names = [column["name"] for column in raw["schema"]]
        schema = Schema.of({column["name"]: parse(column["type"]) for column in raw["schema"]})
        rows, chunks, slots = raw["rows"], raw["chunks"], raw["slots"]
        metadata = dict(raw["metadata"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"footer: {type(error).__name__} {error}") from None
    if len(set(names)) != len(names) or not all(isinstance(name, str) for name in names):
        raise FormatError(f"footer: the column names {names} are not distinct strings")
    counts = (rows, chunks, slots, offset, size)
    if not all(type(n) is int and 0 <= n < 2**63 for n in counts):
        raise FormatError(f"footer: one of {counts} is no count")
    if known != ("crc32", None):
        raise FormatError(f"footer: {known} is asked, this reader knows crc32 without compression")
    wanted = sum(1 for _ in slots_of(schema.struct)) - 1
    if slots != wanted or size != chunks * (1 + 3 * slots) * 8:
        raise FormatError(f"footer: {slots} slots and a directory of {size} bytes do not fit it")
    return Footer(schema, rows, chunks, slots, offset, metadata)


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


def check_directory(entries: Ints, footer: Footer, footer_offset: int) -> None:
    """Check the ranges that the directory, int64 [chunks, 1 + 3 * slots], names.

    Raises:
        FormatError: A buffer is misaligned, outside the file's data, or overlaps another.
    """
    rows = entries[:, 0].tolist()
    if any(not 0 < n <= MAX_CHUNK_ROWS for n in rows) or sum(rows) != footer.rows:
        raise FormatError(f"directory: its chunks do not add up to {footer.rows} rows")
    slots = entries[:, 1:].reshape(-1, 3)
    present = slots[slots[:, 0] != -1]
    absent = slots[slots[:, 0] == -1]
    offset, size = present[:, 0], present[:, 1]
    if (absent != -1).any() or (present < 0).any() or (offset % ALIGNMENT).any():
        raise FormatError("directory: a buffer's offset is not a multiple of 64")
    if (offset < HEADER.size).any() or (offset > footer_offset).any():
        raise FormatError("directory: a buffer starts outside the data")
    if (size > footer_offset - offset).any():
        raise FormatError("directory: a buffer ends after the data")
    used = size > 0
    starts = np.append(offset[used], footer.directory)
    stops = np.append((offset + size)[used], footer.directory + entries.nbytes)
    order = np.argsort(starts, kind="stable")
    if (starts[order][1:] < stops[order][:-1]).any():
        raise FormatError("directory: two buffers overlap")
