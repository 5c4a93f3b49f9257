"""Checksums of buffers."""

import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, reduce
from importlib.util import find_spec
from typing import Any, Literal

Checksum = Literal["crc32", "xxh3_64"]
CHECKSUMS: tuple[Checksum, ...] = ("crc32", "xxh3_64")
POLYNOMIAL, X0 = 0xEDB88320, 1 << 31
"""That of crc32, and the polynomial 1: the highest bit is that of the lowest power of ``x``."""


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


def crc32_joined(found: Sequence[int], sizes: Sequence[int]) -> int:
    """Return the crc32 of bytes end to end from the crc32 and the size of each of their parts.

    A crc32 is the remainder of bytes as a polynomial: that of the first part is multiplied by ``x``
    to the bits of the second before the remainder of that is added (``crc32_combine`` of zlib).

    >>> crc32_joined([zlib.crc32(b"na"), zlib.crc32(b"no")], [2, 2]) == zlib.crc32(b"nano")
    True
    """
    joined = 0
    for crc, size in zip(found, sizes, strict=True):
        joined = _product(joined, _shift(size)) ^ crc
    return joined


@lru_cache(maxsize=64)
def _shift(size: int) -> int:
    """Return the remainder of ``x`` to the bits of so many bytes."""
    found, power = X0, X0 >> 8
    while size:
        if size & 1:
            found = _product(found, power)
        power = _product(power, power)
        size >>= 1
    return found


def _product(a: int, b: int) -> int:
    """Return the remainder of a product of two polynomials."""
    found = 0
    while a:
        if a & X0:
            found ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (POLYNOMIAL if b & 1 else 0)
    return found


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
