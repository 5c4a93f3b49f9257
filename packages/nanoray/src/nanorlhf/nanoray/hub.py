"""What a machine does with its processes and their shared memory, for whoever decides.

::

    zygote --------+
    worker 1 ------+          Hub: one epoll,          owner: the engine, or an
    worker 2 ------+-- Hub    one open file   <------  agent that asks its head
    driver --------+          for each arena

An arena's file stays here: a message that speaks of one loses its file when it comes in and gets
it back when it goes out to a process of this machine. Not thread-safe: the owner has a lock.
"""

import contextlib
import functools
import os
import secrets
import select
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from .connection import Connection
from .exits import describe_exit
from .machines import About
from .memory import default_store_bytes
from .outputs import Outputs, Printed
from .resources import GPU, Pool
from .spill import spill_directory
from .tickets import Tickets
from .wire import Message
from .zygote import end, launch

_ZYGOTE = -1
_MAX_PATIENT = 32
_NODE_ID_BYTES = 28  # as long as Ray's


def describe_machine(
    pool: Pool,
    address: tuple[str, int] | None = None,
    *,
    store_bytes: int | None = None,
    directory: str | None = None,
) -> About:
    """Return what this machine says of itself."""
    amounts = tuple((name, amount) for name, amount in pool.totals.items() if name != GPU)
    node_id = secrets.token_hex(_NODE_ID_BYTES)
    return About(
        node_id,
        socket.gethostname(),
        address,
        amounts,
        tuple(pool.gpus),
        default_store_bytes() if store_bytes is None else store_bytes,
        spill_directory(directory),
    )


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


class Owner(Protocol):
    """Who is told what happens on the machine."""

    def heard(self, process: int, message: Message) -> None:
        """A process said something."""
        ...

    def exited(self, worker: int, status: int) -> None:
        """A forked process is gone, and ``status`` is what waitpid said of it."""
        ...

    def left(self, process: int) -> None:
        """A process that was attached has hung up."""
        ...

    def broke_down(self, reason: str) -> None:
        """The zygote is gone, and every forked process with it."""
        ...

    def printed(self, worker: int, pid: int, stream: str, lines: list[str]) -> None:
        """A forked process wrote whole lines to "stdout" or "stderr"."""
        ...


class Hub:
    """The sockets, files and processes of one machine.

    Args:
        owner: Told of everything.
        preload: Modules the zygote imports.
    """

    def __init__(self, owner: Owner, preload: list[str]) -> None:
        self._owner = owner
        self._links: dict[int, Peer] = {}
        self._forked: set[int] = set()
        self._by_fd: dict[int, int] = {}
        self._watched: dict[int, Callable[[], None]] = {}
        self._dirty: set[int] = set()
        self._patient: dict[int, int] = {}
        """Messages queued for a peer that may wait until it has spoken."""
        self._stuck: set[int] = set()
        """Peers whose sockets are full."""
        self._arenas: dict[int, int] = {}
        self._outputs = Outputs()
        self._tickets: dict[int, Tickets] = {}
        self._pids: dict[int, int] = {}
        self._epoll = select.epoll()
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._alarm, self._hear_alarm)
        self._process, sock = launch(preload)
        sock.setblocking(False)
        self._zygote = Connection(sock)
        self._add(_ZYGOTE, self._zygote)

    @property
    def zygote_pid(self) -> int:
        """The process that forks the others."""
        return self._process.pid

    # -- processes -----------------------------------------------------------------------------

    def fork(self, worker: int, setup: dict[str, Any]) -> None:
        """Ask the zygote for a process and queue its first message."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._forked.add(worker)
        link = Connection(ours)
        self._add(worker, link)
        readers, writers = self._outputs.open(worker)
        for reader in readers:
            self.watch(reader, functools.partial(self._read_output, reader))
        self._zygote.queue(("fork", worker), fds=(theirs.detach(), *writers))
        self._dirty.add(_ZYGOTE)
        path = [entry for entry in sys.path if isinstance(entry, str)]
        tickets = self._tickets[worker] = Tickets()
        link.queue(("setup", {"path": path, **setup}), fds=(os.dup(tickets.reader.fileno()),))
        self._dirty.add(worker)

    def kill(self, worker: int) -> None:
        """Have the zygote kill a process; no harm when it is gone."""
        self._zygote.queue(("kill", worker))
        self._dirty.add(_ZYGOTE)

    def interrupt(self, worker: int, call_id: int) -> None:
        """Have the zygote tell a process that a call is cancelled; no harm when it is gone."""
        self._zygote.queue(("interrupt", worker, call_id))
        self._dirty.add(_ZYGOTE)

    def offer(self, worker: int, tickets: Sequence[int]) -> None:
        """Let a process begin the calls with these tickets, unless they are recalled first."""
        self._tickets[worker].offer(tickets)

    def recall(self, worker: int) -> list[int]:
        """Take back the tickets of a process for what it has not begun."""
        return self._tickets[worker].recall()

    def attach(self, process: int, link: Peer) -> None:
        """Listen to a process or machine that has come by itself."""
        self._add(process, link)
        self._serve(process, select.EPOLLIN)  # a channel may have come with its first messages

    def detach(self, process: int) -> None:
        """Hang up on who was attached; what is queued for it is sent if its socket takes it."""
        link = self._links.pop(process, None)
        if link is not None:
            link.flush()
            self._forget_fd(link)
            self._forget_link(process)
            link.close()

    def send(self, process: int, message: Message) -> None:
        """Queue a message; no harm when the process is gone."""
        link = self._links.get(process)
        if link is None:
            return
        if message[0] == "arena" and isinstance(link, Connection):
            link.queue(message, fds=(os.dup(self._arenas[message[1]]),))
        else:
            link.queue(message)
        if message[0] == "then":
            num_waiting = self._patient.get(process, 0)
            if num_waiting < _MAX_PATIENT:
                self._patient[process] = num_waiting + 1
                return
        self._dirty.add(process)

    def pid(self, worker: int) -> int:
        """Return the process id of a forked process; 0 until the zygote has told it."""
        return self._pids.get(worker, 0)

    def tail(self, worker: int) -> list[str]:
        """Return the last lines that a forked process printed."""
        return self._outputs.tail(worker)

    # -- arenas --------------------------------------------------------------------------------

    def add_arena(self, arena_id: int, fd: int) -> None:
        """Take over the file of an arena that was made on this machine."""
        self._arenas[arena_id] = fd

    def open_arena(self, arena_id: int) -> int | None:
        """Return a new descriptor of an arena, or None when it is not here."""
        fd = self._arenas.get(arena_id)
        return None if fd is None else os.dup(fd)

    def close_arena(self, arena_id: int) -> None:
        """Close an arena's file."""
        fd = self._arenas.pop(arena_id, None)
        if fd is not None:
            os.close(fd)

    # -- the loop ------------------------------------------------------------------------------

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

    def _hear_alarm(self) -> None:
        with contextlib.suppress(BlockingIOError):  # another thread that polls has heard it
            os.eventfd_read(self._alarm)

    def serve(self, events: list[tuple[int, int]]) -> None:
        """Do what readiness asks for, and tell the owner."""
        for fd, event in events:
            process = self._by_fd.get(fd)  # none if an event before this one has closed it
            if process is not None:
                self._serve(process, event)
            elif fd in self._watched:
                self._watched[fd]()

    def flush(self, *, urgent_only: bool = False) -> None:
        """Send what has been queued, or ``urgent_only`` what cannot wait.

        A call behind another one ("then") cannot start before that one is answered, and the answer
        ends in a flush of all. So a burst of calls needs few writes and wakes its process rarely.
        """
        if self._patient and not urgent_only:
            self._dirty.update(self._patient)
        if not self._dirty:
            return
        for process in self._dirty:
            if process in self._patient:
                del self._patient[process]
            link = self._links[process]
            is_stuck = not link.flush()
            if is_stuck != (process in self._stuck) and link.fileno() in self._by_fd:
                self._stuck ^= {process}
                out = select.EPOLLOUT if is_stuck else 0
                self._epoll.modify(link.fileno(), select.EPOLLIN | out)
        self._dirty.clear()

    def stop(self) -> None:
        """Tell the zygote to end with all it has forked."""
        self._zygote.queue(("stop",))
        self._zygote.flush()

    def close(self) -> None:
        """Wait for the zygote to end, and close everything; call after ``stop``."""
        end(self._process)
        for worker in self._forked:
            self._close_outputs(worker)
        for tickets in self._tickets.values():
            tickets.close()
        for link in self._links.values():
            link.close()
        self._epoll.close()
        os.close(self._alarm)
        for fd in self._arenas.values():
            os.close(fd)
        self._arenas.clear()

    def _serve(self, process: int, event: int) -> None:
        if event & select.EPOLLOUT:
            self._dirty.add(process)
        if not event & ~select.EPOLLOUT:
            return
        link = self._links[process]
        try:
            messages = link.receive()
        except EOFError:
            self._hung_up(process, link)
            return
        heard = self._owner.heard
        for message in messages:
            if process == _ZYGOTE or message[0] == "arena":
                self._hear(process, link, message)
            else:
                heard(process, message)

    def _hear(self, process: int, link: Peer, message: Message) -> None:
        if process == _ZYGOTE:
            if message[0] == "forked":
                self._pids[message[1]] = message[2]
            else:
                self._exited(message[1], message[2])
            return
        if message[0] == "arena" and isinstance(link, Connection):
            self._arenas[message[1]] = link.take_fd()
        self._owner.heard(process, message)

    def _hung_up(self, process: int, link: Peer) -> None:
        """The other end is closed: whoever was there is gone, or soon will be."""
        self._forget_fd(link)
        if process == _ZYGOTE:
            self._broke_down()
        elif process in self._forked:
            self.kill(process)  # the zygote reports the exit, which ends it here
        else:
            self._forget_link(process)
            self._links.pop(process).close()
            self._owner.left(process)

    def _broke_down(self) -> None:
        code = self._process.wait()
        reason = describe_exit(code << 8 if code >= 0 else -code)
        self._owner.broke_down(
            f"the engine's process server {reason}; see its traceback above, then shutdown() and "
            f"init() again"
        )

    def _exited(self, worker: int, status: int) -> None:
        link = self._links[worker]
        for message in link.drain():
            self._hear(worker, link, message)
        self._forget_fd(link)
        self._forget_link(worker)
        self._links.pop(worker).close()
        self._forked.discard(worker)
        for fd in self._outputs.of(worker):
            self._read_output(fd)
        self._owner.exited(worker, status)
        self._tickets.pop(worker).close()
        self._close_outputs(worker)
        self._pids.pop(worker, None)

    def _read_output(self, fd: int) -> None:
        printed, is_open = self._outputs.read(fd)
        self._show(printed)
        if not is_open:
            self.unwatch(fd)

    def _close_outputs(self, worker: int) -> None:
        for fd in self._outputs.of(worker):
            self._read_output(fd)
            self.unwatch(fd)
            self._show(self._outputs.close(fd))

    def _show(self, printed: Printed) -> None:
        if printed.lines:
            pid = self.pid(printed.worker)
            self._owner.printed(printed.worker, pid, printed.stream, printed.lines)

    def _add(self, process: int, link: Peer) -> None:
        self._links[process] = link
        self._by_fd[link.fileno()] = process
        self._epoll.register(link.fileno(), select.EPOLLIN)

    def _forget_fd(self, link: Peer) -> None:
        if self._by_fd.pop(link.fileno(), None) is not None:
            self._epoll.unregister(link.fileno())

    def _forget_link(self, process: int) -> None:
        self._dirty.discard(process)
        self._patient.pop(process, None)
        self._stuck.discard(process)
