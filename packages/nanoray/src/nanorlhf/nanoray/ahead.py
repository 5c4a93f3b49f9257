"""Which short tasks are sent to a process before it has finished the one before. No I/O.

A task that takes microseconds costs more in messages than in work, so a process that runs such a
function is sent more calls of it, as many as take a few milliseconds together. They run on what
the first was granted, one after the other. What has not begun is taken back when the process
blocks or dies, and when another could begin it: nothing waits behind a task that turns out long.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

from .calls import Call, Calls, Worker
from .scheduler import Scheduler

_MAX_WAIT_S = 0.005
_MAX_AHEAD = 64
_NEW = 0.2  # weight of the newest time in a function's mean


class TicketOffice(Protocol):
    """What lets calls begin."""

    def offer(self, worker: int, tickets: Sequence[int]) -> None:
        """Let a process of machine 0 begin the calls with these tickets."""
        ...

    def recall(self, worker: int) -> list[int]:
        """Take back the tickets of a process of machine 0 for what it has not begun."""
        ...


class Ahead:
    """The calls sent ahead.

    Args:
        calls: The table of calls.
        scheduler: Has the queue they are taken from, and charges them.
        office: Lets calls begin.
        requeue: Puts a call that is taken back before those queued.
        on_rest: Called with a process that has nothing left to do.
    """

    def __init__(
        self,
        calls: Calls,
        scheduler: Scheduler,
        office: TicketOffice,
        *,
        requeue: Callable[[Call], None],
        on_rest: Callable[[Worker], None],
    ) -> None:
        self._calls, self._scheduler = calls, scheduler
        self._office, self._requeue, self._on_rest = office, requeue, on_rest
        self._numbers = itertools.count(1)
        self._means: dict[int, float] = {}
        self._holders: dict[int, Worker] = {}
        """Processes that have calls to come."""

    def note(self, call: Call, seconds: float) -> None:
        """A task took so long."""
        mean = self._means.get(call.spec.code, seconds)
        self._means[call.spec.code] = mean + _NEW * (seconds - mean)

    def fill(self, worker: Worker, call: Call) -> None:
        """Send calls of the same function after the one that the process runs."""
        mean_s = self._means.get(call.spec.code, _MAX_WAIT_S)
        limit = min(_MAX_AHEAD, int(_MAX_WAIT_S / max(mean_s, 1e-6))) if mean_s < _MAX_WAIT_S else 0
        num_ahead = len(worker.calls) - 1
        is_ready = not worker.key.machine and not worker.num_blocked and not worker.parcels
        if num_ahead > limit // 2 or not is_ready or call.spec.group:
            return

        def fits(call_id: int) -> bool:
            other = self._calls[call_id]
            spec = other.spec
            is_light = spec.stream is None and not other.needed
            return is_light and spec.code == call.spec.code and spec.env == worker.key.env

        taken = self._scheduler.ahead(call.id, limit - num_ahead, fits)
        if not taken:
            return
        tickets = list(itertools.islice(self._numbers, len(taken)))
        self._office.offer(worker.id, tickets)
        for call_id, ticket in zip(taken, tickets, strict=True):
            following = self._calls[call_id]
            following.ticket = ticket  # new each time: it may be taken back and come again
            self._calls.send(worker, following)
            following.state = "queued"
        self._holders[worker.id] = worker

    def go_on(self, worker: Worker) -> bool:
        """Let the next call have what the finished one was granted; return False for none."""
        following = next(iter(worker.calls.values()), None)
        if following is None:
            self._holders.pop(worker.id, None)
            return False
        self._scheduler.hand_over(worker.grant, following.id)
        worker.grant, following.state = following.id, "running"
        self.fill(worker, following)
        return True

    def take_back(self, worker: Worker) -> None:
        """Put the calls that the process has not begun back into the queue."""
        if self._holders.pop(worker.id, None) is None:
            return
        recalled = set(self._office.recall(worker.id))
        waiting = [call for call in worker.calls.values() if call.ticket in recalled]
        for call in waiting:
            del worker.calls[call.id]
        if any(call.id == worker.grant for call in waiting):
            self._scheduler.release(worker.grant)  # it has answered one and not begun the next
            self._on_rest(worker)
        for call in reversed(waiting):
            self._requeue(call)

    def spread(self) -> bool:
        """Take all back when others could begin them; return whether there is something new."""
        if not self._holders or not self._scheduler.has_room:
            return False
        for worker in list(self._holders.values()):
            self.take_back(worker)
        return True
