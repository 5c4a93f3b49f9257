"""A TCP connection that carries messages between two machines that have proved themselves.

It looks like a ``Connection`` without files, so whoever drives one drives the other. What is
queued and not taken by the peer is bounded: a peer that stops reading is as good as gone.
"""

import contextlib
import select
import socket
import ssl
from collections.abc import Iterator

from .errors import AuthenticationError
from .handshake import Session
from .records import Opener, Sealer
from .wire import Message, Unpacker, pack

MAX_MESSAGE = 1 << 30
"""Bytes of one message. Values of up to 64 KiB travel inside them, many at a time."""

MAX_OUTBOX = 1 << 30
"""Bytes that may wait for a peer."""

_CHUNK = 1 << 18
_IDLE_S, _PROBE_S, _PROBES = 20, 5, 3


class Channel:
    """One end. Not thread-safe: each side holds its own lock around it.

    Args:
        sock: Connected, past TLS and handshake; the channel closes it.
        session: What the handshake left.
        rest: Bytes that arrived behind the handshake; no selector sees them, so call ``receive``
            once before waiting on the socket.
        max_message: Bytes; a peer that announces more is cut off.
        max_outbox: Bytes; a peer that lets more pile up is cut off.
    """

    def __init__(
        self,
        sock: socket.socket,
        session: Session,
        *,
        rest: bytes = b"",
        max_message: int = MAX_MESSAGE,
        max_outbox: int = MAX_OUTBOX,
    ) -> None:
        self.sock = sock
        self._sealer, self._opener = Sealer(session.send_key), Opener(session.receive_key)
        self._unpacker = Unpacker(max_message)
        self._outbox = bytearray()
        self._max_outbox = max_outbox
        self._early = rest
        self._is_cut = False
        keep_alive(sock)

    def fileno(self) -> int:
        """Return the socket's descriptor, for selectors."""
        return self.sock.fileno()

    def queue(self, message: Message) -> None:
        """Append a message to what ``flush`` will send."""
        if self._is_cut:
            return
        self._outbox += self._sealer.seal(pack(message))
        if len(self._outbox) > self._max_outbox:
            self._cut()

    def flush(self) -> bool:
        """Send as much as the socket takes; return True when nothing is left.

        A peer that is gone swallows the rest: its end is reported by ``receive``.
        """
        while self._outbox:
            try:
                with memoryview(self._outbox) as view, view[:_CHUNK] as head:
                    sent = self.sock.send(head)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return False
            except OSError:
                self._cut()
                return True
            del self._outbox[:sent]
        return True

    def receive(self, timeout_s: float | None = None) -> list[Message]:
        """Return the messages that have come; empty when ``timeout_s`` passes without any.

        Raises:
            EOFError: The peer closed its end, is gone, or broke a rule of the protocol.
        """
        if timeout_s is not None and not self._is_pending():
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

    def close(self) -> None:
        """Close the socket; what is still queued is lost."""
        self._outbox.clear()
        self.sock.close()

    def _read(self) -> list[Message] | None:
        """Return the messages of one read, or None when a read would block."""
        try:
            data = self._early or self.sock.recv(_CHUNK)
            self._early = b""
            while isinstance(self.sock, ssl.SSLSocket) and self.sock.pending():
                data += self.sock.recv(self.sock.pending())  # a selector does not see these
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except OSError:
            raise EOFError from None
        if not data or self._is_cut:
            raise EOFError
        try:
            return self._unpacker.feed(self._opener.feed(data))
        except (AuthenticationError, ValueError, EOFError, TypeError) as error:
            self._cut()
            raise EOFError(f"the peer broke the protocol: {error}") from error

    def _is_pending(self) -> bool:
        return bool(self._early) or (
            isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0
        )

    def _cut(self) -> None:
        """Give the peer up: drop what it was to get, so that ``receive`` finds the end."""
        self._is_cut = True
        self._outbox.clear()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel notice within a minute that the other machine is gone, and send at once."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * (_IDLE_S + 15))
