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
from .arguments import Packer
from .backend import ActorInfo, Context, GroupInfo, Start
from .codes import FIRST_CODE
from .environment import Environment
from .errors import GetTimeoutError
from .futures import Futures
from .history import Ran, chrome_trace
from .messages import Spec
from .options import CallOptions, Options
from .places import Places
from .refs import HoldLog, ObjectRef, UserValue
from .remote import has_coroutines, public_methods
from .resources import readable
from .starts import Caller
from .store import Writer
from .value import pickled, pickled_code
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
        self._link, self._reader, self._context = link, reader, context
        self._places = Places(self._ask_plain, totals, environment)
        self.next_id = itertools.count((process << 40) + 1).__next__
        """Return a number that no process of this engine has used."""
        self.allowance = Allowance(link, reader, self.next_id)
        self.writer = Writer(self.allowance)
        self.caller = Caller(link.post, Packer(self.writer, holds, self.next_id), self.next_id)
        self.futures = Futures(link, holds, refuse=self.allowance.refuse)
        self._code_ids: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def put(self, value: object) -> int:
        """Store a value; return its id."""
        if isinstance(value, ObjectRef):
            raise TypeError(f"put({value!r}) would be a ref to a ref; pass the ref itself on")
        object_id, cut = self.next_id(), pickled(value)
        self._link.post(("put", object_id, self.writer.write(cut).raw, cut.held))
        return object_id

    def get(self, ids: Sequence[int], *, timeout: float | None) -> list[Any]:
        """Return the values in order, or raise the error of the first that failed."""
        answer = self._link.ask("get", list(ids), timeout_s=timeout)
        if answer is None:
            raise GetTimeoutError(
                f"get of {len(ids)} object(s) had no result after timeout={timeout} s; the work "
                f"goes on: get again, or kill the actor"
            )
        return self._load_values(answer)

    def future(self, object_id: int) -> "Future[Any]":
        """Return a future of the value."""
        return self.futures.ask(
            "get", [object_id], held=object_id, load=lambda answer: self._load_values(answer)[0]
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
            raise self._reader.load(0, payload)
        return set(payload)

    def function(self, code: object, options: Options) -> Start:
        """Prepare a function."""
        name = f"{options.name or getattr(code, '__qualname__', repr(code))}()"

        def prepared(code: object) -> Start:
            spec = Spec(
                "task",
                0,
                self._code_id(code),
                "",
                name,
                retries=options.max_retries,
                retry_on=_retry_on(options.retry_exceptions),
                stream=_stream(options),
                **self._places.find(options, name, default_cpus=1),
            )
            return self.caller.prepare(spec, options.num_returns)

        if options.affinity is None and not self._places.environment_of(options).has_folders:
            return prepared(code)
        # Machines and folders come and go: look each time. A start may not keep its function.
        kept = weakref.ref(code)
        return lambda args, kwargs: prepared(kept())(args, kwargs)

    def create_actor(
        self, code: object, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, options: Options
    ) -> ActorInfo:
        """Start an actor."""
        assert isinstance(code, type), "actors are made of classes"
        has_loop = has_coroutines(code)
        place = self._places.find(options, code.__name__, default_cpus=0)
        info = ActorInfo(self.next_id(), code.__name__, public_methods(code))
        spec = Spec(
            "new",
            info.id,
            self._code_id(code),
            "",
            code.__name__,
            retries=options.max_restarts,
            task_retries=options.max_task_retries,
            label=options.name or "",
            methods=info.methods,
            is_detached=options.lifetime == "detached",
            max_concurrency=options.max_concurrency or (_LOOP_CONCURRENCY if has_loop else 1),
            has_loop=has_loop,
            **place,
        )
        call = self.caller.describe(spec, args, kwargs)
        if options.name is None:
            self._link.post(("call", *call))
            return info
        fields = self._ask_plain("create", options.get_if_exists, *call)
        if fields is None:
            raise ValueError(
                f"name={options.name!r} belongs to a live actor; use get_actor({options.name!r}), "
                f"or get_if_exists=True"
            )
        return _actor_info(fields)

    def method(self, actor: ActorInfo, name: str, options: CallOptions) -> Start:
        """Prepare a method of an actor."""
        spec = Spec(
            "method",
            actor.id,
            0,
            name,
            f"{actor.class_name}.{name}()",
            retries=options.max_task_retries,
            retry_on=_retry_on(options.retry_exceptions),
            stream=_stream(options),
        )
        return self.caller.prepare(spec, options.num_returns)

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
        needs = self._places.bundles(bundles, strategy)
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
        return replace(self._context, task_id=self.caller.current_call or None)

    def shutdown(self) -> None:
        """Leave the engine."""
        self._link.close()
        self.futures.close()
        self.writer.close()
        self._reader.close()

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
            raise self._reader.load(0, answer[1])
        return answer[1]

    def _load_values(self, answer: Answer) -> list[Any]:
        try:
            kind, payload = answer
            if kind == "error":
                raise self._reader.load(0, payload)
            load = self._reader.load
            return [load(object_id, raw) for object_id, raw in payload]
        finally:
            self._reader.end_loan(answer)


def driver_context(node_id: str) -> Context:
    """Return the context of a driver on a machine."""
    return Context(is_driver=True, actor_id=None, name="driver", gpu_ids=(), node_id=node_id)


def _stream(options: Options | CallOptions) -> int | None:
    """Return how many items of a call may wait to be taken, 0 for any, or None for no stream."""
    return (options.max_buffered_items or 0) if options.num_returns == "streaming" else None


def _actor_info(fields: tuple[Any, ...]) -> ActorInfo:
    return ActorInfo(fields[0], fields[1], tuple(fields[2]))


def _retry_on(kinds: bool | Sequence[type[BaseException]]) -> bool | bytes:
    """Return ``retry_exceptions`` as calls carry it."""
    return kinds if isinstance(kinds, bool) else _pickled_kinds(tuple(kinds))


@functools.lru_cache(64)
def _pickled_kinds(kinds: tuple[type[BaseException], ...]) -> bytes:
    return pickled_code(kinds).stream
