"""How a worker process reaches its engine: one socket, shared by all its threads.

Whoever waits first reads for all: there is no reader thread to hand over to, which would cost a
call two switches of threads. Only an actor with an event loop names one thread, the loop's, to
read for all.
"""

import contextlib
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from .connection import Connection
from .interrupts import Interrupts
from .lookout import Lookout
from .messages import Run
from .refs import HoldLog
from .specs import brief_of
from .views import Reader
from .waits import Answer
from .wire import Message

log = logging.getLogger(__name__)

T = TypeVar("T")

Thunk = Callable[[], None]
"""Something left to do, by whoever has the time."""


class Flow:
    """How far the items of one generator may run ahead of who takes them."""

    def __init__(self) -> None:
        self.num_taken = 0
        self.is_stopped = False
        """Nobody will take any more."""
        self.on_change: Thunk = lambda: None


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
        messages = select.poll()
        messages.register(connection.fileno(), select.POLLIN)
        self._lookout = Lookout(messages.poll, may_move=True)
        self._sending = threading.Lock()
        self._state = threading.Condition()
        self._is_reading = False
        self._num_waiting = 0
        """Threads that wait for the one that reads."""
        self._inbox: deque[Run] = deque()
        self._replies: dict[int, Answer] = {}
        self._asked: set[int] = set()
        self._num_asked = 0
        self._later: dict[int, Callable[[Answer | None], None]] = {}
        self._thunks: deque[Thunk] = deque()
        self._leader = 0
        """The thread that alone reads, if there is one."""
        self._on_arrival: Thunk = lambda: None
        self._may_warn = False
        self.flows: dict[int, Flow] = {}
        self.codes: dict[int, bytes] = {}
        self.loaded: dict[int, Any] = {}
        """Functions and classes made of ``codes``."""
        self.take_back: Callable[[Message], None] = lambda message: None
        """Does what a message says about this process's own memory."""
        self.refuse: Callable[[Answer], None] = lambda answer: None
        """Gives back what came with an answer nobody waits for."""

    def post(self, *messages: Message, fd: int | None = None) -> None:
        """Send messages, after the news of this process's refs."""
        with self._sending:
            if self._holds and (news := self._holds.take()):
                self._connection.queue(news)
            for message in messages:
                self._connection.queue(message, fds=() if fd is None else (os.dup(fd),))
            self._connection.flush()

    def ask(self, verb: str, *fields: Any, timeout_s: float | None = None) -> Answer | None:
        """Send a question and read until its answer comes."""
        if self._leader == threading.get_ident():
            self._note_blocking(verb)
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

    def later(self, verb: str, *fields: Any, then: Callable[[Answer | None], None]) -> int:
        """Send a question; ``next_late`` will hand out the call of ``then`` with the answer."""
        with self._state:
            self._num_asked += 1
            req = self._num_asked
            self._later[req] = then
        self.post((verb, req, *fields))
        return req

    def forget(self, req: int) -> None:
        """Give a late question up: ``then`` gets None, if it has not got its answer."""
        with self._state:
            if req not in self._later:
                return
            self._resolve(req, None)
            self._state.notify_all()
        self.post(("cancel", req))
        self._on_arrival()

    def next_late(self) -> Thunk:
        """Return what is to be done about the next late answer, when it comes."""
        thunk = self._read_until(lambda: self._thunks.popleft() if self._thunks else None, None)
        assert thunk is not None, "without a deadline there is always a next answer"
        return thunk

    def take_late(self) -> list[Thunk]:
        """Return what is to be done about the late answers that are here."""
        with self._state:
            thunks, self._thunks = list(self._thunks), deque()
        return thunks

    def next_run(self) -> Run:
        """Return the next call, when it comes; for the one thread that takes them."""
        if not self._inbox:
            self._read_until(self._has_run, None)
        return self._inbox.popleft()

    def look_out(self) -> None:
        """Wait for a moment, awake, for the next message to come; call after an answer."""
        if not self._inbox and not self._is_reading:
            self._lookout.look()

    def _has_run(self) -> bool | None:
        return bool(self._inbox) or None

    def take_runs(self) -> list[Run]:
        """Return the calls that are here."""
        with self._state:
            runs, self._inbox = list(self._inbox), deque()
        return runs

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return when messages have made the condition true."""
        self._read_until(lambda: condition() or None, None)

    def lead(self, on_arrival: Thunk) -> int:
        """Let this thread alone read from now on; return the file to watch.

        ``on_arrival`` is called, from any thread, when there is something for this one to do that
        ``read_now`` did not bring.
        """
        self._leader, self._on_arrival = threading.get_ident(), on_arrival
        return self._connection.fileno()

    def warn_of_blocking(self) -> None:
        """From now on the leader should not wait in ``ask``: log the first time it does."""
        self._may_warn = True

    def read_now(self) -> None:
        """Take what has arrived, if nobody else is about to."""
        with self._state:
            if not self._is_reading and self._leader in (0, threading.get_ident()):
                self._read(0.0)

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
                    break
                if self._is_reading or self._leader not in (0, threading.get_ident()):
                    self._num_waiting += 1
                    try:
                        self._state.wait(left)
                    finally:
                        self._num_waiting -= 1
                else:
                    self._read(left)
                self._interrupts.check()
        if self._leader:
            self._on_arrival()  # this wait may have read calls, too
        return found

    def _resolve(self, req: int, answer: Answer | None) -> None:
        """Leave the answer of a late question to whoever delivers them."""
        self._thunks.append(partial(self._later.pop(req), answer))

    def _note_blocking(self, verb: str) -> None:
        if self._may_warn and verb in ("get", "wait", "next"):
            self._may_warn = False
            log.warning(
                "a blocking %s() in an async actor stops all its calls until it returns; "
                "await the ref, or asyncio.gather(*refs), instead",
                verb,
            )

    def _read(self, timeout_s: float | None) -> None:
        """Read once for everybody, without the lock."""
        self._is_reading = True
        self._state.release()
        messages: list[Message] = []
        try:
            if self._holds:
                self.post()  # the wait may be long: nothing that was dropped lives until its end
            messages = self._receive(timeout_s)
        except EOFError:
            leave()
        finally:
            self._state.acquire()
            self._is_reading = False
            for message in messages:
                self._take(message)
            if self._num_waiting:
                self._state.notify_all()

    def _receive(self, timeout_s: float | None) -> list[Message]:
        """Return the messages of one read; none when a call is cancelled meanwhile."""
        if not self._interrupts.end_waits:
            return self._connection.receive(timeout_s)
        ready = dict(self._either.poll(None if timeout_s is None else timeout_s * 1000))
        if self._interrupts.fd in ready:
            self._interrupts.take()
        return self._connection.receive() if self._connection.fileno() in ready else []

    def _take(self, message: Message) -> None:
        verb = message[0]
        if verb in ("run", "then"):
            self._inbox.append(Run(brief_of(message[1]), *message[2:]))
            return
        fields = message[1:]
        if verb == "reply":
            if fields[0] in self._asked:
                self._asked.discard(fields[0])
                self._replies[fields[0]] = fields[1]
            elif fields[0] in self._later:
                self._resolve(fields[0], fields[1])
            else:
                self.refuse(fields[1])
        elif verb == "code":
            self.codes[fields[0]] = fields[1]
        elif verb == "uncode":
            self.codes.pop(fields[0], None)
            self.loaded.pop(fields[0], None)
        elif verb == "arena":
            fd = self._connection.take_fd()
            self._reader.adopt(fields[0], fields[1], fd)
            os.close(fd)
        elif verb == "forget":
            self._reader.forget(fields[0])
        elif verb in ("free", "trim"):
            self.take_back(message)
        elif verb in ("taken", "stopped"):
            self._move(fields[0], *fields[1:])
        else:
            assert verb == "exit", f"unknown message {verb!r}"
            leave()

    def _move(self, stream_id: int, num_taken: int | None = None) -> None:
        """The consumer of a generator of ours went on, or went away."""
        flow = self.flows.get(stream_id)
        if flow is not None:
            flow.is_stopped |= num_taken is None
            flow.num_taken = max(flow.num_taken, num_taken or 0)
            flow.on_change()


def leave() -> None:
    """End this process at once: its engine is gone or has let it go."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)
