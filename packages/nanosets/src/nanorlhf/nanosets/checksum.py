"""Checksums of buffers."""

import zlib
from collections.abc import Callable, Iterable
from functools import reduce
from importlib.util import find_spec
from typing import Any, Literal

Checksum = Literal["crc32", "xxh3_64"]
CHECKSUMS: tuple[Checksum, ...] = ("crc32", "xxh3_64")


def chosen(asked: Checksum | Literal["auto"]) -> Checksum:
    """Return the checksum to write with: for "auto" the fastest that is installed.

    Raises:
        ImportError: The asked one needs a package that is missing.
        ValueError: There is no such checksum.
    """
    if asked == "auto":
        return "xxh3_64" if find_spec("xxhash") else "crc32"
    if asked not in CHECKSUMS:
        raise ValueError(f"checksum={asked!r} is none of auto, {', '.join(CHECKSUMS)}; use one")
    function_of(asked)
    return asked


def function_of(name: Checksum) -> Callable[[Any], int]:
    """Return the function from a buffer to its checksum, as a signed 64-bit integer.

    Raises:
        ImportError: It needs a package that is missing.

    >>> function_of("crc32")(b"nano")
    2514207963
    """
    if name == "crc32":
        return zlib.crc32
    try:
        import xxhash
    except ImportError:
        raise ImportError("checksum='xxh3_64' needs xxhash; pip install xxhash") from None
    digest = xxhash.xxh3_64_intdigest
    return lambda data: _signed(digest(data))


def crc32_of(pieces: Iterable[memoryview]) -> int:
    """Return the crc32 of bytes that lie in pieces.

    >>> crc32_of([memoryview(b"na"), memoryview(b"no")]) == function_of("crc32")(b"nano")
    True
    """
    return reduce(lambda found, piece: zlib.crc32(piece, found), pieces, 0)


def xxh3_of(pieces: Iterable[memoryview]) -> int:
    """Return the xxh3_64 of bytes that lie in pieces, as a signed 64-bit integer."""
    import xxhash

    state = xxhash.xxh3_64()
    for piece in pieces:
        state.update(piece)
    return _signed(state.intdigest())


OF_PIECES: dict[Checksum, Callable[[Iterable[memoryview]], int]] = {
    "crc32": crc32_of,
    "xxh3_64": xxh3_of,
}


def _signed(found: int) -> int:
    return found - (found >> 63 << 64)
