"""The engine as a state machine: messages in, messages out, no sockets, no clock, no threads.

``Rim`` is all it knows of the outside. Whoever drives it (``engine.py``) holds one lock around
every call, so nothing here is concurrent. The file is long because all tables and all messages
meet here, and nowhere else: a handler is a line or two.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .answers import Answers
from .arenas import Arenas
from .calls import Call
from .census import Census
from .codes import FIRST_CODE
from .errors import EngineError, PlacementGroupRemovedError
from .exits import describe_exit
from .gets import Gets
from .history import Outcome, Timeline
from .machines import About, Machines
from .messages import DRIVER, Particulars, RawValue
from .objects import Objects
from .placement import Strategy
from .policies import Policy
from .resources import CPU, UNIT, Demand, Pool, readable
from .room import Place, Room, Stage
from .scheduler import Request, Scheduler
from .specs import spec_of
from .streams import Streams
from .supervisor import Supervisor
from .transfers import Transfers
from .value import Block, Value, error_value, inline, pickled
from .waits import Answer, Asker, Waits
from .wire import Message

_NONE = inline(pickled(None))


class Rim(Protocol):
    """The effects of a node."""

    def fork(self, worker: int, setup: dict[str, Any], *, machine: int) -> None:
        """Start a process on a machine; it first reads ``setup``."""
        ...

    def kill(self, worker: int) -> None:
        """SIGKILL a process."""
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
        """Send to a worker, or do in the driver what the message says."""
        ...

    def tail(self, worker: int) -> list[str]:
        """Return the last lines that a process printed."""
        ...

    def answer(self, req: int, payload: Answer) -> None:
        """Answer a question of the driver."""
        ...

    def close_arena(self, arena_id: int, machine: int) -> None:
        """The arena is gone from the table."""
        ...

    def fetch(self, number: int, source: int, target: int, block: Block) -> None:
        """Have machine ``target`` copy a block of machine ``source``, and call ``fetched``."""
        ...


class Node:
    """All tables: objects, calls, actors, resources, machines and who waits for what.

    Args:
        pool: The resources of machine 0.
        rim: Does what is decided here.
        max_idle: Processes kept for tasks to come.
        about: What machine 0 says of itself.
        isolate_gpus: Whether calls without GPUs see none.
        policy: Which machine calls go to, and in which order they start.
    """

    def __init__(
        self,
        pool: Pool,
        rim: Rim,
        *,
        max_idle: int,
        about: About,
        isolate_gpus: bool = False,
        policy: Policy = "default",
    ) -> None:
        self._rim = rim
        self.send = rim.send
        """Send to a process."""
        self.machines = Machines(about, pool.totals)
        self.objects = Objects()
        self.arenas = Arenas(rim.send, rim.close_arena)
        self.transfers = Transfers(
            self.objects,
            machine_of=self.arenas.machine_of,
            machines=self.machines,
            fetch=rim.fetch,
            keep=lambda block: self.arenas.retain(_bare(block)),
            free=lambda block: self.arenas.release(_bare(block)),
        )
        self.scheduler = Scheduler(pool, node_id=about.node_id, policy=policy)
        self.supervisor = Supervisor(
            self.objects, self.scheduler, self.arenas, self.transfers, self, max_idle=max_idle
        )
        self._isolate_gpus = isolate_gpus
        self._answers = Answers(self.objects, self.arenas, self.transfers, self.machines, rim)
        self._drivers: set[int] = set()
        self._gets = Gets(
            self.objects,
            self._answers.give_values,
            self._answers.give,
            on_block=self.supervisor.block,
            on_unblock=self.supervisor.unblock,
        )
        self._waits = Waits(
            self.objects,
            self._answer,
            on_block=self.supervisor.block,
            on_unblock=self.supervisor.unblock,
            is_away=self._answers.is_away,
            bring=self._answers.bring,
        )
        self.rooms = {0: self._open_room(0)}
        self.streams = Streams(
            self.objects,
            self.arenas,
            answer=self._answer,
            send=rim.send,
            on_block=self.supervisor.block,
            on_unblock=self.supervisor.unblock,
        )
        self._timeline = Timeline()
        self._census = Census(
            calls=self.supervisor.calls,
            actors=self.supervisor.actors,
            objects=self.objects,
            machines=self.machines,
            timeline=self._timeline,
            workers=self.supervisor.workers,
        )
        self._handlers: dict[str, Callable[..., None]] = {
            "arena": self._on_arena,
            "born": self._on_born,
            "call": self._on_call,
            "cancel": self._on_cancel,
            "code": self._on_code,
            "create": self._on_create,
            "done": self._on_done,
            "error": self._on_error,
            "failed": self._on_failed,
            "get": self._on_get,
            "feasible": self._on_feasible,
            "group": self._on_group,
            "group_named": self._on_group_named,
            "holds": self._on_holds,
            "item": self._on_item,
            "kill": self._on_kill,
            "machines": self._on_machines,
            "named": self._on_named,
            "next": self._on_next,
            "pending": self._on_pending,
            "put": self._on_put,
            "resources": self._on_resources,
            "retire": self._on_retire,
            "retry": self._on_retry,
            "room": self._on_room,
            "spare": self._on_spare,
            "spilled": self._on_spilled,
            "revoke": self._on_revoke,
            "state": self._on_state,
            "timeline": self._on_timeline,
            "totals": self._on_totals,
            "ungroup": self._on_ungroup,
            "unspilled": self._on_unspilled,
            "wait": self._on_wait,
        }

    def handle(self, process: int, message: Message) -> None:
        """Do what a process asks."""
        self._handlers[message[0]](process, *message[1:])

    def settle(self) -> None:
        """Start what can start and free what nobody holds; call after every batch of messages."""
        if self.scheduler.is_stirred:
            self._start_what_can()
        if self.supervisor.calls.codes.has_freed:
            self.supervisor.forget_codes()
        if self.objects.freed:
            self._free()
        for room in self.rooms.values():
            if room.waiting:
                room.settle()

    def _start_what_can(self) -> None:
        for group in self.scheduler.place_groups():
            self.objects.complete(group, _NONE)
        self._start_granted()
        if self.supervisor.ahead.spread():
            self._start_granted()
        self.supervisor.trim()

    def _start_granted(self) -> None:
        for grant in self.scheduler.schedule():
            self.supervisor.start(grant)

    def _free(self) -> None:
        while self.objects.freed:
            for object_id, value in self.objects.take_freed():
                if value is None:
                    self.supervisor.actors.retire(object_id)  # if it is an actor
                elif value.block is not None:
                    self.arenas.release(value)
                    self.transfers.release(object_id)
                self.streams.drop(object_id)

    def worker_exited(self, worker: int, status: int) -> None:
        """A worker process is gone; ``status`` is what waitpid said of it."""
        self._worker_gone(worker, describe_exit(status, tail=self._rim.tail(worker)))

    def driver_joined(self, machine: int) -> int:
        """A driver has come to a machine; return its number."""
        process = self.supervisor.next_process()
        self.machines.place(process, machine)
        self._drivers.add(process)
        return process

    def driver_left(self, process: int) -> None:
        """A driver is gone: what it began ends, but for detached actors."""
        self._drivers.discard(process)
        self.supervisor.caller_left(process)
        self._drop_process(process)

    def machine_joined(self, process: int, about: About) -> int:
        """A machine has come, whose daemon is ``process``; return its number."""
        pool = Pool(dict(about.amounts), about.gpu_ids)
        machine = self.machines.add(process, about, dict(pool.totals))
        self.rooms[machine] = self._open_room(machine)
        self.scheduler.add_machine(machine, pool, node_id=about.node_id)
        self.supervisor.add_machine(pool.totals.get(CPU, 0) // UNIT)
        return machine

    def machine_lost(self, machine: int, reason: str) -> None:
        """A machine is gone, with its processes and what only it had."""
        where = f"{self.machines[machine]}, which was lost: {reason}"
        daemon = self.machines[machine].process
        processes = self.machines.lose(machine)
        lost = self.scheduler.remove_machine(machine)
        for process in processes:
            if process in self._drivers:
                self.driver_left(process)
            elif process == daemon:
                self._drop_process(process)
            else:
                self._worker_gone(process, f"was on {where}")
        for group in lost.groups:
            self.objects.reopen(group)  # its lost bundles are placed again: ready() waits for them
        self.supervisor.strand(lost.stranded)
        self.transfers.machine_lost(machine, where)
        self.arenas.drop_machine(machine)
        del self.rooms[machine]

    # -- Processes, for the supervisor ---------------------------------------------------------

    def fork(self, worker: int, setup: dict[str, Any], *, machine: int) -> None:
        """Start a process on a machine."""
        self.machines.place(worker, machine)
        node_id = self.machines[machine].about.node_id
        setup = {**setup, "node": node_id, "isolate_gpus": self._isolate_gpus}
        self._rim.fork(worker, setup, machine=machine)

    def kill(self, worker: int) -> None:
        """SIGKILL a process."""
        self._rim.kill(worker)

    def interrupt(self, worker: int, call_id: int) -> None:
        """Have a process end a call."""
        self._rim.interrupt(worker, call_id)

    def offer(self, worker: int, tickets: Sequence[int]) -> None:
        """Let a process of machine 0 begin the calls with these tickets."""
        self._rim.offer(worker, tickets)

    def recall(self, worker: int) -> list[int]:
        """Take back the tickets of a process of machine 0 for what it has not begun."""
        return self._rim.recall(worker)

    def _worker_gone(self, worker: int, reason: str) -> None:
        self.objects.drop_process(worker)
        self.supervisor.calls.codes.drop_process(worker)
        self._gets.drop_process(worker)
        self._waits.drop_process(worker)
        self._answers.drop_process(worker)
        self.streams.drop_process(worker)
        self.supervisor.exited(worker, reason)
        self.arenas.drop_process(worker)
        self.rooms[self.machines.of(worker)].drop_process(worker)
        self.machines.drop_process(worker)

    def _drop_process(self, process: int) -> None:
        self.objects.drop_process(process)
        self.supervisor.calls.codes.drop_process(process)
        self._gets.drop_process(process)
        self._waits.drop_process(process)
        self._answers.drop_process(process)
        self.streams.drop_process(process)
        self.arenas.drop_process(process)
        self.rooms[self.machines.of(process)].drop_process(process)
        self.machines.drop_process(process)

    def break_down(self, reason: str) -> None:
        """Fail everything under way and to come: the engine has lost its processes."""
        error = error_value(EngineError(reason))
        self.supervisor.break_down(error)
        self._gets.fail_all(tuple(error))
        self._waits.fail_all(tuple(error))
        for room in self.rooms.values():
            room.fail_all(("error", error))

    # -- messages ----------------------------------------------------------------------------

    def _on_holds(self, process: int, gained: Sequence[int], dropped: Sequence[int]) -> None:
        # Gains first, so that nothing dies on the way from one holder to the next.
        for object_ids, delta in ((gained, 1), (dropped, -1)):
            for object_id in object_ids:
                if object_id < FIRST_CODE:
                    self.objects.hold(process, object_id, delta)
                else:
                    self.supervisor.calls.codes.hold(process, object_id, delta)

    def _on_put(self, process: int, object_id: int, raw: RawValue, held: Sequence[int]) -> None:
        value = Value.of(raw)
        self.arenas.retain(value)
        self.objects.create(object_id, process)
        self.objects.complete(object_id, value, contains=held)

    def _on_get(self, process: int, req: int, ids: Sequence[int]) -> None:
        self._gets.ask((process, req), ids)

    def _on_wait(
        self, process: int, req: int, ids: Sequence[int], num_ready: int, fetch_local: bool
    ) -> None:
        is_local = fetch_local and not self.machines.is_one
        self._waits.ask((process, req), ids, num_ready=num_ready, is_local=is_local)

    def _on_cancel(self, process: int, req: int) -> None:
        self._gets.cancel((process, req))
        self._waits.cancel((process, req))
        self._answers.cancel((process, req))
        self._room(process).cancel((process, req))
        self.streams.cancel((process, req))

    def _on_code(self, process: int, code_id: int, blob: bytes, held: Sequence[int]) -> None:
        self.supervisor.calls.codes.add(process, code_id, blob, held=held)

    def _on_call(self, process: int, data: bytes, *own: Any) -> None:
        call = Call(process, spec_of(data), Particulars(*own))
        self.supervisor.submit(call)
        if call.spec.stream is not None:
            self.streams.open(call.returns[0], call.spec.stream)

    def _on_item(
        self,
        process: int,
        stream_id: int,
        index: int,
        item_id: int,
        raw: RawValue,
        held: Sequence[int],
    ) -> None:
        self.streams.add(process, stream_id, index, (item_id, raw, held))

    def _on_next(self, process: int, req: int, stream_id: int, index: int) -> None:
        self.streams.ask((process, req), stream_id, index)

    def _on_create(self, process: int, req: int, or_get: bool, data: bytes, *own: Any) -> None:
        call = Call(process, spec_of(data), Particulars(*own))
        spec = call.spec
        info = self.supervisor.actors.find(spec.label)
        if info is None:
            self.supervisor.submit(call)
            info = (spec.actor, spec.name, spec.methods)
        else:
            self.supervisor.calls.refuse(call.own)
            if or_get:
                self.objects.hold(process, info[0], 1)
            else:
                info = None
        self._answer((process, req), ("plain", info))

    def _on_done(
        self,
        process: int,
        call_id: int,
        results: Sequence[tuple[RawValue, Sequence[int]]],
        began_s: float,
        took_s: float,
    ) -> None:
        call = self.supervisor.done(process, call_id, results, took_s)
        self._note(process, call, (began_s, took_s), "FINISHED")

    def _on_error(self, process: int, call_id: int, error: RawValue, *span: float) -> None:
        self._note(process, self.supervisor.erred(process, call_id, error), span, "FAILED")

    def _on_retry(self, process: int, call_id: int, error: RawValue, *span: float) -> None:
        self._note(process, self.supervisor.raised(process, call_id, error), span, "RETRIED")

    def _on_failed(self, process: int, call_id: int, text: str, *span: float) -> None:
        call = self.supervisor.constructor_failed(process, call_id, text)
        self._note(process, call, span, "FAILED")

    def _on_kill(self, process: int, actor_id: int, no_restart: bool) -> None:
        del process
        if no_restart:
            self.supervisor.actors.bury(actor_id, "was killed by kill()")
        else:
            self.supervisor.actors.interrupt(actor_id, "was killed by kill()")

    def _on_revoke(
        self, process: int, req: int, object_id: int, is_forced: bool, is_recursive: bool
    ) -> None:
        cancel = self.supervisor.cancels.cancel
        refusal = cancel(object_id, is_forced=is_forced, is_recursive=is_recursive)
        self._answer((process, req), ("plain", refusal))

    def _on_group(
        self,
        process: int,
        req: int,
        group: int,
        bundles: Sequence[Demand],
        strategy: Strategy,
        name: str,
    ) -> None:
        if name and self.scheduler.find_group(name) is not None:
            reason = (
                f"name={name!r} belongs to a placement group; use get_placement_group({name!r})"
            )
            self._answer((process, req), ("plain", reason))
            return
        self.objects.create(group, process)
        self.objects.pin(group)  # group handles are not counted: it lives until removed
        self.objects.hold(process, group, -1)
        self.scheduler.add_group(group, bundles, strategy, name=name)
        self._answer((process, req), ("plain", None))

    def _on_group_named(self, process: int, req: int, name: str) -> None:
        self._answer((process, req), ("plain", self.scheduler.find_group(name)))

    def _on_feasible(self, process: int, req: int, *fields: Any) -> None:
        reason = self.scheduler.why_infeasible(Request(*fields))
        self._answer((process, req), ("plain", reason))

    def _on_ungroup(self, process: int, group: int) -> None:
        del process
        if self.scheduler.has_group(group):
            self.supervisor.remove_group(group)
            entry = self.objects.get(group)
            if entry is not None and entry.value is None:
                gone = PlacementGroupRemovedError(f"placement group {group:x} was removed")
                self.objects.complete(group, error_value(gone), is_error=True)
            self.objects.unpin(group)

    def _on_arena(self, process: int, arena_id: int, size: int) -> None:
        self.arenas.add(arena_id, owner=process, size=size, machine=self.machines.of(process))

    def _on_retire(self, process: int, arena_id: int) -> None:
        del process
        self.arenas.close(arena_id)

    def _on_room(self, process: int, req: int, size: int, missing: int, stage: Stage) -> None:
        self._room(process).ask((process, req), size, missing, stage)

    def _on_spare(self, process: int, size: int) -> None:
        self._room(process).give_back(process, size)

    def _on_spilled(self, process: int, req: int, arena_id: int, places: list[Place]) -> None:
        self._room(process).spilled(process, arena_id, places)
        self._answer((process, req), ("plain", None))

    def _on_unspilled(self, process: int, reason: str) -> None:
        self._room(process).not_spilled(process, reason)

    def _on_resources(self, process: int, req: int, is_available: bool) -> None:
        amounts = self.scheduler.available() if is_available else self.machines.totals()
        self._answer((process, req), ("plain", readable(amounts.items())))

    def _on_totals(self, process: int, req: int) -> None:
        self._answer((process, req), ("plain", [dict(t) for t in self.scheduler.totals()]))

    def _on_machines(self, process: int, req: int) -> None:
        self._answer((process, req), ("plain", self.machines.rows()))

    def _on_born(self, process: int, pid: int) -> None:
        self.supervisor.born(process, pid)

    def _on_state(self, process: int, req: int, kind: str) -> None:
        self._answer((process, req), ("plain", self._census.rows(kind)))

    def _on_pending(self, process: int, req: int, ids: Sequence[int]) -> None:
        reasons = self.supervisor.describe_pending(set(ids))
        self._answer((process, req), ("plain", reasons))

    def _on_timeline(self, process: int, req: int) -> None:
        self._answer((process, req), ("plain", self._timeline.last()))

    def _note(
        self, process: int, call: Call | None, span: Sequence[float], outcome: Outcome
    ) -> None:
        if call is not None:
            spec, machine = call.spec, self.machines.of(process)
            self._timeline.add((call.id, spec.name, spec.kind, process, machine, *span, outcome))

    def _on_named(self, process: int, req: int, label: str) -> None:
        info = self.supervisor.actors.find(label)
        if info is not None:
            self.objects.hold(process, info[0], 1)
        self._answer((process, req), ("plain", info))

    # -- answers -----------------------------------------------------------------------------

    def _open_room(self, machine: int) -> Room:
        about = self.machines[machine].about
        return Room(
            machine,
            about.store_bytes,
            about.spill_directory,
            objects=self.objects,
            arenas=self.arenas,
            in_use=lambda: self.supervisor.in_use() | self.transfers.under_way(),
            name_of=self._name_of,
            send=self._rim.send,
            answer=self._answer,
        )

    def _room(self, process: int) -> Room:
        return self.rooms[self.machines.of(process)]

    def _name_of(self, process: int) -> str:
        is_driver = process == DRIVER or process in self._drivers
        return "driver" if is_driver else self.supervisor.label(process)

    def _answer(self, asker: Asker, payload: Answer) -> None:
        self._answers.give(asker, payload)


def _bare(block: Block) -> Value:
    """Return a value that is nothing but its block."""
    return Value(None, (), (), (block.arena, block.offset, block.size))
