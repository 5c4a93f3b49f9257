"""The life of worker processes and of the calls in them. No I/O.

Whatever happens to a process, every call it had, and every call that comes later, ends: with its
results, a retry, or a typed error. The file is long because that rule can only be checked where all
that may happen to a process stands together.
"""

import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

from .actors import Actors
from .ahead import Ahead
from .arenas import Arenas
from .calls import Call, Calls, Worker, WorkerKey
from .cancels import Cancels, cancelled
from .errors import InfeasibleError, PlacementGroupRemovedError, WorkerCrashedError
from .messages import RawValue, Spec
from .objects import Objects
from .resources import SLOT, UNIT, Demand, canonical, readable
from .scheduler import Grant, Request, Scheduler
from .transfers import Transfers
from .value import Value, error_value
from .wire import Message

MAX_DEPTH = 100
"""Calls under way one inside the other; each but the last keeps a process that waits."""

_STATES = {
    "waiting": "waits for its arguments or its turn",
    "queued": "waits for resources",
    "running": "runs",
}


class Processes(Protocol):
    """What a supervisor does to processes."""

    def fork(self, worker: int, setup: dict[str, Any], *, machine: int) -> None:
        """Start a process on a machine; it first reads ``setup``."""
        ...

    def kill(self, worker: int) -> None:
        """SIGKILL a process; no harm when it is gone."""
        ...

    def offer(self, worker: int, tickets: Sequence[int]) -> None:
        """Let a process of machine 0 begin the calls with these tickets."""
        ...

    def recall(self, worker: int) -> list[int]:
        """Take back the tickets of a process of machine 0 for what it has not begun."""
        ...

    def interrupt(self, worker: int, call_id: int) -> None:
        """Have a process end a call that it runs or has before it."""
        ...

    def send(self, process: int, message: Message) -> None:
        """Send to a process; no harm when it is gone."""
        ...


class Supervisor:
    """All worker processes of one node.

    Args:
        objects: The object table.
        scheduler: Decides who may start.
        arenas: The table of shared memory.
        transfers: Brings arguments to the machines they are needed on.
        processes: Does what is decided here.
        max_idle: Processes kept for tasks to come.
    """

    def __init__(
        self,
        objects: Objects,
        scheduler: Scheduler,
        arenas: Arenas,
        transfers: Transfers,
        processes: Processes,
        *,
        max_idle: int,
    ) -> None:
        self._scheduler, self._processes, self._max_idle = scheduler, processes, max_idle
        self.calls = Calls(objects, arenas, transfers, processes.send, on_lost=self._arguments_lost)
        self.actors = Actors(
            self.calls,
            objects,
            kill=processes.kill,
            end=lambda worker: processes.send(worker, ("exit",)),
            withdraw=scheduler.withdraw,
        )
        self.cancels = Cancels(
            self.calls,
            self.actors,
            withdraw=scheduler.withdraw,
            kill=processes.kill,
            interrupt=processes.interrupt,
        )
        self.ahead = Ahead(
            self.calls, scheduler, processes, requeue=self._put_back, on_rest=self._rest
        )
        self._workers: dict[int, Worker] = {}
        self._idle: OrderedDict[int, Worker] = OrderedDict()
        self._num_processes = 0
        self._broken: Value | None = None

    def next_process(self) -> int:
        """Return a number that no process of this engine has had."""
        self._num_processes += 1
        return self._num_processes

    def add_machine(self, num_cpus: int) -> None:
        """A machine has joined: keep as many more idle processes."""
        self._max_idle += num_cpus

    def submit(self, call: Call) -> None:
        """Accept a call; it starts when its arguments and its resources are there."""
        self.calls.add(call, on_ready=self._arguments_ready)
        spec = call.spec
        if self._broken is not None:
            self.calls.fail(call, self._broken)
        elif spec.kind == "method":
            self.actors.queue(call)
        else:
            if spec.kind == "new":
                self.actors.add(call)
            if call.own.parent:
                call.depth = self.calls.depth(call)
            if call.depth > MAX_DEPTH:
                self._abandon(call, _too_deep(spec))
            elif not call.num_missing:
                self._enqueue(call)

    def start(self, grant: Grant) -> None:
        """Run a call that got its resources."""
        call = self.calls[grant.id]
        error = self.calls.argument_error(call)
        if error is not None:  # an argument was lost with its machine while the call was queued
            self._scheduler.release(grant.id)
            self._abandon(call, error)
            return
        key = WorkerKey(call.spec.env, grant.gpu_ids, grant.machine)
        worker = self._idle_worker(key) if call.spec.kind == "task" else None
        worker = worker or self._fork(key, call)
        worker.grant = grant.id
        self.calls.send(worker, call)
        if worker.actor:
            self.actors.started(worker)
        else:
            self.ahead.fill(worker, call)

    def done(
        self,
        process: int,
        call_id: int,
        results: Sequence[tuple[RawValue, Sequence[int]]],
        took_s: float,
    ) -> Call | None:
        """A worker has answered a call; return it, or None when it had ended otherwise."""
        worker, call = self._answered(process, call_id)
        if worker is None or call is None:
            self.calls.discard(results)
            return None
        kind = call.spec.kind
        if kind == "new":
            self.actors.constructed(call)
        else:
            self.calls.succeed(call, results)
        if kind == "task":
            self.ahead.note(call, took_s)
        self._finished(worker, call)
        return call

    def erred(self, process: int, call_id: int, error: RawValue) -> Call | None:
        """A call raised; return it as ``done`` does."""
        worker, call = self._answered(process, call_id)
        if worker is not None and call is not None:
            self.calls.fail(call, Value.of(error))
            self._finished(worker, call)
        return call

    def raised(self, process: int, call_id: int, error: RawValue) -> Call | None:
        """A call raised what it asked to be run again for; return it as ``done`` does."""
        worker, call = self._answered(process, call_id)
        if worker is None or call is None:
            return None
        is_retried = call.take_retry()
        if not is_retried:
            self.calls.fail(call, Value.of(error))
        elif call.spec.kind == "method":
            self.actors.again(call)
        self._finished(worker, call)
        if is_retried and call.spec.kind == "task":
            self._enqueue(call)
        return call

    def constructor_failed(self, process: int, call_id: int, text: str) -> Call | None:
        """An actor's constructor raised: the actor never was; return its call as ``done`` does."""
        worker, call = self._answered(process, call_id)
        if worker is not None and call is not None:
            self.calls.succeed(call, ())  # it owes no results; its failure is the actor's death
            self.actors.bury(worker.actor, f"was never created; its constructor raised:\n{text}")
        return call

    def exited(self, process: int, reason: str) -> None:
        """A worker process is gone; ``reason`` goes on "its process ..."."""
        worker = self._workers.pop(process)
        self.ahead.take_back(worker)
        self._idle.pop(process, None)
        self._scheduler.release(worker.grant)
        if worker.actor:
            creation = self.actors.lost(worker, reason)
            if creation is not None:
                self._enqueue(creation)
            return
        for call in list(worker.calls.values()):
            self._retry(call, reason)

    def trim(self) -> None:
        """End the processes idle longest that no task wants now; call when none can start."""
        while len(self._idle) > self._max_idle:
            _, oldest = self._idle.popitem(last=False)
            self._processes.send(oldest.id, ("exit",))

    def forget_codes(self) -> None:
        """Have processes drop the functions that nobody can call any more."""
        for code_id in self.calls.codes.take_freed():
            for worker in self._workers.values():
                if code_id in worker.codes:
                    worker.codes.discard(code_id)
                    self._processes.send(worker.id, ("uncode", code_id))

    def block(self, process: int) -> None:
        """A worker waits for objects: others may have its CPUs."""
        worker = self._workers.get(process)
        if worker is not None:
            worker.num_blocked += 1
            if worker.num_blocked == 1:
                self.ahead.take_back(worker)
                self._scheduler.pause(worker.grant)

    def unblock(self, process: int) -> None:
        """A worker goes on."""
        worker = self._workers.get(process)
        if worker is not None:
            worker.num_blocked -= 1
            if worker.num_blocked == 0:
                self._scheduler.resume(worker.grant)

    def remove_group(self, group: int) -> None:
        """Dissolve a placement group and end every call and actor in it."""
        for call_id in self._scheduler.remove_group(group):
            self._scheduler.release(call_id)
            worker = next((w for w in self._workers.values() if w.grant == call_id), None)
            if worker is not None and worker.actor:
                self.actors.bury(worker.actor, "died: its placement group was removed")
                continue
            call = self.calls[call_id]
            if worker is not None:
                worker.calls.clear()
                self._processes.kill(worker.id)
            self._abandon(call, _group_removed(call.spec))

    def in_use(self) -> set[int]:
        """Return the objects that calls under way were given."""
        calls = [call for worker in self._workers.values() for call in worker.calls.values()]
        return {number for call in calls for number in call.needed}

    def strand(self, stranded: Mapping[int, str]) -> None:
        """Fail queued calls that nobody can run since a machine was lost."""
        for call_id, reason in stranded.items():
            self._abandon(self.calls[call_id], _infeasible(self.calls[call_id].spec, reason))

    def caller_left(self, process: int) -> None:
        """A driver is gone: end its tasks, and its actors unless they are detached."""
        self.actors.caller_left(process)
        self.cancels.caller_left(process)

    def workers(self) -> list[Worker]:
        """Return every worker process."""
        return list(self._workers.values())

    def born(self, process: int, pid: int) -> None:
        """A process that was forked has begun."""
        worker = self._workers.get(process)
        if worker is not None:
            worker.pid = pid

    def label(self, process: int) -> str:
        """Return what a worker is, or runs, as its lines are marked."""
        worker = self._workers.get(process)
        return "worker" if worker is None else worker.label

    def describe_pending(self, object_ids: set[int]) -> list[str]:
        """Return, for each call that owes one of the objects, its name and what it waits for."""
        free = readable(self._scheduler.available().items())
        found = []
        for call in self.calls.live():
            if object_ids.intersection(call.returns):
                state = _STATES[call.state]
                if call.state == "queued":
                    state += f" {readable(call.spec.needs)} of free {free}"
                found.append(f"{call.spec.name} {state}")
        return found

    def break_down(self, error: Value) -> None:
        """Fail every call, now and later: there are no processes any more."""
        self._broken = error
        for actor_id in self.actors.ids():
            self.actors.bury(actor_id, "died: the engine ended")
        for call in self.calls.live():
            self.calls.fail(call, error)

    def _answered(self, process: int, call_id: int) -> tuple[Worker | None, Call | None]:
        """Take an answered call from its worker.

        No call if its actor was buried, or it was cancelled, while the answer was on its way.
        """
        worker = self._workers.get(process)
        return worker, None if worker is None else worker.calls.pop(call_id, None)

    def _finished(self, worker: Worker, call: Call) -> None:
        """The worker has answered: give it, or its resources, to others."""
        if call.spec.kind != "task":
            self.actors.finished(worker.actor)
        elif not self.ahead.go_on(worker):
            self._scheduler.release(worker.grant)
            self._rest(worker)

    def _arguments_lost(self, worker: Worker, call: Call, error: Value) -> None:
        """What a call needs cannot be brought to the machine it was sent to."""
        if call.spec.kind == "new":
            text = str(pickle.loads(error.stream or b""))
            self.constructor_failed(worker.id, call.id, text)
        else:
            self.erred(worker.id, call.id, error.raw)

    def _arguments_ready(self, call: Call) -> None:
        if call.spec.kind == "method":
            self.actors.pump(call.spec.actor)
        else:
            self._enqueue(call)

    def _enqueue(self, call: Call, *, is_first: bool = False) -> None:
        """Let a task or a constructor compete for resources."""
        spec = call.spec
        error = self.calls.argument_error(call)
        if error is None and spec.group and not self._scheduler.has_group(spec.group):
            error = _group_removed(spec)
        if error is not None:
            self._abandon(call, error)
            return
        call.state, call.worker, call.ticket = "queued", None, 0
        needs = spec.needs
        if spec.kind == "task" and not spec.group:
            needs = _with_slot(needs)
        place = (spec.sees_gpus, spec.is_spread, spec.node, spec.is_soft)
        request = Request(call.id, needs, spec.group, spec.bundle, call.depth, *place)
        reason = self._scheduler.add(request, is_first=is_first)
        if reason is not None:
            self._abandon(call, _infeasible(spec, reason))

    def _put_back(self, call: Call) -> None:
        self._enqueue(call, is_first=True)

    def _rest(self, worker: Worker) -> None:
        worker.grant = 0
        self._idle[worker.id] = worker

    def _abandon(self, call: Call, error: Value) -> None:
        """End a call that will not run (again)."""
        self.calls.fail(call, error)
        if call.spec.kind == "new":
            reason = (
                "its group or an argument failed, it is nested too deep, or no node can hold it"
            )
            self.actors.bury(call.spec.actor, f"was never created: {reason}")

    def _retry(self, call: Call, reason: str) -> None:
        """Run a task again whose process died, while it has retries left."""
        spec = call.spec
        if call.take_retry():
            self._enqueue(call)
            return
        if call.is_cancelled:
            self._abandon(call, cancelled(call))
            return
        tries = f" ({spec.retries + 1} times)" if spec.retries else ""
        crash = WorkerCrashedError(f"task {spec.name} crashed: its process {reason}{tries}")
        self._abandon(call, error_value(crash))

    def _idle_worker(self, key: WorkerKey) -> Worker | None:
        for worker in reversed(self._idle.values()):  # the last one used has the warmest caches
            if worker.key == key:
                del self._idle[worker.id]
                return worker
        return None

    def _fork(self, key: WorkerKey, call: Call) -> Worker:
        worker = Worker(self.next_process(), key, call.spec.actor, call.id, call.spec.name)
        worker.is_serial = call.spec.max_concurrency == 1
        self._workers[worker.id] = worker
        setup = {
            "env": key.env,
            "gpu_ids": key.gpu_ids,
            "actor": worker.actor,
            "name": call.spec.name,
            "max_concurrency": call.spec.max_concurrency,
            "has_loop": call.spec.has_loop,
        }
        self._processes.fork(worker.id, setup, machine=key.machine)
        return worker


@lru_cache(256)
def _with_slot(needs: Demand) -> Demand:
    """Return what a task takes of its machine: one of the processes for tasks, too."""
    return canonical({**dict(needs), SLOT: UNIT})


def _too_deep(spec: Spec) -> Value:
    reason = (
        f"{spec.name} is nested {MAX_DEPTH} calls deep, and each keeps a process: give the "
        f"recursion an end, or compute its lower levels in one task"
    )
    return error_value(InfeasibleError(reason))


def _infeasible(spec: Spec, reason: str) -> Value:
    text = f"{spec.name} can never run: {reason}; ask for less, or add a node that has it"
    return error_value(InfeasibleError(text))


def _group_removed(spec: Spec) -> Value:
    reason = f"{spec.name}: its placement group was removed; create another and place it there"
    return error_value(PlacementGroupRemovedError(reason))
