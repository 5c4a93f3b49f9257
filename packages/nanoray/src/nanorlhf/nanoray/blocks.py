"""Which bytes of an arena are in use: a first-fit allocator, as plain arithmetic.

Blocks are whole pages, so that a reader can give its private copies of a block's pages back
without touching a neighbour.
"""

from bisect import bisect_left, insort
from typing import NamedTuple

PAGE = 4096


class Hole(NamedTuple):
    """A run of free bytes."""

    offset: int
    size: int


def round_up(size: int, *, to: int) -> int:
    """Return the smallest multiple of ``to`` that holds ``size``.

    >>> round_up(1, to=64), round_up(64, to=64), round_up(0, to=64)
    (64, 64, 0)
    """
    return -(-size // to) * to


class Blocks:
    """The free list of one arena of ``size`` bytes.

    >>> blocks = Blocks(3 * PAGE)
    >>> blocks.take(1), blocks.take(PAGE + 1), blocks.take(1)
    (0, 4096, None)
    >>> blocks.give(0); blocks.give(4096); blocks.is_empty
    True
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._holes = [Hole(0, size)]
        self._taken: dict[int, int] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no block is in use."""
        return not self._taken

    @property
    def used_bytes(self) -> int:
        """Bytes in use, in whole pages."""
        return sum(self._taken.values())

    def take(self, size: int) -> int | None:
        """Return the offset of a new block of at least ``size`` bytes, or None."""
        size = round_up(max(size, 1), to=PAGE)
        for index, hole in enumerate(self._holes):
            if hole.size >= size:
                self._shrink(index, size)
                self._taken[hole.offset] = size
                return hole.offset
        return None

    def give(self, offset: int) -> None:
        """Free the block at ``offset`` and melt it with the holes beside it."""
        size = self._taken.pop(offset)
        index = bisect_left(self._holes, Hole(offset, 0))
        if index < len(self._holes) and self._holes[index].offset == offset + size:
            size += self._holes.pop(index).size
        if index > 0 and sum(self._holes[index - 1]) == offset:
            before = self._holes.pop(index - 1)
            offset, size = before.offset, before.size + size
        insort(self._holes, Hole(offset, size))

    def _shrink(self, index: int, size: int) -> None:
        hole = self._holes[index]
        if hole.size == size:
            del self._holes[index]
        else:
            self._holes[index] = Hole(hole.offset + size, hole.size - size)
