"""Who reads a driver's sockets: the thread that waits for an answer, and else one of their own.

A thread that waits reads the sockets itself, and the I/O thread steps back: a call then costs no
switch between threads. Two threads that poll at once do no harm, so stepping back is a matter of
speed alone::

    nobody waits, or has for a while    the I/O thread polls
    a thread waits                      it polls; the I/O thread is parked
    calls follow each other closely     the I/O thread rests between two polls of the other

Before it sleeps, a thread that waits looks for the answer for a moment (``spin.py``).
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from .lookout import Events, Lookout
from .waits import Answer

_IDLE_POLL_S = 0.1
"""How long the driver's dropped refs may go unnoticed when nothing else happens."""
_STEP_BACK_S = 0.005
"""So long after a driver thread has polled does the I/O thread leave the sockets alone."""


class Question:
    """A driver thread's wait for an answer."""

    __slots__ = ("_done", "payload", "poller")

    def __init__(self) -> None:
        self.payload: Answer | None = None
        self.poller = 0
        """The thread that polls until the answer is there."""
        self._done = threading.Lock()
        self._done.acquire()

    def resolve(self, payload: Answer) -> bool:
        """Give the answer; return whether the one who asked polls in another thread: wake it."""
        self.payload = payload
        self._done.release()
        return self.poller not in (0, threading.get_ident())

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until another thread has given the answer; return whether it is there."""
        return self._done.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s))


class Sockets(Protocol):
    """What the threads take turns at."""

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for an answer."""
        ...

    def poll(self, timeout_s: float) -> Events:
        """Wait so long for something to come; several threads may be in here."""
        ...

    def serve(self, events: Events) -> None:
        """Do what the messages say that have come."""
        ...

    def wake(self) -> None:
        """Make ``poll`` in other threads return."""
        ...

    def print(self) -> None:
        """Show what processes have printed; may block."""
        ...


class Turns:
    """The I/O thread, and when it steps back.

    Args:
        sockets: What is read.
    """

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._lookout = Lookout(sockets.poll, may_move=False)
        self._foreground = threading.Lock()
        """Held by the driver thread that polls."""
        self._num_polls = 0
        self._is_parked = self._is_over = False
        self._rest = threading.Lock()
        """Held but for a moment: whoever releases it rouses the I/O thread."""
        self._rest.acquire()
        self._thread = threading.Thread(target=self._loop, name="nanoray", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    @contextlib.contextmanager
    def stop(self) -> Iterator[None]:
        """End the I/O thread; nobody reads from within the ``with`` on."""
        self._is_over = True
        self._sockets.wake()
        self._rouse()
        if self._thread is not threading.current_thread():
            self._thread.join()
        with self._foreground:  # a driver thread that polls has heard of the end
            yield

    def wait(self, question: Question, timeout_s: float | None) -> bool:
        """Wait for an answer, and read the sockets meanwhile unless another thread does so."""
        if not self._foreground.acquire(blocking=False):
            return question.wait(timeout_s)
        question.poller = threading.get_ident()
        try:
            if question.payload is None and timeout_s != 0:
                self._sockets.serve(self._lookout.look())
            self._serve_until(question, timeout_s)
        finally:
            question.poller = 0
            self._step_back()
        return question.payload is not None

    def look(self) -> None:
        """Read once what is there, without waiting, unless another thread reads."""
        if self._foreground.acquire(blocking=False):
            try:
                if not self._is_over:
                    self._serve(0.0)
            finally:
                self._step_back()

    def print_soon(self) -> None:
        """There is something to print, and printing may block: the I/O thread does it."""
        if self._is_parked:
            self._rouse()

    def _loop(self) -> None:
        """Read whenever no driver thread does, nor has for a while."""
        num_polls = 0
        while not self._is_over:
            was_polled, num_polls = num_polls != self._num_polls, self._num_polls
            is_polled = self._foreground.locked()
            if was_polled and (is_polled or not self._sockets.is_awaited):
                self._rest.acquire(timeout=_STEP_BACK_S)  # calls follow each other: so will polls
            elif is_polled:
                self._is_parked = True
                self._rest.acquire(timeout=_IDLE_POLL_S)
                self._is_parked = False
            else:
                self._serve(_IDLE_POLL_S)
            self._sockets.print()

    def _rouse(self) -> None:
        """End the rest of the I/O thread, this one or the next."""
        with contextlib.suppress(RuntimeError):  # it has been roused already
            self._rest.release()

    def _step_back(self) -> None:
        """Leave the sockets to whoever polls next."""
        self._num_polls += 1
        self._foreground.release()
        if self._is_parked or self._sockets.is_awaited:
            self._rouse()

    def _serve_until(self, question: Question, timeout_s: float | None) -> None:
        if timeout_s is None:
            while question.payload is None:
                self._serve(_IDLE_POLL_S)
            return
        deadline = time.monotonic() + timeout_s
        while question.payload is None:
            left = deadline - time.monotonic()
            self._serve(max(0.0, min(_IDLE_POLL_S, left)))
            if left <= 0:
                return

    def _serve(self, timeout_s: float) -> None:
        self._sockets.serve(self._sockets.poll(timeout_s))
