"""The same program on a real Ray cluster: each call of ours becomes one of Ray's.

Ray is an extra: it is imported only once ``init(engine="ray")`` asks for it, or by Ray itself in
its own workers.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import lru_cache, partial
from typing import Any

from .backend import ActorInfo, Context, GroupInfo, Start
from .errors import GetTimeoutError, NanoRayError, PlacementGroupRemovedError
from .options import CallOptions, Options
from .ray_code import native_code, native_methods
from .ray_errors import from_ray, sending, translated
from .ray_futures import future_of
from .ray_holds import Native, RayHolds, is_group, number_of
from .ray_request import (
    Feasibility,
    actor_keywords,
    call_keywords,
    native_group,
    task_keywords,
)
from .ray_stream import RayStream
from .refs import ObjectRef, UserValue
from .remote import public_methods

_CODES_KEPT = 1024
_NODE_KEYS = ("NodeID", "Alive", "NodeManagerAddress", "NodeManagerHostname", "NodeManagerPort")


class RayEngine:
    """A ``Backend`` that Ray does the work of.

    Args:
        is_driver: Whether this is the process that connected, and not one of Ray's workers.
        owns_ray: Whether ``shutdown`` ends Ray too, because it was started for this engine.
    """

    def __init__(self, *, is_driver: bool, owns_ray: bool) -> None:
        import ray

        self._ray: Any = ray
        self.holds = RayHolds()
        self._is_driver, self._owns_ray = is_driver, owns_ray
        self._feasible = Feasibility(
            lambda: {node["NodeID"]: node["Resources"] for node in _alive(ray)}
        )
        self._native_code = lru_cache(_CODES_KEPT)(native_code)
        self._ready: dict[int, Native] = {}

    def put(self, value: object) -> int:
        """Store a value; return its id."""
        if isinstance(value, ObjectRef):
            raise TypeError(f"put({value!r}) would be a ref to a ref; pass the ref itself on")
        with translated(), sending(type(value).__name__):
            return self.holds.keep(self._ray.put(value))

    def get(self, ids: Sequence[int], *, timeout: float | None) -> list[Any]:
        """Return the values in order, or raise the error of the first that failed."""
        natives = [self._native(number) for number in ids]
        with translated():
            try:
                values = self._ray.get(natives, timeout=timeout)
            except self._ray.exceptions.GetTimeoutError:
                raise GetTimeoutError(
                    f"get of {len(ids)} object(s) had no result after timeout={timeout} s; the "
                    f"work goes on: get again, or kill the actor"
                ) from None
        return [
            None if is_group(number) else value for number, value in zip(ids, values, strict=True)
        ]

    def wait(
        self, ids: Sequence[int], *, num_returns: int, timeout: float | None, fetch_local: bool
    ) -> set[int]:
        """Return the ids that are ready, as soon as there are ``num_returns`` or time is up."""
        names = {self._native(number): number for number in ids}
        with translated():
            ready, _ = self._ray.wait(
                list(names), num_returns=num_returns, timeout=timeout, fetch_local=fetch_local
            )
        return {names[native] for native in ready}

    def function(self, code: object, options: Options) -> Start:
        """Prepare a function."""
        return partial(self._submit, code, options)

    def method(self, actor: ActorInfo, name: str, options: CallOptions) -> Start:
        """Prepare a method of an actor."""
        return partial(self._call, actor, name, options)

    def _submit(
        self, code: object, options: Options, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> list[int]:
        name = f"{options.name or getattr(code, '__qualname__', repr(code))}()"
        self._check_room(options, name, default_cpus=1)
        with translated(), sending(f"{name} or an argument of it"):
            function = self._native_code(code).options(**task_keywords(options))
            return self._kept(function.remote(*self._lift(args), **self._lift_named(kwargs)))

    def create_actor(
        self, code: object, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, options: Options
    ) -> ActorInfo:
        """Start an actor."""
        assert isinstance(code, type), "actors are made of classes"
        self._check_room(options, code.__name__, default_cpus=0)
        with translated(), sending(f"{code.__name__} or an argument of it"):
            actor_class = self._native_code(code).options(**actor_keywords(options))
            try:
                handle = actor_class.remote(*self._lift(args), **self._lift_named(kwargs))
            except ValueError as error:
                if "already" not in str(error):
                    raise
                raise ValueError(
                    f"name={options.name!r} belongs to a live actor; use "
                    f"get_actor({options.name!r}), or get_if_exists=True"
                ) from None
        number = self.holds.keep(handle._actor_id, handle)
        return ActorInfo(number, code.__name__, public_methods(code))

    def _call(
        self,
        actor: ActorInfo,
        method: str,
        options: CallOptions,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> list[int]:
        bound = getattr(self.holds[actor.id], method).options(**call_keywords(options))
        with translated(), sending(f"an argument of {actor.class_name}.{method}()"):
            return self._kept(bound.remote(*self._lift(args), **self._lift_named(kwargs)))

    def future(self, object_id: int) -> "Future[Any]":
        """Return a future of the value."""
        is_value = not is_group(object_id)
        return future_of(
            self._native(object_id).future(), lambda value: value if is_value else None
        )

    def next_item(self, stream_id: int, index: int, *, timeout: float | None) -> int | None:
        """Return the id of a stream's item, or None at its end."""
        return self._stream(stream_id).next(index, timeout=timeout)

    def next_item_future(self, stream_id: int, index: int) -> "Future[int | None]":
        """Return a future of the id of a stream's item; to be called in an event loop."""
        return self._stream(stream_id).next_future(index)

    def kill(self, actor_id: int, *, no_restart: bool) -> None:
        """Kill an actor's process."""
        with translated():
            self._ray.kill(self.holds[actor_id], no_restart=no_restart)

    def cancel(self, object_id: int, *, force: bool, recursive: bool) -> None:
        """End the call that owes the object, unless that is ready."""
        # Ray shows a result before it has noted that the call has ended. Cancelled between the
        # two, the call ends twice, which Ray takes for a broken state: it aborts the caller.
        if self.wait([object_id], num_returns=1, timeout=0, fetch_local=False):
            return
        with translated():
            self._ray.cancel(self._native(object_id), force=force, recursive=recursive)

    def get_actor(self, name: str) -> ActorInfo:
        """Return the live actor of that name."""
        try:
            handle = self._ray.get_actor(name)
        except ValueError:
            raise ValueError(f"get_actor({name!r}): no live actor has this name") from None
        class_name = handle._ray_actor_creation_function_descriptor.class_name
        number = self.holds.keep(handle._actor_id, handle)
        return ActorInfo(number, class_name.rpartition(".")[2], native_methods(handle))

    def create_group(
        self, bundles: Sequence[Mapping[str, float]], strategy: str, name: str = ""
    ) -> int:
        """Ask for a placement group."""
        self._feasible.check_group(bundles, strategy)
        amounts = [dict(bundle) for bundle in bundles]
        try:
            group = self._ray.util.placement_group(amounts, strategy=strategy, name=name)
        except self._ray.exceptions.RaySystemError as error:
            if "already exists" not in str(error):
                raise from_ray(error) from None
            raise ValueError(
                f"name={name!r} belongs to a placement group; use get_placement_group({name!r})"
            ) from None
        return number_of(group.id)

    def get_group(self, name: str) -> GroupInfo:
        """Return the placement group of that name."""
        with translated():
            group = self._ray.util.get_placement_group(name)
            row = self._ray.util.placement_group_table(group)
        bundles = tuple(dict(row["bundles"][index]) for index in sorted(row["bundles"]))
        return GroupInfo(number_of(group.id), bundles, row["strategy"])

    def remove_group(self, group_id: int) -> None:
        """Give a group's resources back."""
        with translated():
            self._ray.util.remove_placement_group(native_group(group_id))
        self._ready.pop(group_id, None)

    def nodes(self) -> list[dict[str, Any]]:
        """Return a row for each machine."""
        with translated():
            rows = self._ray.nodes()
        return [
            {
                **{key: row[key] for key in _NODE_KEYS},
                "Resources": {name: n for name, n in row["Resources"].items() if _is_users(name)},
            }
            for row in rows
        ]

    def resources(self, *, available: bool) -> dict[str, float]:
        """Return what exists, or what is free now, without what Ray counts for itself."""
        with translated():
            totals = self._ray.cluster_resources()
            amounts = self._ray.available_resources() if available else totals
        return {name: amounts.get(name, 0.0) for name in totals if _is_users(name)}

    def state(self, kind: str) -> list[dict[str, Any]]:
        """Return the rows of "actors"; the rest Ray knows in its dashboard alone.

        Raises:
            NanoRayError: Another kind is asked for.
        """
        if kind != "actors":
            raise NanoRayError(
                f"kind={kind!r}: Ray keeps these rows in its dashboard; use `ray list {kind}`"
            )
        with translated():
            table = self._ray._private.state.actors()
        return [actor_row(row) for row in table.values()]

    def timeline(self) -> list[dict[str, Any]]:
        """Return what Ray's processes have done, as Chrome trace events."""
        with translated():
            events: list[dict[str, Any]] = self._ray.timeline()
        return events

    def context(self) -> Context:
        """Return where this process's code runs."""
        here = self._ray.get_runtime_context()
        node = here.get_node_id()
        if self._is_driver:
            return Context(is_driver=True, actor_id=None, name="driver", gpu_ids=(), node_id=node)
        actor, task, name = here.get_actor_id(), here.get_task_id(), here.get_task_name() or ""
        return Context(
            is_driver=False,
            actor_id=None if actor is None else number_of(self._ray.ActorID.from_hex(actor)),
            name=f"{name}()" if actor is None else name.partition(".")[0],
            gpu_ids=tuple(map(str, here.get_accelerator_ids().get("GPU", ()))),
            task_id=None if task is None else number_of(self._ray.TaskID.from_hex(task)),
            node_id=node,
        )

    def shutdown(self) -> None:
        """End Ray, or leave it running when it was there before."""
        self.holds.forget()
        self._ready.clear()
        if self._owns_ray:
            self._ray.shutdown()

    def _check_room(self, options: Options, name: str, *, default_cpus: float) -> None:
        """Raise unless the call can run some day; Ray would let it wait for ever."""
        self._feasible.check(options, name, default_cpus=default_cpus)
        group = options.placement_group
        if group is None:
            return
        with translated():
            row = self._ray.util.placement_group_table(native_group(group.id, group.bundles))
        if row.get("state") == "REMOVED":
            raise PlacementGroupRemovedError(
                f"{name}: its placement group was removed; create another and place it there"
            )

    def _stream(self, number: int) -> RayStream:
        stream = self.holds[number]
        assert isinstance(stream, RayStream), "only generators that stream are iterated"
        return stream

    def _native(self, number: int) -> Native:
        """Return Ray's ref; of a group or a stream, one that is ready with it."""
        if not is_group(number):
            held = self.holds[number]
            return held.completed() if isinstance(held, RayStream) else held
        if number not in self._ready:
            self._ready[number] = native_group(number).ready()
        return self._ready[number]

    def _kept(self, returned: Native) -> list[int]:
        """Return the numbers of what a call of Ray returned: a ref, several, a stream or None."""
        if returned is None:
            return []
        if isinstance(returned, self._ray.ObjectRefGenerator):
            return [self.holds.keep(returned.completed(), RayStream(returned, self.holds))]
        natives = returned if isinstance(returned, list) else [returned]
        return [self.holds.keep(native) for native in natives]

    def _lift(self, args: Sequence[Any]) -> list[Any]:
        """Return the arguments with Ray's refs for ours, which Ray resolves at the top level."""
        return [self._lifted(arg) for arg in args]

    def _lift_named(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._lifted(arg) for name, arg in kwargs.items()}

    def _lifted(self, value: UserValue) -> UserValue:
        if type(value) is not ObjectRef:
            return value
        if not value.belongs_to(self.holds):
            raise ValueError(f"{value!r} belongs to an engine that was shut down; make it again")
        return self._native(value.id)


def actor_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of Ray's table of actors with the names of ``list_actors``."""
    return {
        "actor_id": row["ActorID"],
        "class_name": row["ActorClassName"],
        "name": row["Name"],
        "state": row["State"],
        "pid": row["Pid"],
        "node_id": row["Address"]["NodeID"],
    }


def _alive(ray: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    return [node for node in ray.nodes() if node["Alive"]]


def _is_users(name: str) -> bool:
    """Return whether a resource is the user's: no memory, no machine's name, no bundle's share."""
    return (
        name not in ("memory", "object_store_memory") and ":" not in name and "_group_" not in name
    )
