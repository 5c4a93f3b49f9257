"""The engine in the driver: one lock around the node, one thread that reads every socket.

::

    driver threads --+                    +-- worker 1
                     +-- lock -- Node ----+-- worker 2     each over a socket pair
    I/O thread ------+                    +-- zygote       forks, kills and reaps the workers

A driver thread hands its message to the node itself and writes to the worker's socket; only
answers pass through the I/O thread.
"""

import contextlib
import logging
import os
import select
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

from .connection import Connection
from .errors import EngineError
from .messages import DRIVER
from .node import Node
from .refs import HoldLog
from .resources import Pool
from .store import Reader
from .supervisor import describe_exit
from .waits import Answer
from .wire import Message
from .zygote import end, launch

log = logging.getLogger(__name__)

_ZYGOTE = -1
_IDLE_POLL_S = 0.1
"""How long the driver's dropped refs may go unnoticed when nothing else happens."""
_PATIENCE_S = 10.0
"""After this long a ``get`` logs what it waits for."""


class _Question:
    """A driver thread's wait for an answer."""

    def __init__(self) -> None:
        self.payload: Answer | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def resolve(self, payload: Answer) -> None:
        self.payload = payload
        self._done.release()

    def wait(self, timeout_s: float | None) -> bool:
        return self._done.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s))


class Engine:
    """The driver's ``Link``, and the ``Rim`` of its node.

    Args:
        pool: The node's resources.
        holds: The driver's hold log.
        reader: The driver's reader.
        preload: Modules the zygote imports.
    """

    def __init__(self, pool: Pool, *, holds: HoldLog, reader: Reader, preload: list[str]) -> None:
        self._lock = threading.Lock()
        self._holds, self._reader = holds, reader
        self._totals = dict(pool.totals)
        self._free: Callable[[int, int], None] = lambda arena_id, offset: None
        self._to_free: deque[tuple[int, int]] = deque()
        self._questions: dict[int, _Question] = {}
        self._later: dict[int, Callable[[Answer | None], None]] = {}
        self._thunks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        """What is to be done about late answers, outside the lock."""
        self._num_asked = 0
        self._links: dict[int, Connection] = {}
        self._by_fd: dict[int, int] = {}
        self._dirty: set[int] = set()
        self._stuck: set[int] = set()
        """Processes whose sockets are full."""
        self._is_over = False
        self._epoll = select.epoll()
        cpus = self._totals.get("CPU", 0) // 10_000
        self.node = Node(pool, self, max_idle=max(1, cpus))
        self._zygote, sock = launch(preload)
        sock.setblocking(False)
        self._add_link(_ZYGOTE, Connection(sock))
        self._thread = threading.Thread(target=self._loop, name="nanoray", daemon=True)
        self._thread.start()

    def on_free(self, free: Callable[[int, int], None]) -> None:
        """Set who takes back the driver's own blocks."""
        self._free = free

    # -- Link ----------------------------------------------------------------------------------

    def post(self, *messages: Message, fd: int | None = None) -> None:
        """Hand messages to the node."""
        with self._lock:
            self._check_running()
            self._take_holds()
            for message in messages:
                copy = None if fd is None else os.dup(fd)
                self.node.handle(DRIVER, message, fd=copy)
            self._settle()
        self._free_blocks()

    def ask(self, verb: str, *fields: Any, timeout_s: float | None = None) -> Answer | None:
        """Ask the node and wait for its answer."""
        question = _Question()
        with self._lock:
            self._check_running()
            self._num_asked += 1
            req = self._num_asked
            self._questions[req] = question
            self._take_holds()
            self.node.handle(DRIVER, (verb, req, *fields))
            self._settle()
        try:
            is_short = timeout_s is not None and timeout_s <= _PATIENCE_S
            if is_short or verb != "get":
                question.wait(timeout_s)
            elif not question.wait(_PATIENCE_S):
                self._log_wait(fields[0])
                question.wait(None if timeout_s is None else timeout_s - _PATIENCE_S)
        finally:
            if question.payload is None:  # out of time, or interrupted by Ctrl-C
                with self._lock:
                    self._questions.pop(req, None)
                    self.node.handle(DRIVER, ("cancel", req))
        return question.payload

    def later(self, verb: str, *fields: Any, then: Callable[[Answer | None], None]) -> int:
        """Ask the node; ``next_late`` hands out the call of ``then``."""
        with self._lock:
            self._check_running()
            self._num_asked += 1
            req = self._num_asked
            self._later[req] = then
            self._take_holds()
            self.node.handle(DRIVER, (verb, req, *fields))
            self._settle()
        return req

    def forget(self, req: int) -> None:
        """Give a late question up."""
        with self._lock:
            then = self._later.pop(req, None)
            if then is not None:
                self.node.handle(DRIVER, ("cancel", req))
                self._thunks.put(partial(then, None))

    def next_late(self) -> Callable[[], None]:
        """Wait for the next late answer; return what is to be done about it."""
        return self._thunks.get()

    def close(self) -> None:
        """End every process and fail every thread that still waits."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            self.node.break_down("the engine was shut down while this was waiting")
            self._links[_ZYGOTE].queue(("stop",))
            self._links[_ZYGOTE].flush()
        self._thread.join()
        end(self._zygote)
        for link in self._links.values():
            link.close()
        self._epoll.close()
        self.node.arenas.close_all()

    # -- Rim -----------------------------------------------------------------------------------

    def fork(self, worker: int, setup: dict[str, Any]) -> None:
        """Ask the zygote for a process and queue its first message."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._add_link(worker, Connection(ours))
        self._links[_ZYGOTE].queue(("fork", worker), fd=theirs.detach(), close_fd=True)
        self._dirty.add(_ZYGOTE)
        setup = {
            **setup,
            "totals": self._totals,
            "path": [entry for entry in sys.path if isinstance(entry, str)],
        }
        self.send(worker, ("setup", setup))

    def kill(self, worker: int) -> None:
        """Have the zygote kill a process."""
        self._links[_ZYGOTE].queue(("kill", worker))
        self._dirty.add(_ZYGOTE)

    def send(self, process: int, message: Message, *, fd: int | None = None) -> None:
        """Queue a message for a worker, or do what it says when it is for the driver."""
        if process != DRIVER:
            if process in self._links:
                self._links[process].queue(message, fd=fd)
                self._dirty.add(process)
        elif message[0] == "arena":
            assert fd is not None, "an arena comes with its file"
            self._reader.adopt(message[1], message[2], fd)
        elif message[0] == "forget":
            self._reader.forget(message[1])
        else:
            self._to_free.append((message[1], message[2]))

    def answer(self, req: int, payload: Answer) -> None:
        """Wake the driver thread that asked, or the one that delivers late answers."""
        question = self._questions.pop(req, None)
        if question is not None:
            question.resolve(payload)
        elif req in self._later:
            self._thunks.put(partial(self._later.pop(req), payload))

    def close_arena(self, arena_id: int) -> None:
        """Forget an arena in the driver too."""
        self._reader.forget(arena_id)

    # -- I/O thread ----------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._is_over:
            events = self._epoll.poll(_IDLE_POLL_S)
            with self._lock:
                if self._is_over:
                    return
                for fd, event in events:
                    if fd in self._by_fd:  # else an event before this one has closed it
                        self._serve(self._by_fd[fd], event)
                self._take_holds()
                self._settle()
            self._free_blocks()

    def _serve(self, process: int, event: int) -> None:
        """Do what one socket's readiness asks for."""
        link = self._links[process]
        if event & select.EPOLLOUT:
            self._dirty.add(process)
        if not event & ~select.EPOLLOUT:
            return
        try:
            messages = link.receive()
        except EOFError:
            self._hung_up(process)
            return
        for message in messages:
            self._handle(process, link, message)

    def _handle(self, process: int, link: Connection, message: Message) -> None:
        if process == _ZYGOTE:
            self._worker_exited(message[1], message[2])
        else:
            fd = link.take_fd() if message[0] == "arena" else None
            self.node.handle(process, message, fd=fd)

    def _hung_up(self, process: int) -> None:
        """The other end is closed: its process is gone, or soon will be."""
        self._forget_fd(process)
        if process != _ZYGOTE:
            self.kill(process)  # the zygote reports the exit, which ends it here
            return
        code = self._zygote.wait()
        reason = describe_exit(code << 8 if code >= 0 else -code)
        self.node.break_down(
            f"the engine's process server {reason}; see its traceback above, then shutdown() and "
            f"init() again"
        )

    def _worker_exited(self, worker: int, status: int) -> None:
        link = self._links[worker]
        for message in link.drain():
            self._handle(worker, link, message)
        self._forget_fd(worker)
        del self._links[worker]
        self._dirty.discard(worker)
        link.close()
        self.node.worker_exited(worker, status)

    # -- plumbing ------------------------------------------------------------------------------

    def _check_running(self) -> None:
        if self._is_over:
            raise EngineError("the engine was shut down; call init() again")

    def _log_wait(self, ids: list[int]) -> None:
        with self._lock:
            reasons = self.node.supervisor.describe_pending(set(ids))
        shown = "; ".join(reasons[:5]) + (" ..." if len(reasons) > 5 else "")
        log.warning("get has waited %g s for %d calls: %s", _PATIENCE_S, len(reasons), shown)

    def _take_holds(self) -> None:
        if self._holds:
            self.node.handle(DRIVER, ("holds", self._holds.take()))

    def _settle(self) -> None:
        self.node.settle()
        for process in self._dirty:
            link = self._links[process]
            is_stuck = not link.flush()
            if is_stuck != (process in self._stuck) and link.fileno() in self._by_fd:
                self._stuck ^= {process}
                out = select.EPOLLOUT if is_stuck else 0
                self._epoll.modify(link.fileno(), select.EPOLLIN | out)
        self._dirty.clear()

    def _free_blocks(self) -> None:
        """Free the driver's own dead blocks, without the lock: the store may call back."""
        if not self._to_free:
            return
        with contextlib.suppress(IndexError):  # another thread may take the last one
            while True:
                self._free(*self._to_free.popleft())

    def _add_link(self, process: int, link: Connection) -> None:
        self._links[process] = link
        self._by_fd[link.fileno()] = process
        self._epoll.register(link.fileno(), select.EPOLLIN)

    def _forget_fd(self, process: int) -> None:
        fd = self._links[process].fileno()
        if self._by_fd.pop(fd, None) is not None:
            self._epoll.unregister(fd)
        self._stuck.discard(process)
