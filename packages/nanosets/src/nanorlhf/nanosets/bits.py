"""Bit buffers, least significant bit first: the values of bool columns, and validity.

A buffer may cover many chunks of one file. ``base[c]`` is the bit at which chunk ``c`` starts in
the bytes; -1 says that the file holds no bits for that chunk because all of them are 1.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .gather import Ints

Mask = NDArray[np.bool_]
Chunk = int | Ints
"""A chunk number for all positions, or one for each."""

ZERO = np.zeros(1, np.int64)
ZERO.flags.writeable = False


class Bits:
    """Bits addressed by chunk and position.

    Args:
        data: uint8, the bytes of all chunks.
        base: int64 [chunks], first bit of each chunk in ``data``, or -1 for all ones.
    """

    __slots__ = ("base", "data", "has_gaps")

    def __init__(self, data: NDArray[np.uint8], base: Ints = ZERO) -> None:
        self.data = data
        self.base = base
        self.has_gaps = bool((base < 0).any())

    @classmethod
    def pack(cls, mask: Mask) -> "Bits":
        """Return ``mask`` as the bits of one chunk."""
        return cls(np.packbits(mask, bitorder="little"))

    @classmethod
    def unless_all(cls, mask: Mask | None) -> "Bits | None":
        """Return ``mask`` as bits, None when every one of them is True."""
        return None if mask is None or mask.all() else cls.pack(mask)

    def test(self, chunk: Chunk, local: Ints) -> Mask:
        """Return the bits at the positions ``local``."""
        base: Any = self.base[chunk]
        if not self.has_gaps:
            at = base + local
            found: Mask = ((self.data[at >> 3] >> (at & 7).astype(np.uint8)) & 1).astype(np.bool_)
            return found
        absent = np.broadcast_to(base < 0, local.shape)
        out = np.ones(local.shape, np.bool_)
        at = np.broadcast_to(base, local.shape)[~absent] + local[~absent]
        out[~absent] = (self.data[at >> 3] >> (at & 7).astype(np.uint8)) & 1
        return out

    def one(self, chunk: int, local: int) -> bool:
        """Return one bit."""
        base = int(self.base[chunk])
        at = base + local
        return base < 0 or bool(self.data[at >> 3] >> (at & 7) & 1)

    def run(self, chunk: int, start: int, stop: int) -> Mask:
        """Return the bits ``start .. stop`` of a chunk as bool."""
        base = int(self.base[chunk])
        if base < 0 or start == stop:
            return np.ones(stop - start, np.bool_)
        first = (base + start) >> 3
        skip = (base + start) & 7
        data = self.data[first : (base + stop + 7) >> 3]
        bits = np.unpackbits(data, count=skip + stop - start, bitorder="little")
        return bits[skip:].view(np.bool_)

    def window(self, chunk: int, start: int) -> "Bits | None":
        """Return the bits of a chunk from ``start`` on, a view; None when all are 1."""
        base = int(self.base[chunk])
        return None if base < 0 else Bits(self.data, np.array([base + start]))

    def buffer(self, length: int) -> NDArray[np.uint8]:
        """Return the first bits of a one-chunk buffer packed from bit 0, zeros behind them.

        A view where they lie so already.
        """
        start = int(self.base[0])
        found = self.data[start >> 3 : (start + length + 7) >> 3]
        rest = length & 7
        if start & 7 == 0 and (not rest or not found[-1] >> rest):
            return found
        return np.packbits(self.run(0, 0, length), bitorder="little")

    def buffer_unless_all(self, length: int) -> NDArray[np.uint8] | None:
        """Return ``buffer``, None when all of the bits are 1."""
        if self.base[0] < 0 or self.run(0, 0, length).all():
            return None
        return self.buffer(length)
