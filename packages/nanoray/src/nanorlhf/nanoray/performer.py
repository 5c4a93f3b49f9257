"""Performs one call in this process: arguments in, results out.

How calls follow each other is decided elsewhere: one by one (``worker.py``), in threads
(``threads.py``) or in an event loop (``coroutines.py``).
"""

import inspect
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from .arguments import unpacked
from .client import Client
from .errors import TaskCancelledError, task_error, traceback_text
from .interrupts import Cancelled, Interrupts
from .link import WorkerLink
from .messages import RawValue, Run
from .outflow import Outflow
from .refs import UserValue
from .session import call_id
from .value import Value, error_value, pickled, small
from .views import Reader

_PACKAGE = str(Path(__file__).parent) + os.sep

Results = list[tuple[RawValue, tuple[int, ...]]]


class Performer:
    """The functions and the actor of this process, ready to be called."""

    def __init__(
        self, link: WorkerLink, client: Client, reader: Reader, interrupts: Interrupts
    ) -> None:
        self._link, self._client, self._reader = link, client, reader
        self._interrupts = interrupts
        self._outflow = Outflow(link, client, interrupts)
        self.actor: Any = None

    def perform(self, run: Run) -> None:
        """Run one call and send what became of it."""
        call_id.set(run.id)
        began_s = time.time()
        try:
            self._check_wanted(run)
            value = self._call(run)
            if run.brief.stream is not None:
                self._outflow.pour(run, value)
                value = None  # what the stream itself is, when it has ended
            results = self._results(run, value)
        except BaseException as error:  # noqa: BLE001  a process boundary: all errors travel
            self.report(run, error, began_s=began_s)
        else:
            # The value is alive until its message is out: the refs inside are held without a gap.
            self._link.post(("done", run.id, results, began_s, time.time() - began_s))
        self._interrupts.cancelled.discard(run.id)

    async def perform_async(self, run: Run) -> None:
        """Run one call of an actor with an event loop; a plain method runs in the loop, too."""
        call_id.set(run.id)
        began_s = time.time()
        try:
            self._check_wanted(run)
            value = self._call(run)
            if inspect.iscoroutine(value):  # not any awaitable: a method may return a ref
                value = await value
            if run.brief.stream is not None:
                await self._outflow.pour_async(run, value)
                value = None
            results = self._results(run, value)
        except BaseException as error:  # noqa: BLE001  a process boundary: all errors travel
            self.report(run, error, began_s=began_s)
        else:
            self._link.post(("done", run.id, results, began_s, time.time() - began_s))
        self._interrupts.cancelled.discard(run.id)

    def flush(self) -> None:
        """Tell the engine of the refs that are gone with the frames of a call."""
        if self._client.holds:
            self._link.post()

    def report(self, run: Run, error: BaseException, *, began_s: float | None = None) -> None:
        """Send the error with the traceback of user code; without ``began_s`` it never began."""
        if run.id in self._interrupts.cancelled and run.brief.kind != "new":
            cancelled = TaskCancelledError(f"{run.brief.name} was cancelled")
            self._link.post(("error", run.id, error_value(cancelled).raw, *_span(began_s)))
            return
        is_retried = False
        try:
            is_retried = self._is_retried(run, error)
        except Exception as broken:  # noqa: BLE001  its classes cannot be loaded: say so
            error = broken
        frames = _user_frames(error)
        text = traceback_text(error, frames)
        if run.brief.kind == "new":
            self._link.post(("failed", run.id, text, *_span(began_s)))
            return
        where = f"{run.brief.name} in process {os.getpid()}"
        value = error_value(task_error(where, text, error.with_traceback(None)))
        verb = "retry" if is_retried else "error"
        self._link.post((verb, run.id, value.raw, *_span(began_s)))

    def _is_retried(self, run: Run, error: BaseException) -> bool:
        """Return whether the call asked to be run again after such an error."""
        if isinstance(run.brief.retry_on, bool):
            return run.brief.retry_on and isinstance(error, Exception)
        kinds = self._reader.load(0, run.brief.retry_on)
        return isinstance(error, kinds)

    def _check_wanted(self, run: Run) -> None:
        if run.id in self._interrupts.cancelled:
            raise Cancelled

    def _results(self, run: Run, value: UserValue) -> Results:
        if run.brief.kind == "new":
            self.actor = value
            return []
        values = [value] if len(run.returns) == 1 else _several(run, value)
        plain = [small(item) for item in values]
        if None not in plain:
            return [(stream, ()) for stream in plain if stream is not None]
        cuts = [pickled(item) for item in values]
        results: Results = []
        try:
            for cut in cuts:
                results.append((self._client.writer.write(cut).raw, cut.held))
        except BaseException:  # the store is full, or the call was cancelled
            for raw, _ in results:
                self._client.writer.discard(Value.of(raw))
            raise
        return results

    def _call(self, run: Run) -> UserValue:
        args, kwargs = unpacked(run, self._reader) if run.args or run.deps else ((), {})
        if run.brief.kind == "method":
            return getattr(self.actor, run.brief.method)(*args, **kwargs)
        code = self._code(run.brief.code)
        if run.brief.kind == "new":
            return _construct(code, args, kwargs)
        return self._interrupts.run(run.id, code, args, kwargs)

    def _code(self, code_id: int) -> UserValue:
        loaded = self._link.loaded
        if code_id not in loaded:
            blob = self._link.codes.pop(code_id)
            loaded[code_id] = self._reader.load(0, blob)
        return loaded[code_id]


def _span(began_s: float | None) -> tuple[float, float]:
    now_s = time.time()
    return (now_s, 0.0) if began_s is None else (began_s, now_s - began_s)


def _construct(cls: UserValue, args: Sequence[Any], kwargs: Mapping[str, Any]) -> UserValue:
    """Return an instance, or a coroutine that makes it when ``__init__`` is ``async def``."""
    if not inspect.iscoroutinefunction(cls.__init__):
        return cls(*args, **kwargs)

    async def construct() -> UserValue:
        actor = cls.__new__(cls, *args, **kwargs)
        await actor.__init__(*args, **kwargs)
        return actor

    return construct()


def _several(run: Run, value: UserValue) -> list[Any]:
    """Split the value of a call with no or several results."""
    if not run.returns:
        return []
    values = list(value)
    if len(values) != len(run.returns):
        raise ValueError(
            f"{run.brief.name} returned {len(values)} values with num_returns={len(run.returns)}; "
            f"make the two equal"
        )
    return values


def _user_frames(error: BaseException) -> TracebackType | None:
    """Return the traceback without the frames of this package that lead to user code."""
    frames = error.__traceback__
    inside = frames
    while inside is not None and inside.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        inside = inside.tb_next
    return inside or frames
