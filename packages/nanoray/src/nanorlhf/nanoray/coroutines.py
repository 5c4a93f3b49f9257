"""An actor with an event loop: its ``async def`` methods take turns at every ``await``.

The loop watches the socket itself, so a call goes from the engine to its coroutine without a
change of threads, and so do the answers that ``await ref`` waits for.
"""

import asyncio
from collections import deque
from functools import partial
from typing import NoReturn

from .client import Client
from .interrupts import Interrupts
from .link import WorkerLink
from .messages import Run
from .performer import Performer


class LoopActor:
    """The actor of this process, in an event loop in its main thread.

    Args:
        link: The way to the engine.
        client: This process's client, whose futures the loop delivers from now on.
        performer: Runs each call, the constructor first.
        interrupts: Which calls are cancelled.
        max_concurrency: Calls under way at a time; the others wait in the order they came.
    """

    def __init__(
        self,
        link: WorkerLink,
        client: Client,
        performer: Performer,
        interrupts: Interrupts,
        *,
        max_concurrency: int,
    ) -> None:
        self._link, self._performer, self._interrupts = link, performer, interrupts
        self._futures = client.futures
        self._max_concurrency = max_concurrency
        self._waiting: deque[Run] = deque()
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def serve(self) -> NoReturn:
        """Run calls until the engine says, or is gone."""
        asyncio.run(self._serve())
        raise AssertionError("the loop runs until the process ends")

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        self._futures.is_led = True

        def on_arrival() -> None:
            loop.call_soon_threadsafe(self._go_on)

        fd = self._link.lead(on_arrival)
        self._interrupts.on_cancel = on_arrival
        loop.add_reader(fd, self._read)
        loop.add_reader(self._interrupts.fd, self._interrupts.take)
        self._go_on()
        await loop.create_future()

    def _read(self) -> None:
        self._link.read_now()
        self._go_on()

    def _go_on(self) -> None:
        """Do what the messages that are here ask for."""
        for deliver in self._link.take_late():
            deliver()
        for call_id in self._interrupts.cancelled & self._tasks.keys():
            if not self._tasks[call_id].cancelling():
                self._tasks[call_id].cancel()
        self._waiting.extend(self._link.take_runs())
        if self._interrupts.cancelled:
            self._drop_cancelled()
        self._start()

    def _drop_cancelled(self) -> None:
        """Answer the calls that will not begin."""
        for run in [run for run in self._waiting if run.id in self._interrupts.cancelled]:
            self._waiting.remove(run)
            self._performer.report(run, asyncio.CancelledError())
            self._interrupts.cancelled.discard(run.id)

    def _start(self) -> None:
        while self._waiting and len(self._tasks) < self._room():
            run = self._waiting.popleft()
            task = asyncio.get_running_loop().create_task(self._performer.perform_async(run))
            self._tasks[run.id] = task
            task.add_done_callback(partial(self._finished, run))

    def _room(self) -> int:
        """Return how many calls may be under way: the constructor comes first, and alone."""
        return 1 if self._performer.actor is None else self._max_concurrency

    def _finished(self, run: Run, task: "asyncio.Task[None]") -> None:
        """Make room for the next call; the frames of this one are gone."""
        del self._tasks[run.id]
        if run.brief.kind == "new":
            self._link.warn_of_blocking()
        if task.cancelled():  # before its first step, so that it could not answer
            self._performer.report(run, asyncio.CancelledError())
        self._start()
        self._performer.flush()
