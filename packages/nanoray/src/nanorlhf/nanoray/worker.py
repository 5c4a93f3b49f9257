"""A worker process: runs calls one at a time, in the order they arrive.

One thread does everything: it reads messages when it has nothing to run and while user code waits
in ``get``.
"""

import faulthandler
import os
import signal
import socket
import sys
import traceback
from types import TracebackType
from typing import Any

from . import interrupts
from .backend import Context
from .client import Client
from .connection import Connection
from .errors import TaskCancelledError, task_error
from .interrupts import Cancelled, Interrupts
from .link import WorkerLink
from .messages import Run, Slot
from .refs import HoldLog, UserValue
from .session import set_current
from .store import Reader
from .value import Value, error_value, pickled
from .wire import Message

_FILES = (__file__, interrupts.__file__)


class Worker:
    """Runs tasks, or is one actor."""

    def __init__(
        self, link: WorkerLink, client: Client, reader: Reader, interrupts: Interrupts
    ) -> None:
        self._link, self._client, self._reader = link, client, reader
        self._interrupts = interrupts
        self._current = 0
        client.parent = lambda: self._current
        self._codes: dict[bytes, Any] = {}
        self._actor: Any = None

    def serve(self) -> None:
        """Run calls until the engine says, or is gone."""
        while True:
            run = self._link.next_run()
            self._answer(run)
            # The frames of the call are gone: what it dropped is freed before the next one waits.
            del run
            if self._client.holds:
                self._link.post()

    def _answer(self, run: Run) -> None:
        """Run one call and send what became of it."""
        self._current = run.id
        try:
            self._check_wanted(run)
            value = self._call(run)
            results = self._results(run, value)
        except BaseException as error:  # noqa: BLE001  a process boundary: all errors travel
            self._report(run, error)
        else:
            # The value is alive until its message is out: the refs inside are held without a gap.
            self._link.post(("done", run.id, results, None))
        self._interrupts.cancelled.discard(run.id)

    def _check_wanted(self, run: Run) -> None:
        if run.id in self._interrupts.cancelled:
            raise Cancelled

    def _results(self, run: Run, value: UserValue) -> list[tuple[tuple[Any, ...], tuple[int, ...]]]:
        if run.kind == "new":
            self._actor = value
            return []
        values = [value] if len(run.returns) == 1 else self._several(run, value)
        results = []
        for item in values:
            cut = pickled(item)
            results.append((tuple(self._client.writer.write(cut)), cut.held))
        return results

    def _call(self, run: Run) -> UserValue:
        args, kwargs = self._arguments(run)
        if run.kind == "method":
            return getattr(self._actor, run.method)(*args, **kwargs)
        code = self._code(run.code)
        if run.kind == "new":
            return code(*args, **kwargs)
        return self._interrupts.run(run.id, code, args, kwargs)

    def _arguments(self, run: Run) -> tuple[list[Any], dict[str, Any]]:
        if run.args is None:
            return [], {}
        args, kwargs = self._reader.load(run.args_id, Value(*run.args))
        if not run.deps:
            return args, kwargs
        values = [self._reader.load(object_id, Value(*raw)) for object_id, raw in run.deps]

        def fill(value: UserValue) -> UserValue:
            return values[value.number] if type(value) is Slot else value

        return [fill(value) for value in args], {key: fill(v) for key, v in kwargs.items()}

    def _code(self, code_id: bytes) -> UserValue:
        if code_id not in self._codes:
            blob = self._link.codes.pop(code_id)
            self._codes[code_id] = self._reader.load(0, Value(blob, (), (), None))
        return self._codes[code_id]

    @staticmethod
    def _several(run: Run, value: UserValue) -> list[Any]:
        """Split the value of a call with no or several results."""
        if not run.returns:
            return []
        values = list(value)
        if len(values) != len(run.returns):
            raise ValueError(
                f"{run.name} returned {len(values)} values with num_returns={len(run.returns)}; "
                f"make the two equal"
            )
        return values

    def _report(self, run: Run, error: BaseException) -> None:
        """Send the error with the traceback of user code."""
        if run.id in self._interrupts.cancelled and run.kind != "new":
            cancelled = TaskCancelledError(f"{run.name} was cancelled")
            self._link.post(("done", run.id, [], tuple(error_value(cancelled))))
            return
        is_retried = False
        try:
            is_retried = self._is_retried(run, error)
        except Exception as broken:  # noqa: BLE001  its classes cannot be loaded: say so
            error = broken
        frames = _user_frames(error)
        text = "".join(traceback.format_exception(type(error), error, frames)).rstrip()
        if run.kind == "new":
            self._link.post(("failed", run.id, text))
            return
        where = f"{run.name} in process {os.getpid()}"
        value = tuple(error_value(task_error(where, text, error.with_traceback(None))))
        self._link.post(("retry", run.id, value) if is_retried else ("done", run.id, [], value))

    def _is_retried(self, run: Run, error: BaseException) -> bool:
        """Return whether the call asked to be run again after such an error."""
        if isinstance(run.retry_on, bool):
            return run.retry_on and isinstance(error, Exception)
        kinds = self._reader.load(0, Value(run.retry_on, (), (), None))
        return isinstance(error, kinds)


def main(sock: socket.socket, worker_id: int, interrupts_fd: int) -> None:
    """Be a worker; returns never."""
    orders = Interrupts(interrupts_fd)
    connection = Connection(sock)
    messages: list[Message] = []
    while not messages:
        messages = connection.receive()
    verb, setup = messages[0]
    assert verb == "setup", f"the first message is setup, not {verb!r}"
    _adopt_environment(setup)
    holds = HoldLog()
    reader = Reader(holds)
    link = WorkerLink(connection, holds, reader, orders)
    context = Context(
        is_driver=False,
        actor_id=setup["actor"] or None,
        name=setup["name"],
        gpu_ids=tuple(setup["gpu_ids"]),
    )
    client = Client(
        link,
        process=worker_id,
        holds=holds,
        reader=reader,
        totals=setup["totals"],
        context=context,
    )
    link.take_back, link.refuse = client.writer.take, client.allowance.refuse
    set_current(client)
    link.take_all(messages[1:])
    Worker(link, client, reader, orders).serve()


def _adopt_environment(setup: dict[str, Any]) -> None:
    """Become the process the engine asked for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    faulthandler.enable()
    os.environ.update(setup["env"])
    sys.path[:] = setup["path"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()  # forks of one zygote would otherwise all draw the same numbers


def _user_frames(error: BaseException) -> TracebackType | None:
    """Return the traceback without the frames that lead to user code."""
    frames = error.__traceback__
    inside = frames
    while inside is not None and inside.tb_frame.f_code.co_filename in _FILES:
        inside = inside.tb_next
    return inside or frames
