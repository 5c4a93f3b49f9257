"""How an attached driver reaches its cluster: one socket, and one thread that reads it."""

import logging
import os
import socket
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
from .refs import HoldLog
from .value import error_value
from .views import Reader
from .waits import Answer, describe_wait
from .wire import Message

log = logging.getLogger(__name__)

_IDLE_POLL_S = 0.1
"""How long dropped refs may go unnoticed when nothing else happens."""
_PATIENCE_S = 10.0
"""After this long a ``get`` logs what it waits for."""
_GLANCE_S = 1.0
"""How long it waits for the engine to say what that is."""


class _Question:
    """A thread's wait for an answer."""

    def __init__(self) -> None:
        self.payload: Answer | None = None
        self._done = threading.Event()

    def resolve(self, payload: Answer) -> None:
        self.payload = payload
        self._done.set()

    def wait(self, timeout_s: float | None) -> bool:
        return self._done.wait(None if timeout_s is None else max(0.0, timeout_s))


class DriverLink:
    """The ``Link`` of an attached driver."""

    def __init__(
        self, connection: Connection, holds: HoldLog, reader: Reader, *, log_to_driver: bool
    ) -> None:
        self._connection, self._holds, self._reader = connection, holds, reader
        self._printer = Printer() if log_to_driver else None
        self._sending = Guard()
        self._state = threading.Lock()
        self._questions: dict[int, _Question] = {}
        self._later: dict[int, Callable[[Answer | None], None]] = {}
        self._thunks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._num_asked = 0
        self._end: Answer | None = None
        """What every question is answered with once the cluster is gone."""
        self._is_left = False
        self._take_back: Callable[[Message], None] = lambda message: None
        self._refuse: Callable[[Answer], None] = lambda answer: None
        self._thread = threading.Thread(target=self._read, name="nanoray", daemon=True)

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
        self._thread.start()

    def post(self, *messages: Message, fd: int | None = None) -> None:
        """Send messages, after the news of this process's refs."""
        if self._end is not None:
            raise EngineError("the cluster is gone, or this driver has left it; call init() again")
        self._send(messages, fd)

    def ask(self, verb: str, *fields: Any, timeout_s: float | None = None) -> Answer | None:
        """Send a question and wait for its answer; a long ``get`` logs what it waits for."""
        question = _Question()
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
                question.wait(timeout_s)
            elif not question.wait(_PATIENCE_S):
                began_s = time.monotonic() - _PATIENCE_S
                self._log_wait(fields[0])
                left_s = None if timeout_s is None else began_s + timeout_s - time.monotonic()
                question.wait(left_s)
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
        self._connection.sock.shutdown(socket.SHUT_RDWR)
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._connection.close()
        self._sending.restore()
        if self._printer is not None:
            self._printer.print(now_s=float("inf"))

    def _withdraw(self, req: int, question: _Question) -> None:
        """Take a question back, unless its answer has come: then that is there."""
        with self._state:
            is_open = self._questions.pop(req, None) is not None
        if is_open:
            self._send([("cancel", req)], None)
        else:
            question.wait(None)  # the thread that reads hands it over

    def _log_wait(self, ids: list[int]) -> None:
        answer = self.ask("pending", ids, timeout_s=_GLANCE_S)
        if answer is not None and answer[0] == "plain":
            log.warning("get has waited %g s for %s", _PATIENCE_S, describe_wait(answer[1]))

    def _send(self, messages: "list[Message] | tuple[Message, ...]", fd: int | None) -> None:
        with self._sending:
            changes = self._holds.take()
            if changes:
                self._connection.queue(("holds", changes))
            for message in messages:
                self._connection.queue(message, fds=() if fd is None else (os.dup(fd),))
            self._connection.flush()

    def _read(self) -> None:
        try:
            while True:
                for message in self._connection.receive(_IDLE_POLL_S):
                    self._take(message)
                if self._holds:
                    self._send([], None)
                if self._printer is not None:
                    self._printer.print(now_s=time.monotonic())
        except EOFError:
            self._fail("the cluster's daemon on this machine hung up; call shutdown() and init()")

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

    def _resolve(self, req: int, payload: Answer) -> None:
        with self._state:
            question = self._questions.pop(req, None)
            then = self._later.pop(req, None)
        if question is not None:
            question.resolve(payload)
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
