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

from .wire import Message, Unpacker, pack

_CHUNK = 1 << 16  # twice as much is taken from the kernel anew for every read
_MAX_FDS = 64
_FDS_BYTES = socket.CMSG_SPACE(4 * _MAX_FDS)


class _Batch:
    """Frames that are sent together, and the files that go with the first byte of them."""

    __slots__ = ("fds", "frames")

    def __init__(self, frame: bytes, fds: Sequence[int]) -> None:
        self.frames = [frame]
        self.fds = fds


class Connection:
    """One end of a socket pair. Not thread-safe: each side holds its own lock around it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._unpacker = Unpacker()
        self._outbox: deque[_Batch] = deque()
        self._fds: deque[int] = deque()

    def fileno(self) -> int:
        """Return the socket's descriptor, for selectors."""
        return self.sock.fileno()

    def queue(self, message: Message, *, fds: Sequence[int] = ()) -> None:
        """Append a message to what ``flush`` will send, and files, which are closed when sent."""
        if self._outbox and not fds:
            self._outbox[-1].frames.append(pack(message))
        else:
            self._outbox.append(_Batch(pack(message), fds))

    def flush(self) -> bool:
        """Send as much as the socket takes; return True when nothing is left.

        A blocking socket always takes everything. A peer that is gone swallows the rest: its end
        is reported by ``receive``.
        """
        while self._outbox:
            batch = self._outbox[0]
            frames = batch.frames
            data = frames[0] if len(frames) == 1 else b"".join(frames)
            try:
                sent = self._send(data, batch.fds)
            except BlockingIOError:
                batch.frames = [data]
                return False
            except (BrokenPipeError, ConnectionResetError):
                sent = len(data)
            if batch.fds:
                self._close_files(batch)
            if sent < len(data):
                batch.frames = [data[sent:]]
            else:
                self._outbox.popleft()
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
            self._close_files(self._outbox.popleft())
        while self._fds:
            os.close(self._fds.popleft())
        self.sock.close()

    def _read(self) -> list[Message] | None:
        """Return the messages of one read, or None when a read would block."""
        try:
            data, ancillary, _, _ = self.sock.recvmsg(_CHUNK, _FDS_BYTES)
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

    def _send(self, data: bytes, fds: Sequence[int]) -> int:
        if not fds:
            return self.sock.send(data)
        rights = array.array("i", fds)
        return self.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    @staticmethod
    def _close_files(batch: _Batch) -> None:
        """Close the files of a batch whose first byte has been sent, or never will be."""
        for fd in batch.fds:
            os.close(fd)
        batch.fds = ()
