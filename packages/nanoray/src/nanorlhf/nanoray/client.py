"""The engine as one process uses it: values become messages, answers become values.

The driver and every worker run this same code; only the ``Link`` under it differs.
"""

import functools
import hashlib
import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Protocol

from .allowance import Allowance
from .backend import ActorInfo, Context, GroupInfo
from .codes import FIRST_CODE
from .environment import Environment
from .errors import GetTimeoutError, InfeasibleError
from .futures import Futures
from .history import Ran, chrome_trace
from .messages import Kind, RawValue, Slot, Spec
from .options import CallOptions, Options, num_refs
from .placement import Strategy, check_strategy, why_infeasible
from .refs import HoldLog, ObjectRef, UserValue
from .remote import has_coroutines, public_methods
from .resources import Demand, bundle_demand, readable, shortage
from .scheduler import Request
from .session import call_id
from .store import Writer
from .strategies import NodeAffinitySchedulingStrategy
from .value import Pickled, Value, pickled, pickled_code
from .views import Reader
from .waits import Answer
from .wire import Message

_LOOP_CONCURRENCY = 1000
"""Calls under way at a time in an actor with an event loop that does not say; as in Ray."""


class Link(Protocol):
    """How a process reaches the engine. Each method first hands over the process's hold log."""

    def post(self, *messages: Message, fd: int | None = None) -> None:
        """Send messages, in order; ``fd`` goes with a single one and stays open."""
        ...

    def ask(self, verb: str, *fields: Any, timeout_s: float | None = None) -> Answer | None:
        """Send a question and return its answer, or None (and cancel it) after ``timeout_s``."""
        ...

    def later(self, verb: str, *fields: Any, then: Callable[[Answer | None], None]) -> int:
        """Send a question and go on; ``next_late`` hands out the call of ``then``."""
        ...

    def forget(self, req: int) -> None:
        """Give a late question up: ``then`` gets None, unless the answer was faster."""
        ...

    def next_late(self) -> Callable[[], None]:
        """Wait for the next late answer; return what is to be done about it."""
        ...

    def close(self) -> None:
        """Leave the engine, all questions answered; in the driver, end it."""
        ...


class Client:
    """A ``Backend`` over a ``Link``.

    Args:
        link: The way to the engine.
        process: This process's number.
        holds: Where this process counts its refs.
        reader: Maps what others wrote.
        totals: The resources of each machine, to refuse at once what can never run.
        context: Where this process's code runs.
        environment: What calls of this process inherit.
    """

    def __init__(
        self,
        link: Link,
        *,
        process: int,
        holds: HoldLog,
        reader: Reader,
        totals: Sequence[Mapping[str, int]],
        context: Context,
        environment: Environment,
    ) -> None:
        self.holds = holds
        self._link, self._reader, self._totals, self._context = link, reader, totals, context
        self._environment = environment
        self.only_call = 0
        """The call that runs here when there is just one, for threads that user code starts."""
        self._numbers = itertools.count((process << 40) + 1)
        self.allowance = Allowance(link, reader, self.next_id)
        self.writer = Writer(self.allowance)
        self.futures = Futures(link, holds, refuse=self.allowance.refuse)
        self._code_ids: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def next_id(self) -> int:
        """Return a number that no process of this engine has used."""
        return next(self._numbers)

    def put(self, value: object) -> int:
        """Store a value; return its id."""
        if isinstance(value, ObjectRef):
            raise TypeError(f"put({value!r}) would be a ref to a ref; pass the ref itself on")
        object_id, cut = self.next_id(), pickled(value)
        self._link.post(("put", object_id, tuple(self.writer.write(cut)), cut.held))
        return object_id

    def get(self, ids: Sequence[int], *, timeout: float | None) -> list[Any]:
        """Return the values in order, or raise the error of the first that failed."""
        answer = self._link.ask("get", list(ids), timeout_s=timeout)
        if answer is None:
            raise GetTimeoutError(
                f"get of {len(ids)} object(s) had no result after timeout={timeout} s; the work "
                f"goes on: get again, or kill the actor"
            )
        return self._load_values(ids, answer)

    def future(self, object_id: int) -> "Future[Any]":
        """Return a future of the value."""
        ids = [object_id]
        return self.futures.ask(
            "get", ids, held=object_id, load=lambda answer: self._load_values(ids, answer)[0]
        )

    def next_item(self, stream_id: int, index: int, *, timeout: float | None) -> int | None:
        """Return the id of a stream's item, or None at its end."""
        answer = self._link.ask("next", stream_id, index, timeout_s=timeout)
        if answer is None:
            raise GetTimeoutError(
                f"item {index} of a generator had not come after timeout={timeout} s; the work "
                f"goes on: ask again, or drop the generator"
            )
        return self._load_plain(answer)  # type: ignore[no-any-return]

    def next_item_future(self, stream_id: int, index: int) -> "Future[int | None]":
        """Return a future of the id of a stream's item."""
        return self.futures.ask("next", stream_id, index, held=stream_id, load=self._load_plain)

    def wait(
        self, ids: Sequence[int], *, num_returns: int, timeout: float | None, fetch_local: bool
    ) -> set[int]:
        """Return the ids that are ready, as soon as there are ``num_returns`` or time is up."""
        answer = self._link.ask("wait", list(ids), num_returns, fetch_local, timeout_s=timeout)
        if answer is None:
            answer = self._link.ask("wait", list(ids), 0, fetch_local)
            assert answer is not None, "a question without a timeout is answered"
        kind, payload = answer
        if kind == "error":
            raise self._reader.load(0, Value(*payload))
        return set(payload)

    def submit(
        self, code: object, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, options: Options
    ) -> list[int]:
        """Start a task; return the ids of its results."""
        name = options.name or getattr(code, "__qualname__", repr(code))
        returns = self._new_ids(options.num_returns)
        self._call(
            "task",
            f"{name}()",
            args,
            kwargs,
            code=self._code_id(code),
            returns=returns,
            stream=_stream(options),
            retries=options.max_retries,
            retry_on=_retry_on(options.retry_exceptions),
            **self._place(options, f"{name}()", default_cpus=1),
        )
        return list(returns)

    def create_actor(
        self, code: object, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, options: Options
    ) -> ActorInfo:
        """Start an actor."""
        assert isinstance(code, type), "actors are made of classes"
        has_loop = has_coroutines(code)
        place = self._place(options, code.__name__, default_cpus=0)
        info = ActorInfo(self.next_id(), code.__name__, public_methods(code))
        spec = self._spec(
            "new",
            code.__name__,
            args,
            kwargs,
            code=self._code_id(code),
            actor=info.id,
            retries=options.max_restarts,
            task_retries=options.max_task_retries,
            label=options.name or "",
            methods=info.methods,
            is_detached=options.lifetime == "detached",
            max_concurrency=options.max_concurrency or (_LOOP_CONCURRENCY if has_loop else 1),
            has_loop=has_loop,
            **place,
        )
        if options.name is None:
            self._link.post(("call", *spec))
            return info
        fields = self._ask_plain("create", options.get_if_exists, *spec)
        if fields is None:
            raise ValueError(
                f"name={options.name!r} belongs to a live actor; use get_actor({options.name!r}), "
                f"or get_if_exists=True"
            )
        return _actor_info(fields)

    def call(
        self,
        actor: ActorInfo,
        method: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        options: CallOptions,
    ) -> list[int]:
        """Call a method of an actor."""
        returns = self._new_ids(options.num_returns)
        self._call(
            "method",
            f"{actor.class_name}.{method}()",
            args,
            kwargs,
            actor=actor.id,
            method=method,
            returns=returns,
            retries=options.max_task_retries,
            retry_on=_retry_on(options.retry_exceptions),
            stream=_stream(options),
        )
        return list(returns)

    def kill(self, actor_id: int, *, no_restart: bool) -> None:
        """Kill an actor's process."""
        self._link.post(("kill", actor_id, no_restart))

    def cancel(self, object_id: int, *, force: bool, recursive: bool) -> None:
        """End the call that owes the object."""
        refusal = self._ask_plain("revoke", object_id, force, recursive)
        if refusal is not None:
            raise ValueError(refusal)

    def get_actor(self, name: str) -> ActorInfo:
        """Return the live actor of that name."""
        fields = self._ask_plain("named", name)
        if fields is None:
            raise ValueError(f"get_actor({name!r}): no live actor has this name")
        return _actor_info(fields)

    def create_group(self, bundles: Sequence[Mapping[str, float]], strategy: str, name: str) -> int:
        """Ask for a placement group."""
        check_strategy(strategy)
        needs = [bundle_demand(bundle) for bundle in bundles]
        if not needs or not all(needs):
            raise ValueError(
                f"bundles={list(bundles)} must each ask for something; drop empty ones"
            )
        kind: Strategy = strategy  # type: ignore[assignment]  # checked above
        reason = self._why_never(lambda totals: why_infeasible(needs, totals, kind))
        if reason is not None:
            raise InfeasibleError(f"placement group: {reason}; ask for less or raise init()")
        group = self.next_id()
        refusal = self._ask_plain("group", group, needs, strategy, name)
        if refusal is not None:
            raise ValueError(refusal)
        return group

    def get_group(self, name: str) -> GroupInfo:
        """Return the placement group of that name."""
        fields = self._ask_plain("group_named", name)
        if fields is None:
            raise ValueError(f"get_placement_group({name!r}): no placement group has this name")
        group, needs, strategy = fields
        return GroupInfo(group, tuple(readable(bundle) for bundle in needs), strategy)

    def remove_group(self, group_id: int) -> None:
        """Give a group's resources back."""
        self._link.post(("ungroup", group_id))

    def nodes(self) -> list[dict[str, Any]]:
        """Return a row for each machine."""
        rows: list[dict[str, Any]] = self._ask_plain("machines")
        return rows

    def resources(self, *, available: bool) -> dict[str, float]:
        """Return what exists, or what is free now."""
        amounts: dict[str, float] = self._ask_plain("resources", available)
        return amounts

    def state(self, kind: str) -> list[dict[str, Any]]:
        """Return rows of the engine's tables."""
        rows: list[dict[str, Any]] = self._ask_plain("state", kind)
        return rows

    def timeline(self) -> list[dict[str, Any]]:
        """Return the last calls that have ended, as Chrome trace events."""
        return chrome_trace(Ran(*ran) for ran in self._ask_plain("timeline"))

    def context(self) -> Context:
        """Return where the calling code runs."""
        return replace(self._context, task_id=self._current_call() or None)

    def shutdown(self) -> None:
        """Leave the engine."""
        self._link.close()
        self.futures.close()
        self.writer.close()
        self._reader.close()

    def _current_call(self) -> int:
        return call_id.get() or self.only_call

    def _call(
        self, kind: Kind, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], **rest: Any
    ) -> None:
        """Send a call."""
        self._link.post(("call", *self._spec(kind, name, args, kwargs, **rest)))

    def _spec(
        self, kind: Kind, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], **rest: Any
    ) -> Spec:
        """Return a call as the engine wants it."""
        deps, args, kwargs = self._lift_refs(args, kwargs)
        raw, args_id, held = self._pack_arguments(args, kwargs)
        fields = {"actor": 0, "code": 0, "method": "", "returns": (), **rest}
        return Spec(
            kind=kind,
            id=self.next_id(),
            name=name,
            args=raw,
            args_id=args_id,
            deps=deps,
            held=held,
            parent=self._current_call(),
            **fields,
        )

    def _lift_refs(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[int, ...], tuple[Any, ...], Mapping[str, Any]]:
        """Return the top-level refs and the arguments with slots in their place."""
        values = (*args, *kwargs.values())
        if not any(type(value) is ObjectRef for value in values):
            return (), args, kwargs
        deps: list[int] = []

        def lift(value: UserValue) -> UserValue:
            if type(value) is not ObjectRef:
                return value
            self._check_ours(value)
            deps.append(value.id)
            return Slot(len(deps) - 1)

        lifted = tuple(lift(value) for value in args)
        named = {key: lift(value) for key, value in kwargs.items()}
        return tuple(deps), lifted, named

    def _pack_arguments(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[RawValue | None, int, tuple[int, ...]]:
        """Return the arguments as a value, its id if it lies in shared memory, and its refs."""
        if not args and not kwargs:
            return None, 0, ()
        cut: Pickled = pickled((args, dict(kwargs)))
        value = self.writer.write(cut)
        return tuple(value), self.next_id() if value.block is not None else 0, cut.held

    def _place(self, options: Options, name: str, *, default_cpus: float) -> dict[str, Any]:
        """Return where a call may run, after making sure that it can run at all."""
        needs = options.needs(default_cpus=default_cpus)
        group, affinity = options.placement_group, options.affinity
        if affinity is not None:
            where = f"node {affinity.node_id}"
            reason = self._why_not_there(needs, affinity)
        elif group is None:
            where = "this node" if len(self._totals) == 1 else "any node"
            reason = self._why_never(lambda totals: _shortage(needs, totals))
        else:
            where = f"its placement group {group.bundles}"
            reason = _shortage(needs, _rooms(options))
        if reason is not None:
            raise InfeasibleError(
                f"{name} can never run on {where}: {reason}; ask for less or raise init()"
            )
        return {
            "needs": needs,
            "group": 0 if group is None else group.id,
            "bundle": options.placement_group_bundle_index,
            "sees_gpus": options.sees_gpus,
            "is_spread": options.scheduling_strategy == "SPREAD",
            "node": "" if affinity is None else affinity.node_id,
            "is_soft": affinity is not None and affinity.soft,
            "env": self._environment_of(options),
        }

    def _why_never(self, reason: Callable[[Sequence[Mapping[str, int]]], str | None]) -> str | None:
        """Return why the machines can never hold something, looking again at which there are."""
        if reason(self._totals) is None:
            return None
        self._totals = self._ask_plain("totals")
        return reason(self._totals)

    def _why_not_there(self, needs: Demand, affinity: NodeAffinitySchedulingStrategy) -> str | None:
        """Return why a machine, or any when the wish is soft, can never hold a call."""
        request = Request(0, needs, node=affinity.node_id, is_soft=affinity.soft)
        reason: str | None = self._ask_plain("feasible", *request)
        return reason

    def _environment_of(self, options: Options) -> tuple[Any, ...]:
        """Return what a call finds around it, as messages carry it."""
        found = options.environment(self._environment)
        found.check_folders()
        return tuple(found)

    def _code_id(self, code: object) -> int:
        """Return the id of a function or class; the engine gets its pickle the first time."""
        known = self._code_ids.get(code)
        if known is not None:
            return known
        cut = pickled_code(code)
        digest = hashlib.blake2b(cut.stream, digest_size=16).digest()
        code_id = FIRST_CODE + int.from_bytes(digest)
        self._link.post(("code", code_id, cut.stream, cut.held))
        self._code_ids[code] = code_id
        weakref.finalize(code, self.holds.drop, code_id).atexit = False
        return code_id

    def _ask_plain(self, verb: str, *fields: Any) -> UserValue:
        answer = self._link.ask(verb, *fields)
        assert answer is not None, "a question without a timeout is answered"
        return self._load_plain(answer)

    def _load_plain(self, answer: Answer) -> UserValue:
        if answer[0] == "error":
            raise self._reader.load(0, Value(*answer[1]))
        return answer[1]

    def _load_values(self, ids: Sequence[int], answer: Answer) -> list[Any]:
        try:
            kind, payload = answer
            if kind == "error":
                raise self._reader.load(0, Value(*payload))
            values = {object_id: Value(*raw) for object_id, raw in payload}
            return [self._reader.load(object_id, values[object_id]) for object_id in ids]
        finally:
            self._reader.end_loan(answer)

    def _new_ids(self, num_returns: int | str | None) -> tuple[int, ...]:
        return tuple(self.next_id() for _ in range(num_refs(num_returns)))

    def _check_ours(self, ref: ObjectRef) -> None:
        if not ref.belongs_to(self.holds):
            raise ValueError(f"{ref!r} belongs to an engine that was shut down; make it again")


def driver_context(node_id: str) -> Context:
    """Return the context of a driver on a machine."""
    return Context(is_driver=True, actor_id=None, name="driver", gpu_ids=(), node_id=node_id)


def _stream(options: Options | CallOptions) -> int | None:
    """Return how many items of a call may wait to be taken, 0 for any, or None for no stream."""
    return (options.max_buffered_items or 0) if options.num_returns == "streaming" else None


def _shortage(needs: Demand, rooms: Sequence[Mapping[str, int]]) -> str | None:
    """Return why none of the rooms can ever hold ``needs``, or None when one can."""
    reasons = [shortage(needs, room) for room in rooms]
    return reasons[0] if all(reason is not None for reason in reasons) else None


def _rooms(options: Options) -> list[Mapping[str, int]]:
    """Return the bundles a call may run in, as totals."""
    group = options.placement_group
    assert group is not None, "only calls in a group have bundles"
    index = options.placement_group_bundle_index
    chosen = group.bundles if index < 0 else (group.bundles[index],)
    needs: list[Demand] = [bundle_demand(bundle) for bundle in chosen]
    return [dict(bundle) for bundle in needs]


def _actor_info(fields: tuple[Any, ...]) -> ActorInfo:
    return ActorInfo(fields[0], fields[1], tuple(fields[2]))


def _retry_on(kinds: bool | Sequence[type[BaseException]]) -> bool | bytes:
    """Return ``retry_exceptions`` as calls carry it."""
    return kinds if isinstance(kinds, bool) else _pickled_kinds(tuple(kinds))


@functools.lru_cache(64)
def _pickled_kinds(kinds: tuple[type[BaseException], ...]) -> bytes:
    return pickled_code(kinds).stream
