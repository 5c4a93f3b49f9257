"""What an engine offers: the seam between the public functions and whoever does the work."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from .messages import Method
from .options import CallOptions, Options
from .refs import Holds


@dataclass(frozen=True, slots=True)
class Context:
    """Where the calling code runs."""

    is_driver: bool
    """False inside a task or an actor."""
    actor_id: int | None
    """The id of the actor, or None."""
    name: str
    """The function or class, as errors name it; "driver" in the driver."""
    gpu_ids: tuple[str, ...]
    """The devices given to this process by the scheduler."""
    task_id: int | None = None
    """The call that asks, of a task or of a method; None in the driver."""
    node_id: str = ""
    """The machine."""

    def get_task_id(self) -> str | None:
        """Return the call's id in hexadecimal, or None in the driver."""
        return None if self.task_id is None else f"{self.task_id:x}"

    def get_actor_id(self) -> str | None:
        """Return the actor's id in hexadecimal, or None outside actors."""
        return None if self.actor_id is None else f"{self.actor_id:x}"

    def get_node_id(self) -> str:
        """Return the machine's id."""
        return self.node_id

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """Return the ids of the devices given to this process, by kind.

        >>> Context(is_driver=False, actor_id=255, name="f()", gpu_ids=("2",)).get_accelerator_ids()
        {'GPU': ['2']}
        """
        return {"GPU": list(self.gpu_ids)}


@dataclass(frozen=True, slots=True)
class ActorInfo:
    """What a handle needs to know of an actor."""

    id: int
    class_name: str
    methods: tuple[Method, ...]
    """Its public methods, by name, with the options that the class gives them."""


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """What a handle of a placement group needs to know."""

    id: int
    bundles: tuple[dict[str, float], ...]
    strategy: str


Start = Callable[[tuple[Any, ...], Mapping[str, Any]], Sequence[int]]
"""Starts a call with these arguments, by position and by keyword; returns the ids of its results,
each held once."""


class Backend(Protocol):
    """An engine, as seen from one process of it. Ids are integers unique in the engine."""

    @property
    def holds(self) -> Holds:
        """Where refs made or dropped in this process are counted."""
        ...

    def put(self, value: object) -> int:
        """Store a value; return its id, already held once."""
        ...

    def get(self, ids: Sequence[int], *, timeout: float | None) -> list[Any]:
        """Return the values in order, or raise what the first failed one raises."""
        ...

    def wait(
        self, ids: Sequence[int], *, num_returns: int, timeout: float | None, fetch_local: bool
    ) -> set[int]:
        """Return the ids that are ready, as soon as there are ``num_returns``.

        With ``fetch_local`` those on the caller's machine, to which the others are brought.
        """
        ...

    def function(self, code: object, options: Options) -> Start:
        """Prepare a function; what is returned starts a task.

        A call that streams has one result, its stream: ``next_item`` takes from it, and as an
        object it is ready when the generator has ended.
        """
        ...

    def create_actor(
        self, code: object, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, options: Options
    ) -> ActorInfo:
        """Start an actor; its id is held once."""
        ...

    def method(self, actor: ActorInfo, name: str, options: CallOptions) -> Start:
        """Prepare a method of an actor; calls of one caller run in the order made."""
        ...

    def future(self, object_id: int) -> "Future[Any]":
        """Return a future of the value; it costs no thread, and cancelling it leaks nothing."""
        ...

    def next_item(self, stream_id: int, index: int, *, timeout: float | None) -> int | None:
        """Return the id of a stream's item, or None when the stream has ended.

        The id is not held: the stream keeps the item until the next one is asked for. Only the
        item after the last one returned, or that one again, may be asked for. When the generator
        failed, its last item is followed by the stream itself, which as an object is the error.
        """
        ...

    def next_item_future(self, stream_id: int, index: int) -> "Future[int | None]":
        """Return a future of what ``next_item`` returns."""
        ...

    def kill(self, actor_id: int, *, no_restart: bool) -> None:
        """Kill the actor's process; without ``no_restart`` its ``max_restarts`` count."""
        ...

    def cancel(self, object_id: int, *, force: bool, recursive: bool) -> None:
        """End the call that owes the object; does nothing when it is ready.

        Raises:
            ValueError: ``force`` for a method of an actor.
        """
        ...

    def get_actor(self, name: str) -> ActorInfo:
        """Return the actor of that name, held once more."""
        ...

    def create_group(self, bundles: Sequence[Mapping[str, float]], strategy: str, name: str) -> int:
        """Ask for a placement group; its id is the id of an object that is ready with it.

        ``name`` is empty for none.
        """
        ...

    def get_group(self, name: str) -> GroupInfo:
        """Return the placement group of that name; ValueError when there is none."""
        ...

    def remove_group(self, group_id: int) -> None:
        """Give a group's resources back and kill what runs in it."""
        ...

    def nodes(self) -> list[dict[str, Any]]:
        """Return a row for each machine."""
        ...

    def resources(self, *, available: bool) -> dict[str, float]:
        """Return what exists, or what is free now."""
        ...

    def state(self, kind: str) -> list[dict[str, Any]]:
        """Return the rows of "tasks", "actors", "objects" or "workers"; see ``state.py``."""
        ...

    def timeline(self) -> list[dict[str, Any]]:
        """Return the last calls that have ended, as Chrome trace events."""
        ...

    def context(self) -> Context:
        """Return where the calling code runs."""
        ...

    def shutdown(self) -> None:
        """End the engine (in the driver)."""
        ...
