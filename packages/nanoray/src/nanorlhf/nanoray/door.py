"""The way into a machine: nobody gets past it without the token.

One thread of its own deals with everybody who is still unknown, so a flood of strangers costs the
engine nothing. Each stranger may make us keep 4 KiB and has five seconds, however slowly it
talks; there is room for a fixed number of them, and the one that came first leaves first.
"""

import contextlib
import logging
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable

from .address import Address
from .dial import Guest
from .errors import AuthenticationError
from .handshake import DEADLINE_S, MAX_BYTES, NONCE_BYTES, Answerer, Purpose
from .tls import TlsFiles

log = logging.getLogger(__name__)

_BACKLOG = 64
_PAUSE_S = 0.1
_QUIET_S = 1.0


class _Stranger:
    """A connection whose other end is not known yet."""

    def __init__(
        self, sock: socket.socket, peer: Address, answerer: Answerer, *, deadline: float
    ) -> None:
        self.sock, self.peer, self._answerer = sock, peer, answerer
        self.deadline = deadline
        self._num_bytes = 0
        self._is_wrapped = not isinstance(sock, ssl.SSLSocket)

    def advance(self) -> Guest | None:
        """Do what can be done now; return the guest when all is proved.

        Raises:
            AuthenticationError: Not one of ours.
            OSError: It left.
        """
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if not self._is_wrapped:
                assert isinstance(self.sock, ssl.SSLSocket), "only TLS has a handshake of its own"
                self.sock.do_handshake()
                self._is_wrapped = True
            while self._answerer.session is None:
                self._hear(self.sock.recv(MAX_BYTES))
            session, rest = self._answerer.session, self._answerer.rest
            self.sock.setblocking(True)
            return Guest(self.sock, session, rest, self.peer)
        return None

    def _hear(self, chunk: bytes) -> None:
        self._num_bytes += len(chunk)
        if not chunk:
            raise AuthenticationError("the peer left before it proved itself")
        if self._num_bytes > MAX_BYTES:
            raise AuthenticationError(f"the peer sent over {MAX_BYTES} bytes before its proof")
        reply = self._answerer.feed(chunk)
        if reply and self.sock.send(reply) < len(reply):
            raise AuthenticationError("the peer does not take our answer")


class Door:
    """Listens on one port and lets in who has the token.

    Args:
        host: Address of the interface to listen on.
        port: 0 is any free one.
        token: The cluster's secret; no port is opened without it.
        welcome: Called in the door's thread with each guest, for each purpose accepted.
        tls: This machine's certificate, when the cluster uses TLS.
        deadline_s: How long a stranger may take to prove itself.
        max_strangers: How many may be at it at once.

    Raises:
        AuthenticationError: The token is none.
        OSError: The address is not this machine's, or the port is taken.
    """

    def __init__(
        self,
        host: str,
        port: int,
        token: bytes,
        *,
        welcome: dict[Purpose, Callable[[Guest], None]],
        tls: TlsFiles | None = None,
        deadline_s: float = DEADLINE_S,
        max_strangers: int = 128,
    ) -> None:
        self._deadline_s, self._max_strangers = deadline_s, max_strangers
        self._context = None if tls is None else tls.context("answerer")
        self._token, self._welcome = token, welcome
        self._answerer()  # a bad token is refused before the port is open
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        self._listener.setblocking(False)
        bound = self._listener.getsockname()
        self.address = Address(bound[0], bound[1])
        self._strangers: dict[int, _Stranger] = {}
        self._quiet_until = 0.0
        self._poll = select.epoll()
        self._wake, self._end = socket.socketpair()
        self._poll.register(self._listener, select.EPOLLIN)
        self._poll.register(self._end, select.EPOLLIN)
        self._thread = threading.Thread(target=self._loop, name="nanoray-door", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; guests are not touched."""
        self._wake.close()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            for fd, _ in self._poll.poll(self._next_deadline_s()):
                if fd == self._end.fileno():
                    self._shut()
                    return
                if fd == self._listener.fileno():
                    self._accept()
                elif fd in self._strangers:
                    self._advance(fd)
            self._turn_away_late()

    def _accept(self) -> None:
        try:
            sock, peer = self._listener.accept()
        except OSError as error:  # it left again, or this process is out of descriptors
            log.warning("a connection could not be accepted: %s", error)
            time.sleep(_PAUSE_S)  # or it would be tried again at once, and for ever
            return
        sock.setblocking(False)
        if self._context is not None:
            sock = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        if len(self._strangers) >= self._max_strangers:
            self._dismiss(next(iter(self._strangers)), "too many others are waiting")
        fd = sock.fileno()
        self._strangers[fd] = _Stranger(
            sock,
            Address(peer[0], peer[1]),
            self._answerer(),
            deadline=time.monotonic() + self._deadline_s,
        )
        self._poll.register(fd, select.EPOLLIN)

    def _advance(self, fd: int) -> None:
        stranger = self._strangers[fd]
        try:
            guest = stranger.advance()
        except (AuthenticationError, OSError) as error:
            self._dismiss(fd, str(error))
            return
        if guest is not None:
            del self._strangers[fd]
            self._poll.unregister(fd)
            self._admit(guest)

    def _admit(self, guest: Guest) -> None:
        try:
            self._welcome[guest.session.purpose](guest)
        except (OSError, RuntimeError) as error:  # it left already, or no thread can be started
            log.warning("%s was let in and lost at once: %s", guest.peer, error)
            guest.sock.close()

    def _turn_away_late(self) -> None:
        now = time.monotonic()
        for fd, stranger in list(self._strangers.items()):  # in the order they came
            if stranger.deadline > now:
                return
            self._dismiss(fd, f"it did not prove itself within {self._deadline_s:g} s")

    def _next_deadline_s(self) -> float | None:
        first = next(iter(self._strangers.values()), None)
        return None if first is None else max(0.0, first.deadline - time.monotonic())

    def _dismiss(self, fd: int, reason: str) -> None:
        stranger = self._strangers.pop(fd)
        now = time.monotonic()
        if now >= self._quiet_until:  # a flood of strangers shall not fill the disk
            self._quiet_until = now + _QUIET_S
            log.warning("turned %s away: %s", stranger.peer, reason)
        self._poll.unregister(fd)
        stranger.sock.close()

    def _shut(self) -> None:
        for fd in list(self._strangers):
            self._dismiss(fd, "this machine leaves the cluster")
        self._listener.close()
        self._end.close()
        self._poll.close()

    def _answerer(self) -> Answerer:
        is_tls = self._context is not None
        nonce = os.urandom(NONCE_BYTES)
        return Answerer(self._token, self._welcome, nonce=nonce, is_tls=is_tls)
