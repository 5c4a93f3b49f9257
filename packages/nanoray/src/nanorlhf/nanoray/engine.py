"""The engine in the driver: one lock around the node, one thread that reads every socket.

::

    driver threads --+                    +-- worker 1
                     +-- lock -- Node ----+-- worker 2     each over a socket pair
    I/O thread ------+                    +-- zygote       forks, kills and reaps the workers

A driver thread hands its message to the node itself and writes to the worker's socket; only
answers pass through the I/O thread.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
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

_ZYGOTE = -1
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from nanorlhf.nanoray.zygote import main; main(int(sys.argv[1]))"
)
_IDLE_POLL_S = 0.1
"""How long the driver's dropped refs may go unnoticed when nothing else happens."""
_STOP_S = 5.0


class _Question:
    """A driver thread's wait for an answer."""

    def __init__(self) -> None:
        self.payload: Answer | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def resolve(self, payload: Answer) -> None:
        self.payload = payload
        self._done.release()

    def wait(self, timeout_s: float | None) -> None:
        self._done.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s))


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
        self._to_free: list[tuple[int, int]] = []
        self._questions: dict[int, _Question] = {}
        self._num_asked = 0
        self._links: dict[int, Connection] = {}
        self._dirty: set[int] = set()
        self._is_over = False
        self._epoll = select.epoll()
        cpus = self._totals.get("CPU", 0) // 10_000
        self.node = Node(pool, self, max_idle=max(1, cpus))
        self._zygote = self._start_zygote(preload)
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
            question.wait(timeout_s)
        finally:
            if question.payload is None:  # out of time, or interrupted by Ctrl-C
                with self._lock:
                    self._questions.pop(req, None)
                    self.node.handle(DRIVER, ("cancel", req))
        return question.payload

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
        self._end_zygote()
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
        setup = {**setup, "totals": self._totals, "path": sys.path[:]}
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
            # Later: the store's lock is taken before ours when it announces an arena.
            self._to_free.append((message[1], message[2]))

    def answer(self, req: int, payload: Answer) -> None:
        """Wake the driver thread that asked."""
        question = self._questions.pop(req, None)
        if question is not None:
            question.resolve(payload)

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
                    self._serve(self._by_fd[fd], event)
                self._take_holds()
                self._settle()
            self._free_blocks()
