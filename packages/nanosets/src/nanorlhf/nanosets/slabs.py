"""Bytes to the end of a file, in slabs that begin and end where the page cache's pages do."""

import ctypes
import os
from collections.abc import Callable
from functools import lru_cache

SLAB_BYTES = 256 << 10
"""Bytes of a slab. With four times as much the page cache takes pages so large that a virtual
machine may have given their memory back to its host: a write then takes four times as long."""
AHEAD_BYTES = 16 << 20
"""Bytes of the disk that are set aside at a time: to do so for every page takes a third longer."""
MAX_PIECES = 512
"""Pieces of a slab at most; the system takes 1024."""
KEEP_SIZE = 1
"""``FALLOC_FL_KEEP_SIZE``: the file is no longer for what is set aside."""


class Slabs:
    """The end of a file.

    Args:
        file: Descriptor of the file.
        at: Bytes that it has.

    Attributes:
        at: Bytes that it has when all is written.
    """

    def __init__(self, file: int, at: int) -> None:
        self.at = at
        self._file = file
        self._pieces: list[memoryview] = []
        self._flushed = at
        self._ahead = at

    def put(self, data: memoryview) -> None:
        """Add bytes, which must not change before the next ``flush``."""
        while data:
            piece = data[: SLAB_BYTES - self.at % SLAB_BYTES]
            self._pieces.append(piece)
            self.at += len(piece)
            if self.at % SLAB_BYTES == 0 or len(self._pieces) == MAX_PIECES:
                self.flush()
            data = data[len(piece) :]

    def flush(self) -> None:
        """Write what was added."""
        if self.at > self._ahead and self.at % SLAB_BYTES == 0:  # a short file needs no room
            set_aside(self._file, self._ahead, AHEAD_BYTES)
            self._ahead += AHEAD_BYTES
        pieces, self._pieces = self._pieces, []
        at, self._flushed = self._flushed, self.at
        while pieces:
            done = os.pwritev(self._file, pieces, at)
            at += done
            while pieces and done >= len(pieces[0]):
                done -= len(pieces.pop(0))
            if pieces:
                pieces[0] = pieces[0][done:]

    def finish(self) -> None:
        """Write all that was added, and give back what was set aside and is not used."""
        self.flush()
        os.ftruncate(self._file, self.at)


def set_aside(file: int, start: int, size: int) -> None:
    """Ask for room on the disk behind the end of a file, in vain where that is not known."""
    fallocate = _fallocate()
    if fallocate is not None:
        fallocate(file, KEEP_SIZE, start, size)  # a full disk is an error of the write


@lru_cache(maxsize=1)
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    # That of Python, posix_fallocate, writes to every page where the file system knows no better.
    found = getattr(ctypes.CDLL(None), "fallocate", None)
    if found is not None:
        found.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return found
