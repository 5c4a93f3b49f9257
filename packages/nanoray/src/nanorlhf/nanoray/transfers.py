"""Values that are needed on another machine than the one they were written on. No I/O.

Each arena belongs to a machine. Before a process of another machine may read a value, the value's
block is fetched into an arena of that machine; the copy serves everybody there, and is freed with
the object. When a machine is lost, a copy elsewhere takes the place of what was lost with it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .errors import ObjectLostError
from .machines import Machines
from .objects import Entry, Objects
from .value import Block, Value, error_value

Then = Callable[[Value | None], None]
"""Told once: None when everything is there, else the error of what cannot come."""


@dataclass(slots=True)
class _Fetch:
    object_id: int
    source: int
    target: int
    waiting: list[Then] = field(default_factory=list)


class Transfers:
    """Every copy and every copy under way.

    Args:
        objects: The object table.
        machine_of: Returns the machine of an arena.
        machines: The table of machines: while there is one, nothing is looked up.
        fetch: Called as ``fetch(number, source, target, block)`` to have machine ``target`` copy a
            block of machine ``source``; ``fetched`` or ``failed`` of that number follows.
        keep: Called with the block of a new copy.
        free: Called with the block of a copy nobody needs any more.
    """

    def __init__(
        self,
        objects: Objects,
        *,
        machine_of: Callable[[int], int],
        machines: Machines,
        fetch: Callable[[int, int, int, Block], None],
        keep: Callable[[Block], None],
        free: Callable[[Block], None],
    ) -> None:
        self._objects, self._machine_of, self._machines = objects, machine_of, machines
        self._fetch, self._keep, self._free = fetch, keep, free
        self._copies: dict[int, dict[int, Block]] = {}
        self._fetches: dict[int, _Fetch] = {}
        self._under_way: dict[tuple[int, int], int] = {}
        """(object, target machine) -> number of the fetch."""
        self._count = 0

    def on(self, machine: int, object_id: int, value: Value) -> Value | None:
        """Return the object's value as processes of ``machine`` read it, None if it is not there.

        ``value`` is what the object table says.
        """
        if self._machines.is_one or value.block is None:
            return value
        if self._machine_of(value.block[0]) == machine:
            return value
        block = self._copies.get(object_id, {}).get(machine)
        return None if block is None else value._replace(block=_plain(block))

    def are_away(self, machine: int, object_ids: Iterable[int]) -> bool:
        """Return whether one of these ready objects must first be brought to a machine."""
        if self._machines.is_one:
            return False
        return any(self._is_away(machine, object_id) for object_id in object_ids)

    def localize(self, machine: int, object_ids: Iterable[int], then: Then) -> None:
        """Bring ready objects to a machine; ``then`` is called at once when all are there.

        The objects are kept until they have come.
        """
        missing = [
            object_id
            for object_id in dict.fromkeys(object_ids)
            if self._is_away(machine, object_id)
        ]
        if not missing:
            then(None)
            return
        coming = len(missing)

        def one(error: Value | None) -> None:
            nonlocal coming
            if coming > 0:
                coming = 0 if error is not None else coming - 1
                if coming == 0:
                    then(error)

        for object_id in missing:
            self._join(object_id, machine, one)

    def fetched(self, number: int, block: Block) -> None:
        """A copy has been made."""
        fetch = self._end(number)
        self._keep(block)
        if fetch is None:  # its object, or the machine it came from, went meanwhile
            self._free(block)
            return
        self._copies.setdefault(fetch.object_id, {})[fetch.target] = block
        self._objects.unpin(fetch.object_id)
        for then in fetch.waiting:
            then(None)

    def failed(self, number: int, reason: str) -> None:
        """A copy could not be made."""
        fetch = self._end(number)
        if fetch is not None:
            error = ObjectLostError(
                f"object {fetch.object_id:x} could not be brought from machine {fetch.source} to "
                f"machine {fetch.target}: {reason}"
            )
            self._give_up(fetch, error_value(error))

    def release(self, object_id: int) -> None:
        """The object is freed, and its copies with it."""
        for block in self._copies.pop(object_id, {}).values():
            self._free(block)

    def machine_lost(self, machine: int, reason: str) -> None:
        """Put copies in the place of what the machine had, and errors where there is none."""
        for object_id, copies in list(self._copies.items()):
            copies.pop(machine, None)
            if not copies:
                del self._copies[object_id]
        for object_id, entry in self._objects.ready():
            block = None if entry.value is None else entry.value.block
            if block is not None and self._machine_of(block[0]) == machine:
                self._replace(object_id, entry, reason)
        for number, fetch in list(self._fetches.items()):
            if fetch.target == machine:
                self._end(number)
                gone = ObjectLostError(f"object {fetch.object_id:x} was on its way to {reason}")
                self._give_up(fetch, error_value(gone))
            elif fetch.source == machine:
                self._end(number)
                self._look_elsewhere(fetch)

    def under_way(self) -> set[int]:
        """Return the objects that are being copied: they must stay where they are."""
        return {fetch.object_id for fetch in self._fetches.values()}

    def _is_away(self, machine: int, object_id: int) -> bool:
        entry = self._objects.get(object_id)
        if entry is None or entry.value is None:
            return False  # an error of its own, which whoever asks will find
        return self.on(machine, object_id, entry.value) is None

    def _join(self, object_id: int, machine: int, then: Then) -> None:
        """Wait for a fetch of the object, which is begun unless it is under way."""
        number = self._under_way.get((object_id, machine))
        if number is None:
            number = self._begin(object_id, machine)
        self._fetches[number].waiting.append(then)

    def _begin(self, object_id: int, target: int) -> int:
        entry = self._objects.get(object_id)
        assert entry is not None, "only what exists is away"
        assert entry.value is not None, "only what is ready is away"
        assert entry.value.block is not None, "what is inline is everywhere"
        block = Block(*entry.value.block)
        self._count += 1
        self._objects.pin(object_id)
        self._fetches[self._count] = _Fetch(object_id, self._machine_of(block.arena), target)
        self._under_way[object_id, target] = self._count
        self._fetch(self._count, self._fetches[self._count].source, target, block)
        return self._count

    def _end(self, number: int) -> _Fetch | None:
        fetch = self._fetches.pop(number, None)
        if fetch is not None:
            del self._under_way[fetch.object_id, fetch.target]
        return fetch

    def _replace(self, object_id: int, entry: Entry, reason: str) -> None:
        """Give an object whose block is lost the block of a copy, or an error."""
        assert entry.value is not None, "only a value can be lost"
        copies = self._copies.pop(object_id, {})
        if copies:
            _, block = copies.popitem()
            entry.value = entry.value._replace(block=_plain(block))
            if copies:
                self._copies[object_id] = copies
            return
        error = ObjectLostError(f"object {object_id:x} was only on {reason}; make it again")
        entry.value, entry.is_error = error_value(error), True

    def _look_elsewhere(self, fetch: _Fetch) -> None:
        """Answer those who wait for a machine that is gone, from what is left of the object."""
        entry = self._objects.get(fetch.object_id)
        assert entry is not None, "it is pinned"
        if entry.is_error:
            self._give_up(fetch, entry.value)
            return
        for then in fetch.waiting:
            self.localize(fetch.target, [fetch.object_id], then)
        self._objects.unpin(fetch.object_id)

    def _give_up(self, fetch: _Fetch, error: Value | None) -> None:
        self._objects.unpin(fetch.object_id)
        for then in fetch.waiting:
            then(error)


def _plain(block: Block) -> tuple[int, int, int]:
    """Return a block as messages carry it."""
    return block.arena, block.offset, block.size
