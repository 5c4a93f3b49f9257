"""The engine's table of actors: their queues, names and deaths. No I/O.

Calls of one caller run in the order they were made, also when the first still waits for its
arguments. Callers do not wait for each other.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from .calls import Call, Calls, Worker
from .errors import ActorDiedError
from .messages import Method
from .value import Value, error_value

ActorFields = tuple[int, str, tuple[Method, ...]]
"""Id, class name and methods: the fields of an ``ActorInfo``."""


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
    def is_busy(self) -> bool:
        has_sent = self.worker is None or bool(self.worker.calls)
        return has_sent or any(self.queues.values())


class Actors:
    """Every actor, also the dead ones that somebody still has a handle of.

    Args:
        calls: The table their calls are in.
        kill: Kills a worker process.
        end: Lets a worker process end by itself.
        withdraw: Takes a call back from the scheduler.
    """

    def __init__(
        self,
        calls: Calls,
        *,
        kill: Callable[[int], None],
        end: Callable[[int], None],
        withdraw: Callable[[int], None],
    ) -> None:
        self._calls, self._kill, self._end, self._withdraw = calls, kill, end, withdraw
        self._actors: dict[int, _Actor] = {}
        self._labels: dict[str, int] = {}

    def reserve(self, label: str, actor_id: int) -> bool:
        """Give a public name to an actor to come; return False when a live one has it."""
        return self._labels.setdefault(label, actor_id) == actor_id

    def find(self, label: str) -> ActorFields | None:
        """Return the live actor of that public name."""
        actor_id = self._labels.get(label, 0)
        actor = self._actors.get(actor_id)
        if actor is None:
            return None
        return actor_id, actor.name, actor.creation.spec.methods

    def add(self, creation: Call) -> None:
        """Add the actor whose constructor ``creation`` is."""
        self._actors[creation.spec.actor] = _Actor(creation)

    def started(self, worker: Worker) -> None:
        """The actor has a process, and its constructor is the first call in it."""
        self._actors[worker.actor].worker = worker
        self.pump(worker.actor)

    def queue(self, call: Call) -> None:
        """Put a method call behind those its caller made before."""
        actor = self._actors.get(call.spec.actor)
        if actor is None:
            error = ActorDiedError(f"{call.spec.name}: the actor ended long ago")
            self._calls.fail(call, error_value(error))
        elif actor.death is not None:
            self._calls.fail(call, actor.death)
        else:
            actor.queues.setdefault(call.caller, deque()).append(call)
            self.pump(call.spec.actor)

    def pump(self, actor_id: int) -> None:
        """Send every call whose turn it is and whose arguments are ready."""
        actor = self._actors.get(actor_id)
        if actor is None or actor.worker is None or actor.death is not None:
            return
        for queue in actor.queues.values():
            while queue and not queue[0].num_missing:
                call = queue.popleft()
                error = self._calls.argument_error(call)
                if error is None:
                    self._calls.send(actor.worker, call)
                else:
                    self._calls.fail(call, error)
        self._end_if_done(actor)

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

    def bury(self, actor_id: int, reason: str) -> None:
        """Fail all calls, now and later, with ``reason``, and kill the process if there is one."""
        actor = self._actors.get(actor_id)
        if actor is None or actor.death is not None:
            return
        actor.death = error_value(ActorDiedError(f"actor {actor.name} {reason}"))
        self._labels = {label: who for label, who in self._labels.items() if who != actor_id}
        queued = [call for queue in actor.queues.values() for call in queue]
        actor.queues.clear()
        self._withdraw_creation(actor)
        sent = list(actor.worker.calls.values()) if actor.worker is not None else []
        if actor.worker is not None:
            actor.worker.calls.clear()
            self._kill(actor.worker.id)
        for call in (*sent, *queued):
            self._calls.fail(call, actor.death)
        if actor.is_retired:
            self._actors.pop(actor_id, None)

    def ids(self) -> list[int]:
        """Return the ids of all actors."""
        return list(self._actors)

    def _withdraw_creation(self, actor: _Actor) -> None:
        creation = actor.creation
        if actor.worker is None and self._calls.get(creation.spec.id) is not None:
            self._withdraw(creation.spec.id)
            assert actor.death is not None, "only a dead actor's constructor is withdrawn"
            self._calls.fail(creation, actor.death)

    def _end_if_done(self, actor: _Actor) -> None:
        if actor.is_retired and actor.worker is not None and not actor.is_busy:
            self._end(actor.worker.id)
