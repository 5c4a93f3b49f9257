"""Refs: names of objects that keep them alive, and the log that counts them.

Each process counts its refs by appending what it gains and drops to one log, which it hands to
the engine before any other message. The engine therefore learns of a ref that arrived inside a
value before it learns that the value itself was let go, and no borrowing protocol is needed.
"""

from collections import Counter, deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from typing import Any, NoReturn, Protocol

from .wire import Message

UserValue = Any
"""What user code passes or returns: only user code knows its type."""


class Holds(Protocol):
    """How an engine counts what this process holds."""

    def add(self, object_id: int) -> None:
        """Count one more holder of the object in this process."""
        ...

    def drop(self, object_id: int) -> None:
        """Count one holder less. Called by finalizers: must never block."""
        ...

    def reduce(self, thing: Any) -> UserValue:  # noqa: ANN401  an ObjectRef or an ActorHandle
        """Return what ``thing.__reduce__`` returns to a pickler that is not this engine's own."""
        ...


class HoldLog:
    """What this process holds more or less of since the engine last heard.

    Finalizers run at any moment, also inside code that holds a lock, so they may only append here,
    which is atomic.
    """

    def __init__(self) -> None:
        self._gained: deque[int] = deque()
        self._dropped: deque[int] = deque()
        # Each call makes and drops refs: the deques' own methods are the cheapest there are.
        self.add = self._gained.append
        """Count one more holder of the object in this process."""
        self.drop = self._dropped.append
        """Count one holder less."""

    def reduce(self, thing: object) -> NoReturn:
        """Refuse: only this engine's own pickler counts what it sends."""
        raise TypeError(
            f"{thing!r} cannot be pickled by hand: its holder would not be counted; pass it as an "
            f"argument, or inside a value, of a nanoray call"
        )

    def take(self) -> Message | None:
        """Return the message of what was gained and dropped, None for nothing, and forget it.

        The drops are taken first, so that what was gained before them is in the same message. An
        object that was gained and dropped, as the views of an argument are, is in neither list.

        >>> log = HoldLog()
        >>> log.drop(1), log.add(2), log.add(3), log.drop(3)
        (None, None, None, None)
        >>> log.take()
        ('holds', [2], [1])
        """
        dropped = [self._dropped.popleft() for _ in range(len(self._dropped))]
        gained = [self._gained.popleft() for _ in range(len(self._gained))]
        if gained == dropped:
            return None
        if gained and dropped:
            net = Counter(gained)
            net.subtract(dropped)
            gained, dropped = list((+net).elements()), list((-net).elements())
        return ("holds", gained, dropped) if gained or dropped else None

    @property
    def has_gained(self) -> bool:
        """Whether there is more than drops."""
        return bool(self._gained)

    def __bool__(self) -> bool:
        return bool(self._dropped or self._gained)


class ObjectRef:
    """The name of one value, which may not exist yet.

    The value lives at least as long as any ref to it in any process. A ref among the arguments of
    a remote call arrives as its value; a ref inside a list or dict arrives as a ref. In a
    coroutine, ``await ref`` is the value.
    """

    __slots__ = ("__weakref__", "_holds", "_id")

    def __init__(self, object_id: int, holds: Holds) -> None:
        self._id = object_id
        self._holds = holds

    @property
    def id(self) -> int:
        """The object's number, unique in its engine."""
        return self._id

    def belongs_to(self, holds: Holds) -> bool:
        """Return whether the ref was made by the engine whose log this is."""
        return self._holds is holds

    def future(self) -> "Future[Any]":
        """Return a future of the value; cancelling it does not end the call."""
        from .session import current  # a cycle otherwise: sessions know refs

        backend = current()
        if backend.holds is not self._holds:
            raise ValueError(f"{self!r} belongs to an engine that was shut down; make it again")
        return backend.future(self._id)

    def __await__(self) -> Generator[Any, None, UserValue]:
        import asyncio  # who awaits has it already, and others need not pay for it

        return asyncio.wrap_future(self.future()).__await__()

    def __del__(self) -> None:
        self._holds.drop(self._id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectRef) and self._id == other._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"ObjectRef({self._id:x})"

    def __reduce__(self) -> UserValue:
        return self._holds.reduce(self)


def ids_of(refs: Iterable[Any], holds: Holds) -> list[int]:
    """Return the ids of those that are refs of the engine whose log this is."""
    return [ref._id for ref in refs if type(ref) is ObjectRef and ref._holds is holds]
