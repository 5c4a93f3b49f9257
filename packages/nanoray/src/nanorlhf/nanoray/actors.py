"""The engine's table of actors: their queues, names, restarts and deaths. No I/O.

Calls of one caller run in the order they were made, also when the first still waits for its
arguments, and also through a restart. Callers do not wait for each other.

An actor that may restart keeps its constructor's call, and so its arguments, until it no longer
may::

    add -> (resources) -> started -> constructed ---> bury
             ^                          |               ^
             +-- lost, restarts left <--+-- lost, none -+
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from .calls import Call, Calls, Worker
from .errors import ActorDiedError, TaskCancelledError
from .messages import Method
from .objects import Objects
from .value import Value, error_value

ActorFields = tuple[int, str, tuple[Method, ...]]
"""Id, class name and methods: the fields of an ``ActorInfo``."""


class Listed(NamedTuple):
    """One actor, for whoever looks on; ``state`` is a word of Ray's state API."""

    id: int
    class_name: str
    label: str
    state: str
    worker: int | None
    pid: int | None
    restarts_left: int
    """-1 for no end of them."""


@dataclass(slots=True, eq=False)
class _Actor:
    creation: Call
    worker: Worker | None = None
    queues: dict[int, deque[Call]] = field(default_factory=dict)
    death: Value | None = None
    is_retired: bool = False

    @property
    def name(self) -> str:
        return self.creation.spec.name

    @property
    def state(self) -> str:
        spec = self.creation.spec
        if self.death is not None:
            return "DEAD"
        if self.worker is not None and self.creation.id not in self.worker.calls:
            return "ALIVE"
        is_first = self.creation.retries_left == spec.retries
        return "PENDING_CREATION" if is_first else "RESTARTING"

    @property
    def is_busy(self) -> bool:
        has_sent = self.worker is None or bool(self.worker.calls)
        return has_sent or any(self.queues.values())


class Actors:
    """Every actor, also the dead ones that somebody still has a handle of.

    Args:
        calls: The table their calls are in.
        objects: The table their handles are counted in.
        kill: Kills a worker process.
        end: Lets a worker process end by itself.
        withdraw: Takes a call back from the scheduler.
    """

    def __init__(
        self,
        calls: Calls,
        objects: Objects,
        *,
        kill: Callable[[int], None],
        end: Callable[[int], None],
        withdraw: Callable[[int], None],
    ) -> None:
        self._calls, self._objects = calls, objects
        self._kill, self._end, self._withdraw = kill, end, withdraw
        self._actors: dict[int, _Actor] = {}
        self._labels: dict[str, int] = {}

    def find(self, label: str) -> ActorFields | None:
        """Return the live actor of that public name."""
        actor_id = self._labels.get(label, 0)
        actor = self._actors.get(actor_id)
        if actor is None:
            return None
        return actor_id, actor.name, actor.creation.spec.methods

    def add(self, creation: Call) -> None:
        """Add the actor whose constructor ``creation`` is."""
        spec = creation.spec
        self._actors[spec.actor] = _Actor(creation)
        if spec.label:
            self._labels[spec.label] = spec.actor
        if spec.is_detached:
            self._objects.pin(spec.actor)  # as if somebody had a handle, until it is dead

    def started(self, worker: Worker) -> None:
        """The actor has a process, and its constructor is the first call in it."""
        self._actors[worker.actor].worker = worker
        self.pump(worker.actor)

    def constructed(self, creation: Call) -> None:
        """The constructor has run: what it was given goes, unless it may have to run again."""
        if not creation.retries_left:
            self._calls.succeed(creation, ())

    def queue(self, call: Call) -> None:
        """Put a method call behind those its caller made before."""
        actor = self._actors.get(call.spec.actor)
        if actor is None:
            error = ActorDiedError(f"{call.spec.name}: the actor ended long ago")
            self._calls.fail(call, error_value(error))
        elif actor.death is not None:
            self._calls.fail(call, actor.death)
        else:
            if call.spec.retries is None:
                call.retries_left = actor.creation.spec.task_retries
            queue = actor.queues.get(call.caller)
            if queue is None:
                queue = actor.queues[call.caller] = deque()
            queue.append(call)
            if len(queue) == 1:  # else the first in it holds it up
                self._pump_queue(actor, queue)

    def drop(self, call: Call) -> None:
        """Take a method call that has not been sent out of its queue."""
        actor = self._actors.get(call.spec.actor)
        if actor is not None:
            actor.queues[call.caller].remove(call)

    def again(self, call: Call) -> None:
        """Run a method call once more, before those its caller has waiting."""
        self._requeue(self._actors[call.spec.actor], [call])
        self.pump(call.spec.actor)

    def pump(self, actor_id: int) -> None:
        """Send every call whose turn it is and whose arguments are ready."""
        actor = self._actors.get(actor_id)
        if actor is None or actor.worker is None or actor.death is not None:
            return
        for queue in actor.queues.values():
            self._pump_queue(actor, queue)
        self._end_if_done(actor)

    def _pump_queue(self, actor: _Actor, queue: deque[Call]) -> None:
        """Send the calls of one caller, up to the first that waits for its arguments."""
        while queue and actor.worker is not None and not queue[0].num_missing:
            call = queue.popleft()
            error = self._calls.argument_error(call) if call.needed else None
            if error is None:
                self._calls.send(actor.worker, call)
            else:
                self._calls.fail(call, error)

    def finished(self, actor_id: int) -> None:
        """A call has been answered."""
        self._end_if_done(self._actors[actor_id])

    def retire(self, actor_id: int) -> None:
        """No handle is left in any process: end after the last call."""
        actor = self._actors.get(actor_id)
        if actor is not None:
            actor.is_retired = True
            self._end_if_done(actor)
            if actor.death is not None:
                del self._actors[actor_id]

    def interrupt(self, actor_id: int, reason: str) -> None:
        """Kill the actor's process; it restarts, when it may, once the process is gone."""
        actor = self._actors.get(actor_id)
        if actor is not None and actor.worker is not None:
            self._kill(actor.worker.id)
            self._detach(actor, reason)

    def lost(self, worker: Worker, reason: str) -> Call | None:
        """An actor's process is gone; return the constructor to run again, if it restarts."""
        actor = self._actors.get(worker.actor)
        if actor is None or actor.death is not None:
            return None
        if actor.worker is worker:
            self._detach(actor, f"died: its process {reason}")
        return actor.creation if actor.death is None else None

    def bury(self, actor_id: int, reason: str) -> None:
        """Fail all calls, now and later, with ``reason``, and kill the process if there is one."""
        actor = self._actors.get(actor_id)
        if actor is None or actor.death is not None:
            return
        actor.death = error_value(ActorDiedError(f"actor {actor.name} {reason}"))
        self._labels = {label: who for label, who in self._labels.items() if who != actor_id}
        queued = [call for queue in actor.queues.values() for call in queue]
        actor.queues.clear()
        sent = list(actor.worker.calls.values()) if actor.worker is not None else []
        if actor.worker is not None:
            actor.worker.calls.clear()
            self._kill(actor.worker.id)
        else:
            self._withdraw(actor.creation.id)
        for call in (actor.creation, *sent, *queued):
            self._calls.fail(call, actor.death)
        if actor.creation.spec.is_detached:
            self._objects.unpin(actor_id)
        if actor.is_retired:
            self._actors.pop(actor_id, None)

    def caller_left(self, process: int) -> None:
        """A driver is gone: bury the actors it made, unless they are detached."""
        for actor_id, actor in list(self._actors.items()):
            creation = actor.creation
            if creation.caller == process and not creation.spec.is_detached:
                self.bury(actor_id, "ended with the driver that made it")

    def listed(self) -> list[Listed]:
        """Return all actors as they are shown."""
        return [
            Listed(
                actor_id,
                actor.name,
                actor.creation.spec.label,
                actor.state,
                None if actor.worker is None else actor.worker.id,
                None if actor.worker is None else actor.worker.pid,
                actor.creation.retries_left,
            )
            for actor_id, actor in self._actors.items()
        ]

    def ids(self) -> list[int]:
        """Return the ids of all actors."""
        return list(self._actors)

    def _detach(self, actor: _Actor, reason: str) -> None:
        """Part the actor from its process; bury it unless it may restart."""
        assert actor.worker is not None, "only a process that is there is lost"
        actor_id = actor.creation.spec.actor
        if not actor.creation.take_retry():
            self.bury(actor_id, reason)
            return
        is_new = actor.creation.id in actor.worker.calls
        calls = [call for call in actor.worker.calls.values() if call is not actor.creation]
        actor.worker.calls.clear()
        actor.worker = None
        # Behind a constructor that was still running no call can have begun.
        kept = [call for call in calls if is_new or call.take_retry()]
        self._requeue(actor, kept)
        for call in calls:
            if call not in kept:
                self._calls.fail(call, _lost_call(call, actor.name, reason))
        if actor.is_retired and not any(actor.queues.values()):
            self.bury(actor_id, reason)

    @staticmethod
    def _requeue(actor: _Actor, calls: list[Call]) -> None:
        for call in reversed(calls):
            call.state, call.worker = "waiting", None
            actor.queues.setdefault(call.caller, deque()).appendleft(call)

    def _end_if_done(self, actor: _Actor) -> None:
        if actor.is_retired and actor.worker is not None and not actor.is_busy:
            self._end(actor.worker.id)


def _lost_call(call: Call, name: str, reason: str) -> Value:
    """Return the error of a call that was under way when its actor died, and is not retried."""
    if call.is_cancelled:
        return error_value(TaskCancelledError(f"{call.spec.name} was cancelled"))
    return error_value(
        ActorDiedError(
            f"{call.spec.name}: actor {name} {reason}; the actor restarts, but this call was under "
            f"way and has no retry left: make it again, or set max_task_retries"
        )
    )
