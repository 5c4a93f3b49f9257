"""What a machine does with its processes and their shared memory, for whoever decides.

::

    zygote --------+
    worker 1 ------+          Hub: one epoll,          owner: the engine, or an
    worker 2 ------+-- Hub    one open file   <------  agent that asks its head
    driver --------+          for each arena

An arena's file stays here: a message that speaks of one loses its file when it comes in and gets
it back when it goes out to a process of this machine. Not thread-safe: the owner has a lock.
"""

import functools
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from .connection import Connection
from .exits import describe_exit
from .links import Links, Peer
from .machines import About
from .memory import default_store_bytes
from .outputs import Outputs, Printed
from .resources import GPU, Pool
from .spill import spill_directory
from .tickets import Tickets
from .wire import Message
from .zygote import end, launch

_ZYGOTE = -1
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
    """The processes of one machine, and the files of their memory.

    Args:
        owner: Told of everything.
        preload: Modules the zygote imports.
    """

    def __init__(self, owner: Owner, preload: list[str]) -> None:
        self._owner = owner
        self._links = Links()
        # For whoever runs the loop, as they are: a layer between would cost every call.
        self.poll, self.wake, self.flush = self._links.poll, self._links.wake, self._links.flush
        self.watch, self.unwatch = self._links.watch, self._links.unwatch
        self._forked: set[int] = set()
        self._arenas: dict[int, int] = {}
        self._outputs = Outputs()
        self._tickets: dict[int, Tickets] = {}
        self._pids: dict[int, int] = {}
        self._process, sock = launch(preload)
        sock.setblocking(False)
        self._links.add(_ZYGOTE, Connection(sock))

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
        self._links.add(worker, Connection(ours))
        readers, writers = self._outputs.open(worker)
        for reader in readers:
            self.watch(reader, functools.partial(self._read_output, reader))
        self._links.queue(_ZYGOTE, ("fork", worker), fds=(theirs.detach(), *writers))
        path = [entry for entry in sys.path if isinstance(entry, str)]
        tickets = self._tickets[worker] = Tickets()
        desk = os.dup(tickets.reader.fileno())
        self._links.queue(worker, ("setup", {"path": path, **setup}), fds=(desk,))

    def kill(self, worker: int) -> None:
        """Have the zygote kill a process; no harm when it is gone."""
        self._links.queue(_ZYGOTE, ("kill", worker))

    def interrupt(self, worker: int, call_id: int) -> None:
        """Have the zygote tell a process that a call is cancelled; no harm when it is gone."""
        self._links.queue(_ZYGOTE, ("interrupt", worker, call_id))

    def offer(self, worker: int, tickets: Sequence[int]) -> None:
        """Let a process begin the calls with these tickets, unless they are recalled first."""
        self._tickets[worker].offer(tickets)

    def recall(self, worker: int) -> list[int]:
        """Take back the tickets of a process for what it has not begun."""
        return self._tickets[worker].recall()

    def attach(self, process: int, link: Peer) -> None:
        """Listen to a process or machine that has come by itself."""
        self._links.add(process, link)
        self._serve(process)  # a channel may have come with its first messages

    def detach(self, process: int) -> None:
        """Hang up on who was attached; what is queued for it is sent if its socket takes it."""
        link = self._links.get(process)
        if link is not None:
            link.flush()
            self._links.drop(process)

    def send(self, process: int, message: Message) -> None:
        """Queue a message; no harm when the process is gone."""
        if message[0] == "arena" and isinstance(self._links.get(process), Connection):
            fd = os.dup(self._arenas[message[1]])
            self._links.queue(process, message, fds=(fd,))
        else:
            self._links.queue(process, message)

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

    def serve(self, events: list[tuple[int, int]]) -> None:
        """Do what the readiness that ``poll`` has found asks for, and tell the owner."""
        self._links.serve(events, self._serve)

    def stop(self) -> None:
        """Tell the zygote to end with all it has forked."""
        self._links.queue(_ZYGOTE, ("stop",))
        self._links[_ZYGOTE].flush()

    def close(self) -> None:
        """Wait for the zygote to end, and close everything; call after ``stop``."""
        end(self._process)
        for worker in self._forked:
            self._close_outputs(worker)
        for tickets in self._tickets.values():
            tickets.close()
        self._links.close()
        for fd in self._arenas.values():
            os.close(fd)
        self._arenas.clear()

    def _serve(self, process: int) -> None:
        link = self._links[process]
        try:
            messages = link.receive()
        except EOFError:
            self._hung_up(process)
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

    def _hung_up(self, process: int) -> None:
        """The other end is closed: whoever was there is gone, or soon will be."""
        self._links.deafen(process)
        if process == _ZYGOTE:
            self._broke_down()
        elif process in self._forked:
            self.kill(process)  # the zygote reports the exit, which ends it here
        else:
            self._links.drop(process)
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
        self._links.drop(worker)
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
