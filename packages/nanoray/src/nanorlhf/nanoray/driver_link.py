"""How an attached driver reaches its cluster: one socket, read by the thread that waits.

The threads take turns as in a driver with an engine of its own (``turns.py``). Calls are not held
back to leave in bursts: the daemon takes what has gathered in its socket with one read.
"""

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

from .connection import Connection
from .errors import EngineError
from .guard import Guard
from .logs import Printer
from .lookout import Events
from .refs import HoldLog
from .turns import Question, Turns
from .value import error_value
from .views import Reader
from .waits import Answer, describe_wait
from .wire import Message

log = logging.getLogger(__name__)

_PATIENCE_S = 10.0
"""After this long a ``get`` logs what it waits for."""
_GLANCE_S = 1.0
"""How long it waits for the engine to say what that is."""


class DriverLink:
    """The ``Link`` and the ``Sockets`` of an attached driver."""

    def __init__(
        self, connection: Connection, holds: HoldLog, reader: Reader, *, log_to_driver: bool
    ) -> None:
        self._connection, self._holds, self._reader = connection, holds, reader
        self._printer = Printer() if log_to_driver else None
        self._sending, self._reading = Guard(), Guard()
        self._epoll = select.epoll()
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for fd in (connection.fileno(), self._alarm):
            self._epoll.register(fd, select.EPOLLIN)
        self._state = threading.Lock()
        self._questions: dict[int, Question] = {}
        self._later: dict[int, Callable[[Answer | None], None]] = {}
        self._thunks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._num_asked = 0
        self._end: Answer | None = None
        """What every question is answered with once the cluster is gone."""
        self._is_left = False
        self._take_back: Callable[[Message], None] = lambda message: None
        self._refuse: Callable[[Answer], None] = lambda answer: None
        self._turns = Turns(self)

    def start(
        self,
        messages: list[Message],
        *,
        take_back: Callable[[Message], None],
        refuse: Callable[[Answer], None],
    ) -> None:
        """Begin to read.

        Args:
            messages: What has been read.
            take_back: Does what messages say about the driver's own memory.
            refuse: Gives back what came with an answer nobody waits for.
        """
        self._take_back, self._refuse = take_back, refuse
        for message in messages:
            self._take(message)
        self._turns.start()

    def post(self, *messages: Message, fd: int | None = None) -> None:
        """Send messages, after the news of this process's refs."""
        if self._end is not None:
            raise EngineError("the cluster is gone, or this driver has left it; call init() again")
        self._send(messages, fd)

    def ask(self, verb: str, *fields: Any, timeout_s: float | None = None) -> Answer | None:
        """Send a question and wait for its answer; a long ``get`` logs what it waits for."""
        question = Question()
        with self._state:
            self._num_asked += 1
            req = self._num_asked
            if self._end is not None:
                return self._end
            self._questions[req] = question
        try:
            self._send([(verb, req, *fields)], None)
            is_short = timeout_s is not None and timeout_s <= _PATIENCE_S
            if is_short or verb != "get":
                self._turns.wait(question, timeout_s)
            elif not self._turns.wait(question, _PATIENCE_S):
                began_s = time.monotonic() - _PATIENCE_S
                self._log_wait(fields[0])
                left_s = None if timeout_s is None else began_s + timeout_s - time.monotonic()
                self._turns.wait(question, left_s)
        except BaseException:  # Ctrl-C
            self._withdraw(req, question)
            if question.payload is not None:
                self._refuse(question.payload)
            raise
        if question.payload is None:
            self._withdraw(req, question)
        return question.payload

    def later(self, verb: str, *fields: Any, then: Callable[[Answer | None], None]) -> int:
        """Send a question; ``next_late`` hands out the call of ``then``."""
        with self._state:
            self._num_asked += 1
            req = self._num_asked
            if self._end is not None:
                self._thunks.put(partial(then, self._end))
                return req
            self._later[req] = then
        self._send([(verb, req, *fields)], None)
        return req

    def forget(self, req: int) -> None:
        """Give a late question up."""
        with self._state:
            then = self._later.pop(req, None)
        if then is not None:
            self._thunks.put(partial(then, None))
            self._send([("cancel", req)], None)

    def next_late(self) -> Callable[[], None]:
        """Wait for the next late answer; return what is to be done about it."""
        return self._thunks.get()

    def close(self) -> None:
        """Leave the cluster, which goes on."""
        self._is_left = True
        self._fail("this driver left the cluster while this was waiting")
        with self._turns.stop():
            self._connection.close()
            self._epoll.close()
            os.close(self._alarm)
        self._reading.restore()
        self._sending.restore()
        if self._printer is not None:
            self._printer.print(now_s=float("inf"))

    def _withdraw(self, req: int, question: Question) -> None:
        """Take a question back, unless its answer has come: then that is there."""
        with self._state:
            is_open = self._questions.pop(req, None) is not None
        if is_open:
            self._send([("cancel", req)], None)
        elif question.payload is None:
            question.wait(None)  # the thread that reads hands it over

    def _log_wait(self, ids: list[int]) -> None:
        answer = self.ask("pending", ids, timeout_s=_GLANCE_S)
        if answer is not None and answer[0] == "plain":
            log.warning("get has waited %g s for %s", _PATIENCE_S, describe_wait(answer[1]))

    def _send(self, messages: "list[Message] | tuple[Message, ...]", fd: int | None) -> None:
        with self._sending:
            if self._holds and (news := self._holds.take()):
                self._connection.queue(news)
            for message in messages:
                self._connection.queue(message, fds=() if fd is None else (os.dup(fd),))
            self._connection.flush()

    # -- Sockets -------------------------------------------------------------------------------

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._questions or self._later)

    def poll(self, timeout_s: float) -> Events:
        """Wait for something to come."""
        return self._epoll.poll(timeout_s)

    def serve(self, events: Events) -> None:
        """Do what the messages say that have come."""
        for fd, _ in events:
            if fd == self._alarm:
                with contextlib.suppress(BlockingIOError):  # another thread has heard it
                    os.eventfd_read(self._alarm)
            else:
                self._read()
        if self._holds:
            self._send([], None)

    def wake(self) -> None:
        """Make ``poll`` in other threads return."""
        os.eventfd_write(self._alarm, 1)

    def print(self) -> None:
        """Show what workers have printed."""
        if self._printer is not None:
            self._printer.print(now_s=time.monotonic())

    def _read(self) -> None:
        with self._reading:
            try:
                for message in self._connection.receive(0.0):
                    self._take(message)
            except EOFError:
                with contextlib.suppress(FileNotFoundError):  # another thread has found it out
                    self._epoll.unregister(self._connection.fileno())
                self._fail(
                    "the cluster's daemon on this machine hung up; call shutdown() and init()"
                )

    def _take(self, message: Message) -> None:
        verb, *fields = message
        if verb == "reply":
            self._resolve(fields[0], fields[1])
        elif verb == "arena":
            fd = self._connection.take_fd()
            self._reader.adopt(fields[0], fields[1], fd)
            os.close(fd)
        elif verb == "forget":
            self._reader.forget(fields[0])
        elif verb in ("free", "trim"):
            self._take_back(message)
        elif verb == "printed" and self._printer is not None:
            self._printer.add(fields[0], fields[1], fields[2], now_s=time.monotonic())
            self._turns.print_soon()

    def _resolve(self, req: int, payload: Answer) -> None:
        with self._state:
            question = self._questions.pop(req, None)
            then = self._later.pop(req, None)
        if question is not None:
            if question.resolve(payload):
                self.wake()
        elif then is not None:
            self._thunks.put(partial(then, payload))
        else:
            self._refuse(payload)

    def _fail(self, reason: str) -> None:
        """Answer every question, now and later, with an error."""
        with self._state:
            if self._end is None:
                self._end = ("error", tuple(error_value(EngineError(reason))))
            waiting = [*self._questions, *self._later]
        for req in waiting:
            self._resolve(req, self._end)
