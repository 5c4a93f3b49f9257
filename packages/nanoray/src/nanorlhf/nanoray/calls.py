"""The engine's table of calls: what each needs, keeps alive and owes. No I/O."""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from .arenas import Arenas, Send
from .codes import Codes
from .errors import ObjectLostError
from .messages import Particulars, RawValue, Spec
from .objects import Entry, Objects
from .transfers import Transfers
from .value import Value, error_value


class Call:
    """A call from submission to its last result.

    What most calls never change stands in the class: there are tens of thousands a second.
    """

    num_missing = 0
    """Arguments that are not ready."""
    depth = 0
    """How many calls under way it was made in."""
    state: Literal["waiting", "queued", "running"] = "waiting"
    worker: "Worker | None" = None
    """The process it was sent to."""
    is_cancelled = False
    """It was told to end while it ran, so it is not run again."""
    ticket = 0
    """It was sent ahead and may begin with this; 0 for a call that may begin anyway."""

    def __init__(self, caller: int, spec: Spec, own: Particulars) -> None:
        self.caller, self.spec, self.own = caller, spec, own
        self.id = own.id
        self.returns = own.returns
        self.needed = (*own.deps, own.args_id) if own.args_id else own.deps
        """Objects whose values it is given."""
        self.retries_left = spec.retries or 0
        """-1 is without end."""

    @property
    def pins(self) -> tuple[int, ...]:
        """Objects kept for it; what arguments in shared memory hold, they keep themselves."""
        return self.needed if self.own.args_id else (*self.needed, *self.own.held)

    def take_retry(self) -> bool:
        """Use one retry up; return False when none is left."""
        if self.is_cancelled:
            return False
        if self.retries_left > 0:
            self.retries_left -= 1
            return True
        return self.retries_left < 0


class WorkerKey(NamedTuple):
    """Processes with equal keys may run each other's tasks."""

    env: tuple[Any, ...]
    gpu_ids: tuple[str, ...]
    machine: int


@dataclass(slots=True, eq=False)
class _Parcel:
    """A call whose arguments are on their way to its machine."""

    call: Call
    is_there: bool = False
    error: Value | None = None


@dataclass(slots=True, eq=False)
class Worker:
    """A process forked by the zygote."""

    id: int
    key: WorkerKey
    actor: int
    """The actor it is, or 0 for a process that runs tasks."""
    grant: int
    """The call whose resources it uses now; 0 for none."""
    name: str
    """The actor's class, or the first task it ran."""
    pid: int = 0
    """0 until it has told."""
    calls: "OrderedDict[int, Call]" = field(default_factory=OrderedDict)
    """Sent and not answered, in order."""
    codes: set[int] = field(default_factory=set)
    num_blocked: int = 0
    is_serial: bool = True
    """Whether it runs one call after the other, in the order they were sent."""
    parcels: deque[_Parcel] = field(default_factory=deque)
    """Calls that wait for arguments from another machine, or for one before them that does."""

    @property
    def label(self) -> str:
        """What it is, or runs now, as its output is marked."""
        running = next(iter(self.calls.values()), None)
        name = self.name if self.actor or running is None else running.spec.name
        return name.removesuffix("()").rpartition("<locals>.")[2]


class Calls:
    """Every call that has not ended.

    Args:
        objects: The object table.
        arenas: The table of shared memory.
        transfers: Brings arguments to the machine they are needed on.
        send: To a process.
        on_lost: Called as ``on_lost(worker, call, error)`` when a call was sent and its arguments
            cannot be brought to its machine.
    """

    def __init__(
        self,
        objects: Objects,
        arenas: Arenas,
        transfers: Transfers,
        send: Send,
        *,
        on_lost: Callable[[Worker, Call, Value], None],
    ) -> None:
        self._objects, self._arenas, self._send = objects, arenas, send
        self._transfers, self._on_lost = transfers, on_lost
        self.codes = Codes(objects)
        self._calls: dict[int, Call] = {}

    def __getitem__(self, call_id: int) -> Call:
        return self._calls[call_id]

    def get(self, call_id: int) -> Call | None:
        """Return the call, or None when it has ended."""
        return self._calls.get(call_id)

    def depth(self, call: Call) -> int:
        """Return how many calls under way a call was made in, one inside the other."""
        depth, parent = 0, self._calls.get(call.own.parent)
        while parent is not None:
            depth, parent = depth + 1, self._calls.get(parent.own.parent)
        return depth

    def owing(self, object_id: int) -> Call | None:
        """Return the call that will make the object, or None when it is there or unknown."""
        entry = self._objects.get(object_id)
        return None if entry is None else self._calls.get(entry.call)

    def live(self) -> list[Call]:
        """Return every call that has not ended."""
        return list(self._calls.values())

    def add(self, call: Call, *, on_ready: Callable[[Call], None]) -> None:
        """Accept a call; ``on_ready(call)`` follows when arguments that are missing have come."""
        spec, own = call.spec, call.own
        for object_id in call.returns:
            self._objects.create(object_id, call.caller, call=call.id)
        if spec.kind == "new":
            self._objects.create(spec.actor, call.caller)  # never complete: it counts the handles
        if spec.code:
            self.codes.pin(spec.code)
        self._calls[call.id] = call
        if not call.needed and not own.held:
            return
        for object_id in own.deps if own.args_id else call.pins:
            self._objects.pin(object_id)
        if own.args_id and own.args is not None:
            value = Value.of(own.args)
            self._arenas.retain(value)
            self._objects.adopt(own.args_id, value, contains=own.held)  # pinned once by that
        self._watch_arguments(call, on_ready)

    def refuse(self, own: Particulars) -> None:
        """Give back what came with a call that is not accepted."""
        if own.args_id and own.args is not None:
            self.discard([(own.args, ())])

    def argument_error(self, call: Call) -> Value | None:
        """Return the error of the first argument that failed."""
        for object_id in call.needed:
            entry = self._objects.get(object_id)
            if entry is None:
                reason = f"argument {object_id:x} of {call.spec.name} does not exist (any more)"
                return error_value(ObjectLostError(reason))
            if entry.is_error:
                return entry.value
        return None

    def send(self, worker: Worker, call: Call) -> None:
        """Send a call whose arguments are ready, behind those sent before."""
        call.state, call.worker = "running", worker
        worker.calls[call.id] = call
        needed, machine = call.needed, worker.key.machine
        if not worker.parcels and not (needed and self._transfers.are_away(machine, needed)):
            self._deliver(worker, call)
            return
        parcel = _Parcel(call)
        worker.parcels.append(parcel)

        def arrived(error: Value | None) -> None:
            parcel.is_there, parcel.error = True, error
            self._deliver_parcels(worker)

        self._transfers.localize(machine, needed, arrived)

    def _deliver_parcels(self, worker: Worker) -> None:
        """Send what has arrived, up to the first call that still waits."""
        while worker.parcels and worker.parcels[0].is_there:
            parcel = worker.parcels.popleft()
            call = parcel.call
            if call.worker is not worker or worker.calls.get(call.id) is not call:
                continue  # the worker is gone, or the call was withdrawn from it
            error = parcel.error or self.argument_error(call)
            if error is None:
                self._deliver(worker, call)
            else:
                self._on_lost(worker, call, error)

    def _deliver(self, worker: Worker, call: Call) -> None:
        """Send a call whose arguments are on its machine, and before it whatever it needs."""
        spec, (_, args, args_id, deps, slots, *_) = call.spec, call.own
        if spec.code and spec.code not in worker.codes:
            worker.codes.add(spec.code)
            self._send(worker.id, ("code", spec.code, self.codes[spec.code]))
        if args_id:
            args = self._ship(worker, args_id)
        values = [(object_id, self._ship(worker, object_id)) for object_id in deps] if deps else ()
        verb = "then" if worker.is_serial and len(worker.calls) > 1 else "run"
        rest = (args, args_id, values, slots, call.returns, call.ticket)
        self._send(worker.id, (verb, spec.brief, call.id, *rest))

    def succeed(self, call: Call, results: Sequence[tuple[RawValue, Sequence[int]]]) -> None:
        """End a call with its results."""
        for object_id, (raw, held) in zip(call.returns, results, strict=True):
            value = Value.of(raw)
            if value.block is not None:
                self._arenas.retain(value)
            self._objects.complete(object_id, value, contains=held)
        self._forget(call)

    def discard(self, results: Sequence[tuple[RawValue, Sequence[int]]]) -> None:
        """Give back the results of a call that has ended in another way."""
        for raw, _ in results:
            value = Value.of(raw)
            self._arenas.retain(value)
            self._arenas.release(value)

    def fail(self, call: Call, error: Value) -> None:
        """End a call with an error in place of every result."""
        for object_id in call.returns:
            self._objects.complete(object_id, error, is_error=True)
        self._forget(call)

    def _watch_arguments(self, call: Call, on_ready: Callable[[Call], None]) -> None:
        entries = map(self._objects.get, set(call.own.deps))
        missing = [entry for entry in entries if entry is not None and entry.value is None]
        if not missing:
            return
        call.num_missing = len(missing)

        def ready(object_id: int, entry: Entry) -> None:
            del object_id, entry
            call.num_missing -= 1
            if not call.num_missing and call.id in self._calls:
                on_ready(call)

        for entry in missing:
            entry.watchers.append(ready)

    def _ship(self, worker: Worker, object_id: int) -> RawValue:
        entry = self._objects.get(object_id)
        assert entry is not None, "arguments are pinned"
        assert entry.value is not None, "arguments are ready"
        value = self._transfers.on(worker.key.machine, object_id, entry.value)
        assert value is not None, "arguments have been brought here"
        if value.block is not None:
            self._objects.touch(object_id)
            self._arenas.ship(worker.id, value)
        return value.raw

    def _forget(self, call: Call) -> None:
        if self._calls.pop(call.id, None) is not None:
            if call.spec.code:
                self.codes.unpin(call.spec.code)
            for object_id in call.pins:
                self._objects.unpin(object_id)
