"""How a call that runs is cancelled: a signal that hits this call and never the next.

The zygote writes the call's id into a pipe and then sends SIGUSR1. The handler, which Python runs
in the main thread between two instructions, reads the pipe and raises ``Cancelled`` if that very
call is what the main thread runs now::

    run(call 7)                    <- only below this frame anything is raised
      user code                    <- here: raise
        nanoray.get()              <- here not, or a message or a lock would be lost half-way;
          poll(socket, pipe)          the wait below ends by itself, else the handler looks again

A signal that comes just before a wait does not end it, and Python runs the handler when it is over.
So who waits for messages where a call may be cancelled waits for the pipe, too.
"""

import _thread
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from .refs import UserValue

_PACKAGE = str(Path(__file__).parent) + os.sep
_ID = struct.Struct("<Q")
_CHUNK = 512 * _ID.size
_AGAIN_S = 0.01


class Cancelled(KeyboardInterrupt):
    """What ``cancel()`` raises in a task's code; as Ctrl-C, ``except Exception`` lets it pass."""


class Interrupts:
    """Which calls of this process are cancelled. Made in the main thread.

    Args:
        fd: The end to read of the pipe of ids; it does not block.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.cancelled: set[int] = set()
        """Calls that are to end without a result; whoever ends one takes it out."""
        self.on_cancel: Callable[[], None] | None = None
        """Called after some have come in, in any thread and between any two instructions; None
        where no other calls wait while one runs."""
        self.running = 0
        """The call that may be interrupted now; 0 for none."""
        self._struck = 0
        self._main = threading.get_ident()
        signal.signal(signal.SIGUSR1, self._on_signal)
        self.take()  # what came before the handler was there

    def run(
        self,
        call_id: int,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> UserValue:
        """Return ``function(*args, **kwargs)``; ``Cancelled`` may be raised at any point in it."""
        try:
            self.running = call_id
            self.check()
            return function(*args, **kwargs)
        finally:
            self.running = 0

    @property
    def end_waits(self) -> bool:
        """Whether a wait for messages is to end when a call is cancelled."""
        return bool(self.running) or self.on_cancel is not None

    def take(self) -> None:
        """Read the pipe, and tell of what was in it."""
        try:
            data = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return
        self.cancelled.update(call_id for (call_id,) in _ID.iter_unpack(data))
        if self.on_cancel is not None:
            self.on_cancel()

    def check(self) -> None:
        """Raise in the thread whose call is cancelled, the first time only.

        Raises:
            Cancelled: The call that runs in the calling thread has been cancelled.
        """
        if self.running in self.cancelled and self._main == threading.get_ident():
            if self._struck == self.running:
                return
            self._struck = self.running
            raise Cancelled

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        where = _where(frame)
        if where == "ours":
            _thread.start_new_thread(self._look_again, ())
            return
        self.take()
        if where == "user":
            self.check()

    def _look_again(self) -> None:
        """Let the package's own code return first."""
        time.sleep(_AGAIN_S)
        signal.pthread_kill(self._main, signal.SIGUSR1)


def encoded(call_id: int) -> bytes:
    """Return what is written into the pipe to cancel a call."""
    return _ID.pack(call_id)


def _where(frame: FrameType | None) -> str:
    """Return whose code a signal met: "user" or "ours" below ``run``, else "outside"."""
    where = "user"
    while frame is not None:
        if frame.f_code is Interrupts.run.__code__:
            return where
        if frame.f_code.co_filename.startswith(_PACKAGE):
            where = "ours"
        frame = frame.f_back
    return "outside"
