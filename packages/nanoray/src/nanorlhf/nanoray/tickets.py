"""Calls sent ahead to a process, which can be taken back for sure.

While a process runs a short call it is sent the next ones already, and need not wait for the
engine between them. Each of these has a ticket in a pipe that the engine and the process both
read. Whoever reads a ticket has the call, and the kernel gives each byte to one reader only: so the
engine can take back what has not begun, whatever the process is busy with, and nothing runs twice.
"""

import contextlib
import os
import struct

_ID = struct.Struct("<Q")
_CHUNK = 1 << 16


class Tickets:
    """The engine's side: one pipe of tickets.

    >>> tickets = Tickets()
    >>> desk = Desk(tickets.fd)
    >>> for call_id in (1, 2, 3):
    ...     tickets.offer(call_id)
    >>> desk.claim(1), tickets.recall(), desk.claim(2)
    (True, [2, 3], False)
    >>> tickets.close()
    """

    def __init__(self) -> None:
        self.fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def offer(self, call_id: int) -> None:
        """Add the ticket of a call that is about to be sent."""
        os.write(self._write_fd, _ID.pack(call_id))

    def recall(self) -> list[int]:
        """Take every ticket back that the process has not claimed; return the calls, in order."""
        with contextlib.suppress(BlockingIOError):  # all are claimed
            return [call_id for (call_id,) in _ID.iter_unpack(os.read(self.fd, _CHUNK))]
        return []

    def close(self) -> None:
        """Close both ends."""
        os.close(self.fd)
        os.close(self._write_fd)


class Desk:
    """The process's side, which keeps ``fd``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._next = 0
        """A ticket that was read, for a call not reached yet."""

    def claim(self, call_id: int) -> bool:
        """Return whether the call may begin here; False when it was taken back."""
        if not self._next:
            with contextlib.suppress(BlockingIOError):  # there is none: this one was taken back
                (self._next,) = _ID.unpack(os.read(self._fd, _ID.size))
        if self._next != call_id:
            return False
        self._next = 0
        return True
