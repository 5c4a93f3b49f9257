"""A Unix socket that carries messages and, beside them, open files.

File descriptors travel as SCM_RIGHTS with the first byte of the message that speaks of them, so
they are never later than their message and arrive in the order of the messages.
"""

import array
import contextlib
import os
import select
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .wire import Message, Unpacker, pack

_CHUNK = 1 << 16  # twice as much is taken from the kernel anew for every read
_MAX_FDS = 64


class _Frame(NamedTuple):
    data: bytes
    fds: Sequence[int]


class Connection:
    """One end of a socket pair. Not thread-safe: each side holds its own lock around it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._unpacker = Unpacker()
        self._outbox: deque[_Frame] = deque()
        self._fds: deque[int] = deque()

    def fileno(self) -> int:
        """Return the socket's descriptor, for selectors."""
        return self.sock.fileno()

    def queue(self, message: Message, *, fds: Sequence[int] = ()) -> None:
        """Append a message to what ``flush`` will send, and files, which are closed when sent."""
        self._outbox.append(_Frame(pack(message), fds))

    def flush(self) -> bool:
        """Send as much as the socket takes; return True when nothing is left.

        A blocking socket always takes everything. A peer that is gone swallows the rest: its end
        is reported by ``receive``.
        """
        while self._outbox:
            batch = self._next_batch()
            try:
                sent = self._send(batch)
            except BlockingIOError:
                self._outbox.appendleft(batch)
                return False
            except (BrokenPipeError, ConnectionResetError):
                self._discard(batch)
                continue
            self._discard(batch)
            if sent < len(batch.data):
                self._outbox.appendleft(_Frame(batch.data[sent:], ()))
        return True

    def receive(self, timeout_s: float | None = None) -> list[Message]:
        """Return the messages of one read; empty when ``timeout_s`` passes without any.

        Raises:
            EOFError: The peer closed its end or died.
        """
        if timeout_s is not None:
            poll = select.poll()
            poll.register(self.sock, select.POLLIN)
            if not poll.poll(timeout_s * 1000):
                return []
        return self._read() or []

    def drain(self) -> Iterator[Message]:
        """Yield what a peer that is gone has left in the socket."""
        with contextlib.suppress(EOFError):
            while (messages := self._read()) is not None:
                yield from messages

    def take_fd(self) -> int:
        """Return the next file that arrived; the message that speaks of it has been read."""
        return self._fds.popleft()

    def close(self) -> None:
        """Close the socket and every file still on its way."""
        while self._outbox:
            self._discard(self._outbox.popleft())
        while self._fds:
            os.close(self._fds.popleft())
        self.sock.close()

    def _read(self) -> list[Message] | None:
        """Return the messages of one read, or None when a read would block."""
        try:
            data, ancillary, _, _ = self.sock.recvmsg(_CHUNK, socket.CMSG_SPACE(4 * _MAX_FDS))
        except BlockingIOError:
            return None
        except ConnectionResetError:
            raise EOFError from None
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._fds.extend(array.array("i", payload[: len(payload) // 4 * 4]))
        if not data:
            raise EOFError
        return self._unpacker.feed(data)

    def _next_batch(self) -> _Frame:
        """Return the next frames as one: a frame with a file starts a batch of its own."""
        first = self._outbox.popleft()
        if not self._outbox or self._outbox[0].fds:
            return first
        parts = [first.data]
        while self._outbox and not self._outbox[0].fds:
            parts.append(self._outbox.popleft().data)
        return _Frame(b"".join(parts), first.fds)

    def _send(self, frame: _Frame) -> int:
        if not frame.fds:
            return self.sock.send(frame.data)
        rights = array.array("i", frame.fds)
        return self.sock.sendmsg([frame.data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    @staticmethod
    def _discard(frame: _Frame) -> None:
        """Close the files of a frame that has been sent, or never will be."""
        for fd in frame.fds:
            os.close(fd)
