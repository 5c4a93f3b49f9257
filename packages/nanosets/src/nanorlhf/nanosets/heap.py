"""The C library's heap, where blocks of a few MiB come and go: it keeps their memory."""

from contextlib import suppress

import numpy as np

BLOCK_BYTES = 31 << 20
"""Bytes of the block: glibc learns from none of 32 MiB and more."""


def keep_blocks() -> None:
    """Let the C library keep the memory of blocks that are freed, for those that come next.

    glibc takes a block above a limit, at first of 128 KiB, from the system and gives it back when
    it is freed; every page of the next block is then a page fault and has to be cleared. The limit
    rises to the size of a block above it that is freed, up to 32 MiB, and at most twice as much
    stays at the end of the heap (``M_MMAP_THRESHOLD`` in mallopt(3)). So ask for such a block, and
    free it untouched. Other C libraries learn nothing from that, and nothing is lost.
    """
    with suppress(MemoryError):  # a process that may not have so much writes all the same
        np.empty(BLOCK_BYTES, np.uint8)
