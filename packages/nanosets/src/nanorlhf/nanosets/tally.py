"""How far each of several processes is: numbers in a file that all of them map.

A process that counts costs nobody anything, and what it has counted outlives its death.
"""

import mmap

import numpy as np


class Tally:
    """A count for each process; each adds to its own only.

    Args:
        path: A file of ``BYTES`` a process, as ``create`` makes it.
    """

    BYTES = 64
    """Of a count: a line of the cache, so that processes do not take it from each other."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as handle:
            mapped = mmap.mmap(handle.fileno(), 0)
        self._counts = np.frombuffer(mapped, np.int64)[:: self.BYTES // 8]

    @classmethod
    def create(cls, path: str, processes: int) -> "Tally":
        """Make the file, all counts zero."""
        with open(path, "xb") as handle:
            handle.write(bytes(processes * cls.BYTES))  # a hole would need room on the disk later
        return cls(path)

    def add(self, process: int) -> None:
        """Count one more for a process."""
        self._counts[process] += 1

    def of(self, process: int) -> int:
        """Return the count of a process."""
        return int(self._counts[process])
