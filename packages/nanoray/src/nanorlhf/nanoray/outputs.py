"""What the processes of a machine print: a pipe for each stream of each, and the last lines.

Not thread-safe: it belongs to a ``Hub``.
"""

import os
from typing import NamedTuple

from .logs import Lines

STREAMS = ("stdout", "stderr")
_READ_BYTES = 1 << 16


class Printed(NamedTuple):
    """Whole lines of one stream of a process."""

    worker: int
    stream: str
    lines: list[str]


class _Pipe(NamedTuple):
    worker: int
    stream: str
    lines: Lines


class Outputs:
    """The reading ends of the pipes."""

    def __init__(self) -> None:
        self._pipes: dict[int, _Pipe] = {}

    def open(self, worker: int) -> tuple[list[int], list[int]]:
        """Return new descriptors to read the process's streams from, and to give it to write to."""
        readers, writers = [], []
        for stream in STREAMS:
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            self._pipes[reader] = _Pipe(worker, stream, Lines())
            readers.append(reader)
            writers.append(writer)
        return readers, writers

    def of(self, worker: int) -> list[int]:
        """Return the descriptors that a process's streams are read from."""
        return [fd for fd, pipe in self._pipes.items() if pipe.worker == worker]

    def tail(self, worker: int) -> list[str]:
        """Return the last lines of a process, those of stdout first."""
        return [line for fd in self.of(worker) for line in self._pipes[fd].lines.tail]

    def read(self, fd: int) -> tuple[Printed, bool]:
        """Return the lines that have come, and whether more may come: False after the last one."""
        pipe = self._pipes[fd]
        shown: list[str] = []
        while True:
            try:
                data = os.read(fd, _READ_BYTES)
            except BlockingIOError:
                return Printed(pipe.worker, pipe.stream, shown), True
            if not data:
                return Printed(pipe.worker, pipe.stream, shown + pipe.lines.rest()), False
            shown += pipe.lines.feed(data)
            if len(data) < _READ_BYTES:
                return Printed(pipe.worker, pipe.stream, shown), True

    def close(self, fd: int) -> Printed:
        """Close a pipe and return the line it broke off in; what children write on is lost."""
        pipe = self._pipes.pop(fd)
        os.close(fd)
        return Printed(pipe.worker, pipe.stream, pipe.lines.rest())
