"""Buffers compressed one by one with zstd, by the ``zstandard`` package.

A buffer that does not shrink is stored as it is. One that shrinks more than ``MAX_RATIO`` times
is padded with zeros to that ratio, so a reader can refuse whatever claims to be larger: no file
makes it allocate more than that many times the file's size.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Compression = Literal["zstd"]
MAX_RATIO = 256
LEVEL = 3


class Compressor:
    """Compresses buffers; one thread at a time.

    Raises:
        ImportError: zstandard is missing.
    """

    def __init__(self) -> None:
        self._zstd = _zstandard().ZstdCompressor(level=LEVEL)

    def shrink(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return what to store for ``data``: shorter, or ``data`` itself."""
        found: bytes = self._zstd.compress(data.data)
        found += bytes(max(0, -(-len(data) // MAX_RATIO) - len(found)))
        return np.frombuffer(found, np.uint8) if len(found) < len(data) else data


def expand(stored: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return the ``size`` bytes that were shrunk to ``stored``.

    Raises:
        ImportError: zstandard is missing.
        ValueError: They were not, or claim to be more than ``MAX_RATIO`` times as many.
    """
    if len(stored) == size:
        return stored
    if len(stored) > size or size > len(stored) * MAX_RATIO:
        raise ValueError(f"{len(stored)} stored bytes cannot stand for {size}")
    zstd = _zstandard()
    try:
        claimed = zstd.get_frame_parameters(stored.data).content_size
        # The claim bounds what is allocated, so it is read before anything is.
        if claimed != size:
            raise ValueError(f"the compressed frame says {claimed} bytes, the directory {size}")
        data = zstd.ZstdDecompressor().decompress(stored.data, max_output_size=size)
    except zstd.ZstdError as error:
        raise ValueError(f"zstd: {error}") from None
    if len(data) != size:
        raise ValueError(f"decompressed to {len(data)} bytes, not {size}")
    return np.frombuffer(data, np.uint8)


def _zstandard() -> Any:  # noqa: ANN401 - a module
    try:
        import zstandard
    except ImportError:
        raise ImportError("compression='zstd' needs zstandard; pip install zstandard") from None
    return zstandard
