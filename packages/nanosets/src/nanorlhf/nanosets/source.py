"""The bytes of a file on disk: mapped, read as needed, or held in memory.

``mmap`` costs nothing until bytes are touched and shares the page cache between processes, and is
the default. If somebody cuts the file short while it is mapped, touching the lost part kills the
process; files here are replaced, never cut. ``pread`` reads chunk by chunk, which suits network
disks read in order. ``ram`` reads everything at once, which suits small files on slow disks.
"""

import mmap
import os
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

IO = Literal["mmap", "pread", "ram"]
ALIGNMENT = 64


class Source:
    """A file open for reading.

    Attributes:
        size: Its bytes when it was opened.
        whole: All bytes up to ``end``, None if they are read as needed.

    Raises:
        OSError: The file cannot be opened.
        ValueError: There is no such way to read it.
    """

    def __init__(self, path: str, io: IO) -> None:
        self._file: int | None = None
        if io not in get_args(IO):
            raise ValueError(f"io={io!r} is none of {', '.join(get_args(IO))}; use one of them")
        self.io = io
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._file).st_size
        self.whole: NDArray[np.uint8] | None = None

    def peek(self, start: int, stop: int) -> bytes:
        """Return a few bytes of the file before it is loaded, without touching what is mapped."""
        return os.pread(self._descriptor, stop - start, start)

    def load(self, end: int) -> None:
        """Map, or read into memory, the first ``end`` bytes, unless they are read as needed."""
        if self.io == "mmap":
            mapped = mmap.mmap(self._descriptor, end, access=mmap.ACCESS_READ)
            self.whole = np.frombuffer(mapped, np.uint8)
        elif self.io == "ram":
            self.whole = self.read(0, end)
        if self.io != "pread":
            self.close()

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return bytes ``start .. stop``, fewer at the end of the file; at a multiple of 64."""
        if self.whole is not None:
            return self.whole[start:stop]
        size = max(0, stop - start)
        room = np.empty(size + ALIGNMENT, np.uint8)
        shift = -room.ctypes.data % ALIGNMENT
        data = room[shift : shift + size]
        view, done = data.data, 0
        while done < size:
            count = os.preadv(self._descriptor, [view[done:]], start + done)
            if count == 0:
                break
            done += count
        return data[:done]

    def close(self) -> None:
        """Close the file; what is mapped or read stays."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        self.close()

    @property
    def _descriptor(self) -> int:
        assert self._file is not None, "the file is read after it was closed"
        return self._file
