"""The engine in the driver: one lock around the node, one thread that reads every socket.

::

    driver threads --+                    +-- worker 1
                     +-- lock -- Node ----+-- worker 2     each over a socket pair
    I/O thread ------+                    +-- zygote       forks, kills and reaps the workers

A driver thread hands its message to the node itself and writes to the worker's socket. While it
waits for an answer it also reads the sockets itself (see ``turns.py``).

The file is long because who asks, who reads and what the node has done all meet in this one lock.
"""

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

from .errors import EngineError
from .guard import Guard
from .hub import Hub, describe_machine
from .logs import Printer
from .lookout import Events
from .messages import DRIVER
from .node import Node
from .policies import Policy
from .refs import HoldLog
from .resources import Pool
from .turns import Question, Turns
from .value import Block
from .views import Reader
from .waits import Answer, describe_wait
from .wire import Message

log = logging.getLogger(__name__)

_BURST = 32
"""After so many messages a driver thread that sends and does not wait looks what has come."""
_PATIENCE_S = 10.0
"""After this long a ``get`` logs what it waits for."""


class Engine:
    """The driver's ``Link`` and ``Sockets``, its node's ``Rim`` and its machine's ``Owner``.

    Args:
        pool: The node's resources.
        holds: The driver's hold log.
        reader: The driver's reader.
        preload: Modules the zygote imports.
        store_bytes: Shared memory that values may take; None for a part of what there is.
        spill_directory: Where values go that are not used and have no room; None to choose.
        log_to_driver: Whether to show what workers print.
        isolate_gpus: Whether calls without GPUs see none.
        policy: Which machine calls go to, and in which order they start.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        holds: HoldLog,
        reader: Reader,
        preload: list[str],
        store_bytes: int | None,
        spill_directory: str | None,
        log_to_driver: bool,
        isolate_gpus: bool,
        policy: Policy,
    ) -> None:
        self._lock = Guard()
        self._holds, self._reader = holds, reader
        self._totals = dict(pool.totals)
        self._take_back: Callable[[Message], None] = lambda message: None
        self._to_take: deque[Message] = deque()
        self._questions: dict[int, Question] = {}
        self._turns = Turns(self)
        self._num_posts = 0
        self._later: dict[int, Callable[[Answer | None], None]] = {}
        self._thunks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        """What is to be done about late answers, outside the lock."""
        self._num_asked = 0
        self._is_over = False
        self._printer = Printer() if log_to_driver else None
        cpus = self._totals.get("CPU", 0) // 10_000
        about = describe_machine(pool, store_bytes=store_bytes, directory=spill_directory)
        self.node = Node(
            pool,
            self,
            max_idle=max(1, cpus),
            about=about,
            isolate_gpus=isolate_gpus,
            policy=policy,
        )
        self._hub = Hub(self, preload)
        self._turns.start()

    def on_take_back(self, take_back: Callable[[Message], None]) -> None:
        """Set who does what messages say about the driver's own memory."""
        self._take_back = take_back

    # -- Link ----------------------------------------------------------------------------------

    def post(self, *messages: Message, fd: int | None = None) -> None:
        """Hand messages to the node, after the refs that were gained.

        Those that were dropped come last, when the worker may have begun: an object lives for a
        moment longer, and the call does not wait for it to end.
        """
        with self._lock:
            self._check_running()
            if self._holds.has_gained:
                self._take_holds()
            for message in messages:
                if fd is not None:
                    self._hub.add_arena(message[1], os.dup(fd))
                self.node.handle(DRIVER, message)
            self.node.settle()
            self._hub.flush(urgent_only=True)
            if self._holds:
                self._take_holds()
                self.node.settle()
                self._hub.flush(urgent_only=True)
        if self._to_take:
            self._take_back_memory()
        self._num_posts += 1
        if not self._num_posts % _BURST:
            self._turns.look()

    def ask(self, verb: str, *fields: Any, timeout_s: float | None = None) -> Answer | None:
        """Ask the node and wait for its answer."""
        question = Question()
        with self._lock:
            self._check_running()
            self._num_asked += 1
            req = self._num_asked
            self._questions[req] = question
            self._take_holds()
            self.node.handle(DRIVER, (verb, req, *fields))
            self._settle()
        if self._to_take:
            self._take_back_memory()
        if question.payload is not None:
            return question.payload
        try:
            is_short = timeout_s is not None and timeout_s <= _PATIENCE_S
            if is_short or verb != "get":
                self._turns.wait(question, timeout_s)
            elif not self._turns.wait(question, _PATIENCE_S):
                self._log_wait(fields[0])
                self._turns.wait(question, None if timeout_s is None else timeout_s - _PATIENCE_S)
        finally:
            if question.payload is None:  # out of time, or interrupted by Ctrl-C
                with self._lock:
                    self._questions.pop(req, None)
                    self.node.handle(DRIVER, ("cancel", req))
        return question.payload

    def later(self, verb: str, *fields: Any, then: Callable[[Answer | None], None]) -> int:
        """Ask the node; ``next_late`` hands out the call of ``then``."""
        with self._lock:
            self._check_running()
            self._num_asked += 1
            req = self._num_asked
            self._later[req] = then
            self._take_holds()
            self.node.handle(DRIVER, (verb, req, *fields))
            self._settle()
        return req

    def forget(self, req: int) -> None:
        """Give a late question up."""
        with self._lock:
            then = self._later.pop(req, None)
            if then is not None:
                self.node.handle(DRIVER, ("cancel", req))
                self._thunks.put(partial(then, None))

    def next_late(self) -> Callable[[], None]:
        """Wait for the next late answer; return what is to be done about it."""
        return self._thunks.get()

    def close(self) -> None:
        """End every process and fail every thread that still waits."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            self.node.break_down("the engine was shut down while this was waiting")
            self._hub.stop()
        with self._turns.stop():
            self._reader.close()
            self._hub.close()
        self._lock.restore()
        if self._printer is not None:
            self._printer.print(now_s=float("inf"))

    # -- Rim -----------------------------------------------------------------------------------

    def fork(self, worker: int, setup: dict[str, Any], *, machine: int) -> None:
        """Start a process."""
        del machine  # there is one
        self._hub.fork(worker, {**setup, "totals": [self._totals]})

    def kill(self, worker: int) -> None:
        """Kill a process."""
        self._hub.kill(worker)

    def offer(self, worker: int, tickets: Sequence[int]) -> None:
        """Let a process begin calls sent ahead."""
        self._hub.offer(worker, tickets)

    def recall(self, worker: int) -> list[int]:
        """Take back what a process has not begun."""
        return self._hub.recall(worker)

    def interrupt(self, worker: int, call_id: int) -> None:
        """Have a process end a call."""
        self._hub.interrupt(worker, call_id)

    def send(self, process: int, message: Message) -> None:
        """Queue a message for a worker, or do what it says when it is for the driver."""
        if process != DRIVER:
            self._hub.send(process, message)
        elif message[0] == "arena":
            fd = self._hub.open_arena(message[1])
            assert fd is not None, "an arena comes with its file"
            self._reader.adopt(message[1], message[2], fd)
            os.close(fd)
        elif message[0] == "forget":
            self._reader.forget(message[1])
        else:
            self._to_take.append(message)

    def answer(self, req: int, payload: Answer) -> None:
        """Wake the driver thread that asked, or the one that delivers late answers."""
        question = self._questions.pop(req, None)
        if question is not None:
            if question.resolve(payload):
                self._hub.wake()
        elif req in self._later:
            self._thunks.put(partial(self._later.pop(req), payload))

    def fetch(self, number: int, source: int, target: int, block: Block) -> None:
        """Nothing is ever on another machine."""
        raise AssertionError(f"fetch {number} of {block} from {source} to {target}")

    def tail(self, worker: int) -> list[str]:
        """Return the last lines that a process printed."""
        return self._hub.tail(worker)

    def close_arena(self, arena_id: int, machine: int) -> None:
        """Close the arena's file, and forget it in the driver too."""
        del machine
        self._reader.forget(arena_id)
        self._hub.close_arena(arena_id)

    # -- Owner ---------------------------------------------------------------------------------

    def heard(self, process: int, message: Message) -> None:
        """A worker said something."""
        self.node.handle(process, message)

    def exited(self, worker: int, status: int) -> None:
        """A worker is gone."""
        self.node.worker_exited(worker, status)

    def left(self, process: int) -> None:
        """Nobody is attached to a driver's own engine."""
        raise AssertionError(f"process {process} was never attached")

    def broke_down(self, reason: str) -> None:
        """The zygote is gone."""
        self.node.break_down(reason)

    def printed(self, worker: int, pid: int, stream: str, lines: list[str]) -> None:
        """Show what a worker printed under the name of what it does."""
        if self._printer is not None:
            source = f"({self.node.supervisor.label(worker)} pid={pid})"
            self._printer.add(source, stream, lines, now_s=time.monotonic())
            self._turns.print_soon()

    # -- Sockets -------------------------------------------------------------------------------

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._questions or self._later)

    def poll(self, timeout_s: float) -> Events:
        """Wait for something to happen."""
        return self._hub.poll(timeout_s)

    def serve(self, events: Events) -> None:
        """Do what events ask for."""
        with self._lock:
            if self._is_over:
                return
            self._hub.serve(events)
            self._take_holds()
            self._settle()
        if self._to_take:
            self._take_back_memory()

    def wake(self) -> None:
        """Make ``poll`` in other threads return."""
        self._hub.wake()

    def print(self) -> None:
        """Show what workers have printed."""
        if self._printer is not None:
            self._printer.print(now_s=time.monotonic())

    # -- plumbing ------------------------------------------------------------------------------

    def _check_running(self) -> None:
        if self._is_over:
            raise EngineError("the engine was shut down; call init() again")

    def _log_wait(self, ids: list[int]) -> None:
        with self._lock:
            reasons = self.node.supervisor.describe_pending(set(ids))
        log.warning("get has waited %g s for %s", _PATIENCE_S, describe_wait(reasons))

    def _take_holds(self) -> None:
        if self._holds and (news := self._holds.take()):
            self.node.handle(DRIVER, news)

    def _settle(self) -> None:
        self.node.settle()
        self._hub.flush()

    def _take_back_memory(self) -> None:
        """Take back the driver's own memory, without the lock: the store may call back."""
        with contextlib.suppress(IndexError):  # another thread may take the last one
            while True:
                self._take_back(self._to_take.popleft())
