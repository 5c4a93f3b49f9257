"""Which bytes of an arena are in use: a best-fit allocator, as plain arithmetic.

Blocks are whole pages, so that a reader can give its private copies of a block's pages back
without touching a neighbour. The smallest hole that fits is taken: a freed block, whose pages
have been touched before, is used again before the untouched end of the arena is.
"""

from bisect import bisect_left, insort

PAGE = 4096


def round_up(size: int, *, to: int) -> int:
    """Return the smallest multiple of ``to`` that holds ``size``.

    >>> round_up(1, to=64), round_up(64, to=64), round_up(0, to=64)
    (64, 64, 0)
    """
    return -(-size // to) * to


def block_bytes(size: int) -> int:
    """Return the bytes that a block of ``size`` bytes takes, in whole pages.

    >>> block_bytes(0), block_bytes(PAGE + 1)
    (4096, 8192)
    """
    return round_up(max(size, 1), to=PAGE)


class Blocks:
    """The free list of one arena of ``size`` bytes; both operations are O(log holes).

    >>> blocks = Blocks(3 * PAGE)
    >>> blocks.take(1), blocks.take(PAGE + 1), blocks.take(1)
    (0, 4096, None)
    >>> blocks.give(0), blocks.give(4096), blocks.is_empty
    (4096, 8192, True)
    """

    def __init__(self, size: int) -> None:
        self._by_size: list[tuple[int, int]] = []
        """Every hole as ``(size, offset)``, sorted."""
        self._by_start: dict[int, int] = {}
        self._by_end: dict[int, int] = {}
        """Where a hole starts or ends -> its size."""
        self._taken: dict[int, int] = {}
        self._used_bytes = 0
        self._add_hole(0, size)

    @property
    def is_empty(self) -> bool:
        """Whether no block is in use."""
        return not self._taken

    @property
    def used_bytes(self) -> int:
        """Bytes in use, in whole pages."""
        return self._used_bytes

    def take(self, size: int) -> int | None:
        """Return the offset of a new block of at least ``size`` bytes, or None."""
        size = block_bytes(size)
        index = bisect_left(self._by_size, (size, 0))
        if index == len(self._by_size):
            return None
        hole, offset = self._by_size[index]
        self._drop_hole(offset, hole)
        if hole > size:
            self._add_hole(offset + size, hole - size)
        self._taken[offset] = size
        self._used_bytes += size
        return offset

    def give(self, offset: int) -> int:
        """Free the block at ``offset``, melt it with the holes beside it, return its bytes."""
        given = size = self._taken.pop(offset)
        self._used_bytes -= given
        after = self._by_start.get(offset + size)
        if after is not None:
            self._drop_hole(offset + size, after)
            size += after
        before = self._by_end.get(offset)
        if before is not None:
            offset -= before
            self._drop_hole(offset, before)
            size += before
        self._add_hole(offset, size)
        return given

    def _add_hole(self, offset: int, size: int) -> None:
        insort(self._by_size, (size, offset))
        self._by_start[offset] = self._by_end[offset + size] = size

    def _drop_hole(self, offset: int, size: int) -> None:
        del self._by_size[bisect_left(self._by_size, (size, offset))]
        del self._by_start[offset], self._by_end[offset + size]
