"""The sockets of one machine: who is at the other end of each, and what is queued for whom.

One epoll watches them all, and whatever else can be read. Messages are queued and leave together:
a call behind another one in its process ("then") cannot start before that one is answered, and the
answer ends in a flush of all. So a burst of calls needs few writes and wakes its process rarely.

Not thread-safe but for ``poll`` and ``wake``: the owner has a lock.
"""

import contextlib
import os
import select
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from .connection import Connection
from .wire import Message

_MAX_PATIENT = 32


class Peer(Protocol):
    """A process or machine at the other end of a socket: a ``Connection`` or a ``Channel``."""

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        ...

    def queue(self, message: Message) -> None:
        """Append a message to what ``flush`` will send."""
        ...

    def flush(self) -> bool:
        """Send what the socket takes; return True when nothing is left."""
        ...

    def receive(self) -> list[Message]:
        """Return what has come; EOFError when the peer is gone."""
        ...

    def drain(self) -> Iterator[Message]:
        """Yield what a peer that is gone has left."""
        ...

    def close(self) -> None:
        """Close the socket."""
        ...


class Links:
    """The peers by the numbers of their processes, and what else is watched."""

    def __init__(self) -> None:
        self._peers: dict[int, Peer] = {}
        self._by_fd: dict[int, int] = {}
        self._watched: dict[int, Callable[[], None]] = {}
        self._dirty: set[int] = set()
        """Peers that have something queued."""
        self._patient: dict[int, int] = {}
        """Messages queued for a peer that may wait until it has spoken."""
        self._stuck: set[int] = set()
        """Peers whose sockets are full."""
        self._epoll = select.epoll()
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._alarm, self._hear_alarm)

    def __getitem__(self, process: int) -> Peer:
        return self._peers[process]

    def get(self, process: int) -> Peer | None:
        """Return who is at the other end, or None for nobody."""
        return self._peers.get(process)

    def add(self, process: int, peer: Peer) -> None:
        """Listen to a peer."""
        self._peers[process] = peer
        self._by_fd[peer.fileno()] = process
        self._epoll.register(peer.fileno(), select.EPOLLIN)

    def deafen(self, process: int) -> None:
        """Listen to a peer no more; it stays until it is dropped."""
        fd = self._peers[process].fileno()
        if self._by_fd.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def drop(self, process: int) -> None:
        """Close the socket of a peer, with all that is queued for it."""
        self.deafen(process)
        self._dirty.discard(process)
        self._patient.pop(process, None)
        self._stuck.discard(process)
        self._peers.pop(process).close()

    def queue(self, process: int, message: Message, *, fds: Sequence[int] = ()) -> None:
        """Queue a message for a peer, and files, which only a ``Connection`` carries.

        No harm when the peer is gone, unless there are files.
        """
        peer = self._peers.get(process)
        if peer is None:
            return
        if fds:
            assert isinstance(peer, Connection), "only processes of this machine are given files"
            peer.queue(message, fds=fds)
        else:
            peer.queue(message)
        if message[0] == "then":
            num_waiting = self._patient.get(process, 0)
            if num_waiting < _MAX_PATIENT:
                self._patient[process] = num_waiting + 1
                return
        self._dirty.add(process)

    def flush(self, *, urgent_only: bool = False) -> None:
        """Send what has been queued, or ``urgent_only`` what cannot wait."""
        if self._patient and not urgent_only:
            self._dirty.update(self._patient)
        if not self._dirty:
            return
        for process in self._dirty:
            if process in self._patient:
                del self._patient[process]
            peer = self._peers[process]
            is_stuck = not peer.flush()
            if is_stuck != (process in self._stuck) and peer.fileno() in self._by_fd:
                self._stuck ^= {process}
                out = select.EPOLLOUT if is_stuck else 0
                self._epoll.modify(peer.fileno(), select.EPOLLIN | out)
        self._dirty.clear()

    def watch(self, fd: int, on_ready: Callable[[], None]) -> None:
        """Call ``on_ready`` whenever another descriptor can be read."""
        self._watched[fd] = on_ready
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Undo ``watch``, before the descriptor is closed."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        """Wait for something to happen, without the owner's lock; hand the result to ``serve``."""
        return self._epoll.poll(timeout_s)

    def wake(self) -> None:
        """Make ``poll`` in another thread return."""
        os.eventfd_write(self._alarm, 1)

    def serve(self, events: list[tuple[int, int]], on_ready: Callable[[int], None]) -> None:
        """Do what readiness asks for; ``on_ready`` is called with each peer that can be read."""
        for fd, event in events:
            process = self._by_fd.get(fd)  # none if an event before this one has closed it
            if process is None:
                if fd in self._watched:
                    self._watched[fd]()
                continue
            if event & select.EPOLLOUT:
                self._dirty.add(process)
            if event & ~select.EPOLLOUT:
                on_ready(process)

    def close(self) -> None:
        """Close every socket."""
        for peer in self._peers.values():
            peer.close()
        self._epoll.close()
        os.close(self._alarm)

    def _hear_alarm(self) -> None:
        with contextlib.suppress(BlockingIOError):  # another thread that polls has heard it
            os.eventfd_read(self._alarm)
