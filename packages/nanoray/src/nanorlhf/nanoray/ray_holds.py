"""Numbers for Ray's objects, actors and groups, and those of them that this process holds.

A number is Ray's own binary id behind a leading byte of 1: the same in every process, and its
length tells what it names. Ray itself counts holders across processes; as long as somebody here
holds a ref of ours, this table keeps one ref of Ray's.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from .refs import ObjectRef
from .remote import ActorHandle
from .session import current

_GROUP_ID_BYTES = 18  # PlacementGroupID in Ray's src/ray/common/id.h; actors have 16, objects 28

Native = Any
"""An ObjectRef, ObjectRefGenerator or ActorHandle of Ray, which has no types for them."""


class BinaryId(Protocol):
    """What all ids of Ray have."""

    def binary(self) -> bytes:
        """Return the id's bytes, of a length that its kind has."""
        ...


def number_of(name: BinaryId) -> int:
    """Return the number of an ObjectRef, ActorID or PlacementGroupID of Ray."""
    return int.from_bytes(b"\1" + name.binary(), "big")


def binary_of(number: int) -> bytes:
    """Return the bytes of Ray's id.

    >>> list(binary_of(0x1_00_2A))
    [0, 42]
    """
    return number.to_bytes((number.bit_length() + 7) // 8, "big")[1:]


def is_group(number: int) -> bool:
    """Return whether the number names a placement group: those are removed, not held."""
    return len(binary_of(number)) == _GROUP_ID_BYTES


class _Held(NamedTuple):
    native: Native
    holders: int


class RayHolds:
    """Ray's refs and handles by number, each kept while somebody here holds it.

    Finalizers run at any moment, also inside this class. So `drop` never waits for the lock: it
    notes the change, and whoever has the lock now, or takes it next, applies it.
    """

    def __init__(self) -> None:
        self._held: dict[int, _Held] = {}
        self._changes: deque[tuple[int, int]] = deque()
        self._lock = threading.Lock()

    def keep(self, name: BinaryId, native: Native = None) -> int:
        """Hold what Ray calls ``name`` once more; return its number.

        Args:
            name: Its id; a Ray ObjectRef is its own.
            native: What to keep alive if it is not ``name``: the handle, or the stream.
        """
        number = number_of(name)
        with self._lock:
            held = self._held.get(number, _Held(name if native is None else native, 0))
            self._held[number] = held._replace(holders=held.holders + 1)
        self._settle()
        return number

    def __getitem__(self, number: int) -> Native:
        """Return Ray's ref, stream or handle of a number that is held."""
        return self._held[number].native

    def add(self, object_id: int) -> None:
        """Count one more holder of what is held already."""
        self._changes.append((object_id, 1))

    def drop(self, object_id: int) -> None:
        """Count one holder less."""
        self._changes.append((object_id, -1))
        self._settle()

    def reduce(self, thing: ObjectRef | ActorHandle) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return how a ref or handle of ours is pickled: as Ray's, which Ray keeps count of."""
        if isinstance(thing, ObjectRef):
            return _load_ref, (self[thing.id],)
        load, (number, *facts) = thing.__nanoray_travel__()
        return _load_handle, (self[number], load, facts)

    def forget(self) -> None:
        """Let everything go: the engine ends."""
        with self._lock:
            held, self._held = self._held, {}
        held.clear()

    def _settle(self) -> None:
        """Apply the changes noted, unless somebody is at it."""
        while self._changes and self._lock.acquire(blocking=False):
            freed = []  # their own finalizers run after the lock is given back
            try:
                while self._changes:
                    freed.append(self._apply(*self._changes.popleft()))
            finally:
                self._lock.release()

    def _apply(self, number: int, delta: int) -> _Held | None:
        held = self._held.get(number)
        if held is None:  # a group, or forgotten at shutdown
            return None
        if held.holders + delta:
            self._held[number] = held._replace(holders=held.holders + delta)
            return None
        return self._held.pop(number)


def here() -> RayHolds:
    """Return the table of this process, which runs in Ray.

    Raises:
        ValueError: The process is connected to an engine of another kind.
    """
    holds = current().holds
    if not isinstance(holds, RayHolds):
        raise ValueError("a ref of a Ray engine was opened in a process of another engine")
    return holds


def _load_ref(native: Native) -> ObjectRef:
    holds = here()
    return ObjectRef(holds.keep(native), holds)


def _load_handle(
    native: Native, load: Callable[..., ActorHandle], facts: Sequence[Any]
) -> ActorHandle:
    holds = here()
    number = holds.keep(native._actor_id, native)
    handle = load(number, *facts)
    holds.drop(number)  # the handle holds it now
    return handle
