"""Cancelling calls: what a call that is no longer wanted becomes, wherever it is. No I/O.

====================  ===========================================================
waits or is queued    ends at once
sent, not begun       ends at once; its process is told to skip it
a task that runs      is interrupted, or with ``force`` its process is killed
a method that runs    its process is told; coroutines stop, other code goes on
====================  ===========================================================
"""

from collections import defaultdict
from collections.abc import Callable

from .actors import Actors
from .calls import Call, Calls, Worker
from .errors import TaskCancelledError
from .value import Value, error_value


class Cancels:
    """Ends calls by order.

    Args:
        calls: The table of calls.
        actors: Has the queues of methods.
        withdraw: Takes a call back from the scheduler.
        kill: Kills a worker process.
        interrupt: ``interrupt(worker, call_id)`` has a process end a call.
    """

    def __init__(
        self,
        calls: Calls,
        actors: Actors,
        *,
        withdraw: Callable[[int], None],
        kill: Callable[[int], None],
        interrupt: Callable[[int, int], None],
    ) -> None:
        self._calls, self._actors = calls, actors
        self._withdraw, self._kill, self._interrupt = withdraw, kill, interrupt

    def cancel(self, object_id: int, *, is_forced: bool, is_recursive: bool) -> str | None:
        """End the call that owes the object; return why that is refused, or None."""
        call = self._calls.owing(object_id)
        if call is None:
            return None
        if is_forced and call.spec.kind == "method":
            return (
                f"force=True would kill the actor of {call.spec.name} and its state; use "
                f"kill(actor), or cancel without force"
            )
        for one in self._family(call) if is_recursive else [call]:
            self._end(one, is_forced=is_forced and one.spec.kind == "task")
        return None

    def caller_left(self, process: int) -> None:
        """A driver is gone: end its tasks and what they have called."""
        for call in self._calls.live():
            if call.caller == process and call.spec.kind == "task":
                for one in self._family(call):
                    self._end(one, is_forced=one.spec.kind == "task")

    def _family(self, call: Call) -> list[Call]:
        """Return the call and all that was called in it and has not ended; actors are no calls."""
        if call.worker is None:
            return [call]  # it has not begun
        children: defaultdict[int, list[Call]] = defaultdict(list)
        for other in self._calls.live():
            if other.spec.kind != "new":
                children[other.own.parent].append(other)
        family = [call]
        for one in family:
            family += children[one.id]
        return family

    def _end(self, call: Call, *, is_forced: bool) -> None:
        worker = call.worker
        if worker is None:
            self._drop(call)
            return
        call.is_cancelled = True
        if not _may_have_begun(worker, call):
            del worker.calls[call.id]
            self._calls.fail(call, cancelled(call))
            self._interrupt(worker.id, call.id)
        elif is_forced:
            del worker.calls[call.id]
            self._calls.fail(call, cancelled(call))
            self._kill(worker.id)
        else:
            self._interrupt(worker.id, call.id)

    def _drop(self, call: Call) -> None:
        if call.spec.kind == "method":
            self._actors.drop(call)
        else:
            self._withdraw(call.id)
        self._calls.fail(call, cancelled(call))
        if call.spec.kind == "method":
            self._actors.pump(call.spec.actor)  # it may have held others up


def cancelled(call: Call) -> Value:
    """Return the error of a cancelled call."""
    return error_value(TaskCancelledError(f"{call.spec.name} was cancelled"))


def _may_have_begun(worker: Worker, call: Call) -> bool:
    """Return whether the process may be at work on a call that it was sent."""
    return not worker.is_serial or next(iter(worker.calls)) == call.id
