"""A lock around the engine's tables that Ctrl-C does not break.

The driver's main thread changes the tables itself, and Python raises KeyboardInterrupt between any
two of its steps: a table left half changed would hang or lose calls. So an interrupt that comes
while the main thread is inside waits until it is out again.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class Guard:
    """A lock for ``with``; make it in the main thread to have Ctrl-C wait, too."""

    def __init__(self) -> None:
        # Only one that knows its owner tells the handler, without a gap, whether it hit the inside.
        self._lock = threading.RLock()
        self._acquire, self._release = self._lock.acquire, self._lock.release
        self._main = threading.main_thread().ident
        self._is_interrupted = False
        self._before: Callable[[int, FrameType | None], Any] | None = None
        before = signal.getsignal(signal.SIGINT)
        if callable(before) and threading.get_ident() == self._main:
            self._before = before
            signal.signal(signal.SIGINT, self._on_interrupt)

    def __enter__(self) -> None:
        self._acquire()

    def __exit__(self, *_: object) -> None:
        self._release()
        if self._is_interrupted and threading.get_ident() == self._main:
            self._is_interrupted = False
            self._on_interrupt(signal.SIGINT, None)

    def restore(self) -> None:
        """Give SIGINT back to whoever had it, unless somebody else has taken it since."""
        is_ours = signal.getsignal(signal.SIGINT) == self._on_interrupt
        if is_ours and threading.get_ident() == self._main:
            signal.signal(signal.SIGINT, self._before)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._lock._is_owned():  # type: ignore[attr-defined]  # as threading.Condition asks it
            self._is_interrupted = True
        elif self._before is not None:
            self._before(number, frame)
