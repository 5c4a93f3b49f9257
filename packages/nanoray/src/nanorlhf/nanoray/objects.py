"""The object table: which values exist and who still holds them. No I/O.

An object is held by processes (each counts its refs) and pinned by calls that take it as an
argument and by objects that contain a ref to it. With the last hold and the last pin it is freed.
A process that dies drops all it held, so no protocol can be left half done.

A process holds an object's id for its refs and the negated id for its views: as long as somebody
may look at the bytes where they are, they stay there.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

from .value import Value

Watcher = Callable[[int, "Entry"], None]


class Freed(NamedTuple):
    """An object nobody can reach any more; ``value`` is None when it never came to be."""

    id: int
    value: Value | None


class Listed(NamedTuple):
    """One object as ``nanoray list objects`` shows it."""

    id: int
    size: int
    """Bytes of the value; 0 while there is none."""
    location: Literal["pending", "inline", "memory", "spilled"]
    holders: tuple[int, ...]
    """The processes that have refs to it or views of it."""
    is_error: bool


class Entry:
    """One object, ready or not."""

    __slots__ = ("call", "contains", "count", "is_error", "value", "views", "watchers")

    def __init__(self, count: int, call: int = 0) -> None:
        self.value: Value | None = None
        self.is_error = False
        self.contains: tuple[int, ...] = ()
        self.count = count
        """Processes that hold it, by refs or by views, and pins."""
        self.views = 0
        """Processes that may look at the bytes where they are."""
        self.call = call
        """The call that makes it; 0 for none."""
        self.watchers: list[Watcher] = []


class Objects:
    """All objects of one engine."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._by_process: defaultdict[int, dict[int, int]] = defaultdict(dict)
        """Process -> id of an object, negated for its views -> how many it has."""
        self.freed: list[Freed] = []
        """What ``take_freed`` will return."""
        self.get: Callable[[int], Entry | None] = self._entries.get
        """Return the object's entry, or None when there is no such object (any more)."""
        self._resident: dict[int, None] = {}
        """What lies in shared memory, the longest unused first."""

    def __len__(self) -> int:
        return len(self._entries)

    def ready(self) -> list[tuple[int, Entry]]:
        """Return every object that has its value."""
        return [(i, entry) for i, entry in self._entries.items() if entry.value is not None]

    def create(self, object_id: int, process: int, *, call: int = 0) -> Entry:
        """Add an object that ``process`` holds one ref to, and ``call`` will make."""
        entry = self._entries[object_id] = Entry(1, call)
        self._by_process[process][object_id] = 1
        return entry

    def adopt(self, object_id: int, value: Value, *, contains: Iterable[int]) -> None:
        """Add a ready object that no process holds, pinned once by the call it belongs to."""
        self._entries[object_id] = Entry(1)
        self.complete(object_id, value, contains=contains)

    def complete(
        self, object_id: int, value: Value, *, contains: Iterable[int] = (), is_error: bool = False
    ) -> None:
        """Give the object its value and tell its watchers."""
        entry = self._entries.get(object_id)
        if entry is None:  # let go before it was ready
            self.freed.append(Freed(object_id, value))
            return
        entry.value, entry.is_error = value, is_error
        if value.block is not None:
            self._resident[object_id] = None
        if contains:
            entry.contains = tuple(contains)
            for inner in entry.contains:
                self.pin(inner)
        if entry.watchers:
            watchers, entry.watchers = entry.watchers, []
            for watcher in watchers:
                watcher(object_id, entry)

    def reopen(self, object_id: int) -> None:
        """Take back the inline value of an object that is to be ready once more."""
        entry = self._entries.get(object_id)
        if entry is not None:
            entry.value = None

    def hold(self, process: int, key: int, delta: int) -> None:
        """Change how many refs ``process`` has to an object, or views if ``key`` is negative."""
        entry = self._entries.get(abs(key))
        if entry is None:
            return
        held = self._by_process[process]
        before = held.get(key, 0)
        after = before + delta
        if after:
            held[key] = after
        else:
            held.pop(key, None)
        change = bool(after) - bool(before)
        if change:
            entry.count += change
            if key < 0:
                entry.views += change
            if entry.count <= 0:
                self._sweep(abs(key), entry)

    def touch(self, object_id: int) -> None:
        """Note that the object is used now."""
        if object_id in self._resident:
            del self._resident[object_id]
            self._resident[object_id] = None

    def resident(self) -> Iterator[tuple[int, Entry]]:
        """Yield what lies in shared memory, the longest unused first."""
        for object_id in self._resident:
            yield object_id, self._entries[object_id]

    def spill(self, object_id: int, value: Value) -> None:
        """The object has moved to where ``value`` says, out of memory."""
        self._entries[object_id].value = value
        self._resident.pop(object_id, None)

    def holders(self, object_id: int) -> list[tuple[int, bool]]:
        """Return the processes that hold the object, and whether by a view or by refs."""
        keys = ((object_id, False), (-object_id, True))
        held = self._by_process.items()
        return [(who, is_view) for who, has in held for key, is_view in keys if key in has]

    def listing(self) -> list[Listed]:
        """Return every object, errors and those still to come included."""
        holders: dict[int, set[int]] = {}
        for process, held in self._by_process.items():
            for key in held:
                holders.setdefault(abs(key), set()).add(process)
        return [
            Listed(number, *_place(entry), tuple(sorted(holders.get(number, ()))), entry.is_error)
            for number, entry in self._entries.items()
        ]

    def pin(self, object_id: int) -> None:
        """Keep the object for a call or a containing object."""
        entry = self._entries.get(object_id)
        if entry is not None:
            entry.count += 1

    def unpin(self, object_id: int) -> None:
        """Undo one ``pin``."""
        entry = self._entries.get(object_id)
        if entry is not None:
            entry.count -= 1
            if entry.count <= 0:
                self._sweep(object_id, entry)

    def drop_process(self, process: int) -> None:
        """Forget everything a process held: it is gone."""
        for key in self._by_process.pop(process, ()):
            entry = self._entries.get(abs(key))
            if entry is not None:
                entry.count -= 1
                entry.views -= key < 0
                if entry.count <= 0:
                    self._sweep(abs(key), entry)

    def take_freed(self) -> list[Freed]:
        """Return what has been freed since the last call."""
        freed, self.freed = self.freed, []
        return freed

    def _sweep(self, object_id: int, entry: Entry) -> None:
        """Free an object that nobody is left of, and what only it contained.

        With a stack, not recursion: a linked list of refs may be long.
        """
        stack = [(object_id, entry)]
        while stack:
            dead_id, dead = stack.pop()
            del self._entries[dead_id]
            self._resident.pop(dead_id, None)
            self.freed.append(Freed(dead_id, dead.value))
            for inner_id in dead.contains:
                inner = self._entries.get(inner_id)
                if inner is not None:
                    inner.count -= 1
                    if inner.count <= 0:
                        stack.append((inner_id, inner))


def _place(entry: Entry) -> tuple[int, Literal["pending", "inline", "memory", "spilled"]]:
    """Return the size and the location of an object."""
    value = entry.value
    if value is None:
        return 0, "pending"
    if value.block is not None:
        return value.block[2], "memory" if value.checksum is None else "spilled"
    assert value.stream is not None, "an inline value carries its stream"
    return len(value.stream) + sum(map(len, value.parts)), "inline"
