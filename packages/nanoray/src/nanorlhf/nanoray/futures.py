"""Questions whose askers do not wait for the answer: each is a ``concurrent.futures.Future``.

One thread serves all of them, and it starts with the first: loading a value may run user code,
which must stop neither the engine's thread nor a thread that happens to read the socket. In an
actor with an event loop the loop delivers instead.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Protocol

from .refs import HoldLog
from .waits import Answer

Load = Callable[[Answer], Any]


class _LoopFuture(Future[Any]):
    """A future that the event loop of this process resolves, so that it may not wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self._loop_thread = threading.main_thread()

    def result(self, timeout: float | None = None) -> Any:  # noqa: ANN401  as in the base
        self._check_done()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._check_done()
        return super().exception(timeout)

    def _check_done(self) -> None:
        if not self.done() and threading.current_thread() is self._loop_thread:
            raise RuntimeError(
                "waiting for a future in an async actor would stop the loop that brings its "
                "result; await the ref, or asyncio.wrap_future(ref.future())"
            )


class LateLink(Protocol):
    """How a process asks without waiting."""

    def later(self, verb: str, *fields: Any, then: Callable[[Answer | None], None]) -> int:
        """Send a question; a thunk that calls ``then`` with the answer comes out of the link."""
        ...

    def forget(self, req: int) -> None:
        """Give a question up: ``then`` gets None, unless the answer was faster."""
        ...

    def next_late(self) -> Callable[[], None]:
        """Wait for the next thunk."""
        ...


class Futures:
    """The futures of one process.

    Args:
        link: The way to the engine.
        holds: Where this process counts its refs; a question holds what it asks for.
        refuse: Gives back what came with the answer of a future that was cancelled.
    """

    def __init__(self, link: LateLink, holds: HoldLog, *, refuse: Callable[[Answer], None]) -> None:
        self._link, self._holds, self._refuse = link, holds, refuse
        self._questions: SimpleQueue[bool] = SimpleQueue()
        """True for each question asked, False at the end."""
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self.is_led = False
        """Whether an event loop delivers, so that no thread is needed."""

    def ask(self, verb: str, *fields: Any, held: int, load: Load) -> "Future[Any]":
        """Return a future of ``load(answer)``; cancelling it takes the question back."""
        future: Future[Any] = _LoopFuture() if self.is_led else Future()
        self._holds.add(held)

        def arrived(answer: Answer | None) -> None:
            if future.set_running_or_notify_cancel():
                _settle(future, load, answer)
            elif answer is not None:
                self._refuse(answer)
            self._holds.drop(held)

        try:
            req = self._link.later(verb, *fields, then=arrived)
        except BaseException:
            self._holds.drop(held)
            raise
        future.add_done_callback(lambda done: self._link.forget(req) if done.cancelled() else None)
        if not self.is_led:
            self._start()
            self._questions.put(True)
        return future

    def close(self) -> None:
        """Deliver what is left and end; the link answers every question before."""
        with self._starting:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._questions.put(False)
            if thread is not threading.current_thread():
                thread.join()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._deliver, name="nanoray-futures", daemon=True
                )
                self._thread.start()

    def _deliver(self) -> None:
        while self._questions.get():
            # Not kept in a name: it would hold the value until the next question.
            self._link.next_late()()


def _settle(future: "Future[Any]", load: Load, answer: Answer | None) -> None:
    """Give a future what its answer says."""
    assert answer is not None, "only a cancelled question has no answer"
    try:
        value = load(answer)
    except BaseException as error:  # noqa: BLE001  whoever asks for the result gets it
        future.set_exception(error.with_traceback(None))  # its frames hold the future
    else:
        future.set_result(value)
