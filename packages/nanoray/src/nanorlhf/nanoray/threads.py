"""An actor with threads: ``max_concurrency`` calls at a time, begun in the order they came.

The main thread reads the calls and hands them out, so that a full house never stops messages.
"""

import _thread
from concurrent.futures import ThreadPoolExecutor

from .interrupts import Cancelled, Interrupts
from .messages import Run
from .performer import Performer


class ThreadedActor:
    """The threads that run this process's calls.

    Args:
        performer: Has the actor.
        interrupts: Which calls are cancelled; those that have begun go on.
        max_concurrency: The number of threads.
    """

    def __init__(self, performer: Performer, interrupts: Interrupts, max_concurrency: int) -> None:
        self._performer, self._interrupts = performer, interrupts
        self._pool = ThreadPoolExecutor(max_concurrency, thread_name_prefix="nanoray-call")
        self._waiting: dict[int, Run] = {}
        """Whoever takes a call out answers it."""
        interrupts.on_cancel = self._on_cancel

    def begin(self, run: Run) -> None:
        """Run a call when a thread is free."""
        self._waiting[run.id] = run
        self._pool.submit(self._perform, run.id)
        if self._interrupts.cancelled:  # the order may have overtaken the call
            self._drop_cancelled()
        if self._interrupts.cancelled:  # a signal may be faster than the call it is about
            self._drop_cancelled()

    def _perform(self, call_id: int) -> None:
        run = self._waiting.pop(call_id, None)
        if run is not None:
            self._performer.perform(run)
            del run  # and with it the arguments, before the engine hears what was dropped
            self._performer.flush()

    def _on_cancel(self) -> None:
        """Leave a signal handler, which may not wait for locks that the code under it has."""
        _thread.start_new_thread(self._drop_cancelled, ())

    def _drop_cancelled(self) -> None:
        """Answer the calls that will not begin."""
        for call_id in list(self._interrupts.cancelled):
            run = self._waiting.pop(call_id, None)
            if run is not None:
                self._performer.report(run, Cancelled())
                self._interrupts.cancelled.discard(call_id)
