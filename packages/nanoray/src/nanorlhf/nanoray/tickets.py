"""Calls sent ahead to a process, which can be taken back for sure.

While a process runs a short call it is sent the next ones already, and need not wait for the
engine between them. Each of these has a ticket in a socket that the engine and the process both
read. Whoever reads a ticket has the call, and the kernel gives each byte to one reader only: so the
engine can take back what has not begun, whatever the process is busy with, and nothing runs twice.
"""

import contextlib
import socket
import struct
from collections.abc import Sequence

_ID = struct.Struct("<Q")
_CHUNK = 1 << 16


class Tickets:
    """The engine's side: one socket pair of tickets.

    >>> tickets = Tickets()
    >>> desk = Desk(tickets.reader)
    >>> tickets.offer([1, 2, 3])
    >>> desk.claim(1), tickets.recall(), desk.claim(2)
    (True, [2, 3], False)
    >>> tickets.offer([4])
    >>> desk.claim(3), tickets.recall()
    (False, [4])
    >>> tickets.close()
    """

    def __init__(self) -> None:
        self._writer, self.reader = socket.socketpair()
        for end in (self._writer, self.reader):
            end.setblocking(False)

    def offer(self, tickets: Sequence[int]) -> None:
        """Add the tickets of calls that are about to be sent."""
        self._writer.send(struct.pack(f"<{len(tickets)}Q", *tickets))

    def recall(self) -> list[int]:
        """Take every ticket back that the process has not claimed; return them in order."""
        with contextlib.suppress(BlockingIOError):  # all are claimed
            return [ticket for (ticket,) in _ID.iter_unpack(self.reader.recv(_CHUNK))]
        return []

    def close(self) -> None:
        """Close both ends."""
        self._writer.close()
        self.reader.close()


class Desk:
    """The process's side.

    Args:
        reader: A copy of the end to read.
    """

    def __init__(self, reader: socket.socket) -> None:
        self._reader = reader
        self._early = 0
        """A ticket that was read for a call not reached yet."""

    def claim(self, ticket: int) -> bool:
        """Return whether the call with this ticket may begin; False when it was taken back.

        It looks before it takes: a ticket of a later call stays where the engine can recall it.
        """
        if not self._early and self._read(socket.MSG_PEEK) == ticket:
            self._early = self._read(0)  # another's, if the engine has been faster meanwhile
        if self._early != ticket:
            return False
        self._early = 0
        return True

    def _read(self, flags: int) -> int:
        with contextlib.suppress(BlockingIOError):
            data = self._reader.recv(_ID.size, flags)
            return int(_ID.unpack(data)[0]) if data else 0
        return 0
