"""How much one machine's processes may write to shared memory, and who makes room. No I/O.

::

    capacity = granted to processes + what processes that are gone left behind + free
               |
               live blocks + blocks freed and kept warm

A process writes within its grant without asking. When the grant is used up it asks for more, and
may have to wait: others give back what they keep warm, and what nobody looks at is moved to disk,
the longest unused first. The process that needs the room does the writing: it has nothing else to
do, and the engine never waits for a disk.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

from .arenas import Arenas, Send, Usage
from .blocks import block_bytes
from .errors import StoreFullError
from .objects import Entry, Objects
from .value import Value, error_value
from .waits import Answer, Asker

Stage = Literal["first", "wait", "spill", "fail"]
"""How far an asker has come: it just asks, waits, would make room, or has waited long enough."""

Place = tuple[int, int, int]
"""Where a spilled object lies in its file: the object, the offset and the checksum."""

_CHUNK_BYTES = 64 << 20
_SPILL_BYTES = 64 << 20
"""What is granted, and moved to disk, at once: so much at least if the store is large enough."""
_SHARE = 16
"""But never more than this part of the store, lest a few idle processes take it all."""
_NUM_HOLDERS = 3


class _Request(NamedTuple):
    size: int
    missing: int
    """Bytes that the process's grant is short of."""


class Room:
    """The store of one machine, as an amount.

    Args:
        machine: The machine's number.
        capacity: Bytes of shared memory that may be in use.
        directory: Where spilled objects go.
        objects: The object table.
        arenas: The table of arenas.
        in_use: Returns the objects that running calls were given.
        name_of: Returns how to call a process.
        send: To a process.
        answer: Answers a question.
    """

    def __init__(
        self,
        machine: int,
        capacity: int,
        directory: str,
        *,
        objects: Objects,
        arenas: Arenas,
        in_use: Callable[[], Collection[int]],
        name_of: Callable[[int], str],
        send: Send,
        answer: Callable[[Asker, Answer], None],
    ) -> None:
        self._machine, self._capacity, self._directory = machine, capacity, directory
        self._objects, self._arenas = objects, arenas
        self._in_use, self._name_of = in_use, name_of
        self._send, self._answer = send, answer
        self._granted: Counter[int] = Counter()
        self.waiting: OrderedDict[Asker, _Request] = OrderedDict()
        self._spilling: dict[int, int] = {}
        """Object -> the process that moves it to disk."""
        self._trouble = ""
        """Why the last attempt to write to disk failed."""

    @property
    def free_bytes(self) -> int:
        """Bytes that nobody has been granted."""
        return self._capacity - self._taken(self._arenas.usage(self._machine))

    def ask(self, asker: Asker, size: int, missing: int, stage: Stage) -> None:
        """Grant ``missing`` bytes for a value of ``size`` now or later, or say what else to do.

        The answer is ``("grant", bytes)``, ``("spill", directory, [(id, block)])`` or an error.
        """
        self.waiting[asker] = _Request(size, missing)
        if size <= self._capacity:
            self.settle()
            if asker not in self.waiting:
                return
            if not self._ask_back(asker[0]) and stage == "first":
                stage = "spill"
        victims = self._victims() if stage == "spill" and size <= self._capacity else []
        if victims:
            self._order_spill(asker, victims)
        elif stage == "fail" or size > self._capacity:
            del self.waiting[asker]
            self._answer(asker, ("error", error_value(StoreFullError(self.describe(size)))))

    def cancel(self, asker: Asker) -> None:
        """Forget a question."""
        self.waiting.pop(asker, None)

    def settle(self) -> None:
        """Grant what fits now, first come first served."""
        while self.waiting:
            asker, request = next(iter(self.waiting.items()))
            free = self.free_bytes
            if request.size > self._capacity or free < request.missing:
                return
            del self.waiting[asker]
            chunk = min(_CHUNK_BYTES, self._capacity // _SHARE)
            grant = min(free, max(request.missing, chunk))
            self._granted[asker[0]] += grant
            self._answer(asker, ("plain", ("grant", grant)))

    def give_back(self, process: int, size: int) -> None:
        """A process needs less than it was granted."""
        self._granted[process] -= size
        self.settle()

    def spilled(self, process: int, arena_id: int, places: list[Place]) -> None:
        """Objects have been copied to a file; those still unused live there from now on."""
        self._arenas.move_to_disk(arena_id)
        in_use = self._in_use()
        for object_id, offset, checksum in places:
            entry = self._objects.get(object_id)
            old = None if entry is None or object_id in in_use else self._movable(entry)
            if old is None or old.block is None:
                continue
            new = old._replace(block=(arena_id, offset, old.block[2]), checksum=checksum)
            self._arenas.retain(new)
            self._objects.spill(object_id, new)
            self._arenas.release(old)
        self._arenas.close_if_dead(arena_id)
        self._end_spill(process)

    def not_spilled(self, process: int, reason: str) -> None:
        """The file could not be written."""
        self._trouble = reason
        self._end_spill(process)

    def drop_process(self, process: int) -> None:
        """A process is gone, and what it was granted is free."""
        del self._granted[process]
        for asker in [asker for asker in self.waiting if asker[0] == process]:
            del self.waiting[asker]
        self._end_spill(process)

    def fail_all(self, error: Answer) -> None:
        """Answer every question with an error: the engine is over."""
        while self.waiting:
            asker, _ = self.waiting.popitem()
            self._answer(asker, error)

    def describe(self, size: int) -> str:
        """Return why a value does not fit, and who holds what."""
        usage = self._arenas.usage(self._machine)
        text = (
            f"a value of {_mb(size)} {'can never' if size > self._capacity else 'does not'} fit "
            f"into object_store_memory={self._capacity}: "
            f"{_mb(usage.in_memory)} used, {_mb(self._taken(usage) - usage.in_memory)} kept by "
            f"processes for what they write next, {_mb(usage.on_disk)} spilled to "
            f"{self._directory}"
        )
        if self._trouble:
            text += f" (and no more could be: {self._trouble})"
        holders = "; ".join(self._top_holders())
        if holders:
            text += f". Most is held by: {holders}"
        return f"{text}. Drop refs and views, store smaller values or raise object_store_memory"

    def _taken(self, usage: Usage) -> int:
        """Return the bytes that are spoken for: a daemon writes copies without asking."""
        return usage.left + (self._granted | usage.live).total()

    def _ask_back(self, asker: int) -> bool:
        """Ask all but the asker for what they keep and do not use; return whether any has some."""
        live = self._arenas.usage(self._machine).live
        rich = [
            who for who, granted in self._granted.items() if who != asker and granted > live[who]
        ]
        for process in rich:
            self._send(process, ("trim",))
        return bool(rich)

    def _victims(self) -> list[tuple[int, tuple[int, int, int]]]:
        """Return what to move to disk for all who wait, or nothing if it would not help."""
        need = sum(request.missing for request in self.waiting.values()) - self.free_bytes
        goal = max(need, min(_SPILL_BYTES, self._capacity // _SHARE))
        in_use, found, total = self._in_use(), [], 0
        for object_id, entry in self._objects.resident():
            if total >= goal:
                break
            value = self._movable(entry)
            is_taken = object_id in in_use or object_id in self._spilling
            if value is not None and value.block is not None and not is_taken:
                found.append((object_id, value.block))
                total += block_bytes(value.block[2])
        return found if total >= need else []

    def _movable(self, entry: Entry) -> Value | None:
        """Return the value of an object of this machine's memory that nobody looks at."""
        value = entry.value
        is_here = value is not None and value.block is not None and self._is_here(value.block[0])
        return value if is_here and not entry.views else None

    def _is_here(self, arena_id: int) -> bool:
        return self._arenas.machine_of(arena_id) == self._machine

    def _order_spill(self, asker: Asker, victims: list[tuple[int, tuple[int, int, int]]]) -> None:
        del self.waiting[asker]
        for object_id, _ in victims:
            self._spilling[object_id] = asker[0]
            entry = self._objects.get(object_id)
            assert entry is not None, "victims exist"
            assert entry.value is not None, "victims are ready"
            self._arenas.ship(asker[0], entry.value)
        self._answer(asker, ("plain", ("spill", self._directory, victims)))

    def _end_spill(self, process: int) -> None:
        self._spilling = {o: who for o, who in self._spilling.items() if who != process}
        self.settle()

    def _top_holders(self) -> list[str]:
        """Return who made the most, in words, the largest first."""
        sizes: Counter[int] = Counter()
        made: dict[int, list[int]] = {}
        for object_id, entry in self._objects.resident():
            assert entry.value is not None, "what is in memory is ready"
            block = entry.value.block
            if block is not None and self._is_here(block[0]):
                arena_id, _, size = block
                maker = self._arenas.owner(arena_id)
                sizes[maker] += block_bytes(size)
                made.setdefault(maker, []).append(object_id)
        return [
            f"{self._name_of(maker)} made {len(made[maker])} of {_mb(size)}, kept by "
            f"{self._keepers(made[maker])}"
            for maker, size in sizes.most_common(_NUM_HOLDERS)
        ]

    def _keepers(self, object_ids: list[int]) -> str:
        """Return what keeps objects alive, the most frequent first."""
        kinds: Counter[str] = Counter()
        for number in object_ids:
            kinds.update(
                f"{'views' if is_view else 'refs'} in {self._name_of(process)}"
                for process, is_view in self._objects.holders(number)
            )
        kept = [f"{kind} ({count})" for kind, count in kinds.most_common(_NUM_HOLDERS)]
        return ", ".join(kept) or "calls and other objects"


def _mb(size: int) -> str:
    """Return bytes as people say them.

    >>> _mb(3 << 20), _mb(100)
    ('3.0 MB', '0.0 MB')
    """
    return f"{size / (1 << 20):.1f} MB"
