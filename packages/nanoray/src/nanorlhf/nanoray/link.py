"""How a worker process reaches its engine: one socket, shared by all its threads.

Whoever waits first reads for all: there is no reader thread to hand over to, which would cost a
call two switches of threads.
"""

import contextlib
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from .connection import Connection
from .interrupts import Interrupts
from .messages import Run
from .refs import HoldLog
from .store import Reader
from .waits import Answer
from .wire import Message

T = TypeVar("T")


class WorkerLink:
    """The socket to the engine, shared by all threads of the process."""

    def __init__(
        self, connection: Connection, holds: HoldLog, reader: Reader, interrupts: Interrupts
    ) -> None:
        self._connection, self._holds, self._reader = connection, holds, reader
        self._interrupts = interrupts
        self._either = select.poll()
        """Messages, or calls that are cancelled."""
        for file in (connection.fileno(), interrupts.fd):
            self._either.register(file, select.POLLIN)
        self._sending = threading.Lock()
        self._state = threading.Condition()
        self._is_reading = False
        self._inbox: deque[Run] = deque()
        self._replies: dict[int, Answer] = {}
        self._asked: set[int] = set()
        self._num_asked = 0
        self.codes: dict[bytes, bytes] = {}
        self.take_back: Callable[[Message], None] = lambda message: None
        """Does what a message says about this process's own memory."""
        self.refuse: Callable[[Answer], None] = lambda answer: None
        """Gives back what came with an answer nobody waits for."""

    def post(self, *messages: Message, fd: int | None = None) -> None:
        """Send messages, after the news of this process's refs."""
        with self._sending:
            if self._holds:
                self._connection.queue(("holds", self._holds.take()))
            for message in messages:
                self._connection.queue(message, fd=fd)
            self._connection.flush()

    def ask(self, verb: str, *fields: Any, timeout_s: float | None = None) -> Answer | None:
        """Send a question and read until its answer comes."""
        with self._state:
            self._num_asked += 1
            req = self._num_asked
            self._asked.add(req)
        self.post((verb, req, *fields))
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        answer = None
        try:
            answer = self._read_until(lambda: self._replies.pop(req, None), deadline)
        finally:
            if answer is None:  # out of time, or cancelled
                self._give_up(req)
        return answer

    def _give_up(self, req: int) -> None:
        """Do not wait for an answer any more; it may be here, or on its way."""
        with self._state:
            self._asked.discard(req)
            late = self._replies.pop(req, None)
        self.post(("cancel", req))
        if late is not None:
            self.refuse(late)

    def next_run(self) -> Run:
        """Return the next call, when it comes."""
        run = self._read_until(lambda: self._inbox.popleft() if self._inbox else None, None)
        assert run is not None, "without a deadline there is always a next call"
        return run

    def take_all(self, messages: list[Message]) -> None:
        """Take messages that somebody else has read."""
        with self._state:
            for message in messages:
                self._take(message)

    def close(self) -> None:
        """Do nothing: a worker ends with its engine."""

    def _read_until(self, take: Callable[[], T | None], deadline: float | None) -> T | None:
        """Return what ``take`` finds, reading messages (or waiting for who reads) until then."""
        with self._state:
            while True:
                found = take()
                left = None if deadline is None else deadline - time.monotonic()
                if found is not None or (left is not None and left <= 0):
                    return found
                if self._is_reading:
                    self._state.wait(left)
                else:
                    self._read(left)
                self._interrupts.check()

    def _read(self, timeout_s: float | None) -> None:
        """Read once for everybody, without the lock."""
        self._is_reading = True
        self._state.release()
        messages: list[Message] = []
        try:
            messages = self._receive(timeout_s)
        except EOFError:
            leave()
        finally:
            self._state.acquire()
            self._is_reading = False
            for message in messages:
                self._take(message)
            self._state.notify_all()

    def _receive(self, timeout_s: float | None) -> list[Message]:
        """Return the messages of one read; none when a call is cancelled meanwhile."""
        if not self._interrupts.running:
            return self._connection.receive(timeout_s)
        ready = dict(self._either.poll(None if timeout_s is None else timeout_s * 1000))
        if self._interrupts.fd in ready:
            self._interrupts.take()
        return self._connection.receive() if self._connection.fileno() in ready else []

    def _take(self, message: Message) -> None:
        verb, *fields = message
        if verb == "run":
            self._inbox.append(Run(*fields))
        elif verb == "reply":
            if fields[0] in self._asked:
                self._asked.discard(fields[0])
                self._replies[fields[0]] = fields[1]
            else:
                self.refuse(fields[1])
        elif verb == "code":
            self.codes[fields[0]] = fields[1]
        elif verb == "arena":
            fd = self._connection.take_fd()
            self._reader.adopt(fields[0], fields[1], fd)
            os.close(fd)
        elif verb == "forget":
            self._reader.forget(fields[0])
        elif verb in ("free", "trim"):
            self.take_back(message)
        else:
            assert verb == "exit", f"unknown message {verb!r}"
            leave()


def leave() -> None:
    """End this process at once: its engine is gone or has let it go."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)
