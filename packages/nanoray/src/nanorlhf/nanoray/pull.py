"""Blocks of memory from machine to machine, straight between two machines that need them.

::

    request   | arena, offset, size: 3 x uint64 | tag |
    answer    | 1 | the bytes | tag |      or      | 0 | tag |: the block is gone

What comes over is unpickled later, so bytes that somebody changed on the way would be code that
somebody else chose: bulk data needs as much integrity as messages do. The tag under each answer
is a keyed hash of the request and of every byte. The serving side sends the pages of the memfd
with ``sendfile`` and hashes its own mapping of them; the pulling side receives into the block
they are for and hashes that. Neither copies in user space, and the block is used by nobody before
its tag is checked. Under TLS the same bytes go through the cipher, which ``sendfile`` cannot do.
"""

import contextlib
import hmac
import logging
import mmap
import os
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import NamedTuple

from .address import Address
from .channel import keep_alive
from .dial import Guest, call
from .errors import AuthenticationError, NanoRayError
from .records import TAG_BYTES, Tags
from .tls import TlsFiles

log = logging.getLogger(__name__)

_REQUEST = struct.Struct("<QQQ")
_STEP = 1 << 20
"""Bytes sent and then hashed in turn, so that both sides and the network work at once."""
_STALL_S = 30.0
"""How long one step may take before the other side is given up."""


class OpenArena(NamedTuple):
    """A memfd for one request."""

    fd: int
    """Closed by whoever asked for it."""
    size: int


class BlockGoneError(NanoRayError):
    """The other machine no longer has the block."""


class BlockServer:
    """Gives blocks to the other machines, one thread for each that asks.

    Args:
        open_arena: Returns a new descriptor of an arena and its size, or None when there is no
            such arena. Called from many threads.
    """

    def __init__(self, open_arena: Callable[[int], OpenArena | None]) -> None:
        self._open_arena = open_arena
        self._lock = threading.Lock()
        self._guests: set[socket.socket] = set()
        self._is_over = False

    def welcome(self, guest: Guest) -> None:
        """Serve a guest of the door until it leaves."""
        with self._lock:
            if self._is_over:
                guest.sock.close()
                return
            self._guests.add(guest.sock)
        threading.Thread(
            target=self._serve, args=(guest,), name="nanoray-blocks", daemon=True
        ).start()

    def close(self) -> None:
        """Hang up on everybody."""
        with self._lock:
            self._is_over = True
            for sock in self._guests:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _serve(self, guest: Guest) -> None:
        sock = guest.sock
        ours, theirs = Tags(guest.session.send_key), Tags(guest.session.receive_key)
        early = guest.rest
        try:
            keep_alive(sock)
            while (request := _next_request(sock, early)) is not None:
                early = b""
                body, tag = request[: _REQUEST.size], request[_REQUEST.size :]
                if not hmac.compare_digest(tag, theirs.tag(body)):
                    raise AuthenticationError("a request was changed on its way")
                sock.settimeout(_STALL_S)
                self._answer(sock, body, ours)
                sock.settimeout(None)
        except (OSError, AuthenticationError) as error:
            log.warning("%s no longer gets blocks: %s", guest.peer, error)
        finally:
            with self._lock:
                self._guests.discard(sock)
            sock.close()

    def _answer(self, sock: socket.socket, request: bytes, tags: Tags) -> None:
        arena_id, offset, size = _REQUEST.unpack(request)
        arena = self._open_arena(arena_id)
        state = tags.start()
        if arena is None:
            state.update(b"\0" + request)
            sock.sendall(b"\0" + state.digest())
            return
        try:
            if not 0 < size <= arena.size - offset:
                raise AuthenticationError(
                    f"asked for {size} bytes at {offset} of arena {arena_id:x}, which has "
                    f"{arena.size}"
                )
            state.update(b"\1" + request)
            sock.sendall(b"\1")
            page = offset % mmap.ALLOCATIONGRANULARITY
            pages = mmap.mmap(
                arena.fd, page + size, mmap.MAP_PRIVATE, mmap.PROT_READ, offset=offset - page
            )
            with pages, memoryview(pages) as view, view[page:] as block:
                for start in range(0, size, _STEP):
                    with block[start : start + _STEP] as step:
                        _send(sock, arena.fd, offset + start, step)
                        state.update(step)
            sock.sendall(state.digest())
        finally:
            os.close(arena.fd)


class Puller:
    """Fetches blocks from other machines. Thread-safe: each fetch uses a connection of its own.

    Args:
        token: The cluster's secret.
        tls: This machine's certificate, when the cluster uses TLS.
    """

    def __init__(self, token: bytes, *, tls: TlsFiles | None = None) -> None:
        self._token, self._tls = token, tls
        self._lock = threading.Lock()
        self._idle: dict[Address, list[_Line]] = {}
        self._busy: dict[Address, set[_Line]] = {}

    def pull(self, address: Address, arena_id: int, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the bytes at ``offset`` of another machine's arena.

        On an error ``target`` may hold anything: nobody may read it.

        Raises:
            BlockGoneError: That machine has no such arena any more.
            NanoRayError: It cannot be reached, hung up, or sent bytes that are not its own.
        """
        line = self._take(address)
        is_usable = False
        try:
            line.pull(arena_id, offset, target)
            is_usable = True
        except BlockGoneError:
            is_usable = True
            raise
        except OSError as error:
            raise NanoRayError(f"{address} hung up during a pull: {error}") from error
        finally:
            self._put_back(address, line, is_usable=is_usable)

    def forget(self, address: Address) -> None:
        """Close the connections to a machine that is gone; pulls under way fail."""
        with self._lock:
            for line in self._idle.pop(address, []):
                line.sock.close()
            for line in self._busy.get(address, ()):
                with contextlib.suppress(OSError):
                    line.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close all connections."""
        for address in {*self._idle, *self._busy}:
            self.forget(address)

    def _take(self, address: Address) -> "_Line":
        line = self._take_idle(address)
        if line is None:
            line = _Line(call(address, "pull", self._token, tls=self._tls))
        with self._lock:
            self._busy.setdefault(address, set()).add(line)
        return line

    def _take_idle(self, address: Address) -> "_Line | None":
        with self._lock:
            lines = self._idle.get(address)
            while lines:
                line = lines.pop()
                if line.is_open():
                    return line
                line.sock.close()
        return None

    def _put_back(self, address: Address, line: "_Line", *, is_usable: bool) -> None:
        with self._lock:
            self._busy[address].discard(line)
            if is_usable:
                self._idle.setdefault(address, []).append(line)
            else:
                line.sock.close()


class _Line:
    """The pulling side of one connection."""

    def __init__(self, guest: Guest) -> None:
        self.sock = guest.sock
        self.sock.settimeout(_STALL_S)
        self._ours, self._theirs = Tags(guest.session.send_key), Tags(guest.session.receive_key)
        keep_alive(self.sock)

    def is_open(self) -> bool:
        """Return whether the peer has kept the connection; between pulls it says nothing."""
        self.sock.setblocking(False)
        try:
            self.sock.recv(1)  # the end, or what nobody asked for
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        else:
            return False
        finally:
            self.sock.settimeout(_STALL_S)

    def pull(self, arena_id: int, offset: int, target: memoryview) -> None:
        request = _REQUEST.pack(arena_id, offset, target.nbytes)
        self.sock.sendall(request + self._ours.tag(request))
        state = self._theirs.start()
        status = _receive(self.sock, 1)
        state.update(status + request)
        if status == b"\1":
            for start in range(0, target.nbytes, _STEP):
                with target[start : start + _STEP] as step:
                    _receive_into(self.sock, step)
                    state.update(step)
        if not hmac.compare_digest(_receive(self.sock, TAG_BYTES), state.digest()):
            raise AuthenticationError("a block was changed on its way; use a safe network")
        if status != b"\1":
            raise BlockGoneError(f"arena {arena_id:x} is gone from the machine that had it")


def _next_request(sock: socket.socket, early: bytes) -> bytes | None:
    """Return the next request with its tag, or None when the peer has left between two."""
    data = bytearray(early)
    while len(data) < _REQUEST.size + TAG_BYTES:
        chunk = sock.recv(_REQUEST.size + TAG_BYTES - len(data))
        if not chunk:
            return None
        data += chunk
    return bytes(data)


def _send(sock: socket.socket, fd: int, offset: int, step: memoryview) -> None:
    """Send a part of a file, of which ``step`` is a mapping."""
    if isinstance(sock, ssl.SSLSocket):
        sock.sendall(step)
        return
    end = offset + step.nbytes
    while offset < end:
        # A socket with a timeout is non-blocking to the kernel, and sendfile does not know of it.
        try:
            offset += os.sendfile(sock.fileno(), fd, offset, end - offset)
        except BlockingIOError:
            _wait_writable(sock)


def _wait_writable(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    if not poll.poll(1000 * _STALL_S):
        raise TimeoutError(f"the peer took nothing for {_STALL_S:g} s")


def _receive(sock: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    _receive_into(sock, memoryview(data))
    return bytes(data)


def _receive_into(sock: socket.socket, target: memoryview) -> None:
    while target:
        count = sock.recv_into(target)
        if not count:
            raise ConnectionResetError("the peer closed the connection")
        target = target[count:]
